//! Row-level security must not make a relay believe that there is nothing to send.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::operate::{Operate, Requeue};
use diesel_outbox_relay::source::{PostgresSource, SourceOptions};
use outbox_tests::load::{drop_roles, migrated};

use super::outbox;

const HIDE: &str = "CREATE POLICY nothing ON outbox USING (false); ALTER TABLE outbox ENABLE ROW LEVEL SECURITY; \
                    ALTER TABLE outbox FORCE ROW LEVEL SECURITY";

#[test]
fn a_relay_and_commands_fail_loudly_if_policies_hide_rows_and_their_advice_helps() {
    let database = migrated();
    let conn = &mut database.connect();
    let role = format!("{}_hidden", database.name());
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT outbox_test_relay TO {role}; GRANT INSERT ON outbox TO {role}; \
         GRANT DELETE ON outbox_dead_letter TO {role}"
    ))
    .unwrap();
    conn.transaction(|c| c.emit(&Record::new("order", "1", "OrderPlaced"))).unwrap();
    let url = database.url_as(&role, "x");
    let mut source = PostgresSource::new(&*url, SourceOptions::default());
    let mut claimed = Vec::new();
    assert!(source.claim().unwrap());
    source.read(10, &mut claimed).unwrap();
    source.abandon();
    conn.batch_execute(HIDE).unwrap();

    // The relay that works already, one that starts, the commands, and whoever calls the operations.
    let at_work = source.claim().unwrap_err().to_string();
    assert!(at_work.contains("row-level security"), "{at_work}");
    let starts = PostgresSource::new(&*url, SourceOptions::default()).claim().unwrap_err().to_string();
    assert!(starts.contains(&format!("ALTER ROLE {role} BYPASSRLS")), "{starts}");
    for arguments in [&["lag"][..], &["dead-letters"], &["requeue", "--all"]] {
        let (is_done, text) = outbox(&url, arguments);
        assert!(!is_done && text.contains("BYPASSRLS"), "{arguments:?}: {text}");
    }
    let operator = &mut PgConnection::establish(&url).unwrap();
    for error in [
        operator.lag().map(drop),
        operator.dead_letters(9).map(drop),
        operator.requeue(&Requeue::All).map(drop),
    ] {
        assert!(error.unwrap_err().to_string().contains("row-level security"));
    }

    conn.batch_execute(&format!("ALTER ROLE {role} BYPASSRLS")).unwrap();
    drop(source);
    let mut source = PostgresSource::new(&*url, SourceOptions::default());
    claimed.clear();
    assert!(source.claim().unwrap());
    source.read(10, &mut claimed).unwrap();
    assert_eq!(claimed.len(), 1);
    drop(source);
    let _ = operator;
    drop_roles(conn, &role);
}
