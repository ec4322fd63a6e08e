//! `outbox debezium connector` for PostgreSQL

use super::DebeziumOutbox;
use crate::command::debezium::connector::{self, PASSWORD, pattern, routing};
use crate::command::debezium::properties::Properties;
use crate::command::origin::Origins;

/// Marks the messages that move the slot on while the outbox is idle and other tables change.
const HEARTBEAT: &str = "outbox-heartbeat";

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
    ]);
    properties.extend(routing(topic));
    properties
}

/// What whoever starts the connector must know.
pub(super) fn notes(origins: &Origins) -> Vec<String> {
    let first = "Make the publication and the slot first: see `outbox debezium setup-sql` and `outbox debezium check`.";
    connector::notes(&[first], origins)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::args::{Action, DebeziumAction};
    use crate::command::database::OutboxDatabase;
    use crate::command::failure::Failure;
    use crate::command::invocation::Invocation;

    fn printed(arguments: &[&str]) -> Result<(Properties, Vec<String>), String> {
        let url = ["outbox", "debezium", "connector", "--database-url", "postgres://ann:s3cret@db/shop"];
        let variables = [("OUTBOX_ALLOW_TOPICS".into(), "shop.*".into())];
        let invocation = Invocation::read(url.iter().chain(arguments), variables.into_iter());
        let Invocation { action, origins } = invocation.map_err(|error| format!("{error:?}"))?;
        let Action::Debezium(DebeziumAction::Connector { name, common, wal, topics, .. }) = action else {
            panic!("{action:?}");
        };
        let outbox = OutboxDatabase::only_chosen(&common.database, &origins)
            .map_err(Failure::from)
            .and_then(|database| DebeziumOutbox::chosen(&database, &wal, &origins))
            .map_err(|error| error.to_string())?;
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
    fn a_schema_is_matched_literally() {
        let table = |schema| property(&["--schema", schema], "table.include.list");
        assert_eq!(property(&[], "table.include.list"), "public.outbox");
        assert_eq!(table("shop events"), "shop events.outbox");
        assert_eq!(table("a.b|c$"), "a\\.b\\|c\\$.outbox");
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
