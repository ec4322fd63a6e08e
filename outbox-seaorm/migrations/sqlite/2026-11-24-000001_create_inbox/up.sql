-- The events that each consumer has handled.
CREATE TABLE inbox (
    consumer    TEXT NOT NULL,
    event_id    TEXT NOT NULL,
    received_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (consumer, event_id)
) WITHOUT ROWID;

-- For pruning, which then reads only the rows that it deletes.
CREATE INDEX inbox_received_at ON inbox (consumer, received_at);
