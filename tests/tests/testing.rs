//! What the feature `testing` offers to services: emitted events are seen in the open transaction on each database, and a relay works step
//! by step.

use std::time::Duration;

use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection};
use diesel_outbox::testing::{AsyncReadEmitted, Expected, ReadEmitted};
use diesel_outbox::{AsyncEmit, Emit, Migrations, Outbox, Record};
use diesel_outbox_relay::Relay;
use outbox_tests::load::migrated;
use outbox_tests::{Folder, Tables, migrated_mariadb, on_postgres_and_mariadb};

on_postgres_and_mariadb!(
    what_a_transaction_has_emitted_is_seen_before_it_commits,
    a_relay_sends_a_batch_a_step
);

fn placed(order: &str) -> Record {
    Record::new("order", order, "OrderPlaced")
        .version(2)
        .header("z", "1")
        .header("a", "2")
        .with_payload(*br#"{"total_cents":990}"#)
}

fn what_a_transaction_has_emitted_is_seen_before_it_commits<T: Tables>(database: &T) {
    look(&mut database.connect());
    assert_eq!(database.count("outbox"), 1);
}

/// Everything but the first event is rolled back.
fn look<C: diesel_outbox::OutboxConnection>(conn: &mut C) {
    conn.transaction(|c| c.emit(&Record::new("order", "1", "Earlier"))).unwrap();
    conn.test_transaction(|c| {
        let before = c.emitted()?;
        before.assert_only([Expected::event_type("Earlier").tombstone()]);
        c.transaction(|c| c.emit_all([placed("7"), placed("8").with_payload(*b"\xff\x00")]))?;
        let emitted = c.emitted()?.since(&before);
        emitted.assert_only([
            Expected::from(&placed("7")),
            Expected::event_type("OrderPlaced").aggregate("order", "8").payload(*b"\xff\x00"),
        ]);
        let found = emitted.assert(&placed("7"));
        assert_eq!(found.headers(), placed("7").headers());
        let age = found.created_at().unwrap().elapsed().unwrap_or_default();
        assert!(age < Duration::from_secs(600), "{age:?}");
        QueryResult::Ok(())
    });
}

#[test]
fn what_a_transaction_has_emitted_is_seen_on_sqlite() {
    let conn = &mut SqliteConnection::establish(":memory:").unwrap();
    Migrations::new().run(conn).unwrap();
    look(conn);
}

#[tokio::test]
async fn what_a_transaction_has_emitted_is_seen_on_async_connections() {
    let (postgres, mariadb) = (migrated(), migrated_mariadb());
    let conn = &mut AsyncPgConnection::establish(postgres.url()).await.unwrap();
    look_async(conn).await;
    let conn = &mut AsyncMysqlConnection::establish(mariadb.url()).await.unwrap();
    look_async(conn).await;
}

async fn look_async<C>(conn: &mut C)
where
    C: AsyncConnection<Backend: diesel_outbox::OutboxBackend>,
{
    conn.begin_test_transaction().await.unwrap();
    AsyncEmit::emit(conn, &placed("7")).await.unwrap();
    let emitted = AsyncReadEmitted::emitted(conn).await.unwrap();
    emitted.assert_only([&placed("7")]);
}

fn a_relay_sends_a_batch_a_step<T: Tables>(database: &T) {
    step_by_step(&mut database.connect(), database.relay());
}

#[test]
fn a_relay_sends_a_batch_a_step_on_sqlite() {
    let folder = Folder::new("testing");
    let path = folder.path().join("outbox.db").display().to_string();
    let conn = &mut SqliteConnection::establish(&path).unwrap();
    Migrations::new().run(conn).unwrap();
    step_by_step(conn, Relay::sqlite(&path));
}

fn step_by_step<C: diesel_outbox::OutboxConnection>(conn: &mut C, relay: Relay) {
    let outbox = Outbox::new().header("tenant", "acme");
    let records = ["7", "7", "7", "7"].map(placed);
    let ids = conn.transaction(|c| outbox.emit_all(c, &records)).unwrap();
    let mut relay = relay.batch_size(1).recorded().unwrap();
    let first = relay.step().unwrap();
    assert_eq!(first.len(), 1);
    assert_eq!((first[0].topic(), first[0].key()), ("outbox.event.order", "7"));
    assert_eq!(first[0].payload(), Some(&br#"{"total_cents":990}"#[..]));
    let id = ids[0].to_string();
    let headers = [
        ("id", &*id),
        ("eventType", "OrderPlaced"),
        ("eventVersion", "2"),
        ("z", "1"),
        ("a", "2"),
        ("tenant", "acme"),
    ];
    assert_eq!(first[0].headers(), headers);
    assert_eq!(relay.step().unwrap()[0].record().id(), ids[1]);
    let rest: Vec<_> = relay.drain().unwrap().iter().map(|sent| sent.record().id()).collect();
    assert_eq!(rest, ids[2..]);
    assert!(relay.step().unwrap().is_empty());
    // A scheduled event that is due comes with the others, within two seconds.
    let id = conn.transaction(|c| c.emit_after(&placed("9"), Duration::ZERO)).unwrap();
    let sent = outbox_tests::eventually("the event", Duration::from_secs(20), || {
        let sent = relay.step().unwrap();
        (!sent.is_empty()).then_some(sent)
    });
    assert_eq!(sent[0].record().id(), id);
}
