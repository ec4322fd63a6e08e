//! Scheduled events are sent in the order of their times, not before, once, and not if they were cancelled.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel_outbox::{AsyncEmit, Emit, EmitError, Migrations, Outbox, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::source::wal::{WalOptions, setup};
use diesel_outbox_relay::source::{SourceOptions, SqliteSource};
use diesel_outbox_relay::testing::Sent;
use diesel_outbox_relay::{Acknowledgement, Outcome, PublishError, Publisher, Refusal, Relay};
use outbox_tests::load::migrated;
use outbox_tests::{
    Folder, Postgres, Tables, all_logged, eventually, on_postgres_and_mariadb, start_logging,
};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

on_postgres_and_mariadb!(
    due_events_are_moved_once_and_in_order_by_ten_relays_of_which_some_are_killed,
    processes_that_move_events_at_the_same_time_keep_their_order,
    an_event_is_either_cancelled_or_sent,
    a_transaction_that_is_rolled_back_neither_schedules_nor_cancels,
    a_relay_goes_on_without_the_tables_and_finds_them_when_they_are_made,
    an_event_that_somebody_is_cancelling_does_not_hold_up_others,
    a_relay_does_not_wait_for_a_leader_that_hangs,
);

fn record(number: usize) -> Record {
    Record::new("order", (number % 7).to_string(), number.to_string()).with_payload(*b"{}")
}

/// Schedules events in a shuffled order, each a little after another. Returns their types in the order of their times.
fn schedule<T: Tables>(database: &T, events: usize, from: Duration, apart: Duration) -> Vec<String> {
    let conn = &mut database.connect_as_emitter();
    conn.transaction(|c| {
        for position in 0..events {
            let number = position * 7_919 % events;
            c.emit_after(&record(number), from + apart * u32::try_from(number).unwrap())?;
        }
        QueryResult::Ok(())
    })
    .unwrap();
    let scheduled = conn.scheduled().unwrap();
    scheduled.iter().map(|event| event.record().event_type().to_owned()).collect()
}

/// Takes everything, and tells nobody.
fn nowhere() -> Result<Box<dyn Publisher>, PublishError> {
    Ok(Box::new(Nowhere(Vec::new())))
}

struct Nowhere(Vec<u64>);

impl Publisher for Nowhere {
    fn publish(&mut self, ticket: u64, _: &str, _: &Record) -> Result<(), Refusal> {
        self.0.push(ticket);
        Ok(())
    }

    fn acknowledgements(
        &mut self,
        _: Duration,
        known: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        known.extend(self.0.drain(..).map(|ticket| Acknowledgement::new(ticket, Outcome::Durable)));
        Ok(())
    }

    fn abandon(&mut self) {
        self.0.clear();
    }

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }
}

fn relay(relay: Relay) -> Relay {
    relay.broker(nowhere).poll_interval(Duration::from_millis(500))
}

/// The last event is due three seconds after the first. A killed session is that of any relay, also in the middle of a step.
fn due_events_are_moved_once_and_in_order_by_ten_relays_of_which_some_are_killed<T: Tables>(database: &T) {
    const EVENTS: usize = 3_000;
    let in_order = schedule(database, EVENTS, Duration::from_secs(1), Duration::from_millis(1));
    let due: Vec<SystemTime> =
        database.connect().scheduled().unwrap().iter().map(|event| event.due_at()).collect();
    let relays: Vec<_> = (0..10).map(|_| relay(database.relay()).spawn().unwrap()).collect();
    for _ in 0..12 {
        thread::sleep(Duration::from_millis(300));
        database.end_sessions();
    }
    eventually("all events to be sent", PATIENCE, || {
        (database.count("outbox_scheduled") == 0 && database.unsent() == 0).then_some(())
    });
    relays.into_iter().for_each(|relay| relay.stop_blocking().unwrap());
    assert_eq!(database.texts("SELECT type FROM outbox ORDER BY seq"), in_order);
    // None was early, by the clock of the database.
    let early = database.texts("SELECT CAST(created_at AS char(23)) FROM outbox ORDER BY seq");
    let early: Vec<_> = early
        .iter()
        .zip(&due)
        .filter(|(moved, due)| {
            let moved = humantime_of(moved);
            moved + Duration::from_millis(1) < **due
        })
        .collect();
    assert!(early.is_empty(), "{early:?}");
}

/// Reads `2026-11-24 10:00:00.123`, in UTC.
fn humantime_of(text: &str) -> SystemTime {
    let conn = &mut SqliteConnection::establish(":memory:").unwrap();
    let ms = format!("CAST(round((julianday('{}') - 2440587.5) * 86400000.0) AS INTEGER)", text.trim());
    let ms: i64 =
        diesel::select(diesel::dsl::sql::<diesel::sql_types::BigInt>(&ms)).get_result(conn).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.unsigned_abs())
}

/// Without their turns, one would take the first events and another the next ones, and these would often be committed first.
fn processes_that_move_events_at_the_same_time_keep_their_order<T: Tables>(database: &T) {
    const EVENTS: usize = 6_000;
    let in_order = schedule(database, EVENTS, Duration::ZERO, Duration::from_micros(10));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut operations = database.operate();
                while database.count("outbox_scheduled") > 0 {
                    operations.promote().unwrap();
                }
            });
        }
    });
    assert_eq!(database.texts("SELECT type FROM outbox ORDER BY seq"), in_order);
}

fn an_event_is_either_cancelled_or_sent<T: Tables>(database: &T) {
    const EVENTS: usize = 1_500;
    let conn = &mut database.connect_as_emitter();
    let ids: Vec<Uuid> = conn
        .transaction(|c| {
            let after = |number| Duration::from_millis(number as u64);
            (0..EVENTS).map(|number| c.emit_after(&record(number), after(number))).collect()
        })
        .unwrap();
    let stop = AtomicBool::new(false);
    let cancelled: BTreeSet<String> = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut operations = database.operate();
                while !stop.load(Ordering::Relaxed) {
                    operations.promote().unwrap();
                }
            });
        }
        let cancelling: Vec<_> = ids
            .chunks(EVENTS / 3)
            .map(|ids| {
                scope.spawn(move || {
                    let conn = &mut database.connect_as_emitter();
                    let mut cancelled = BTreeSet::new();
                    for (position, id) in ids.iter().enumerate() {
                        // Each of them close to its time, two in a transaction.
                        let second = &ids[(position + 1) % ids.len()];
                        let pair = conn.transaction(|c| {
                            QueryResult::Ok([
                                (id, c.cancel_scheduled(*id)?),
                                (second, c.cancel_scheduled(*second)?),
                            ])
                        });
                        let gone = pair.unwrap().into_iter().filter(|(_, was_there)| *was_there);
                        cancelled.extend(gone.map(|(id, _)| id.to_string()));
                    }
                    cancelled
                })
            })
            .collect();
        let cancelled = cancelling.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        eventually("no event to be left", PATIENCE, || {
            (database.count("outbox_scheduled") == 0).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        cancelled
    });
    let sent: BTreeSet<String> =
        database.texts("SELECT CAST(id AS char(36)) FROM outbox").into_iter().collect();
    assert_eq!(database.count("outbox"), sent.len());
    assert!(sent.is_disjoint(&cancelled));
    assert_eq!(sent.len() + cancelled.len(), EVENTS);
}

fn a_transaction_that_is_rolled_back_neither_schedules_nor_cancels<T: Tables>(database: &T) {
    let conn = &mut database.connect_as_emitter();
    let rolled_back = conn.transaction(|c| {
        c.emit_after(&record(1), Duration::ZERO)?;
        QueryResult::<()>::Err(Error::RollbackTransaction)
    });
    assert_eq!(rolled_back, Err(Error::RollbackTransaction));
    let outside = conn.emit_after(&record(1), Duration::ZERO).unwrap_err();
    assert!(matches!(EmitError::of(&outside), Some(EmitError::NotInTransaction)));
    let event = record(2).header("tenant", "acme");
    let id = conn.transaction(|c| c.emit_at(&event, SystemTime::now() + Duration::from_secs(3_600))).unwrap();
    let twice = conn.transaction(|c| c.emit_after(&event, Duration::ZERO));
    assert!(matches!(twice, Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _))));
    let _ = conn.transaction(|c| {
        assert!(c.cancel_scheduled(id)?);
        QueryResult::<()>::Err(Error::RollbackTransaction)
    });
    let scheduled = conn.scheduled().unwrap();
    assert_eq!(scheduled.len(), 1);
    assert_eq!((scheduled[0].record().id(), scheduled[0].record().headers()), (id, event.headers()));
    let left = scheduled[0].due_at().duration_since(SystemTime::now()).unwrap();
    assert!((3_500..=3_600).contains(&left.as_secs()), "{left:?}");
    assert!(conn.cancel_scheduled(id).unwrap() && !conn.cancel_scheduled(id).unwrap());
    let schedule = database.operate().schedule().unwrap();
    assert_eq!((schedule.scheduled, schedule.next), (0, None));
}

/// So that the relay and the tables can be upgraded in either order.
fn a_relay_goes_on_without_the_tables_and_finds_them_when_they_are_made<T: Tables>(database: &T) {
    start_logging();
    let conn = &mut database.connect();
    conn.batch_execute("DROP TABLE outbox_scheduled").unwrap();
    let mut relay = database.relay().recorded().unwrap();
    conn.transaction(|c| c.emit_all([record(1), record(2)])).unwrap();
    assert_eq!(types(&relay.drain().unwrap()), ["1", "2"]);
    assert!(!all_logged(&["the table `outbox_scheduled` is missing"]).is_empty());
    let error = conn.transaction(|c| c.emit_after(&record(3), Duration::ZERO)).unwrap_err().to_string();
    assert!(error.contains("run the migrations"), "{error}");
    conn.batch_execute("DROP TABLE outbox_promotion").unwrap();
    conn.batch_execute("DELETE FROM outbox_migration WHERE CAST(version AS char(50)) = '20261124000002'")
        .unwrap();
    assert_eq!(Migrations::new().run(conn).unwrap(), ["2026-11-24-000002_create_outbox_scheduled"]);
    conn.transaction(|c| c.emit_after(&record(4), Duration::ZERO)).unwrap();
    // A new relay looks at once, if the other one does not lead any more.
    drop(relay);
    let mut relay = database.relay_by(database.url()).recorded().unwrap();
    let mut sent = Vec::new();
    eventually("the event", PATIENCE, || {
        sent.extend(relay.drain().unwrap());
        (!sent.is_empty()).then_some(())
    });
    assert_eq!(types(&sent), ["4"]);
}

/// It warns, and sends all other events.
#[test]
fn a_relay_goes_on_without_the_grants_on_the_tables() {
    start_logging();
    let database = migrated();
    let conn = &mut database.connect();
    conn.batch_execute("REVOKE ALL ON outbox_promotion FROM outbox_test_relay").unwrap();
    conn.transaction(|c| c.emit_after(&record(1), Duration::ZERO)).unwrap();
    conn.transaction(|c| c.emit(&record(2))).unwrap();
    let mut relay = database.relay().recorded().unwrap();
    assert_eq!(types(&relay.drain().unwrap()), ["2"]);
    let denied =
        ["scheduled events that are due could not be moved", "permission denied for table outbox_promotion"];
    assert!(!all_logged(&denied).is_empty());
}

fn an_event_that_somebody_is_cancelling_does_not_hold_up_others<T: Tables>(database: &T) {
    let conn = &mut database.connect();
    let [first, _] =
        [1, 2].map(|number| conn.transaction(|c| c.emit_after(&record(number), Duration::ZERO)).unwrap());
    conn.batch_execute("BEGIN").unwrap();
    assert!(conn.cancel_scheduled(first).unwrap());
    assert_eq!(database.operate().promote().unwrap(), 1);
    assert_eq!(database.texts("SELECT type FROM outbox"), ["2"]);
    conn.batch_execute("ROLLBACK").unwrap();
    assert_eq!(database.operate().promote().unwrap(), 1);
}

/// The first relay leads, and does nothing any more.
fn a_relay_does_not_wait_for_a_leader_that_hangs<T: Tables>(database: &T) {
    let mut leader = database.relay().recorded().unwrap();
    assert!(leader.drain().unwrap().is_empty());
    let conn = &mut database.connect();
    let due = SystemTime::now() - Duration::from_secs(60);
    conn.transaction(|c| c.emit_at(&record(1), due)).unwrap();
    let mut other = database.relay().recorded().unwrap();
    eventually("the event to be moved", PATIENCE, || {
        other.step().unwrap();
        (database.count("outbox_scheduled") == 0).then_some(())
    });
    drop(leader);
}

fn types(sent: &[Sent]) -> Vec<&str> {
    sent.iter().map(|sent| sent.record().event_type()).collect()
}

/// The relay that reads the WAL moves events too. They keep their id and everything else, and come with the time at which they were moved.
#[test]
fn a_relay_on_the_wal_moves_and_sends_events() {
    let database = migrated();
    let mut slot = WalOptions::default();
    slot.slot = database.name().to_owned();
    setup(&mut database.connect(), &mut database.connect(), &slot).unwrap();
    let conn = &mut database.connect();
    let event = Record::new("order", "7", "Reminded").header("tenant", "acme").with_payload(*b"\x00\xff");
    let began = SystemTime::now();
    let id = conn.transaction(|c| c.emit_after(&event, Duration::from_millis(1_500))).unwrap();
    let url = database.url().to_owned();
    let mut relay = Relay::postgres_wal(url, slot.clone()).recorded().unwrap();
    let mut sent = Vec::new();
    eventually("the event", PATIENCE, || {
        sent.extend(relay.step().unwrap());
        (!sent.is_empty()).then_some(())
    });
    let sent = &sent[0];
    assert_eq!((sent.record().id(), sent.payload()), (id, Some(&b"\x00\xff"[..])));
    assert_eq!(sent.topic(), "outbox.event.order");
    assert_eq!(sent.headers()[1..], [("eventType", "Reminded"), ("tenant", "acme")]);
    assert!(sent.record().created_at().unwrap() >= began + Duration::from_millis(1_499));
    drop(relay);
    eventually("the slot to be free", PATIENCE, || {
        conn.batch_execute(&format!("SELECT pg_drop_replication_slot('{}')", database.name())).ok()
    });
}

/// One relay with several outboxes notices what is due in each.
#[test]
fn a_relay_with_several_outboxes_moves_the_events_of_each() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    for schema in ["tenant_1", "tenant_2", "tenant_3"] {
        Migrations::new().schema(schema).run(conn).unwrap();
    }
    // One has the tables of an earlier version.
    conn.batch_execute("DROP TABLE tenant_2.outbox_scheduled").unwrap();
    let relay = relay(Relay::postgres(database.url()).schemas(["tenant_*"])).spawn().unwrap();
    let outbox = |schema| Outbox::new().schema(schema);
    for schema in ["tenant_1", "tenant_3"] {
        conn.transaction(|c| outbox(schema).emit_after(c, &record(1), Duration::from_millis(700))).unwrap();
    }
    conn.transaction(|c| outbox("tenant_2").emit(c, &record(1))).unwrap();
    for schema in ["tenant_1", "tenant_2", "tenant_3"] {
        let sent = format!("{schema}.outbox WHERE sent_at IS NOT NULL");
        eventually("the event to be sent", PATIENCE, || (database.count(&sent) == 1).then_some(()));
    }
    relay.stop_blocking().unwrap();
}

#[test]
fn on_sqlite_due_events_are_sent_in_order_and_cancelled_ones_are_not() {
    let folder = Folder::new("scheduled");
    let path = folder.path().join("outbox.db").display().to_string();
    let conn = &mut SqliteConnection::establish(&path).unwrap();
    Migrations::new().run(conn).unwrap();
    conn.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
    let relay = relay(Relay::sqlite(&path)).spawn().unwrap();
    let after = Duration::from_millis;
    let ids = conn
        .immediate_transaction(|c| {
            [(3, 900), (1, 600), (2, 600), (4, 0), (5, 600)]
                .map(|(number, ms)| c.emit_after(&record(number), after(ms)))
                .into_iter()
                .collect::<QueryResult<Vec<Uuid>>>()
        })
        .unwrap();
    assert!(conn.cancel_scheduled(ids[4]).unwrap());
    let sent = |conn: &mut SqliteConnection| -> Vec<String> {
        diesel::dsl::sql::<diesel::sql_types::Text>(
            "SELECT type FROM outbox WHERE sent_at IS NOT NULL ORDER BY seq",
        )
        .load(conn)
        .unwrap()
    };
    eventually("all events to be sent", PATIENCE, || (sent(conn).len() == 4).then_some(()));
    assert_eq!(sent(conn), ["4", "1", "2", "3"]);
    assert!(conn.scheduled().unwrap().is_empty());
    relay.stop_blocking().unwrap();
}

/// The event is not due yet.
#[test]
fn on_sqlite_the_lag_counts_what_is_scheduled_and_overdue() {
    let folder = Folder::new("scheduled");
    let path = folder.path().join("outbox.db").display().to_string();
    let conn = &mut SqliteConnection::establish(&path).unwrap();
    Migrations::new().run(conn).unwrap();
    conn.transaction(|c| c.emit_after(&record(1), Duration::from_secs(60))).unwrap();
    let mut source = SqliteSource::new(&path, SourceOptions::default());
    source.claim().unwrap();
    let lag = source.upkeep().unwrap().unwrap();
    assert_eq!((lag.unsent, lag.scheduled, lag.overdue), (0, 1, Duration::ZERO));
}

#[tokio::test]
async fn an_async_connection_schedules_lists_and_cancels() {
    use diesel_async::{AsyncConnection, AsyncPgConnection};
    let database = migrated();
    let conn = &mut AsyncPgConnection::establish(database.url()).await.unwrap();
    let ids = conn
        .transaction(async |c| {
            let later =
                AsyncEmit::emit_at(c, &record(1), SystemTime::now() + Duration::from_secs(60)).await?;
            let sooner = AsyncEmit::emit_after(c, &record(2), Duration::from_secs(30)).await?;
            QueryResult::Ok([later, sooner])
        })
        .await
        .unwrap();
    let scheduled = AsyncEmit::scheduled(conn).await.unwrap();
    let listed: Vec<Uuid> = scheduled.iter().map(|event| event.record().id()).collect();
    assert_eq!(listed, [ids[1], ids[0]]);
    assert!(AsyncEmit::cancel_scheduled(conn, ids[0]).await.unwrap());
    assert!(!AsyncEmit::cancel_scheduled(conn, ids[0]).await.unwrap());
    assert_eq!(AsyncEmit::scheduled(conn).await.unwrap().len(), 1);
}
