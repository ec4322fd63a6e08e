-- A service that emits. It may insert, and sees nothing of the outbox. It chooses no number: a row with the greatest one would leave none for others.
GRANT USAGE ON SCHEMA {schema} TO {emitter};
GRANT INSERT (id, aggregatetype, aggregateid, type, payload, headers, shard, created_at) ON {schema}.outbox TO {emitter};
-- It schedules events, and lists and cancels those that are scheduled.
GRANT SELECT, INSERT, DELETE ON {schema}.outbox_scheduled TO {emitter};
-- Migrations::run, when the service starts, asks which migrations have run.
GRANT SELECT ON {schema}.outbox_migration TO {emitter};

-- The relay. A role that it may log in as needs the attribute REPLICATION too if it reads the write-ahead log: no role hands that on.
GRANT USAGE ON SCHEMA {schema} TO {relay};
-- It reads the rows, sets sent_at, gives new numbers after the sequence was set back, and prunes. It can change no event.
GRANT SELECT, UPDATE (seq, sent_at), DELETE ON {schema}.outbox TO {relay};
-- It moves scheduled events into the outbox, one relay at a time. To lock a row takes UPDATE on a column; this one nobody can set.
GRANT INSERT (id, aggregatetype, aggregateid, type, payload, headers, shard, created_at) ON {schema}.outbox TO {relay};
GRANT SELECT, UPDATE (seq), DELETE ON {schema}.outbox_scheduled TO {relay};
GRANT SELECT, UPDATE ON {schema}.outbox_promotion TO {relay};
-- It locks a shard's row while it works on the shard, and moves its bounds. No other role may lock these rows.
GRANT SELECT, UPDATE ON {schema}.outbox_shard TO {relay};
-- It looks at the last number, and moves the sequence on if somebody has set it back.
GRANT SELECT, UPDATE ON {schema}.outbox_seq_seq TO {relay};
-- It moves what Kafka will never take there, and looks for aggregates that are held back.
GRANT SELECT, INSERT ON {schema}.outbox_dead_letter TO {relay};
-- It looks where requeued dead letters belong, and forgets that when they are sent.
GRANT SELECT, DELETE ON {schema}.outbox_requeued TO {relay};
-- It measures how far the slot is behind, and, if it reads the write-ahead log, notes how far it has come.
GRANT SELECT, UPDATE ON {schema}.outbox_slot TO {relay};
-- The relay that reads the write-ahead log locks this. No other role may lock it.
GRANT UPDATE ON {schema}.outbox_reader TO {relay};

-- A consumer. Its handlers need grants on their own tables.
GRANT USAGE ON SCHEMA {schema} TO {consumer};
-- It notes the ids of the events that it has handled, and prunes old ones, for which it looks for them.
GRANT SELECT, INSERT, DELETE ON {schema}.inbox TO {consumer};
-- Migrations::run, when the service starts, asks which migrations have run.
GRANT SELECT ON {schema}.outbox_migration TO {consumer};

-- Whoever migrates. The tables become this role's, because only an owner may change a table.
GRANT USAGE, CREATE ON SCHEMA {schema} TO {migrator};
