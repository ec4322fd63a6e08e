//! An outbox and an inbox in a schema that is not in the service's search_path, and headers that all events of a request carry.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use diesel_outbox::{Emit, EmitError, Inbox, Migrations, Once, Outbox, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay};
use outbox_tests::{Kafka, Postgres, eventually};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);
/// A name that is as awkward as it can be.
const SCHEMA: &str = "Team \"A\"'s events";

fn placed(order: &str) -> Record {
    Record::new("order", order, "OrderPlaced").with_payload(*b"{}")
}

fn headers(conn: &mut PgConnection) -> Vec<String> {
    diesel::dsl::sql::<Text>("SELECT coalesce(headers::text, '') FROM outbox ORDER BY seq")
        .load(conn)
        .unwrap()
}

#[test]
fn an_emit_into_a_named_schema_wakes_that_schemas_relay_which_sends_the_event() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    Migrations::new().schema(SCHEMA).run(conn).unwrap();
    // Another outbox, in the search_path.
    Migrations::new().run(conn).unwrap();
    let kind = Kafka::shared().unique("schemas");
    let topic = format!("outbox.event.{kind}");
    let _relay = Relay::postgres(database.url())
        .schema(SCHEMA)
        .broker(Broker::new(Kafka::shared().brokers()))
        // Only a wake-up can bring an event to Kafka while the test waits.
        .poll_interval(Duration::from_secs(3_600))
        .lag_interval(Duration::from_secs(3_600))
        .spawn()
        .unwrap();
    let asleep = "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_class ON pg_class.oid = objid \
                  WHERE locktype = 'advisory' AND classid = 1869968482 AND relname = 'outbox' \
                  AND relnamespace <> 'public'::regnamespace AND mode = 'ExclusiveLock' AND granted)";
    let quiet = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox relay' \
                 AND datname = current_database() AND state = 'idle' \
                 AND state_change < clock_timestamp() - interval '300 ms'";
    let wait_until_asleep = |conn: &mut PgConnection| {
        eventually("the relay to lie down", PATIENCE, || {
            let is_asleep = diesel::dsl::sql::<Bool>(asleep).get_result::<bool>(conn).unwrap();
            let is_quiet = diesel::dsl::sql::<BigInt>(quiet).get_result::<i64>(conn).unwrap() == 1;
            (is_asleep && is_quiet).then_some(())
        });
    };
    let outbox = Outbox::new().schema(SCHEMA).header("tenant", "acme");
    let record = |event_type: &str| Record::new(kind.as_str(), "1", event_type);
    wait_until_asleep(conn);
    conn.transaction(|c| outbox.emit(c, &record("One"))).unwrap();
    let received = Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    assert_eq!(received[0].header("tenant"), Some("acme"));
    wait_until_asleep(conn);
    conn.transaction(|c| outbox.emit_all(c, [record("Two"), record("Three")])).unwrap();
    Kafka::shared().read_at_least(&topic, 3, PATIENCE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    wait_until_asleep(conn);
    runtime.block_on(async {
        let conn = &mut AsyncPgConnection::establish(database.url()).await.unwrap();
        conn.transaction(async |c| outbox.emit_async(c, &record("Four")).await).await.unwrap();
        conn.transaction(async |c| outbox.emit_all_async(c, [record("Five")]).await).await.unwrap();
    });
    Kafka::shared().read_at_least(&topic, 5, PATIENCE);
    assert!(headers(conn).is_empty(), "nothing is in the outbox that the search_path has");
}

#[test]
fn emits_into_several_schemas_can_alternate_and_each_uses_a_prepared_statement() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    for schema in ["public", "first", "second"] {
        Migrations::new().schema(schema).run(conn).unwrap();
    }
    conn.transaction(|c| {
        for round in 0..3 {
            c.emit(&placed(&format!("public {round}")))?;
            for schema in ["first", "second"] {
                Outbox::new().schema(schema).emit(c, &placed(&format!("{schema} {round}")))?;
            }
        }
        QueryResult::Ok(())
    })
    .unwrap();
    for schema in ["public", "first", "second"] {
        let all = format!("SELECT aggregateid FROM {schema}.outbox ORDER BY seq");
        let stored: Vec<String> = diesel::dsl::sql::<Text>(&all).load(conn).unwrap();
        assert_eq!(stored, [0, 1, 2].map(|round| format!("{schema} {round}")));
    }
    let prepared: i64 = diesel::dsl::sql::<BigInt>(
        "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'INSERT INTO %aggregatetype%'",
    )
    .get_result(conn)
    .unwrap();
    assert_eq!(prepared, 3);
}

#[test]
fn an_inbox_in_a_schema_of_its_own_works() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    Migrations::inbox_only().schema(SCHEMA).run(conn).unwrap();
    let (inbox, event_id) = (Inbox::new("billing").schema(SCHEMA), Uuid::from_u128(7));
    assert_eq!(inbox.once(conn, event_id, |_| QueryResult::Ok(1)).unwrap(), Once::First(1));
    assert_eq!(inbox.once(conn, event_id, |_| QueryResult::Ok(2)).unwrap(), Once::Duplicate);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let conn = &mut AsyncPgConnection::establish(database.url()).await.unwrap();
        let again = inbox.once_async(conn, event_id, async |_| QueryResult::Ok(2)).await;
        assert_eq!(again.unwrap(), Once::Duplicate);
        assert_eq!(inbox.prune_async(conn, PATIENCE).await.unwrap(), 0);
    });
    assert_eq!(inbox.prune(conn, Duration::ZERO).unwrap(), 1);
    assert!(Inbox::new("billing").once(conn, event_id, |_| QueryResult::Ok(1)).is_err(), "no such table");
}

#[test]
fn errors_about_a_missing_schema_and_a_schema_on_sqlite_say_what_is_wrong() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    let outbox = Outbox::new().schema("events");
    let error = conn.transaction(|c| outbox.emit(c, &placed("1"))).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("\"events.outbox\" does not exist") && text.contains("run the migrations"),
        "{text}"
    );

    let conn = &mut SqliteConnection::establish(":memory:").unwrap();
    Migrations::new().run(conn).unwrap();
    let is_explained = |error: DieselError| {
        assert!(matches!(EmitError::of(&error), Some(EmitError::NoSchemas)), "{error:?}");
        assert!(error.to_string().contains("SQLite has no schemas"), "{error}");
    };
    is_explained(conn.transaction(|c| outbox.emit(c, &placed("1"))).unwrap_err());
    is_explained(conn.transaction(|c| outbox.emit_all(c, [placed("1")])).unwrap_err());
    let inbox = Inbox::new("billing").schema("events");
    is_explained(inbox.once(conn, Uuid::nil(), |_| QueryResult::Ok(())).unwrap_err());
    is_explained(inbox.prune(conn, PATIENCE).unwrap_err());
}

#[test]
fn all_events_of_a_request_carry_its_headers_and_an_events_own_come_first() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    Migrations::new().run(conn).unwrap();
    let outbox = Outbox::new().header("tenant", "acme").header("traceparent", "00-1");
    conn.transaction(|c| {
        outbox.emit(c, &placed("1"))?;
        outbox.emit_all(c, [placed("2").version(2), placed("3").header("tenant", "other")])?;
        c.emit(&placed("4"))
    })
    .unwrap();
    assert_eq!(
        headers(conn),
        [
            r#"{"tenant":"acme","traceparent":"00-1"}"#,
            r#"{"eventVersion":"2","tenant":"acme","traceparent":"00-1"}"#,
            r#"{"tenant":"other","traceparent":"00-1"}"#,
            "",
        ]
    );
    assert!(!format!("{outbox:?}").contains("acme"));
    // Setting a header twice is a mistake, as it is for an event.
    let twice = outbox.header("tenant", "b");
    let refused = conn.transaction(|c| twice.emit(c, &placed("1"))).unwrap_err();
    assert!(matches!(EmitError::of(&refused), Some(EmitError::Record(_))), "{refused:?}");
    // An emit outside a transaction is refused in the same way.
    let refused = outbox_outside(conn);
    assert!(matches!(EmitError::of(&refused), Some(EmitError::NotInTransaction)), "{refused:?}");
    conn.batch_execute("SELECT 1").unwrap();
}

fn outbox_outside(conn: &mut PgConnection) -> DieselError {
    Outbox::new().emit(conn, &placed("1")).unwrap_err()
}
