//! Whoever poses as a server is refused: another authority, another host, a certificate that has expired, and no TLS at all.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use diesel_outbox_kafka::consumer::Consumer;
use outbox_tests::load::{count, migrated, migrated_on, new_topic, relay_at, relay_command, stop};
use outbox_tests::{
    Authority, Kafka, Mariadb, Postgres, Process, TlsKafka, eventually, logged, start_logging_everything,
};

use super::{PATIENCE, done, outbox};

#[track_caller]
fn is_refused(url: &str, says: &[&str]) {
    let (is_done, text) = outbox(url, &["lag"]);
    assert!(!is_done && says.iter().any(|says| text.contains(says)), "{url}: {text}");
}

/// The stream of the write-ahead log has a connection of its own, which must be as strict.
#[test]
fn on_postgres_verify_full_takes_only_the_server_that_it_names() {
    let authority = Authority::new();
    let server = Postgres::start_with_tls(15, &authority.certify("localhost"));
    let database = migrated_on(&server);
    let conn = &mut database.connect();
    let at = |base: &str, mode: &str, authority: &Authority| {
        let by_name = base.replace("127.0.0.1", "localhost");
        format!("{by_name}?sslmode={mode}&sslrootcert={}", authority.certificate().display())
    };
    let good = at(database.url(), "verify-full", &authority);
    done(&good, &["lag"]);
    is_refused(&at(database.url(), "verify-full", &Authority::new()), &["certificate verify failed"]);
    is_refused(&good.replace("localhost", "127.0.0.1"), &["does not match host name"]);
    let plain = migrated();
    is_refused(&at(plain.url(), "verify-full", &authority), &["does not support SSL"]);
    is_refused(&at(plain.url(), "require", &authority), &["does not support SSL"]);

    // Relays that poll and that read the write-ahead log.
    done(&good, &["wal", "setup", "--slot", database.name()]);
    let topic = new_topic("tls");
    let relay_url = at(&database.relay_url(), "verify-full", &authority);
    let slot = ["--source", "wal", "--slot", database.name()];
    let log = relay_at(&relay_url, &topic, &slot);
    let polled = migrated_on(&server);
    let polling = relay_at(&at(&polled.relay_url(), "verify-full", &authority), &topic, &[]);
    polling.wait_for_line("that it has started", PATIENCE, |line| line.contains("the relay has started"));
    conn.transaction(|c| c.emit(&Record::new("order", "1", "OrderPlaced"))).unwrap();
    let counter = Kafka::shared().counter(&topic);
    eventually("the event", PATIENCE, || (counter.count() == 1).then_some(()));
    let encrypted =
        "pg_stat_ssl AS s JOIN pg_stat_activity AS a USING (pid) WHERE a.application_name = 'outbox relay'";
    let plain_text = count(conn, &format!("{encrypted} AND NOT s.ssl"));
    assert!(count(conn, &format!("{encrypted} AND s.ssl")) >= 2 && plain_text == 0, "{plain_text}");
    // Now somebody else answers. What was connected before is cut off.
    server.show_certificate(&Authority::new().certify("localhost"));
    conn.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outbox relay'",
    )
    .unwrap();
    for relay in [&log, &polling] {
        relay
            .wait_for_line("that it is refused", PATIENCE, |line| line.contains("certificate verify failed"));
    }
    stop(&polling);
    server.show_certificate(&authority.certify_expired("localhost"));
    is_refused(&good, &["certificate verify failed", "expired"]);
    server.show_certificate(&authority.certify("localhost"));
    conn.transaction(|c| c.emit(&Record::new("order", "2", "OrderPlaced"))).unwrap();
    eventually("the second event", PATIENCE, || (counter.count() >= 2).then_some(()));
    stop(&log);
}

/// Another authority and another host are in `tests/mariadb/tls.rs`.
#[test]
fn on_mariadb_an_expired_certificate_and_a_server_without_tls_are_refused() {
    let authority = Authority::new();
    let server = Mariadb::start_with_expired_tls(&authority);
    let trusting = |url: &str| format!("{url}?root_cert_path={}", authority.certificate().display());
    is_refused(&trusting(server.database().url()), &["xpired"]);
    let plain = Mariadb::shared().database();
    is_refused(&trusting(plain.url()), &["requires secure connection"]);
    let relay = Process::start(&relay_command("localhost:1", &trusting(plain.url()), "topic", &[]));
    relay.wait_for_line("that it is refused", PATIENCE, |line| {
        line.contains("cannot connect") && line.contains("requires secure connection")
    });
}

const USER: &str = "alice";
const PASSWORD: &str = "alices-pass";

#[test]
fn on_kafka_ssl_and_scram_take_only_the_broker_that_they_name() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let broker = TlsKafka::start(&authority, USER, PASSWORD);
    let database = migrated();
    let conn = &mut database.connect();
    let topic = "tls";
    broker.kafka.create_topic(topic, 1);
    let counter = broker.kafka.counter(topic);
    let command = |brokers: &str, authority: &Authority, properties: &[&str]| -> Command {
        let mut command = relay_command(brokers, &database.relay_url(), topic, &[]);
        let location = format!("ssl.ca.location={}", authority.certificate().display());
        for property in properties.iter().chain([&&*location]) {
            command.args(["--kafka", property]);
        }
        command
    };
    let ssl = ["security.protocol=SSL"];
    let scram = ["security.protocol=SASL_SSL", "sasl.mechanism=SCRAM-SHA-256", "sasl.username=alice"];
    let with_password = |mut command: Command, password: &str| {
        command.env("OUTBOX_KAFKA_SASL_PASSWORD", password);
        command
    };
    let mut sent = 0;
    for command in [
        command(&broker.tls, &authority, &ssl),
        with_password(command(&broker.scram, &authority, &scram), PASSWORD),
    ] {
        conn.transaction(|c| c.emit(&Record::new("order", "1", "OrderPlaced"))).unwrap();
        sent += 1;
        let relay = Process::start(&command);
        eventually("the event", PATIENCE, || (counter.count() == sent).then_some(()));
        stop(&relay);
    }

    conn.transaction(|c| c.emit(&Record::new("order", "1", "OrderPlaced"))).unwrap();
    let by_address = |listener: &str| listener.replace("localhost", "127.0.0.1");
    let plain = broker.kafka.brokers();
    for (what, command, says) in [
        ("another authority", command(&broker.tls, &stranger, &ssl), "certificate"),
        ("another host", command(&by_address(&broker.tls), &authority, &ssl), "certificate"),
        ("an expired certificate", command(&broker.expired, &authority, &ssl), "has expired"),
        ("no TLS", command(plain, &authority, &ssl), "SSL"),
        (
            "TLS where none is asked for",
            command(&broker.tls, &authority, &[]),
            "do they ask for TLS or a login",
        ),
        (
            "another authority, with a login",
            with_password(command(&broker.scram, &stranger, &scram), PASSWORD),
            "certificate",
        ),
        (
            "a wrong password",
            with_password(command(&broker.scram, &authority, &scram), "wrong"),
            "authentication",
        ),
        ("no login", command(&broker.scram, &authority, &ssl), "do they ask for TLS or a login"),
    ] {
        let relay = Process::start(&command);
        relay.wait_for_line(what, PATIENCE, |line| line.to_lowercase().contains(&says.to_lowercase()));
        println!("{what}: {}", relay.output());
    }
    assert_eq!(counter.count(), sent, "an event was sent in spite of all");
    assert_eq!(count(conn, "outbox WHERE sent_at IS NULL"), 1);
    consumers_take_only_the_broker_that_they_name(&broker, &authority, &stranger, database.consumer_url());
}

/// The relays have sent two events.
fn consumers_take_only_the_broker_that_they_name(
    broker: &TlsKafka,
    authority: &Authority,
    stranger: &Authority,
    database: String,
) {
    start_logging_everything();
    let handled = Arc::new(AtomicUsize::new(0));
    let consumer = |group: &str, password: &str, authority: &Authority| {
        let handled = handled.clone();
        Consumer::<PgConnection>::new(&broker.scram, group)
            .set("security.protocol", "SASL_SSL")
            .set("sasl.mechanism", "SCRAM-SHA-256")
            .set("sasl.username", USER)
            .set("sasl.password", password)
            .set("ssl.ca.location", authority.certificate().display().to_string())
            .topics(["tls"])
            .database_url(&database)
            .on("OrderPlaced", move |_, _| {
                handled.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
            .spawn()
            .unwrap()
    };
    for (password, authority, says) in
        [("wrong", authority, "uthentication"), (PASSWORD, stranger, "certificate verify failed")]
    {
        let refused = consumer("refused", password, authority);
        eventually("that it is refused", PATIENCE, || logged(&["Kafka reports an error", says]));
        refused.stop_blocking().unwrap();
    }
    assert_eq!(handled.load(Ordering::Relaxed), 0);
    let consumer = consumer("billing", PASSWORD, authority);
    eventually("both events", PATIENCE, || (handled.load(Ordering::Relaxed) == 2).then_some(()));
    consumer.stop_blocking().unwrap();
}
