-- A service that emits. It may insert, and sees nothing of the outbox. It chooses no number: a row with the greatest one would leave none for others.
GRANT INSERT (id, aggregatetype, aggregateid, type, payload, headers, shard, created_at) ON {schema}.outbox TO {emitter};
-- It schedules events, and lists and cancels those that are scheduled.
GRANT SELECT, INSERT, DELETE ON {schema}.outbox_scheduled TO {emitter};
-- Migrations::run, when the service starts, asks which migrations have run.
GRANT SELECT ON {schema}.outbox_migration TO {emitter};

-- The relay. It reads the rows, sets sent_at, and prunes. It can change no event.
GRANT SELECT, UPDATE (sent_at), DELETE ON {schema}.outbox TO {relay};
-- It moves scheduled events into the outbox, one relay at a time.
GRANT INSERT (id, aggregatetype, aggregateid, type, payload, headers, shard, created_at) ON {schema}.outbox TO {relay};
GRANT SELECT, DELETE ON {schema}.outbox_scheduled TO {relay};
GRANT SELECT, UPDATE ON {schema}.outbox_promotion TO {relay};
-- It locks a shard's row while it works on the shard, and moves its bounds. No other role may lock these rows.
GRANT SELECT, UPDATE ON {schema}.outbox_shard TO {relay};
-- It moves what Kafka will never take there, and looks for aggregates that are held back.
GRANT SELECT, INSERT ON {schema}.outbox_dead_letter TO {relay};

-- A consumer. Its handlers need grants on their own tables.
-- It notes the ids of the events that it has handled, marks them to notice a deadlock, and prunes old ones.
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.inbox TO {consumer};
-- Migrations::run, when the service starts, asks which migrations have run.
GRANT SELECT ON {schema}.outbox_migration TO {consumer};

-- Whoever migrates. It may make and change the tables before they are there, and no other ones.
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE, DELETE ON {schema}.outbox TO {migrator};
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE, DELETE ON {schema}.outbox_shard TO {migrator};
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE, DELETE ON {schema}.outbox_dead_letter TO {migrator};
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE, DELETE ON {schema}.outbox_scheduled TO {migrator};
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE, DELETE ON {schema}.outbox_promotion TO {migrator};
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE, DELETE ON {schema}.inbox TO {migrator};
GRANT CREATE, ALTER, INDEX, SELECT, INSERT ON {schema}.outbox_migration TO {migrator};
