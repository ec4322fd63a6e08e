DROP TABLE outbox_scheduled;
