-- The events that each consumer has handled.
CREATE TABLE inbox (
    consumer    text        NOT NULL,
    event_id    uuid        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, event_id)
);

-- For pruning, which then reads only the rows that it deletes. Rows arrive in this order, so the index costs an insert almost nothing.
-- (A BRIN index would cost less, but its ranges never shrink. Once the space of pruned rows is reused, it would match the whole table.)
CREATE INDEX inbox_received_at ON inbox (consumer, received_at);
