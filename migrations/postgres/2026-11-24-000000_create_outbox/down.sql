DROP TABLE outbox_requeued;
DROP TABLE outbox_dead_letter;
DROP TABLE outbox_slot;
DROP VIEW outbox_reader;
DROP TABLE outbox_shard;
DROP TABLE outbox;
