-- The events that each consumer has handled.
CREATE TABLE IF NOT EXISTS inbox (
    -- As bytes, because MySQL takes texts for equal that differ in trailing spaces.
    consumer    varbinary(255) NOT NULL,
    event_id    char(36)       CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    -- In UTC.
    received_at datetime(3)    NOT NULL,
    PRIMARY KEY (consumer, event_id),
    -- For pruning, which then reads only the rows that it deletes.
    KEY inbox_received_at (consumer, received_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
