//! Records that their handlers cannot handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox_kafka::consumer::{HandlerError, Received};
use outbox_tests::eventually;

use super::bench::{Bench, PATIENCE, Sent, effects, insert_effect};

#[test]
fn a_failing_handler_is_retried_while_other_partitions_flow_and_the_order_is_kept() {
    let bench = Bench::new(2);
    let [a, b, c, other] = ["a", "b", "c", "other"].map(Sent::new);
    bench.send([(0, &a), (0, &b), (0, &c)]);
    let tried = Arc::new(AtomicU32::new(0));
    let tries = Arc::clone(&tried);
    let handler = move |c: &mut PgConnection, r: &Received| -> Result<(), HandlerError> {
        insert_effect(c, r)?;
        let body = String::from_utf8(r.payload().unwrap_or_default().to_vec())?;
        // `a` fails until the record of the other partition has had its effect.
        if body == "a" {
            tries.fetch_add(1, Ordering::Relaxed);
            let flows = effects(c)?.iter().any(|effect| effect.body == "other");
            return if flows { Ok(()) } else { Err("not yet".into()) };
        }
        Ok(())
    };
    let consumer = bench.consumer().max_attempts(u32::MAX).on("Counted", handler).spawn().unwrap();
    eventually("tries", PATIENCE, || (tried.load(Ordering::Relaxed) >= 3).then_some(()));
    assert!(bench.effects().is_empty(), "what a failed try did was rolled back, and those behind it wait");
    bench.send([(1, &other)]);
    bench.wait_for_effects(4);
    bench.send([(0, &Sent::new("d"))]);
    bench.wait_for_effects(5);
    consumer.stop_blocking().unwrap();
    assert_eq!(bench.bodies(), ["other", "a", "b", "c", "d"]);
    assert!(bench.dead_letters().is_empty());
}

#[test]
fn a_poison_record_becomes_a_dead_letter_after_max_attempts_and_the_rest_flows() {
    let bench = Bench::new(1);
    let [poison, rest] = ["poison", "rest"].map(Sent::new);
    bench.send([(0, &poison), (0, &rest)]);
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let handler = move |c: &mut PgConnection, r: &Received| -> Result<(), HandlerError> {
        insert_effect(c, r)?;
        if r.payload() == Some(b"poison") {
            counted.fetch_add(1, Ordering::Relaxed);
            c.batch_execute("insert into no_such_table values (1)")?;
        }
        Ok(())
    };
    let consumer = bench.consumer().max_attempts(3).on("Counted", handler).spawn().unwrap();
    bench.wait_for_effects(1);
    bench.wait_until_all_is_committed();
    consumer.stop_blocking().unwrap();

    assert_eq!(bench.bodies(), ["rest"]);
    assert_eq!(tries.load(Ordering::Relaxed), 3);
    let dead = bench.dead_letters();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].key_text(), dead[0].text()), (Some("poison"), Some("poison")));
    let id = poison.id.to_string();
    let expected = [
        ("id", id.as_str()),
        ("eventType", "Counted"),
        ("outbox-topic", &bench.topic),
        ("outbox-partition", "0"),
        ("outbox-offset", "0"),
        ("outbox-consumer", &bench.name),
    ];
    for (name, value) in expected {
        assert_eq!(dead[0].header(name), Some(value), "{name}");
    }
    assert!(dead[0].header("outbox-error").unwrap().contains("no_such_table"));
    assert!(dead[0].header("outbox-timestamp").unwrap().parse::<i64>().is_ok());
}

#[test]
fn a_panic_of_a_handler_counts_as_a_failure() {
    let bench = Bench::new(1);
    bench.send([(0, &Sent::new("poison")), (0, &Sent::new("rest"))]);
    let handler = |c: &mut PgConnection, r: &Received| -> Result<(), HandlerError> {
        insert_effect(c, r)?;
        assert!(r.payload() != Some(b"poison"), "the handler cannot take it");
        Ok(())
    };
    let consumer = bench.consumer().max_attempts(2).on("Counted", handler).spawn().unwrap();
    bench.wait_for_effects(1);
    consumer.stop_blocking().unwrap();
    assert_eq!(bench.bodies(), ["rest"]);
    let dead = bench.dead_letters();
    assert!(dead[0].header("outbox-error").unwrap().contains("panicked: the handler cannot take it"));
}

#[test]
fn a_payload_that_cannot_be_read_becomes_a_dead_letter_at_once() {
    let bench = Bench::new(1);
    bench.send([(0, &Sent::new("text")), (0, &Sent::new("42"))]);
    let handler = |c: &mut PgConnection, number: u32| -> Result<(), HandlerError> {
        c.batch_execute(&format!(
            "insert into effect (id, body, consumer) values (gen_random_uuid(), '{number}', '')"
        ))?;
        Ok(())
    };
    // With a back-off as long as this, a second attempt would be too late for the test.
    let consumer = bench.consumer().backoff(PATIENCE * 2, PATIENCE * 2).on_json("Counted", handler);
    let consumer = consumer.spawn().unwrap();
    bench.wait_for_effects(1);
    consumer.stop_blocking().unwrap();
    let dead = bench.dead_letters();
    assert_eq!((dead.len(), dead[0].text()), (1, Some("text")));
    assert!(
        dead[0].header("outbox-error").unwrap().contains("line 1"),
        "{:?}",
        dead[0].header("outbox-error")
    );
}

#[test]
fn a_record_without_a_valid_id_or_type_becomes_a_dead_letter_with_the_reason() {
    let bench = Bench::new(1);
    let (none, bad, rest) = (Sent::new("no id"), Sent::new("bad id"), Sent::new("rest"));
    let headers = |event: &Sent| event.headers.clone();
    let none =
        Sent { headers: headers(&none).into_iter().filter(|(name, _)| *name != "id").collect(), ..none };
    let bad = Sent { headers: vec![("id", "7".into()), ("eventType", "Counted".into())], ..bad };
    let untyped = Sent { headers: vec![("id", rest.id.to_string())], ..Sent::new("no type") };
    let unknown = Sent::new("unknown").with_type("Other");
    bench.send([(0, &none), (0, &bad), (0, &untyped), (0, &unknown), (0, &rest)]);
    let consumer = bench.consumer().on("Counted", insert_effect).spawn().unwrap();
    bench.wait_for_effects(1);
    consumer.stop_blocking().unwrap();
    let reasons: Vec<String> =
        bench.dead_letters().iter().map(|dead| dead.header("outbox-error").unwrap().to_owned()).collect();
    assert_eq!(reasons.len(), 3, "one of an unknown type is skipped");
    assert!(reasons[0].contains("`id` is missing"), "{reasons:?}");
    assert!(reasons[1].contains("`id` is not a UUID"), "{reasons:?}");
    assert!(reasons[2].contains("`eventType` is missing"), "{reasons:?}");
}
