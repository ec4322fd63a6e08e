//! `outbox debezium connector`

use super::DebeziumOutbox;
use super::properties::Properties;
use crate::command::origin::Origins;

/// What stands for the aggregate type in a relay's pattern, and in the router's.
const PLACEHOLDERS: [&str; 2] = ["{aggregatetype}", "${routedByValue}"];

/// A worker replaces it by the variable of its environment.
const PASSWORD: &str = "${env:OUTBOX_DATABASE_PASSWORD}";

/// Marks the messages that move the slot on while the outbox is idle and other tables change.
const HEARTBEAT: &str = "outbox-heartbeat";

/// Refuses what cannot be part of a topic's name.
pub(crate) fn connector_name(name: &str) -> Result<String, &'static str> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.is_empty() && name.chars().all(is_good) {
        Ok(name.to_owned())
    } else {
        Err("use letters, digits, `.`, `_` and `-`")
    }
}

/// The connector's properties, for a relay's pattern of topics.
pub(super) fn connector(outbox: &DebeziumOutbox, name: &str, topic: &str) -> Properties {
    let server = &outbox.server;
    let given = |text: &str| text.to_owned();
    let mut properties: Properties = vec![
        ("connector.class", given("io.debezium.connector.postgresql.PostgresConnector")),
        ("tasks.max", given("1")),
        ("database.hostname", server.host.clone()),
        ("database.port", server.port.clone()),
        ("database.user", server.user.clone()),
        ("database.password", given(PASSWORD)),
        ("database.dbname", server.database.clone()),
    ];
    properties.extend(server.tls.iter().map(|(name, value)| {
        let name = match *name {
            "sslmode" => "database.sslmode",
            "sslrootcert" => "database.sslrootcert",
            "sslcert" => "database.sslcert",
            _ => "database.sslkey",
        };
        (name, value.clone())
    }));
    properties.extend([
        ("topic.prefix", given(name)),
        ("table.include.list", format!("{}.outbox", pattern(&outbox.schema))),
        ("plugin.name", given("pgoutput")),
        ("slot.name", outbox.slot.clone()),
        ("publication.name", outbox.publication.clone()),
        ("publication.autocreate.mode", given("disabled")),
        ("snapshot.mode", given("no_data")),
        ("offset.mismatch.strategy", given("trust_greater_lsn")),
        ("heartbeat.interval.ms", given("60000")),
        ("heartbeat.action.query", format!("SELECT pg_logical_emit_message(false, '{HEARTBEAT}', '')")),
        ("message.prefix.exclude.list", given(HEARTBEAT)),
        ("tombstones.on.delete", given("false")),
        ("extended.headers.enabled", given("false")),
        ("key.converter", given("org.apache.kafka.connect.storage.StringConverter")),
        ("value.converter", given("io.debezium.converters.BinaryDataConverter")),
        ("value.converter.delegate.converter.type", given("org.apache.kafka.connect.json.JsonConverter")),
        ("value.converter.delegate.converter.type.schemas.enable", given("false")),
        ("header.converter", given("org.apache.kafka.connect.storage.StringConverter")),
        ("transforms", given("outbox")),
        ("transforms.outbox.type", given("io.debezium.transforms.outbox.EventRouter")),
        ("transforms.outbox.route.topic.replacement", topic.replace(PLACEHOLDERS[0], PLACEHOLDERS[1])),
        ("transforms.outbox.table.field.event.timestamp", given("created_at")),
        ("transforms.outbox.table.fields.additional.placement", given("type:header:eventType")),
        ("poll.interval.ms", given("5")),
        ("max.batch.size", given("16384")),
        ("max.queue.size", given("65536")),
        ("max.queue.size.in.bytes", given("67108864")),
        ("producer.override.acks", given("all")),
        ("producer.override.enable.idempotence", given("true")),
        ("producer.override.max.in.flight.requests.per.connection", given("5")),
        ("producer.override.linger.ms", given("0")),
    ]);
    properties
}

/// A regular expression that matches this name alone, in a list with commas.
fn pattern(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        if !(character.is_alphanumeric() || character == '_' || character == ' ') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

/// What whoever starts the connector must know.
pub(super) fn notes(origins: &Origins) -> Vec<String> {
    let mut notes = vec![
        "The worker reads the password from its environment if it has config.providers=env and \
         config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider."
            .to_owned(),
        "The worker lets a connector override its producer's settings if it has \
         connector.client.config.override.policy=All, the default from Kafka 4 on."
            .to_owned(),
        "Make the publication and the slot first: see `outbox debezium setup-sql` and `outbox debezium check`."
            .to_owned(),
    ];
    if let Some(origin) = origins.given("allow_topics") {
        notes.push(format!(
            "{origin}: Debezium has no list of allowed topics. Restrict the topics by Kafka's ACLs; a record that Kafka \
             refuses stops the connector.",
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::args::{Action, DebeziumAction};
    use crate::command::invocation::Invocation;

    fn printed(arguments: &[&str]) -> Result<(Properties, Vec<String>), String> {
        let url = ["outbox", "debezium", "connector", "--database-url", "postgres://ann:s3cret@db/shop"];
        let variables = [("OUTBOX_ALLOW_TOPICS".into(), "shop.*".into())];
        let invocation = Invocation::read(url.iter().chain(arguments), variables.into_iter());
        let Invocation { action, origins } = invocation.map_err(|error| format!("{error:?}"))?;
        let Action::Debezium(DebeziumAction::Connector { name, common, wal, topics, .. }) = action else {
            panic!("{action:?}");
        };
        let outbox = DebeziumOutbox::chosen(&common, &wal, &origins).map_err(|error| error.to_string())?;
        Ok((connector(&outbox, &name, &topics.topic.text), notes(&origins)))
    }

    #[track_caller]
    fn property(arguments: &[&str], name: &str) -> String {
        let (properties, _) = printed(arguments).expect("properties");
        let found: Vec<_> = properties.iter().filter(|(given, _)| *given == name).collect();
        assert_eq!(found.len(), 1, "{name}");
        found[0].1.clone()
    }

    #[test]
    fn a_topic_pattern_becomes_the_routers() {
        let topic = |arguments: &[&str]| property(arguments, "transforms.outbox.route.topic.replacement");
        assert_eq!(topic(&[]), "outbox.event.${routedByValue}");
        assert_eq!(topic(&["--topic", "a-b_C.{aggregatetype}.v1"]), "a-b_C.${routedByValue}.v1");
        assert_eq!(topic(&["--topic", "events"]), "events");
    }

    #[test]
    fn a_schema_is_matched_literally() {
        let table = |schema| property(&["--schema", schema], "table.include.list");
        assert_eq!(property(&[], "table.include.list"), "public.outbox");
        assert_eq!(table("shop events"), "shop events.outbox");
        assert_eq!(table("a.b|c$"), "a\\.b\\|c\\$.outbox");
        assert_eq!(pattern("a,b"), "a\\,b");
    }

    #[test]
    fn a_note_says_that_the_list_of_allowed_topics_is_lost_and_the_password_is_not_printed() {
        let (properties, notes) = printed(&[]).expect("properties");
        assert!(notes.iter().any(|note| note.starts_with("OUTBOX_ALLOW_TOPICS: ")), "{notes:?}");
        assert!(!format!("{properties:?}{notes:?}").contains("s3cret"));
    }

    #[test]
    fn a_name_that_debezium_does_not_quote_is_refused() {
        let problem = printed(&["--publication", "Shop"]).expect_err("no plain name");
        assert!(problem.starts_with("--publication: `Shop` is wrong"), "{problem}");
    }
}
