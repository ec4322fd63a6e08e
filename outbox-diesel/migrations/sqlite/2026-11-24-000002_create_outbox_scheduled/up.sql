-- Events that are to be sent later. When one is due, a relay moves it into the outbox. They have a table of their own, so that the
-- outbox holds only what can be sent.
CREATE TABLE outbox_scheduled (
    -- The order in which events were emitted that are due at the same time.
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    id            TEXT NOT NULL UNIQUE,
    aggregatetype TEXT NOT NULL,
    aggregateid   TEXT NOT NULL,
    type          TEXT NOT NULL,
    -- Null is a tombstone.
    payload       BLOB,
    headers       TEXT,
    shard         INTEGER NOT NULL,
    -- When it was emitted.
    created_at    TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    due_at        TEXT NOT NULL
);

CREATE INDEX outbox_scheduled_due ON outbox_scheduled (due_at, seq);
