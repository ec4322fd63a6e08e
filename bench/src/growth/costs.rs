//! What an event costs, for planning what a larger machine can do: processor time by process, and bytes of WAL.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer};
use outbox_tests::{Kafka, Postgres, eventually};

use crate::contenders::{Contender, take_turns};
use crate::cpu::Times;
use crate::relays::{relay_process, stop};
use crate::report::Figure;
use crate::rows::Template;
use crate::servers::PATIENCE;
use crate::topics::new_topic;

const ROWS: usize = 400_000;
/// The name of a backend's program.
const POSTGRES: &str = "postgres";

/// Checks that the server runs on this machine and outside a container. Otherwise its processor time cannot be seen.
pub(super) fn check_server(postgres: &Postgres) {
    let backend = sql::<Integer>("SELECT pg_backend_pid()");
    let conn = &mut postgres.connect();
    let id = backend.get_result::<i32>(conn).unwrap();
    let seen = Times::default().look(id.unsigned_abs(), POSTGRES);
    assert!(seen, "what an event costs can be seen on Linux only, and not of PostgreSQL in a container");
}

pub(super) fn costs(rounds: usize, template: &Template<'_>, kafka: &Kafka) -> Vec<Figure> {
    let measured = take_turns(
        rounds,
        vec![
            Contender::new("cost, sent_at kept", || cost(template, kafka, &[])),
            Contender::new("cost, delete", || cost(template, kafka, &["--delete-sent"])),
        ],
    );
    let [[emit, kept @ ..], [_, delete @ ..]]: [[Vec<f64>; 4]; 2] = measured.try_into().unwrap();
    let mut figures = vec![Figure::new("WAL of an emit", "bytes/event", emit)];
    for (name, [relay, backend, wal]) in [("sent_at kept", kept), ("delete", delete)] {
        figures.push(Figure::new(format!("relay's processor time, {name}"), "us/event", relay));
        figures.push(Figure::new(format!("its PostgreSQL backends', {name}"), "us/event", backend));
        figures.push(Figure::new(format!("WAL of its settling, {name}"), "bytes/event", wal));
    }
    figures
}

/// Returns, for each event, the WAL of its emit, the processor time of the relay and of its one worker's backends, and the WAL of
/// its settling.
fn cost(template: &Template<'_>, kafka: &Kafka, options: &[&str]) -> [f64; 4] {
    let conn = &mut template.database.connect();
    let topic = new_topic(kafka);
    let counter = kafka.counter(&topic);
    template.empty();
    template.settle_down();
    let begin = wal_position(conn);
    template.append_many(ROWS);
    let emitted = wal_position(conn);
    let relay = relay_process(template.database.url(), kafka, &topic, options);
    // The relay has a second thread and backend while there is a backlog, and all count.
    let (mut relay_times, mut backend_times) = (Times::default(), Times::default());
    eventually("all rows to be sent", PATIENCE, || {
        let ids = "SELECT pid FROM pg_stat_activity WHERE application_name = 'outbox relay' \
                   AND datname = current_database()";
        for id in sql::<Integer>(ids).load::<i32>(conn).unwrap() {
            backend_times.look(id.unsigned_abs(), POSTGRES);
        }
        relay_times.look(relay.id(), "outbox");
        let unsent = "SELECT EXISTS (SELECT FROM outbox WHERE sent_at IS NULL)";
        let all_came = counter.count() >= ROWS;
        (all_came && !sql::<Bool>(unsent).get_result::<bool>(conn).unwrap()).then_some(())
    });
    let settled = wal_position(conn);
    stop(&relay);
    let [relay, backend] = [relay_times, backend_times].map(|times| times.total() as f64 / 1e3);
    [(emitted - begin) as f64, relay, backend, (settled - emitted) as f64].map(|all| all / ROWS as f64)
}

fn wal_position(conn: &mut PgConnection) -> i64 {
    sql::<BigInt>("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").get_result(conn).unwrap()
}
