-- Events that are to be sent later. When one is due, a relay moves it into the outbox. They have a table of their own, so that the
-- outbox holds only what can be sent.
CREATE TABLE IF NOT EXISTS outbox_scheduled (
    -- The key, so that whoever cancels an event and whoever moves it lock it in the same order.
    id            char(36)     CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    -- The order in which events were emitted that are due at the same time.
    seq           bigint       NOT NULL AUTO_INCREMENT,
    aggregatetype varchar(255) NOT NULL,
    aggregateid   varchar(255) NOT NULL,
    type          varchar(255) NOT NULL,
    -- Null is a tombstone.
    payload       longblob,
    headers       longtext,
    shard         smallint     NOT NULL CHECK (shard BETWEEN 0 AND 15),
    -- When it was emitted, in UTC.
    created_at    datetime(3)  NOT NULL,
    -- In UTC.
    due_at        datetime(6)  NOT NULL,
    PRIMARY KEY (id),
    KEY outbox_scheduled_seq (seq),
    KEY outbox_scheduled_due (due_at, seq)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One row. The relay that moves events locks it, so that they keep their order.
CREATE TABLE IF NOT EXISTS outbox_promotion (
    turn smallint NOT NULL CHECK (turn = 0),
    PRIMARY KEY (turn)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

INSERT IGNORE INTO outbox_promotion (turn) VALUES (0);
