//! Handlers on diesel-async.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use diesel_async::AsyncPgConnection;
use diesel_outbox_kafka::consumer::{Consumer, ConsumerError};
use outbox_tests::eventually;
use tokio::runtime::Runtime;

use super::bench::{Bench, PATIENCE, Sent, insert_effect, insert_effect_async};

#[tokio::test(flavor = "multi_thread")]
async fn async_handlers_have_the_same_guarantees() {
    let bench = Bench::new(1);
    let [first, flaky, poison, last] = ["first", "flaky", "poison", "last"].map(Sent::new);
    bench.send([(0, &first), (0, &flaky), (0, &poison), (0, &first), (0, &last), (0, &flaky)]);
    let mut failures = 0;
    let consumer = bench.async_consumer().max_attempts(2).on("Counted", async move |c, r| {
        insert_effect_async(c, r).await?;
        match r.payload() {
            Some(b"poison") => panic!("it is poison"),
            Some(b"flaky") if failures == 0 => {
                failures += 1;
                Err("not yet".into())
            }
            _ => Ok(()),
        }
    });
    let consumer = consumer.spawn().unwrap();
    bench.wait_until_all_is_committed();
    consumer.stop().await.unwrap();
    assert_eq!(bench.bodies(), ["first", "flaky", "last"]);
    let dead = bench.dead_letters();
    assert_eq!((dead.len(), dead[0].text()), (1, Some("poison")));
    assert!(dead[0].header("outbox-error").unwrap().contains("it is poison"));
}

#[test]
fn a_runtime_that_shuts_down_does_not_count_as_an_attempt_for_any_record() {
    let bench = Bench::new(1);
    let runtime = Runtime::new().unwrap();
    let connections = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&connections);
    let mut connect = bench.connect_async();
    let connect = async move || {
        counted.fetch_add(1, Ordering::Relaxed);
        connect().await
    };
    let consumer = {
        let _entered = runtime.enter();
        let consumer = bench.async_consumer().max_attempts(1).on("Counted", insert_effect_async);
        consumer.connect_with(connect).spawn().unwrap()
    };
    bench.send([(0, &Sent::new("before"))]);
    bench.wait_for_effects(1);
    runtime.shutdown_background();
    bench.send([(0, &Sent::new("after"))]);
    eventually("connections", PATIENCE, || (connections.load(Ordering::Relaxed) >= 4).then_some(()));
    consumer.stop_blocking().unwrap();

    let consumer = bench.consumer().on("Counted", insert_effect).spawn().unwrap();
    bench.wait_until_all_is_committed();
    consumer.stop_blocking().unwrap();
    assert_eq!(bench.bodies(), ["before", "after"]);
    assert!(bench.dead_letters().is_empty());
}

#[test]
fn an_async_consumer_needs_a_runtime() {
    let consumer = Consumer::<AsyncPgConnection>::new_async("localhost:1", "billing");
    let consumer =
        consumer.database_url("postgres://nowhere").topics(["order"]).on_other(async |_, _| Ok(()));
    assert!(matches!(consumer.spawn(), Err(ConsumerError::NoRuntime)));
}
