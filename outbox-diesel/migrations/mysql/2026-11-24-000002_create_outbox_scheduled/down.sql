DROP TABLE outbox_promotion;
DROP TABLE outbox_scheduled;
