-- Events that are to be sent later. When one is due, a relay moves it into the outbox. They have a table of their own, so that the
-- outbox holds only what can be sent.
CREATE TABLE outbox_scheduled (
    id            uuid         PRIMARY KEY,
    -- The order in which events were emitted that are due at the same time.
    seq           bigint GENERATED ALWAYS AS IDENTITY,
    aggregatetype varchar(255) NOT NULL,
    aggregateid   varchar(255) NOT NULL,
    type          varchar(255) NOT NULL,
    -- Null is a tombstone.
    payload       bytea,
    headers       json,
    shard         smallint     NOT NULL CHECK (shard BETWEEN 0 AND 15),
    -- When it was emitted, in UTC.
    created_at    timestamp(3) NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'utc'),
    due_at        timestamptz  NOT NULL
);

CREATE INDEX outbox_scheduled_due ON outbox_scheduled (due_at, seq);

-- One row. The relay that moves events locks it, so that they keep their order.
CREATE TABLE outbox_promotion (
    turn smallint PRIMARY KEY CHECK (turn = 0)
);

INSERT INTO outbox_promotion (turn) VALUES (0);
