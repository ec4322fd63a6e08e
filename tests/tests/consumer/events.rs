//! Events that are decoded by their type.

use diesel::prelude::*;
use diesel_async::AsyncPgConnection;
use diesel_outbox::InboxEvent;
use diesel_outbox_kafka::consumer::HandlerError;
use serde::Deserialize;

use super::bench::{Bench, PATIENCE, Sent};

/// Both variants have the same field, so that the payload does not say which one it is.
#[derive(Debug, Deserialize, InboxEvent)]
enum Account {
    #[outbox(type = "Opened")]
    Opened { owner: String },
    #[outbox(type = "Closed", version = 2)]
    Closed { owner: String },
}

const INSERT: &str = "insert into effect (id, body, consumer) values (gen_random_uuid(), $1, '')";

fn text(event: &Account) -> String {
    match event {
        Account::Opened { owner } => format!("opened by {owner}"),
        Account::Closed { owner } => format!("closed by {owner}"),
    }
}

fn handle(c: &mut PgConnection, event: Account) -> Result<(), HandlerError> {
    diesel::sql_query(INSERT).bind::<diesel::sql_types::Text, _>(text(&event)).execute(c)?;
    Ok(())
}

async fn handle_async(c: &mut AsyncPgConnection, event: Account) -> Result<(), HandlerError> {
    let insert = diesel::sql_query(INSERT).bind::<diesel::sql_types::Text, _>(text(&event));
    diesel_async::RunQueryDsl::execute(insert, c).await?;
    Ok(())
}

/// Those that can be decoded, those that cannot, and one of a type that has no handler.
fn send(bench: &Bench<'_>) {
    let event = |event_type, version: Option<&str>, owner: &str| {
        let mut event = Sent::new(&format!("{{\"owner\":\"{owner}\"}}")).with_type(event_type);
        event.headers.extend(version.map(|version| ("eventVersion", version.to_owned())));
        (0, event)
    };
    let events = [
        event("Closed", Some("2"), "Ada"),
        event("Closed", Some("3"), "s3cret"),
        event("Closed", Some("two"), "Ada"),
        (0, Sent::new("{\"owner\": s3cret}").with_type("Opened")),
        event("Renamed", None, "Ada"),
        event("Opened", None, "Ada"),
    ];
    bench.send(events.iter().map(|(partition, event)| (*partition, event)));
}

fn check(bench: &Bench<'_>) {
    assert_eq!(bench.bodies(), ["closed by Ada", "opened by Ada"]);
    let dead = bench.dead_letters();
    let reasons: Vec<&str> = dead.iter().map(|dead| dead.header("outbox-error").unwrap()).collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(reasons[0].contains("`Closed` has version 3") && reasons[0].contains("known: 2"), "{reasons:?}");
    assert!(reasons[1].contains("`eventVersion` of the event `Closed` is not a number"), "{reasons:?}");
    assert!(
        reasons[2].contains("`Opened` cannot be decoded as") && reasons[2].contains("line 1"),
        "{reasons:?}"
    );
}

#[test]
fn an_event_comes_as_the_variant_that_its_type_names_or_becomes_a_dead_letter_at_once() {
    let bench = Bench::new(1);
    send(&bench);
    // With a back-off as long as this, a second attempt would be too late for the test.
    let consumer = bench.consumer().backoff(PATIENCE * 2, PATIENCE * 2).on_event(handle).spawn().unwrap();
    bench.wait_until_all_is_committed();
    consumer.stop_blocking().unwrap();
    check(&bench);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_diesel_async_an_event_also_comes_as_the_variant_that_its_type_names() {
    let bench = Bench::new(1);
    send(&bench);
    let consumer = bench.async_consumer().backoff(PATIENCE * 2, PATIENCE * 2);
    let consumer = consumer.on_event(async |c, event| handle_async(c, event).await).spawn().unwrap();
    bench.wait_until_all_is_committed();
    consumer.stop().await.unwrap();
    check(&bench);
}
