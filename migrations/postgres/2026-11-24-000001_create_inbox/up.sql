-- The events that each consumer has handled.
CREATE TABLE inbox (
    consumer    text        NOT NULL,
    event_id    uuid        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, event_id)
);

-- For pruning, which looks at nothing but what it deletes. Rows arrive in this order, so that it costs an insert next to nothing. (A
-- BRIN index would cost less, but its ranges never shrink: when the space of pruned rows is used again it finds all of the table.)
CREATE INDEX inbox_received_at ON inbox (consumer, received_at);
