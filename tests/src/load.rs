//! Several writers that emit events at once, a relay process that sends them, and a check of what arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_outbox::{Emit, OutboxConnection, Record};

use crate::{Database, Kafka, Postgres, Process, ReadRecord, Signal, eventually, workspace_binary};

/// Makes a new database with the tables on the shared server.
pub fn migrated() -> Database<'static> {
    migrated_on(Postgres::shared())
}

/// Makes a new database with the tables on this server.
pub fn migrated_on(postgres: &Postgres) -> Database<'_> {
    let database = postgres.database();
    database.migrate();
    database
}

/// Makes a new topic of six partitions.
pub fn new_topic(name: &str) -> String {
    let topic = Kafka::shared().unique(name);
    Kafka::shared().create_topic(&topic, 6);
    topic
}

/// Starts a process of the binary `outbox` that relays to this topic.
pub fn relay(database: &Database<'_>, topic: &str, arguments: &[&str]) -> Process {
    relay_to(Kafka::shared(), database, topic, arguments)
}

/// Starts a process of the binary `outbox` that relays to this topic of this broker.
pub fn relay_to(kafka: &Kafka, database: &Database<'_>, topic: &str, arguments: &[&str]) -> Process {
    Process::start(&relay_command(kafka.brokers(), &database.relay_url(), topic, arguments))
}

/// Returns the command of such a process.
pub fn relay_command(brokers: &str, database_url: &str, topic: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(workspace_binary("outbox"));
    command
        .args(["relay", "--brokers", brokers, "--topic", topic])
        .args(arguments)
        .env("OUTBOX_DATABASE_URL", database_url);
    command
}

/// Runs `outbox wal setup` or `outbox wal drop`, and returns what it printed. The slot has the name of its database, because
/// slot names are unique on the server.
#[track_caller]
pub fn wal(database: &Database<'_>, command: &str) -> String {
    wal_with(database, &[command, "--slot", database.name()])
}

/// Runs `outbox wal` with these arguments, and returns what it printed.
#[track_caller]
pub fn wal_with(database: &Database<'_>, arguments: &[&str]) -> String {
    let mut outbox = Command::new(workspace_binary("outbox"));
    outbox.arg("wal").args(arguments).env("OUTBOX_DATABASE_URL", database.url());
    let output = outbox.output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

/// Waits until the slot that has the database's name has confirmed everything that was committed before the call.
#[track_caller]
pub fn wait_until_confirmed(conn: &mut PgConnection, within: Duration) {
    let end = diesel::dsl::sql::<Text>("SELECT pg_current_wal_insert_lsn()::text");
    let end: String = end.get_result(conn).unwrap();
    let confirmed = format!(
        "pg_replication_slots WHERE slot_name = current_database() AND confirmed_flush_lsn >= '{end}'"
    );
    eventually("all to be confirmed", within, || (count(conn, &confirmed) == 1).then_some(()));
}

/// Starts a relay process like [`relay`] that connects to this URL, for example as another role.
pub fn relay_at(url: &str, topic: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new(workspace_binary("outbox"));
    command
        .args(["relay", "--brokers", Kafka::shared().brokers(), "--topic", topic])
        .args(arguments)
        .env("OUTBOX_DATABASE_URL", url);
    Process::start(&command)
}

/// Starts a process of the binary `outbox` that reads the slot with the database's name.
pub fn wal_relay(database: &Database<'_>, topic: &str) -> Process {
    relay(database, topic, &["--source", "wal", "--slot", database.name()])
}

/// Returns the statements of a page for a relay's role, for this role instead of the page's.
pub fn grants(page: &str, role: &str) -> String {
    let (_, statements) = page.split_once("```sql\n").expect("a page with statements");
    let (statements, _) = statements.split_once("```").expect("the end of the statements");
    let names = ["my_relay", "outbox_relay"];
    let of_relay = statements.lines().filter(|line| names.iter().any(|name| line.contains(name)));
    names.iter().fold(of_relay.collect(), |text: String, name| text.replace(name, role))
}

/// Drops roles that have grants only in this database, as soon as nobody uses them.
#[track_caller]
pub fn drop_roles(conn: &mut PgConnection, roles: &str) {
    eventually("the roles to be free", Duration::from_secs(30), || {
        conn.batch_execute(&format!("DROP OWNED BY {roles}; DROP ROLE {roles}")).ok()
    });
}

/// Stops a relay gracefully, as soon as it handles signals.
#[track_caller]
pub fn stop(relay: &Process) {
    relay.wait_for_line("that it has started", Duration::from_secs(30), |line| {
        line.contains("the relay has started")
    });
    relay.signal(Signal::Terminate);
    assert!(relay.wait(Duration::from_secs(30)).success(), "{}", relay.output());
}

/// Returns the number of rows.
pub fn count(conn: &mut PgConnection, from: &str) -> usize {
    let sql = format!("SELECT count(*) FROM {from}");
    diesel::dsl::sql::<BigInt>(&sql).get_result::<i64>(conn).unwrap().unsigned_abs() as usize
}

/// Returns how many entries of the outbox's indexes are read by a relay that the closure starts and ends.
pub fn entries_read(database: &Database<'_>, relay: impl FnOnce()) -> i64 {
    let conn = &mut database.connect();
    let read = |conn: &mut PgConnection| {
        let sql = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'outbox'";
        diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(conn).unwrap()
    };
    // One that was dropped a moment ago may not have added up yet what it has read.
    wait_for_the_relays_end(conn);
    let before = read(conn);
    relay();
    wait_for_the_relays_end(conn);
    read(conn) - before
}

/// Waits until no relay has a session in this database any more. PostgreSQL adds up what a session has read at the session's
/// end at the latest.
pub fn wait_for_the_relays_end(conn: &mut PgConnection) {
    eventually("the relay's session to end", Duration::from_secs(20), || {
        let sessions =
            "pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay'";
        (count(conn, sessions) == 0).then_some(())
    });
}

fn record(aggregate: usize, number: usize) -> Record {
    Record::new("order", aggregate.to_string(), number.to_string()).with_payload(vec![b'x'; 200])
}

/// Writes events of the aggregates whose number leaves `writer` as the remainder, numbered upwards within each aggregate. The
/// transactions have different sizes. One in ten is rolled back. One in fifty commits late, when others have passed its
/// numbers, and one of those only after whole passes. Returns the ids of the committed events.
pub fn write<C: OutboxConnection>(
    conn: &mut C,
    writer: usize,
    writers: usize,
    aggregates: usize,
    events: usize,
) -> BTreeSet<String> {
    write_until(conn, writer, writers, aggregates, events, || false)
}

/// Writes as [`write()`] does until it is told to end, but no more than this many events.
pub fn write_until<C: OutboxConnection>(
    conn: &mut C,
    writer: usize,
    writers: usize,
    aggregates: usize,
    events: usize,
    is_to_end: impl Fn() -> bool,
) -> BTreeSet<String> {
    let own: Vec<usize> = (0..aggregates).filter(|aggregate| aggregate % writers == writer).collect();
    let mut written = 0;
    let mut round = 0;
    let mut ids = BTreeSet::new();
    while written < events && !is_to_end() {
        let size = (1 + (round * 7 + writer) % 40).min(events - written);
        let records: Vec<Record> =
            (written..written + size).map(|number| record(own[number % own.len()], number)).collect();
        let result: QueryResult<()> = conn.transaction(|c| {
            if size == 1 {
                c.emit(&records[0])?;
            } else {
                c.emit_all(&records)?;
            }
            if round % 50 == 25 {
                std::thread::sleep(Duration::from_millis(if round == 125 { 1_500 } else { 20 }));
            }
            if round % 10 == 9 { Err(diesel::result::Error::RollbackTransaction) } else { Ok(()) }
        });
        if result.is_ok() {
            written += size;
            ids.extend(records.iter().map(|record| record.id().to_string()));
        }
        round += 1;
    }
    ids
}

/// Runs this many writers at once for 1,000 aggregates.
pub fn write_together(database: &Database<'_>, writers: usize, events: usize) -> BTreeSet<String> {
    write_together_on(|| database.connect_as_emitter(), writers, events)
}

/// The same on connections to any database.
pub fn write_together_on<C: OutboxConnection + Send>(
    connect: impl Fn() -> C,
    writers: usize,
    events: usize,
) -> BTreeSet<String> {
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..writers)
            .map(|writer| {
                let mut conn = connect();
                scope.spawn(move || write(&mut conn, writer, writers, 1_000, events / writers))
            })
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

/// Starts this many relays of two workers, and kills one of them again and again while writers emit. Checks that nothing is lost and that the order is
/// kept. The last closure returns how many events are marked as sent.
#[track_caller]
pub fn kill_relays_while_events_are_written<C: OutboxConnection + Send>(
    url: &str,
    relays: usize,
    events: usize,
    connect: impl Fn() -> C + Sync,
    sent: impl Fn() -> usize,
) {
    const PATIENCE: Duration = Duration::from_secs(60);
    let topic = new_topic("killed-relays");
    let arguments = ["--max-pass-duration", "50ms", "--workers", "2"];
    let start = || Process::start(&relay_command(Kafka::shared().brokers(), url, &topic, &arguments));
    let mut relays: Vec<Process> = (0..relays).map(|_| start()).collect();
    let committed = std::thread::scope(|scope| {
        let writers = scope.spawn(|| write_together_on(&connect, 4, events));
        let mut kills = 0;
        while !writers.is_finished() || kills < 3 {
            let before = sent();
            eventually("some events to be sent", PATIENCE, || {
                (sent() >= before + events / 40 || writers.is_finished()).then_some(())
            });
            let relay = relays.remove(0);
            relay.signal(Signal::Kill);
            relay.wait(Duration::from_secs(10));
            relays.push(start());
            kills += 1;
        }
        writers.join().unwrap()
    });
    eventually("everything to be sent", PATIENCE, || (sent() == committed.len()).then_some(()));
    repetitions(&Kafka::shared().read_all(&topic), &committed);
}

/// Returns how many of the received records repeat an id. Fails if a committed id is missing, or if the first occurrences of an
/// aggregate's events are not in their order.
#[track_caller]
pub fn repetitions(received: &[ReadRecord], committed: &BTreeSet<String>) -> usize {
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    for received in received {
        let id = received.header("id").unwrap();
        assert!(committed.contains(id), "{id} was never committed");
        if !seen.insert(id) {
            continue;
        }
        let number: usize = received.header("eventType").unwrap().parse().unwrap();
        let aggregate = received.key_text().unwrap();
        let before = last.insert(aggregate, number);
        assert!(before.is_none_or(|before| before < number), "{aggregate}: {number} after {before:?}");
    }
    assert_eq!(seen.len(), committed.len(), "events were lost");
    received.len() - seen.len()
}
