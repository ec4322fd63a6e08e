//! The consumer, the database or Kafka is away, stopped or killed in the middle.

use std::collections::BTreeSet;
use std::env;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox_kafka::consumer::{Consumer, HandlerError, Received};
use outbox_tests::{Kafka, Postgres, Process, Signal, eventually};
use uuid::Uuid;

use super::bench::{Bench, PATIENCE, Sent, insert_effect, insert_effect_slowly};

#[test]
fn a_record_that_waits_for_a_retry_when_the_consumer_stops_is_delivered_again() {
    let bench = Bench::new(1);
    let bodies = ["a", "b", "c"];
    let events = bodies.map(Sent::new);
    bench.send(events.iter().map(|event| (0, event)));
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let failing = move |c: &mut PgConnection, r: &Received| -> Result<(), HandlerError> {
        insert_effect(c, r)?;
        if r.payload() == Some(b"b") {
            counted.fetch_add(1, Ordering::Relaxed);
            return Err("not yet".into());
        }
        Ok(())
    };
    let consumer = bench.consumer().max_attempts(u32::MAX).on("Counted", failing).spawn().unwrap();
    eventually("two tries", PATIENCE, || (tries.load(Ordering::Relaxed) >= 2).then_some(()));
    consumer.stop_blocking().unwrap();
    assert_eq!((bench.bodies(), bench.committed()), (vec!["a".to_owned()], vec![1]));

    let consumer = bench.consumer().on("Counted", insert_effect).spawn().unwrap();
    bench.wait_until_all_is_committed();
    consumer.stop_blocking().unwrap();
    assert_eq!(bench.bodies(), bodies);
}

#[test]
fn a_consumer_that_is_killed_loses_nothing_and_repeats_nothing() {
    let bench = Bench::new(3);
    let events: Vec<Sent> = (0..1_000).map(|n| Sent::new(&n.to_string())).collect();
    bench.send(events.iter().enumerate().map(|(n, event)| (n as i32 % 3, event)));
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "outages::the_consumer_that_is_killed", "--nocapture"]);
    let to_child =
        [bench.kafka.brokers(), &bench.database.consumer_url(), &bench.topic, &bench.name].join(" ");
    child.env("CONSUMER_TO_KILL", to_child);
    for effects in [150, 450] {
        let child = Process::start(&child);
        bench.wait_for_effects(effects);
        child.signal(Signal::Kill);
        child.wait(PATIENCE);
    }
    assert!(bench.effects().len() < 1_000, "it was not killed in the middle");
    let consumer = bench.consumer().on("Counted", insert_effect).spawn().unwrap();
    bench.wait_until_all_is_committed();
    consumer.stop_blocking().unwrap();
    let effects: Vec<Uuid> = bench.effects().iter().map(|effect| effect.id).collect();
    assert_eq!((effects.len(), effects.iter().collect::<BTreeSet<_>>().len()), (1_000, 1_000));
}

#[test]
#[ignore = "the other test runs it, to kill it"]
fn the_consumer_that_is_killed() {
    let Ok(given) = env::var("CONSUMER_TO_KILL") else { return };
    let [brokers, url, topic, name] = given.split(' ').collect::<Vec<_>>().try_into().unwrap();
    super::bench::consumer(brokers, name, topic)
        .on("Counted", |c, r| insert_effect_slowly(c, r, "killed"))
        .database_url(url)
        .spawn()
        .unwrap()
        .detach();
    thread::park();
}

#[test]
fn a_database_restart_does_not_count_as_an_attempt_for_any_record() {
    let server = Postgres::start(18);
    let bench = Bench::with(Kafka::shared(), &server, 3);
    let events: Vec<Sent> = (0..600).map(|n| Sent::new(&n.to_string())).collect();
    bench.send(events.iter().enumerate().map(|(n, event)| (n as i32 % 3, event)));
    let refused = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&refused);
    let mut connect = bench.connect();
    let connect = move || {
        connect().inspect_err(|_| {
            counted.fetch_add(1, Ordering::Relaxed);
        })
    };
    let handler = |c: &mut PgConnection, r: &Received| insert_effect_slowly(c, r, "");
    // A single attempt: any failure that counts would make a dead letter.
    let consumer =
        bench.consumer().max_attempts(1).on("Counted", handler).connect_with(connect).spawn().unwrap();
    for (effects, crash) in [(100, false), (300, true)] {
        bench.wait_for_effects(effects);
        if crash {
            server.crash()
        } else {
            server.stop()
        }
        let before = refused.load(Ordering::Relaxed);
        eventually("connections that were refused", PATIENCE, || {
            (refused.load(Ordering::Relaxed) >= before + 3).then_some(())
        });
        server.restart();
    }
    bench.wait_until_all_is_committed();
    consumer.stop_blocking().unwrap();
    let effects: Vec<Uuid> = bench.effects().iter().map(|effect| effect.id).collect();
    assert_eq!((effects.len(), effects.iter().collect::<BTreeSet<_>>().len()), (600, 600));
    assert!(bench.dead_letters().is_empty());
}

#[test]
fn an_inbox_that_refuses_or_is_away_does_not_count_as_an_attempt_for_any_record() {
    let bench = Bench::new(1);
    let mut conn = bench.database.connect();
    conn.batch_execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'refused'; end $$;
         create trigger refuse before insert on inbox for each row execute function refuse()",
    )
    .unwrap();
    bench.send([(0, &Sent::new("a"))]);
    let connections = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&connections);
    let mut connect = bench.connect();
    let connect = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        connect()
    };
    let consumer =
        bench.consumer().max_attempts(1).on("Counted", insert_effect).connect_with(connect).spawn().unwrap();
    eventually("connections", PATIENCE, || (connections.load(Ordering::Relaxed) >= 4).then_some(()));
    // Once the inbox has been there, it may be away for a while, as when somebody restores the database.
    conn.batch_execute("drop trigger refuse on inbox; alter table inbox rename to away").unwrap();
    let before = connections.load(Ordering::Relaxed);
    eventually("connections", PATIENCE, || (connections.load(Ordering::Relaxed) >= before + 3).then_some(()));
    conn.batch_execute("alter table away rename to inbox").unwrap();
    bench.wait_for_effects(1);
    consumer.stop_blocking().unwrap();
    assert!(bench.dead_letters().is_empty());
}

#[test]
fn a_dead_letter_topic_that_refuses_records_stops_the_partition_and_loses_nothing() {
    let bench = Bench::new(1);
    bench.kafka.create_topic_with(&bench.dead_letter_topic(), 1, &[("max.message.bytes", "100")]);
    bench.send([(0, &Sent::new("poison")), (0, &Sent::new("rest"))]);
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let handler = move |c: &mut PgConnection, r: &Received| -> Result<(), HandlerError> {
        if r.payload() == Some(b"poison") {
            counted.fetch_add(1, Ordering::Relaxed);
            return Err("poison".into());
        }
        insert_effect(c, r)
    };
    let consumer = || bench.consumer().max_attempts(2).on("Counted", handler.clone()).spawn().unwrap();
    let first = consumer();
    eventually("the tries", PATIENCE, || (tries.load(Ordering::Relaxed) == 2).then_some(()));
    first.stop_blocking().unwrap();
    assert_eq!((bench.committed(), bench.effects().len()), (vec![-1001], 0));

    bench.kafka_takes_dead_letters_again();
    let second = consumer();
    bench.wait_until_all_is_committed();
    second.stop_blocking().unwrap();
    assert_eq!(bench.bodies(), ["rest"]);
    assert_eq!(bench.dead_letters().len(), 1);
}

#[test]
fn a_consumer_stops_while_kafka_is_away() {
    let consumer =
        Consumer::<PgConnection>::new("127.0.0.1:1", "billing").database_url("postgres://127.0.0.1:1");
    let consumer = consumer.topics(["order"]).on_other(|_, _| Ok(())).spawn().unwrap();
    consumer.stop_blocking().unwrap();
}
