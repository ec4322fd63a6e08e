-- The outbox: one row for each event, written in the transaction that caused it.
CREATE TABLE outbox (
    -- The order of the events. AUTOINCREMENT never reuses a number.
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    id            TEXT NOT NULL,
    aggregatetype TEXT NOT NULL,
    aggregateid   TEXT NOT NULL,
    type          TEXT NOT NULL,
    -- Null is a tombstone.
    payload       BLOB,
    -- A JSON object of header names and values, in order.
    headers       TEXT,
    -- A hash of aggregate type and id, 0 to 15. All events of one aggregate are in one shard.
    shard         INTEGER NOT NULL,
    created_at    TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    sent_at       TEXT
);

CREATE INDEX outbox_unsent ON outbox (seq) WHERE sent_at IS NULL;

-- Events that the broker will never accept, with the reason. They are moved here from the outbox.
CREATE TABLE outbox_dead_letter (
    seq           INTEGER NOT NULL,
    id            TEXT NOT NULL,
    aggregatetype TEXT NOT NULL,
    aggregateid   TEXT NOT NULL,
    type          TEXT NOT NULL,
    payload       BLOB,
    headers       TEXT,
    shard         INTEGER NOT NULL,
    created_at    TEXT NOT NULL,
    reason        TEXT NOT NULL,
    failed_at     TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- The id too, because a sequence that was restarted returns a number twice.
    PRIMARY KEY (seq, id)
);

-- A relay that holds back the rest of an aggregate looks for its first dead letter.
CREATE INDEX outbox_dead_letter_aggregate ON outbox_dead_letter (aggregateid, aggregatetype, seq);
