//! Servers and tables that cannot hold an outbox.

use diesel::connection::SimpleConnection;
use diesel_outbox::Migrations;
use diesel_outbox_core::Source;
use outbox_tests::{Mariadb, MariadbDatabase};

use super::{migrated_on, source};

fn refusal(database: &MariadbDatabase<'_>) -> String {
    source(database).claim().unwrap_err().to_string()
}

#[test]
fn what_cannot_hold_an_outbox_is_refused_with_advice_that_mends_it() {
    let database = Mariadb::shared().database();
    let conn = &mut database.connect();
    assert!(refusal(&database).contains("run the migrations"));
    Migrations::new().run(conn).unwrap();
    for table in ["outbox", "outbox_shard"] {
        conn.batch_execute(&format!("ALTER TABLE {table} ENGINE = MyISAM")).unwrap();
        let text = refusal(&database);
        assert!(text.contains(&format!("the table {table} has the engine MyISAM")), "{text}");
        conn.batch_execute(&text[text.find("ALTER").unwrap()..]).unwrap();
    }
    conn.batch_execute("DELETE FROM outbox_shard WHERE shard > 3").unwrap();
    let text = refusal(&database);
    assert!(text.contains("has 4 of the 16 shards"), "{text}");
    conn.batch_execute(&text[text.find("INSERT").unwrap()..]).unwrap();
    assert!(!source(&database).claim().unwrap());
}

#[test]
fn a_server_that_cannot_hold_an_outbox_is_refused() {
    let server = Mariadb::start_with(&["binlog_format=STATEMENT", "auto_increment_increment=2"]);
    let database = migrated_on(&server);
    let text = refusal(&database);
    assert!(text.contains("binlog_format is STATEMENT"), "{text}");
    let set = text.find("SET GLOBAL").unwrap();
    server.connect().batch_execute(&text[set..set + text[set..].find(';').unwrap()]).unwrap();

    // As in circular replication, and in Galera.
    let text = refusal(&database);
    assert!(
        text.contains("the server has auto_increment_increment = 2, as if it were one of several"),
        "{text}"
    );
    server.connect().batch_execute("SET GLOBAL auto_increment_increment = 1").unwrap();
    assert!(!source(&database).claim().unwrap());
}
