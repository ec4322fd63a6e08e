//! Roles that may do what `outbox migrate --roles` grants and nothing else. The tests' relays, emitters and consumers work as these.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

/// The roles, which are also their passwords. They are the same in every database of a server.
pub(crate) const RELAY: &str = "outbox_test_relay";
pub(crate) const EMITTER: &str = "outbox_test_emitter";
pub(crate) const CONSUMER: &str = "outbox_test_consumer";

const POSTGRES: &str = include_str!("../../outbox-cli/src/command/database/roles/postgres.sql");
const MYSQL: &str = include_str!("../../outbox-cli/src/command/database/roles/mysql.sql");

/// Makes the roles, and grants each what it needs in this schema.
pub(crate) fn grant_on_postgres(conn: &mut PgConnection, schema: &str) {
    for (role, attribute) in [(RELAY, "REPLICATION"), (EMITTER, ""), (CONSUMER, "")] {
        let known = diesel::dsl::sql::<BigInt>("SELECT count(*) FROM pg_roles WHERE rolname = ")
            .bind::<Text, _>(role);
        if known.get_result::<i64>(conn) == Ok(0) {
            // Another test may be about to make it.
            let _ = conn.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD '{role}' {attribute}"));
        }
    }
    let quoted = format!("\"{}\"", schema.replace('"', "\"\""));
    conn.batch_execute(&grants(POSTGRES, &quoted)).expect("grants");
}

/// Makes the users, and grants each what it needs in this database.
pub(crate) fn grant_on_mariadb(conn: &mut MysqlConnection, database: &str) {
    let users = [RELAY, EMITTER, CONSUMER]
        .map(|user| format!("CREATE USER IF NOT EXISTS {user} IDENTIFIED BY '{user}';"))
        .concat();
    conn.batch_execute(&format!("{users}{}", grants(MYSQL, database))).expect("users with grants");
}

/// The statements of this file, without those for whoever migrates.
fn grants(statements: &str, schema: &str) -> String {
    let lines = statements.lines().filter(|line| line.starts_with("GRANT ") && !line.contains("{migrator}"));
    let names = [("{schema}", schema), ("{relay}", RELAY), ("{emitter}", EMITTER), ("{consumer}", CONSUMER)];
    names.iter().fold(lines.collect(), |text: String, (placeholder, name)| text.replace(placeholder, name))
}
