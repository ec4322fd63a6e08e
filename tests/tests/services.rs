//! The servers on which the other tests depend.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_outbox::{Emit, Migrations, Record};
use outbox_tests::{Database, Debezium, Folder, Kafka, Postgres, Process, ReadRecord, Signal, eventually};
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    server_version_num: String,
}

fn major(conn: &mut PgConnection) -> u32 {
    let version: Version = diesel::sql_query("show server_version_num").get_result(conn).unwrap();
    version.server_version_num.parse::<u32>().unwrap() / 10_000
}

fn notes(conn: &mut PgConnection) -> QueryResult<Vec<String>> {
    diesel::dsl::sql::<Text>("select body from note order by body").load(conn)
}

fn send(kafka: &Kafka, topic: &str, key: &str, payload: &str) {
    let producer: BaseProducer = kafka.client().set("partitioner", "murmur2_random").create().unwrap();
    let headers = ["first", "second", "first"].into_iter().zip(["1", "2", "3"]);
    let headers = headers.fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    });
    producer
        .send(BaseRecord::to(topic).key(key).payload(payload).headers(headers))
        .map_err(|(error, _)| error)
        .unwrap();
    producer.flush(PATIENCE).unwrap();
}

#[test]
fn two_databases_of_the_shared_server_are_separate() {
    let (one, other) = (Postgres::shared().database(), Postgres::shared().database());
    one.connect().batch_execute("create table note (body text); insert into note values ('mine')").unwrap();
    assert_eq!(notes(&mut one.connect()).unwrap(), ["mine"]);
    assert!(notes(&mut other.connect()).is_err());
}

#[test]
fn a_local_server_can_also_be_reached_by_its_socket() {
    let database = Postgres::shared().database();
    if let Some(url) = database.socket_url() {
        let mut conn = PgConnection::establish(&url).unwrap();
        let name: String = diesel::select(diesel::dsl::sql::<Text>("current_database()::text"))
            .get_result(&mut conn)
            .unwrap();
        assert_eq!(name, database.name());
    }
}

#[test]
fn a_server_of_the_requested_version_keeps_its_data_through_stop_and_crash() {
    let server = Postgres::start_with(18, &[("max_prepared_transactions", "7")]);
    let database = server.database();
    let mut conn = database.connect();
    assert_eq!(major(&mut conn), 18);
    let setting = diesel::dsl::sql::<Integer>("current_setting('max_prepared_transactions')::int");
    assert_eq!(diesel::select(setting).get_result::<i32>(&mut conn).unwrap(), 7);

    conn.batch_execute("create table note (body text); insert into note values ('before the stop')").unwrap();
    server.stop();
    assert!(notes(&mut conn).is_err());
    assert!(PgConnection::establish(database.url()).is_err());
    server.restart();

    let mut conn = database.connect();
    conn.batch_execute("insert into note values ('before the crash')").unwrap();
    server.crash();
    assert!(notes(&mut conn).is_err());
    server.restart();
    assert_eq!(notes(&mut database.connect()).unwrap(), ["before the crash", "before the stop"]);
}

#[test]
fn kafka_returns_what_was_sent() {
    let kafka = Kafka::shared();
    let topic = kafka.unique("round-trip");
    assert_eq!(kafka.read_all(&topic), []);
    kafka.create_topic(&topic, 2);
    assert_eq!(kafka.read_all(&topic), []);

    for (key, payload) in [("a", "one"), ("b", "two"), ("a", "three")] {
        send(kafka, &topic, key, payload);
    }
    let records = kafka.read_all(&topic);
    assert_eq!(records.len(), 3);
    let of_a: Vec<_> = records.iter().filter(|record| record.key_text() == Some("a")).collect();
    assert_eq!(of_a.iter().map(|record| record.text().unwrap()).collect::<Vec<_>>(), ["one", "three"]);
    let headers: Vec<_> =
        of_a[0].headers.iter().map(|(key, value)| (key.as_str(), value.as_deref().unwrap())).collect();
    assert_eq!(headers, [("first", &b"1"[..]), ("second", b"2"), ("first", b"3")]);
    assert!(of_a[0].timestamp.is_some());
}

#[test]
fn kafka_makes_a_topic_of_three_partitions_at_the_first_write() {
    let kafka = Kafka::shared();
    let topic = kafka.unique("auto");
    for n in 0..30 {
        send(kafka, &topic, &n.to_string(), "");
    }
    let records = kafka.read_at_least(&topic, 30, PATIENCE);
    assert_eq!(records.last().unwrap().partition, 2);
}

#[test]
fn a_broker_keeps_its_data_through_stop_crash_and_pause() {
    let kafka = Kafka::start();
    kafka.create_topic("kept", 1);
    let sent = |text| send(&kafka, "kept", "key", text);
    sent("before the stop");
    kafka.restart();
    sent("before the crash");
    kafka.crash();
    assert!(TcpStream::connect(kafka.brokers()).is_err());
    kafka.restart();

    kafka.pause();
    let producer: BaseProducer = kafka.client().create().unwrap();
    producer
        .send(BaseRecord::<str, str>::to("kept").payload("in the pause"))
        .map_err(|(error, _)| error)
        .unwrap();
    assert!(producer.flush(Duration::from_millis(300)).is_err(), "nothing is answered in a pause");
    kafka.resume();
    producer.flush(PATIENCE).unwrap();

    let texts: Vec<_> =
        kafka.read_all("kept").into_iter().map(|record| record.text().unwrap().to_owned()).collect();
    assert_eq!(texts, ["before the stop", "before the crash", "in the pause"]);
}

/// Checks what Debezium made of an event: everything except the event's own headers.
fn assert_is(received: &ReadRecord, event: &Record) {
    assert_eq!(received.key_text(), Some(event.aggregate_id()));
    assert_eq!(received.payload.as_deref(), event.payload());
    let headers: Vec<_> =
        received.headers.iter().map(|(key, value)| (key.as_str(), value.clone().unwrap())).collect();
    let id = event.id().to_string().into_bytes();
    assert_eq!(headers, [("id", id), ("eventType", event.event_type().as_bytes().to_vec())]);
}

fn emit(database: &Database<'_>, events: &[Record]) {
    database.connect().transaction(|c| c.emit_all(events)).unwrap();
}

fn replication_slots(postgres: &Postgres) -> i64 {
    let count = diesel::dsl::sql::<BigInt>("(select count(*) from pg_replication_slots)");
    diesel::select(count).get_result(&mut postgres.connect()).unwrap()
}

#[test]
fn debezium_publishes_what_is_committed_after_it_has_started() {
    let (postgres, kafka) = (Postgres::start(18), Kafka::shared());
    let database = postgres.database();
    Migrations::new().run(&mut database.connect()).unwrap();
    emit(&database, &[Record::new("order", "7", "BeforeTheStart")]);

    let prefix = kafka.unique("debezium");
    let topic = format!("{prefix}.order");
    let debezium =
        Debezium::start(&database, kafka, &format!("{prefix}.${{routedByValue}}"), &Debezium::TUNED);
    let placed =
        Record::new("order", "7", "OrderPlaced").header("trace", "1").with_payload(*b"\0\xff any bytes");
    let forgotten = Record::new("order", "7", "OrderForgotten");
    emit(&database, &[placed.clone(), forgotten.clone()]);
    let emitted = diesel::dsl::sql::<BigInt>(
        "SELECT (extract(epoch FROM created_at) * 1000)::bigint FROM outbox WHERE type <> 'BeforeTheStart' ORDER BY seq",
    );
    let emitted: Vec<Option<i64>> =
        emitted.load::<i64>(&mut database.connect()).unwrap().into_iter().map(Some).collect();
    // Neither an update nor a deletion is an event.
    database.connect().batch_execute("update outbox set sent_at = now(); delete from outbox").unwrap();
    let records = kafka.read_at_least(&topic, 2, PATIENCE);
    assert_is(&records[0], &placed);
    assert_is(&records[1], &forgotten);
    assert_eq!(records.iter().map(|record| record.timestamp).collect::<Vec<_>>(), emitted);
    assert!(debezium.id().is_some());
    assert!(debezium.resident_kb().is_none_or(|resident| resident > 50_000));

    debezium.stop();
    assert_eq!((debezium.id(), debezium.resident_kb()), (None, None));
    let later = Record::new("order", "7", "OrderPlaced").with_payload(*b"");
    emit(&database, std::slice::from_ref(&later));
    debezium.restart();
    let records = kafka.read_at_least(&topic, 3, PATIENCE);
    assert_is(&records[2], &later);
    assert_eq!(records.len(), 3);

    assert_eq!(replication_slots(&postgres), 1);
    drop(debezium);
    assert_eq!(replication_slots(&postgres), 0);
}

#[test]
fn a_broker_for_a_benchmark_accepts_properties() {
    let kafka = Kafka::start_for_benchmark(&[("num.partitions", "5")]);
    send(&kafka, "made", "key", "value");
    let admin: AdminClient<DefaultClientContext> = kafka.client().create().unwrap();
    let metadata = admin.inner().fetch_metadata(Some("made"), PATIENCE).unwrap();
    assert_eq!(metadata.topics()[0].partitions().len(), 5);
}

/// The parent process of the test below. It is killed while its server runs.
#[test]
#[ignore = "started by the test of the leash"]
fn a_parent_that_is_killed() {
    let (server, folder) = (Postgres::start(18), Folder::new("of-the-parent"));
    println!("started {} beside {}", server.url(), folder.path().display());
    loop {
        std::thread::park();
    }
}

#[test]
fn when_a_test_process_is_killed_its_server_ends_and_leaves_nothing() {
    let mut test = Command::new(env::current_exe().unwrap());
    test.args(["--exact", "a_parent_that_is_killed", "--ignored", "--nocapture"]);
    let parent = Process::start(&test);
    let line = parent.wait_for_line("its address", PATIENCE, |line| line.contains("started postgres://"));
    let (url, folder) = line.split_once("started ").unwrap().1.split_once(" beside ").unwrap();
    let folder = Path::new(folder).ancestors().nth(2).unwrap();
    assert!(fs::exists(folder).unwrap());
    PgConnection::establish(url).unwrap();

    parent.signal(Signal::Kill);
    parent.wait(PATIENCE);
    eventually("the server to end", PATIENCE, || PgConnection::establish(url).is_err().then_some(()));
    eventually("the folder to be removed", PATIENCE, || (!fs::exists(folder).unwrap()).then_some(()));
}

#[test]
fn a_process_can_be_read_stopped_and_ended() {
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"trap 'echo "ended $NAME"; exit 3' TERM; echo ready; while :; do :; done"#]);
    let process = Process::start(shell.env("NAME", "well"));
    process.wait_for_line("that it is ready", PATIENCE, |line| line == "ready");
    process.signal(Signal::Stop);
    process.signal(Signal::Terminate);
    process.signal(Signal::Continue);
    assert_eq!(process.wait(PATIENCE).code(), Some(3));
    assert_eq!(process.lines(), ["ready", "ended well"]);
}
