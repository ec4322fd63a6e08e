-- The outbox: one row for each event, written in the transaction that caused it.
-- The column names are the defaults of Debezium's Outbox Event Router.
CREATE TABLE IF NOT EXISTS outbox (
    -- The order of the events.
    seq           bigint       NOT NULL AUTO_INCREMENT,
    -- As text, because Debezium's router sends it in the header `id` as it stands here.
    id            char(36)     CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    aggregatetype varchar(255) NOT NULL,
    aggregateid   varchar(255) NOT NULL,
    type          varchar(255) NOT NULL,
    -- Null is a tombstone.
    payload       longblob,
    -- A JSON object of header names and values. The type is not json, because MySQL's json sorts the names.
    headers       longtext,
    -- A hash of aggregate type and id, 0 to 15. All events of one aggregate are in one shard.
    shard         smallint     NOT NULL CHECK (shard BETWEEN 0 AND 15),
    -- In UTC. It has no default, because MySQL before 8.0.13 has none that is in UTC.
    created_at    datetime(3)  NOT NULL,
    -- In UTC.
    sent_at       datetime(3),
    PRIMARY KEY (seq),
    KEY outbox_shard_seq (shard, seq)
-- This row format keeps room for a date that is null. In the others a row grows when it is marked as sent, which takes three times as long.
) ENGINE = InnoDB ROW_FORMAT = REDUNDANT DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One row for each shard. A relay that works on a shard locks its row.
CREATE TABLE IF NOT EXISTS outbox_shard (
    shard        smallint NOT NULL,
    -- Every row of the shard with a seq up to this number has been sent, is listed in `unsent`, or will never exist.
    sent_through bigint   NOT NULL DEFAULT 0,
    -- The seq of each row up to `sent_through` that was not sent when this was written, such as that of a transaction that had not
    -- ended, separated by commas.
    unsent       longtext NOT NULL,
    -- The seq and id of a row that was in the table when this was written. A table that was truncated counts from 1 again: if the row is
    -- gone, the relay looks at all of the shard's rows.
    witness      bigint,
    witness_id   char(36) CHARACTER SET ascii COLLATE ascii_bin,
    PRIMARY KEY (shard)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

INSERT IGNORE INTO outbox_shard (shard, unsent) VALUES
    (0, ''), (1, ''), (2, ''), (3, ''), (4, ''), (5, ''), (6, ''), (7, ''),
    (8, ''), (9, ''), (10, ''), (11, ''), (12, ''), (13, ''), (14, ''), (15, '');

-- Events that the broker will never accept, with the reason. They are moved here from the outbox.
CREATE TABLE IF NOT EXISTS outbox_dead_letter (
    seq           bigint       NOT NULL,
    id            char(36)     CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    aggregatetype varchar(255) NOT NULL,
    aggregateid   varchar(255) NOT NULL,
    type          varchar(255) NOT NULL,
    payload       longblob,
    headers       longtext,
    shard         smallint     NOT NULL,
    created_at    datetime(3)  NOT NULL,
    reason        longtext     NOT NULL,
    failed_at     datetime(3)  NOT NULL,
    -- The id too, because a table that was truncated returns a number twice.
    PRIMARY KEY (seq, id),
    -- A relay that holds back the rest of an aggregate looks for its first dead letter.
    KEY outbox_dead_letter_aggregate (aggregateid(64), aggregatetype(32))
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
