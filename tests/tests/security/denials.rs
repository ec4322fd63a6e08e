//! What each role must not do, tried one after the other.

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel_outbox::MigrateConnection;
use outbox_tests::load::drop_roles;
use outbox_tests::{Mariadb, MariadbDatabase, Postgres};

use super::{done, role_arguments};

const COLUMNS: &str = "(id, aggregatetype, aggregateid, type, shard, created_at)";
const ROW: &str = "'0190a5d7-0000-7000-8000-000000000000', 'a', '1', 't', 0, '2026-01-01 00:00:00'";

/// A table of the service, which none of the roles has to do with.
const SECRET: &str = "CREATE TABLE secret (body text); INSERT INTO secret VALUES ('plan')";

/// Runs each statement in a transaction that is rolled back. Each must be denied.
#[track_caller]
fn are_denied<C>(conn: &mut C, role: &str, statements: &[&str], says: &[&str])
where
    C: MigrateConnection<TransactionManager = AnsiTransactionManager> + SimpleConnection,
{
    for statement in statements {
        AnsiTransactionManager::begin_transaction(conn).unwrap();
        let text = conn.batch_execute(statement).map_err(|error| error.to_string());
        AnsiTransactionManager::rollback_transaction(conn).unwrap();
        let denied = matches!(&text, Err(text) if says.iter().any(|says| text.contains(says)));
        assert!(denied, "{role}, {statement}: {text:?}");
    }
}

/// What nobody but the migrator may do.
const CHANGES: [&str; 9] = [
    "CREATE TABLE another (n int)",
    "CREATE FUNCTION now() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER TABLE outbox ADD another int",
    "DROP TABLE outbox_shard",
    "TRUNCATE outbox",
    "CREATE INDEX ON outbox (id)",
    "CREATE RULE r AS ON INSERT TO outbox DO INSTEAD NOTHING",
    "CREATE TRIGGER t BEFORE INSERT ON outbox EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "INSERT INTO outbox_migration VALUES ('1')",
];

#[test]
fn the_roles_on_postgres_are_denied_all_else() {
    let database = Postgres::shared_version(15).database();
    let conn = &mut database.connect();
    conn.batch_execute(SECRET).unwrap();
    let prefix = format!("{}_", database.name());
    let arguments = role_arguments(&prefix);
    done(database.url(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    conn.batch_execute(&format!("INSERT INTO outbox {COLUMNS} VALUES ({ROW})")).unwrap();
    let insert = format!("INSERT INTO outbox {COLUMNS} VALUES ({ROW})");
    let (dead_letter, returning) = (
        "INSERT INTO outbox_dead_letter SELECT seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, '' FROM outbox",
        format!("{insert} RETURNING seq"),
    );
    let login = |role: &str| {
        let role = format!("{prefix}{role}");
        database.connect().batch_execute(&format!("ALTER ROLE {role} LOGIN PASSWORD 'x'")).unwrap();
        PgConnection::establish(&database.url_as(&role, "x")).unwrap()
    };
    let says = ["permission denied", "must be owner"];

    let emitter = &mut login("emitter");
    emitter.batch_execute(&format!("BEGIN; {insert}; ROLLBACK")).unwrap();
    let statements = [
        &*returning,
        "SELECT 1 FROM outbox",
        "SELECT count(*) FROM outbox",
        "UPDATE outbox SET sent_at = now()",
        "UPDATE outbox SET payload = NULL",
        "DELETE FROM outbox",
        "LOCK TABLE outbox IN SHARE MODE",
        "INSERT INTO outbox (seq, id, aggregatetype, aggregateid, type, shard) VALUES (9223372036854775807, gen_random_uuid(), 'a', '1', 't', 0)",
        "INSERT INTO outbox (sent_at, id, aggregatetype, aggregateid, type, shard) VALUES (now(), gen_random_uuid(), 'a', '1', 't', 0)",
        "SELECT 1 FROM outbox_shard",
        "SELECT 1 FROM outbox_shard FOR UPDATE",
        "UPDATE outbox_shard SET sent_through = 9",
        "UPDATE outbox_scheduled SET payload = NULL",
        "SELECT 1 FROM outbox_promotion FOR UPDATE",
        "SELECT 1 FROM outbox_dead_letter",
        "DELETE FROM outbox_dead_letter",
        "INSERT INTO outbox_dead_letter SELECT",
        "SELECT 1 FROM outbox_requeued",
        "DELETE FROM outbox_requeued",
        "SELECT 1 FROM outbox_slot",
        "UPDATE outbox_slot SET sent_events = 9",
        "LOCK TABLE outbox_reader IN EXCLUSIVE MODE",
        "SELECT last_value FROM outbox_seq_seq",
        "SELECT nextval('outbox_seq_seq')",
        "SELECT setval('outbox_seq_seq', 1)",
        "SELECT 1 FROM inbox",
        "INSERT INTO inbox (consumer, event_id) VALUES ('c', gen_random_uuid())",
        "SELECT 1 FROM secret",
    ];
    are_denied(emitter, "emitter", &[&statements[..], &CHANGES].concat(), &says);

    let relay = &mut login("relay");
    relay.batch_execute(&format!("BEGIN; {dead_letter}; DELETE FROM outbox; ROLLBACK")).unwrap();
    let statements = [
        "UPDATE outbox_scheduled SET payload = NULL",
        "INSERT INTO outbox_scheduled (id) VALUES (NULL)",
        "DELETE FROM outbox_promotion",
        "UPDATE outbox SET payload = NULL",
        "UPDATE outbox SET headers = NULL",
        "UPDATE outbox SET aggregateid = '2'",
        "UPDATE outbox SET shard = 1",
        "UPDATE outbox SET id = gen_random_uuid()",
        "INSERT INTO outbox_shard (shard) VALUES (3)",
        "DELETE FROM outbox_shard",
        "UPDATE outbox_dead_letter SET reason = ''",
        "DELETE FROM outbox_dead_letter",
        "INSERT INTO outbox_requeued SELECT seq, id, aggregatetype, aggregateid, seq FROM outbox",
        "UPDATE outbox_requeued SET place = 0",
        "INSERT INTO outbox_slot (slot, start_lsn) VALUES ('s', '0/0')",
        "DELETE FROM outbox_slot",
        "SELECT 1 FROM outbox_migration",
        "SELECT 1 FROM inbox",
        "DELETE FROM inbox",
        "SELECT 1 FROM secret",
        "CREATE PUBLICATION p FOR TABLE outbox",
    ];
    are_denied(relay, "relay", &[&statements[..], &CHANGES].concat(), &says);

    let consumer = &mut login("consumer");
    consumer.batch_execute("DELETE FROM inbox").unwrap();
    let statements = [
        &*insert,
        "SELECT 1 FROM outbox_scheduled",
        "SELECT 1 FROM outbox",
        "UPDATE outbox SET sent_at = now()",
        "DELETE FROM outbox",
        "SELECT 1 FROM outbox_shard",
        "UPDATE outbox_shard SET sent_through = 9",
        "SELECT 1 FROM outbox_dead_letter",
        "SELECT 1 FROM outbox_slot",
        "SELECT nextval('outbox_seq_seq')",
        "UPDATE inbox SET consumer = 'other'",
        "TRUNCATE inbox",
        "SELECT 1 FROM secret",
    ];
    are_denied(consumer, "consumer", &[&statements[..], &CHANGES].concat(), &says);

    let migrator = &mut login("migrator");
    let statements =
        ["SELECT 1 FROM secret", "DROP TABLE secret", "CREATE SCHEMA another", "CREATE ROLE another"];
    are_denied(migrator, "migrator", &statements, &says);

    conn.batch_execute(&format!("REASSIGN OWNED BY {prefix}migrator TO postgres")).unwrap();
    let roles = ["emitter", "relay", "consumer", "migrator"].map(|role| format!("{prefix}{role}"));
    let _ = (emitter, relay, consumer, migrator);
    drop_roles(conn, &roles.join(", "));
}

#[test]
fn the_roles_on_mariadb_are_denied_all_else() {
    all_else_is_denied(&Mariadb::shared().database(), "FOR");
}

#[test]
fn the_roles_on_mysql_are_denied_all_else() {
    all_else_is_denied(&Mariadb::shared_mysql().database(), "TO");
}

fn all_else_is_denied(database: &MariadbDatabase<'_>, default_for: &str) {
    let conn = &mut database.connect();
    conn.batch_execute(SECRET).unwrap();
    let prefix = format!("{}_", database.name());
    let arguments = role_arguments(&prefix);
    done(database.url(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let insert = format!("INSERT INTO outbox {COLUMNS} VALUES ({ROW})");
    conn.batch_execute(&insert).unwrap();
    let login = |role: &str| {
        // A user's name must be short.
        let (user, role) = (format!("{prefix}u_{}", &role[..1]), format!("{prefix}{role}"));
        for statement in [
            format!("CREATE USER {user} IDENTIFIED BY 'x'"),
            format!("GRANT {role} TO {user}"),
            format!("SET DEFAULT ROLE {role} {default_for} {user}"),
        ] {
            database.connect().batch_execute(&statement).unwrap();
        }
        MysqlConnection::establish(&database.url_as(&user, "x")).unwrap()
    };
    // A trigger needs a privilege of the whole server while there is a binlog.
    let says = ["denied", "SUPER privilege"];
    let changes = [
        "CREATE TABLE another (n int)",
        "ALTER TABLE outbox ADD another int",
        "DROP TABLE outbox_shard",
        "TRUNCATE TABLE outbox",
        "CREATE TRIGGER t BEFORE INSERT ON outbox FOR EACH ROW SET NEW.payload = NULL",
        "INSERT INTO outbox_migration (version) VALUES ('1')",
        "SELECT 1 FROM secret",
    ];
    let emitter = &mut login("emitter");
    emitter.batch_execute(&format!("BEGIN; {insert}; ROLLBACK")).unwrap();
    let statements = [
        "SELECT 1 FROM outbox",
        "UPDATE outbox SET sent_at = NULL",
        "INSERT INTO outbox (seq, id, aggregatetype, aggregateid, type, shard, created_at) VALUES (9223372036854775807, 'x', 'a', '1', 't', 0, now())",
        "DELETE FROM outbox",
        "SELECT 1 FROM outbox_shard",
        "SELECT 1 FROM outbox_shard FOR UPDATE",
        "UPDATE outbox_shard SET sent_through = 9",
        "UPDATE outbox_scheduled SET payload = NULL",
        "SELECT 1 FROM outbox_promotion FOR UPDATE",
        "SELECT 1 FROM outbox_dead_letter",
        "DELETE FROM outbox_dead_letter",
        "SELECT 1 FROM inbox",
        "LOCK TABLES outbox WRITE",
    ];
    are_denied(emitter, "emitter", &[&statements[..], &changes].concat(), &says);
    let relay = &mut login("relay");
    let statements = [
        "UPDATE outbox_scheduled SET payload = NULL",
        "INSERT INTO outbox_scheduled (id) VALUES (NULL)",
        "DELETE FROM outbox_promotion",
        "UPDATE outbox SET payload = NULL",
        "UPDATE outbox SET seq = 9",
        "INSERT INTO outbox_shard (shard, unsent) VALUES (16, '')",
        "DELETE FROM outbox_shard",
        "UPDATE outbox_dead_letter SET reason = ''",
        "DELETE FROM outbox_dead_letter",
        "SELECT 1 FROM outbox_migration",
        "SELECT 1 FROM inbox",
    ];
    are_denied(relay, "relay", &[&statements[..], &changes].concat(), &says);
    let consumer = &mut login("consumer");
    let statements = [
        &*insert,
        "SELECT 1 FROM outbox_scheduled",
        "SELECT 1 FROM outbox",
        "DELETE FROM outbox",
        "SELECT 1 FROM outbox_shard",
        "SELECT 1 FROM outbox_dead_letter",
        "TRUNCATE TABLE inbox",
    ];
    are_denied(consumer, "consumer", &[&statements[..], &changes].concat(), &says);
    let migrator = &mut login("migrator");
    are_denied(
        migrator,
        "migrator",
        &["SELECT 1 FROM secret", "DROP TABLE secret", "CREATE TABLE another (n int)"],
        &says,
    );
    for role in ["emitter", "relay", "consumer", "migrator"] {
        conn.batch_execute(&format!("DROP USER {prefix}u_{}", &role[..1])).unwrap();
        conn.batch_execute(&format!("DROP ROLE {prefix}{role}")).unwrap();
    }
}
