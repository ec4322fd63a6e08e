//! `outbox debezium connector` for MySQL and MariaDB

use super::{DebeziumOutbox, Tls};
use crate::command::database::mysql::Flavor;
use crate::command::debezium::connector::{self, PASSWORD, pattern, routing};
use crate::command::debezium::properties::Properties;
use crate::command::origin::Origins;

/// Servers and replicas seldom have numbers of this size, and the connectors of two outboxes hardly ever the same.
const SERVER_IDS: std::ops::Range<u32> = 1_000_000_000..4_000_000_000;

/// Under which number the connector reads the binlog if nobody names one: always the same for this connector and database.
pub(super) fn server_id(outbox: &DebeziumOutbox, name: &str) -> u32 {
    // FNV-1a
    let hash = format!("{name}/{}", outbox.database)
        .bytes()
        .fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
    SERVER_IDS.start + hash % (SERVER_IDS.end - SERVER_IDS.start)
}

/// The connector's properties, for a relay's pattern of topics.
pub(super) fn connector(
    outbox: &DebeziumOutbox,
    name: &str,
    server_id: u32,
    brokers: &str,
    topic: &str,
) -> Properties {
    let given = |text: &str| text.to_owned();
    let class = match outbox.flavor {
        Flavor::Mysql => "io.debezium.connector.mysql.MySqlConnector",
        Flavor::Mariadb => "io.debezium.connector.mariadb.MariaDbConnector",
    };
    let mut properties: Properties = vec![
        ("connector.class", given(class)),
        ("tasks.max", given("1")),
        ("database.hostname", outbox.host.clone()),
        ("database.port", outbox.port.clone()),
        ("database.user", outbox.user.clone()),
        ("database.password", given(PASSWORD)),
    ];
    properties.extend(outbox.tls.map(|tls| ("database.ssl.mode", given(mode(tls, outbox.flavor)))));
    properties.extend([
        ("database.server.id", server_id.to_string()),
        ("topic.prefix", given(name)),
        ("database.include.list", pattern(&outbox.database)),
        ("table.include.list", format!("{}.outbox", pattern(&outbox.database))),
        ("skipped.operations", given("u,d,t")),
        ("include.schema.changes", given("false")),
        ("event.converting.failure.handling.mode", given("fail")),
        ("snapshot.mode", given("recovery")),
        ("snapshot.locking.mode", given("none")),
        ("schema.history.internal.kafka.bootstrap.servers", given(brokers)),
        ("schema.history.internal.kafka.topic", format!("__debezium-schema-history.{name}")),
        ("schema.history.internal.store.only.captured.databases.ddl", given("true")),
        ("schema.history.internal.store.only.captured.tables.ddl", given("true")),
        ("schema.history.internal.skip.unparseable.ddl", given("true")),
        ("heartbeat.interval.ms", given("10000")),
    ]);
    properties.extend(routing(topic));
    properties
}

fn mode(tls: Tls, flavor: Flavor) -> &'static str {
    match (flavor, tls) {
        (Flavor::Mysql, Tls::Required) => "required",
        (Flavor::Mysql, Tls::VerifyAuthority) => "verify_ca",
        (Flavor::Mysql, Tls::VerifyHost) => "verify_identity",
        (Flavor::Mariadb, Tls::Required) => "trust",
        (Flavor::Mariadb, Tls::VerifyAuthority) => "verify-ca",
        (Flavor::Mariadb, Tls::VerifyHost) => "verify-full",
    }
}

/// What whoever starts the connector must know.
pub(super) fn notes(server_id: u32, origins: &Origins) -> Vec<String> {
    let number = format!(
        "No server and no replica may have the server id {server_id}. Name another one with --server-id if one has it."
    );
    let first = [
        "The connector does not start without an offset. Set that to what `outbox debezium offset` prints, and then resume the \
         connector. See `outbox debezium setup-sql` and `outbox debezium check` too.",
        &number,
        "The connector's schema history has Kafka clients of its own. If Kafka wants TLS or a login, add the worker's properties \
         for it twice, as schema.history.internal.producer.* and schema.history.internal.consumer.*.",
    ];
    connector::notes(&first, origins)
}

#[cfg(test)]
mod tests {
    use diesel_outbox_relay::mysql::Opts;

    use super::*;

    fn outbox(url: &str, flavor: Flavor) -> DebeziumOutbox {
        let opts = Opts::from_url(url).expect(url);
        DebeziumOutbox::named_by(&opts, flavor).expect(url)
    }

    fn property(properties: &Properties, name: &str) -> String {
        let found: Vec<_> = properties.iter().filter(|(given, _)| *given == name).collect();
        assert_eq!(found.len(), 1, "{name}");
        found[0].1.clone()
    }

    #[test]
    fn each_of_the_two_has_its_connector_and_a_database_is_matched_literally() {
        for (flavor, class) in [
            (Flavor::Mysql, "io.debezium.connector.mysql.MySqlConnector"),
            (Flavor::Mariadb, "io.debezium.connector.mariadb.MariaDbConnector"),
        ] {
            let outbox = outbox("mysql://ann:s3cret@db.example:3307/a.b%2Cc$", flavor);
            let printed = connector(&outbox, "shop", 7, "one:9092,two:9092", "events");
            for (name, value) in [
                ("connector.class", class),
                ("database.hostname", "db.example"),
                ("database.port", "3307"),
                ("database.user", "ann"),
                ("database.server.id", "7"),
                ("topic.prefix", "shop"),
                ("database.include.list", "a\\.b\\,c\\$"),
                ("table.include.list", "a\\.b\\,c\\$.outbox"),
                ("schema.history.internal.kafka.bootstrap.servers", "one:9092,two:9092"),
                ("schema.history.internal.kafka.topic", "__debezium-schema-history.shop"),
                ("transforms.outbox.route.topic.replacement", "events"),
            ] {
                assert_eq!(property(&printed, name), value, "{name}");
            }
            assert!(!format!("{printed:?}").contains("s3cret"));
        }
    }

    #[test]
    fn a_server_id_is_the_same_each_time_and_another_one_for_another_outbox() {
        let id = |database: &str, name| {
            server_id(&outbox(&format!("mysql://ann@db/{database}"), Flavor::Mysql), name)
        };
        assert_eq!(id("shop", "outbox"), id("shop", "outbox"));
        let ids = [id("shop", "outbox"), id("shop", "other"), id("store", "outbox")];
        assert!(ids.iter().all(|id| SERVER_IDS.contains(id)), "{ids:?}");
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
    }

    #[test]
    fn what_debezium_cannot_reach_is_refused() {
        for url in ["mysql://ann@db/shop?socket=%2Frun%2Fmysqld.sock", "mysql://db/shop"] {
            let opts = Opts::from_url(url).expect(url);
            DebeziumOutbox::named_by(&opts, Flavor::Mysql).expect_err(url);
        }
    }
}
