//! Publishes outbox records to Kafka, and consumes them once
