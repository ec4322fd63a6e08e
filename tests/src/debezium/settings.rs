//! The properties of Kafka Connect and of Debezium's connector.

use std::path::Path;

use crate::postgres::Database;

type Properties = Vec<(String, String)>;

pub(super) const TUNED: [(&str, &str); 6] = [
    ("poll.interval.ms", "5"),
    ("max.batch.size", "16384"),
    ("max.queue.size", "65536"),
    ("producer.override.enable.idempotence", "true"),
    ("producer.override.max.in.flight.requests.per.connection", "5"),
    ("producer.override.linger.ms", "0"),
];

/// What a worker needs for a connector as the binary prints it. First, it stores offsets each second, so that less is repeated.
pub(crate) const ASKED_FOR: [(&str, &str); 3] = [
    ("offset.flush.interval.ms", "1000"),
    ("config.providers", "env"),
    ("config.providers.env.class", "org.apache.kafka.common.config.provider.EnvVarConfigProvider"),
];

/// Returns the properties of the worker.
pub(crate) fn worker(brokers: &str, folder: &Path, own: &[(&str, &str)]) -> Properties {
    let offsets = folder.join("offsets").display().to_string();
    let mut properties = owned(&[
        ("bootstrap.servers", brokers),
        ("offset.storage.file.filename", &offsets),
        ("listeners", "http://127.0.0.1:0"),
        ("plugin.discovery", "service_load"),
        ("key.converter", "org.apache.kafka.connect.storage.StringConverter"),
        ("value.converter", "io.debezium.converters.BinaryDataConverter"),
    ]);
    properties.extend(owned(own));
    properties
}

/// Returns the properties of the connector. Its slot and publication have the given name.
pub(super) fn connector(
    database: &Database<'_>,
    name: &str,
    topic: &str,
    own: &[(&str, &str)],
) -> Properties {
    let server = database.address();
    let mut properties = owned(&[
        ("name", "outbox"),
        ("connector.class", "io.debezium.connector.postgresql.PostgresConnector"),
        ("tasks.max", "1"),
        ("database.hostname", &server.host),
        ("database.port", &server.port.to_string()),
        ("database.user", &server.user),
        ("database.password", &server.password),
        ("database.dbname", database.name()),
        ("topic.prefix", name),
        ("table.include.list", "public.outbox"),
        ("plugin.name", "pgoutput"),
        ("slot.name", name),
        ("publication.name", name),
        ("publication.autocreate.mode", "disabled"),
        ("snapshot.mode", "no_data"),
        ("extended.headers.enabled", "false"),
        ("transforms", "outbox"),
        ("transforms.outbox.type", "io.debezium.transforms.outbox.EventRouter"),
        ("transforms.outbox.route.topic.replacement", topic),
        ("transforms.outbox.table.fields.additional.placement", "type:header:eventType"),
        ("transforms.outbox.table.field.event.timestamp", "created_at"),
    ]);
    properties.extend(owned(own));
    properties
}

fn owned(properties: &[(&str, &str)]) -> Properties {
    properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
