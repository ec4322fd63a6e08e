//! One relay for the outboxes of many schemas, with a broker that holds its workers up, so that the test decides what happens during a
//! pass, and which worker makes the next one.

#[path = "tenants/schemas.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod schemas;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel_outbox::{Outbox, Record};
use diesel_outbox_relay::{Acknowledgement, Outcome, PublishError, Publisher, Refusal, Relay};
use outbox_tests::{Database, eventually};

use self::schemas::*;

/// The type of the events that are not acknowledged until their worker is let go.
const HELD: &str = "Held";

/// A broker that holds up a worker that publishes an event of the type [`HELD`].
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// How many publishers there are. Each worker has one.
    publishers: usize,
    held: Option<usize>,
    /// The types of the events that were published.
    published: BTreeSet<String>,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn relay(&self, database: &Database<'_>, schemas: &[String]) -> Relay {
        let gate = self.clone();
        let publisher = move || -> Result<Box<dyn Publisher>, PublishError> {
            let mut state = gate.state();
            state.publishers += 1;
            let worker = state.publishers;
            drop(state);
            let publisher = Held { worker, gate: gate.clone(), held: None, in_flight: Vec::new() };
            Ok(Box::new(publisher))
        };
        // While a pass waits for the broker, it reads no more.
        let (moment, patience) = (Duration::from_millis(1), Duration::from_secs(20));
        let relay = sleeper(database, "events", schemas).broker(publisher).workers(2);
        relay.max_pass_duration(moment).stall_timeout(patience)
    }

    /// Holds this worker up in a schema, or any, and returns which one it is.
    fn hold(&self, conn: &mut PgConnection, schema: &str, wanted: Option<usize>) -> usize {
        eventually("the worker to come by", PATIENCE, || {
            emit(conn, schema, HELD);
            let held = eventually("a worker to be held up", PATIENCE, || self.state().held);
            if wanted.is_none_or(|wanted| wanted == held) {
                return Some(held);
            }
            self.let_go();
            eventually("its event to be settled", PATIENCE, || (unsent(conn, schema) == 0).then_some(()));
            None
        })
    }

    fn let_go(&self) {
        self.state().held = None;
    }
}

/// What one worker has published.
struct Held {
    worker: usize,
    gate: Gate,
    held: Option<u64>,
    in_flight: Vec<u64>,
}

impl Publisher for Held {
    fn publish(&mut self, ticket: u64, _: &str, record: &Record) -> Result<(), Refusal> {
        let mut state = self.gate.state();
        state.published.insert(record.event_type().to_owned());
        if record.event_type() == HELD {
            state.held = Some(self.worker);
            self.held = Some(ticket);
        } else {
            self.in_flight.push(ticket);
        }
        Ok(())
    }

    fn acknowledgements(
        &mut self,
        wait: Duration,
        known: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        if self.gate.state().held != Some(self.worker) {
            self.in_flight.extend(self.held.take());
        }
        if self.in_flight.is_empty() {
            thread::sleep(wait.min(Duration::from_millis(5)));
        }
        known.extend(self.in_flight.drain(..).map(|ticket| Acknowledgement::new(ticket, Outcome::Durable)));
        Ok(())
    }

    fn abandon(&mut self) {
        self.held = None;
        self.in_flight.clear();
    }

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }
}

/// One worker knows up to which number all events had come. The other one finds out that the sequence was set back, and corrects it. From
/// then on, lower numbers come again.
#[test]
fn an_event_that_commits_late_after_the_sequence_was_set_back_is_lost_by_no_worker() {
    let schemas = tenants(2);
    let (outbox, beside) = (&*schemas[0], &*schemas[1]);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    // Its lower bounds move by 1,024 numbers at least.
    conn.batch_execute(&format!(
        "SELECT setval('{outbox}.outbox_seq_seq', 5000); UPDATE {outbox}.outbox_shard SET sent_through = 5000"
    ))
    .unwrap();
    let gate = Gate::default();
    let relay = gate.relay(&database, &schemas).spawn().unwrap();
    wait_until_asleep(conn, schemas.len());

    let corrects = gate.hold(conn, beside, None);
    conn.batch_execute(&format!("SELECT setval('{outbox}.outbox_seq_seq', 5900)")).unwrap();
    emit(conn, outbox, "Known");
    eventually("the event to be sent", PATIENCE, || (unsent(conn, outbox) == 0).then_some(()));
    gate.let_go();
    wait_until_asleep(conn, schemas.len());
    let knows = 3 - corrects;
    gate.hold(conn, beside, Some(knows));

    conn.batch_execute(&format!("TRUNCATE {outbox}.outbox RESTART IDENTITY")).unwrap();
    let woken: QueryResult<()> = conn.transaction(|c| {
        Outbox::new().schema(outbox).emit(c, &Record::new("order", "1", "None"))?;
        // There is nothing to send.
        c.batch_execute(&format!("DELETE FROM {outbox}.outbox"))
    });
    woken.unwrap();
    let bound = format!("SELECT max(sent_through) FROM {outbox}.outbox_shard");
    eventually("the sequence to be corrected", PATIENCE, || (number(conn, &bound) == 0).then_some(()));
    gate.let_go();
    gate.hold(conn, beside, Some(corrects));

    let late = &mut database.connect();
    AnsiTransactionManager::begin_transaction(late).unwrap();
    Outbox::new().schema(outbox).emit(late, &Record::new("order", "1", "Late")).unwrap();
    emit(conn, outbox, "Early");
    eventually("the later event", PATIENCE, || (unsent(conn, outbox) == 0).then_some(()));
    AnsiTransactionManager::commit_transaction(late).unwrap();
    eventually("the late event", PATIENCE, || (unsent(conn, outbox) == 0).then_some(()));
    gate.let_go();
    relay.stop_blocking().unwrap();
}

/// The rows of both lie in the same places.
#[test]
fn an_event_of_a_schema_that_takes_the_name_of_another_during_a_pass_is_not_settled_unsent() {
    let schemas = ["tenant_0", "tenant_1", "other"].map(str::to_owned);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    emit(conn, "other", "Other");
    let gate = Gate::default();
    let relay = gate.relay(&database, &schemas[..2]).spawn().unwrap();
    wait_until_asleep(conn, 2);
    gate.hold(conn, "tenant_0", None);
    conn.batch_execute("ALTER SCHEMA tenant_0 RENAME TO former; ALTER SCHEMA other RENAME TO tenant_0")
        .unwrap();
    gate.let_go();
    eventually("the event of the other schema", PATIENCE, || {
        gate.state().published.contains("Other").then_some(())
    });
    eventually("it to be settled", PATIENCE, || (unsent(conn, "tenant_0") == 0).then_some(()));
    assert_eq!(unsent(conn, "former"), 1, "its row was not settled in the other table");
    relay.stop_blocking().unwrap();
}
