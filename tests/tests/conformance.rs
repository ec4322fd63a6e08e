//! What every source of records must do. One suite runs on PostgreSQL 14 to 18, on MariaDB 10.11 and its newest version, on MySQL and on
//! SQLite. Most of it also runs on the WAL, where nothing is settled in the table.

#[path = "conformance/store.rs"]
mod store;
#[path = "conformance/wal.rs"]
mod wal;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use diesel_outbox::Record;
use diesel_outbox_core::{Claimed, Source};
use diesel_outbox_relay::operate::{DeadLetterFilter, Requeue};
use diesel_outbox_relay::source::{DeadLetterPolicy, SentRows, SourceOptions};
use outbox_tests::{Mariadb, eventually};
use uuid::Uuid;

use self::store::Store;

/// Turns each function of the suite into a test on each database.
macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod postgres_14 { $(#[test] fn $name() { super::$name(&super::store::postgres(14)); })* }
        mod postgres_15 { $(#[test] fn $name() { super::$name(&super::store::postgres(15)); })* }
        mod postgres_16 { $(#[test] fn $name() { super::$name(&super::store::postgres(16)); })* }
        mod postgres_17 { $(#[test] fn $name() { super::$name(&super::store::postgres(17)); })* }
        mod postgres_18 { $(#[test] fn $name() { super::$name(&super::store::postgres(18)); })* }
        mod mariadb { $(#[test] fn $name() { super::$name(&super::store::mariadb(super::Mariadb::shared())); })* }
        mod newer_mariadb { $(#[test] fn $name() { super::$name(&super::store::mariadb(super::Mariadb::shared_newer())); })* }
        mod mysql { $(#[test] fn $name() { super::$name(&super::store::mariadb(super::Mariadb::shared_mysql())); })* }
        mod sqlite { $(#[test] fn $name() { super::$name(&super::store::sqlite()); })* }
    };
}

suite!(
    every_field_comes_back_as_it_was_emitted,
    an_aggregate_is_read_in_order_over_many_reads,
    exactly_what_is_settled_is_not_read_again,
    a_pass_reads_events_that_arrive_meanwhile_and_returns_none_twice,
    a_source_that_deletes_sent_rows_leaves_none,
    an_abandoned_pass_can_be_claimed_again,
    a_record_is_claimed_by_one_source_at_a_time,
    dropping_a_source_releases_its_claim,
    a_dead_letter_is_stored_with_its_reason_and_requeued_at_its_old_place,
    dead_letters_with_the_same_number_are_kept_apart,
    dead_letters_can_be_chosen_one_by_one_and_dropped,
    dead_letters_stay_in_order_if_another_event_has_the_number_of_the_first,
    a_blocked_aggregate_waits_for_its_requeue,
    what_is_requeued_comes_before_later_events_though_the_source_fails_before_it_reads_it,
    a_record_with_unreadable_headers_is_reported_and_not_lost,
    only_old_sent_rows_are_pruned,
    the_lag_counts_what_is_unsent,
    a_waiting_source_wakes_for_an_emitted_record,
    large_payloads_make_batches_smaller,
    a_requeue_in_the_middle_of_a_pass_keeps_the_order,
    a_source_that_stands_by_does_not_spin,
);

macro_rules! suite_of_the_wal {
    ($($name:ident),* $(,)?) => {
        mod write_ahead_log { $(#[test] fn $name() { super::$name(&super::wal::wal()); })* }
    };
}

suite_of_the_wal!(
    every_field_comes_back_as_it_was_emitted,
    an_aggregate_is_read_in_order_over_many_reads,
    a_pass_reads_events_that_arrive_meanwhile_and_returns_none_twice,
    an_abandoned_pass_can_be_claimed_again,
    a_record_is_claimed_by_one_source_at_a_time,
    dropping_a_source_releases_its_claim,
    dead_letters_with_the_same_number_are_kept_apart,
    a_blocked_aggregate_waits_for_its_requeue,
    what_is_requeued_comes_before_later_events_though_the_source_fails_before_it_reads_it,
    large_payloads_make_batches_smaller,
    a_requeue_in_the_middle_of_a_pass_keeps_the_order,
    a_source_that_stands_by_does_not_spin,
);

fn record(aggregate: impl ToString, event_type: impl ToString) -> Record {
    Record::new("order", aggregate.to_string(), event_type.to_string()).with_payload(*b"{}")
}

fn records(count: usize) -> Vec<Record> {
    (0..count).map(|n| record(n % 7, n)).collect()
}

/// Claims. This may take a moment if another source has just released its claim.
fn claim(source: &mut dyn Source) {
    eventually("something to claim", Duration::from_secs(20), || source.claim().unwrap().then_some(()));
}

/// Reads everything that was claimed.
fn read(source: &mut dyn Source, limit: usize) -> Vec<Claimed> {
    let mut all = Vec::new();
    loop {
        let mut batch = Vec::new();
        if source.read(limit, &mut batch).unwrap() {
            source.read_ahead(limit).unwrap();
        }
        if batch.is_empty() {
            return all;
        }
        all.append(&mut batch);
        assert!(all.len() < 1_000, "records are read again and again");
    }
}

fn tickets(claimed: &[Claimed]) -> Vec<u64> {
    claimed.iter().map(|claimed| claimed.ticket).collect()
}

fn event_types(claimed: &[Claimed]) -> BTreeSet<String> {
    claimed.iter().map(|claimed| claimed.record.as_ref().unwrap().event_type().to_owned()).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// Settles everything that can be claimed now, and returns it.
fn drain(source: &mut dyn Source) -> Vec<Claimed> {
    let mut all = Vec::new();
    while source.claim().unwrap() {
        let claimed = read(source, 100);
        source.settle(&tickets(&claimed)).unwrap();
        source.release().unwrap();
        all.extend(claimed);
    }
    all
}

fn every_field_comes_back_as_it_was_emitted(store: &dyn Store) {
    let odd = Record::new("órdér", "a b/ü\n", "Plåced")
        .version(3)
        .header("z", "\"quoted\" \\ ü\n")
        .header("a", "")
        .with_payload((0..=255).collect::<Vec<u8>>());
    let emitted = [
        odd,
        Record::new("order", "tombstone", "Deleted"),
        Record::new("order", "empty", "Emptied").with_payload(Vec::new()),
        Record::new("order", "json", "Odd").with_payload(*b" { \"b\":1,\"a\" : 1.0 }\n"),
    ];
    store.emit(&emitted);
    let mut source = store.source(SourceOptions::default());
    let claimed = drain(source.as_mut());
    assert_eq!(claimed.len(), emitted.len());
    for claimed in claimed {
        let read = claimed.record.unwrap();
        let created_at = read.created_at().unwrap();
        let (now, minute) = (SystemTime::now(), Duration::from_secs(60));
        assert!((now - minute..=now).contains(&created_at), "emitted at {created_at:?}, and it is {now:?}");
        let expected = emitted.iter().find(|record| record.id() == read.id()).unwrap();
        assert_eq!(read, expected.clone().with_created_at(created_at));
    }
}

fn an_aggregate_is_read_in_order_over_many_reads(store: &dyn Store) {
    let emitted = records(500);
    store.emit(&emitted);
    let mut source = store.source(SourceOptions::default());
    claim(source.as_mut());
    let claimed = read(source.as_mut(), 16);
    assert_eq!(claimed.len(), 500);
    for aggregate in 0..7 {
        let of = |records: Vec<&Record>| -> Vec<String> {
            let aggregate = aggregate.to_string();
            let its = records.into_iter().filter(|record| record.aggregate_id() == aggregate);
            its.map(|record| record.event_type().to_owned()).collect()
        };
        let read = of(claimed.iter().map(|claimed| claimed.record.as_ref().unwrap()).collect());
        assert_eq!(read, of(emitted.iter().collect()), "aggregate {aggregate}");
    }
    source.abandon();
}

fn exactly_what_is_settled_is_not_read_again(store: &dyn Store) {
    store.emit(&records(100));
    let mut source = store.source(SourceOptions::default());
    claim(source.as_mut());
    let claimed = read(source.as_mut(), 1_000);
    let (settled, unsettled): (Vec<Claimed>, Vec<Claimed>) =
        claimed.into_iter().partition(|claimed| claimed.ticket % 3 == 0);
    source.settle(&tickets(&settled)).unwrap();
    source.release().unwrap();
    assert_eq!(store.count("outbox WHERE sent_at IS NOT NULL"), settled.len() as i64);
    let again = drain(source.as_mut());
    assert_eq!(event_types(&again), event_types(&unsettled));
    assert_eq!(again.len(), unsettled.len());
    assert!(!source.claim().unwrap());
    assert_eq!(store.count("outbox WHERE sent_at IS NULL"), 0);
    assert_eq!(store.count("outbox"), 100);
}

/// Events that arrive in the middle of a pass belong to aggregates that the pass knows, and to others.
fn a_pass_reads_events_that_arrive_meanwhile_and_returns_none_twice(store: &dyn Store) {
    let emitted = records(300);
    let mut source = store.source(SourceOptions::default());
    store.emit(&emitted[..3]);
    claim(source.as_mut());
    let mut all = read(source.as_mut(), 50);
    let mut settled = 0;
    for part in emitted[3..].chunks(99) {
        store.emit(part);
        let half = all.len() / 2;
        source.settle(&tickets(&all[settled..half])).unwrap();
        settled = half;
        all.extend(read(source.as_mut(), 50));
    }
    let ids: Vec<_> = all.iter().map(|claimed| claimed.record.as_ref().unwrap().id()).collect();
    let emitted: Vec<_> = emitted.iter().map(Record::id).collect();
    assert!(ids == emitted, "{} of {} were read, or in another order", ids.len(), emitted.len());
    source.abandon();
}

fn a_source_that_deletes_sent_rows_leaves_none(store: &dyn Store) {
    store.emit(&records(100));
    let mut options = SourceOptions::default();
    options.sent_rows = SentRows::Delete;
    let mut source = store.source(options);
    assert_eq!(drain(source.as_mut()).len(), 100);
    assert_eq!(store.count("outbox"), 0);
}

fn an_abandoned_pass_can_be_claimed_again(store: &dyn Store) {
    store.emit(&records(50));
    let mut source = store.source(SourceOptions::default());
    claim(source.as_mut());
    assert_eq!(read(source.as_mut(), 1_000).len(), 50);
    source.abandon();
    // The server may need a moment until it has released the locks.
    claim(source.as_mut());
    assert_eq!(read(source.as_mut(), 1_000).len(), 50);
}

fn a_record_is_claimed_by_one_source_at_a_time(store: &dyn Store) {
    store.emit(&records(100));
    let (mut first, mut second) =
        (store.source(SourceOptions::default()), store.source(SourceOptions::default()));
    claim(first.as_mut());
    let of_first = read(first.as_mut(), 1_000);
    let of_second = if second.claim().unwrap() { read(second.as_mut(), 1_000) } else { Vec::new() };
    assert!(event_types(&of_first).is_disjoint(&event_types(&of_second)));
    first.settle(&tickets(&of_first)).unwrap();
    second.settle(&tickets(&of_second)).unwrap();
    first.release().unwrap();
    second.release().unwrap();
    let rest = drain(first.as_mut());
    assert_eq!(of_first.len() + of_second.len() + rest.len(), 100);
}

fn dropping_a_source_releases_its_claim(store: &dyn Store) {
    store.emit(&records(100));
    let mut first = store.source(SourceOptions::default());
    claim(first.as_mut());
    assert!(!read(first.as_mut(), 10).is_empty());
    drop(first);
    let mut second = store.source(SourceOptions::default());
    claim(second.as_mut());
    let claimed = read(second.as_mut(), 1_000);
    second.settle(&tickets(&claimed)).unwrap();
    second.release().unwrap();
    assert_eq!(claimed.len() + drain(second.as_mut()).len(), 100);
}

fn a_dead_letter_is_stored_with_its_reason_and_requeued_at_its_old_place(store: &dyn Store) {
    let emitted = [record(1, "a"), record(1, "b"), record(1, "c")];
    store.emit(&emitted);
    let mut source = store.source(SourceOptions::default());
    claim(source.as_mut());
    let claimed = read(source.as_mut(), 10);
    source.dead_letter(claimed[1].ticket, "too large, on purpose").unwrap();
    source.settle(&[claimed[0].ticket]).unwrap();
    source.release().unwrap();

    let dead_letters = store.observe().dead_letters(10).unwrap();
    assert_eq!(dead_letters.len(), 1);
    assert_eq!(dead_letters[0].id, emitted[1].id().to_string());
    assert_eq!(dead_letters[0].reason, "too large, on purpose");
    assert_eq!((dead_letters[0].aggregate_id.as_str(), dead_letters[0].event_type.as_str()), ("1", "b"));
    assert_eq!(store.count("outbox"), 2);

    let elsewhere = Requeue::Aggregate { aggregate_type: "order".into(), aggregate_id: "2".into() };
    assert_eq!(store.observe().requeue(&elsewhere).unwrap(), 0);
    assert_eq!(store.observe().requeue(&Requeue::Id(emitted[1].id())).unwrap(), 1);
    assert_eq!(store.observe().dead_letters(10).unwrap(), []);
    let again = drain(source.as_mut());
    let types: Vec<&str> =
        again.iter().map(|claimed| claimed.record.as_ref().unwrap().event_type()).collect();
    assert_eq!(types, ["b", "c"], "back before what was emitted after it");
}

fn dead_letters_with_the_same_number_are_kept_apart(store: &dyn Store) {
    for event_type in ["a", "b"] {
        store.restart_numbers();
        store.emit(&[record(1, event_type)]);
        let mut source = store.source(SourceOptions::default());
        claim(source.as_mut());
        let claimed = read(source.as_mut(), 10);
        source.dead_letter(claimed[0].ticket, "refused").unwrap();
        source.release().unwrap();
    }
    let dead_letters = store.observe().dead_letters(10).unwrap();
    assert_eq!(dead_letters.iter().map(|dead| dead.event_type.as_str()).collect::<Vec<_>>(), ["a", "b"]);

    assert_eq!(store.observe().requeue(&Requeue::All).unwrap(), 2);
    assert_eq!(store.observe().dead_letters(10).unwrap(), []);
    let again = drain(store.source(SourceOptions::default()).as_mut());
    let types: Vec<&str> =
        again.iter().map(|claimed| claimed.record.as_ref().unwrap().event_type()).collect();
    assert_eq!(types, ["a", "b"]);
}

fn dead_letters_can_be_chosen_one_by_one_and_dropped(store: &dyn Store) {
    store.emit(&["a", "b", "c", "d"].map(|name| record(name, name)));
    let mut source = store.source(SourceOptions::default());
    claim(source.as_mut());
    for (claimed, reason) in
        read(source.as_mut(), 10).iter().zip(["5 bytes", "blocked", "6 bytes", "7 bytes"])
    {
        source.dead_letter(claimed.ticket, reason).unwrap();
    }
    source.release().unwrap();
    let observe = &mut store.observe();
    let dead_letters = observe.dead_letters(10).unwrap();
    let reasons: Vec<&str> = dead_letters.iter().map(|dead| &*dead.reason).collect();
    assert_eq!(reasons, ["5 bytes", "blocked", "6 bytes", "7 bytes"]);

    assert_eq!(observe.requeue(&Requeue::These(Vec::new())).unwrap(), 0);
    let of_type = DeadLetterFilter::default().event_type("c");
    let chosen: Requeue = dead_letters.iter().filter(|letter| of_type.matches(letter)).collect();
    assert_eq!(observe.requeue(&chosen).unwrap(), 1);
    assert_eq!(observe.requeue(&chosen).unwrap(), 0);
    let two: Requeue = dead_letters[..2].iter().collect();
    assert_eq!(observe.drop_dead_letters(&two).unwrap(), 2);
    assert_eq!(observe.dead_letters(10).unwrap(), dead_letters[3..]);
    assert_eq!(observe.drop_dead_letters(&Requeue::Id(Uuid::nil())).unwrap(), 0);
    assert_eq!(observe.drop_dead_letters(&Requeue::All).unwrap(), 1);
    assert_eq!(store.count("outbox_dead_letter"), 0);
    assert_eq!(event_types(&drain(source.as_mut())), names(["c"]));
}

fn dead_letters_stay_in_order_if_another_event_has_the_number_of_the_first(store: &dyn Store) {
    store.emit(&[record(1, "a"), record(1, "b")]);
    let mut source = store.source(SourceOptions::default());
    claim(source.as_mut());
    for claimed in read(source.as_mut(), 10) {
        source.dead_letter(claimed.ticket, "refused").unwrap();
    }
    source.release().unwrap();
    drop(source);
    store.restart_numbers();
    store.emit(&[record(2, "other")]);
    assert_eq!(store.observe().requeue(&Requeue::All).unwrap(), 2);
    let all = drain(store.source(SourceOptions::default()).as_mut());
    let of_first = all.iter().filter(|claimed| claimed.record.as_ref().unwrap().aggregate_id() == "1");
    let types: Vec<&str> = of_first.map(|claimed| claimed.record.as_ref().unwrap().event_type()).collect();
    assert_eq!(types, ["a", "b"]);
}

fn a_blocked_aggregate_waits_for_its_requeue(store: &dyn Store) {
    let mut options = SourceOptions::default();
    options.dead_letter_policy = DeadLetterPolicy::Block;
    let mut source = store.source(options);
    store.emit(&[record(1, "a"), record(2, "other")]);
    claim(source.as_mut());
    let claimed = read(source.as_mut(), 10);
    let a = claimed.iter().find(|claimed| claimed.record.as_ref().unwrap().event_type() == "a").unwrap();
    source.dead_letter(a.ticket, "refused").unwrap();
    source.release().unwrap();

    store.emit(&[record(1, "b"), record(2, "another"), record(1, "c")]);
    assert_eq!(event_types(&drain(source.as_mut())), names(["other", "another"]));
    let dead_letters = store.observe().dead_letters(10).unwrap();
    assert_eq!(dead_letters.iter().map(|dead| dead.event_type.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(dead_letters[1].reason.contains("requeue the aggregate"), "{}", dead_letters[1].reason);

    let aggregate = Requeue::Aggregate { aggregate_type: "order".into(), aggregate_id: "1".into() };
    assert_eq!(store.observe().requeue(&aggregate).unwrap(), 3);
    let again = drain(source.as_mut());
    let types: Vec<&str> =
        again.iter().map(|claimed| claimed.record.as_ref().unwrap().event_type()).collect();
    assert_eq!(types, ["a", "b", "c"]);
}

/// The later event was emitted before the requeue, and nobody has read it by then.
fn what_is_requeued_comes_before_later_events_though_the_source_fails_before_it_reads_it(store: &dyn Store) {
    let mut options = SourceOptions::default();
    options.dead_letter_policy = DeadLetterPolicy::Block;
    let mut source = store.source(options.clone());
    for (aggregate, is_restarted) in [(1, false), (2, true)] {
        store.emit(&[record(aggregate, "a"), record(aggregate, "b")]);
        claim(source.as_mut());
        for claimed in read(source.as_mut(), 1) {
            source.dead_letter(claimed.ticket, "refused").unwrap();
        }
        source.release().unwrap();

        store.emit(&[record(3, "other"), record(aggregate, "c")]);
        claim(source.as_mut());
        let mut given = Vec::new();
        source.read(1, &mut given).unwrap();
        assert_eq!(event_types(&given), names(["other"]));
        source.abandon();
        assert_eq!(store.observe().requeue(&Requeue::All).unwrap(), 2);
        if is_restarted {
            drop(source);
            source = store.source(options.clone());
        }
        let mut all = Vec::new();
        while all.len() < 4 {
            // The claim of the source before may end a moment later.
            all.extend(eventually("what was requeued", Duration::from_secs(20), || {
                Some(drain(source.as_mut())).filter(|drained| !drained.is_empty())
            }));
            // From the write-ahead log, the later event comes first, and joins the dead letters.
            let held_back = store.observe().requeue(&Requeue::All).unwrap();
            assert!(all.len() + held_back >= 4, "{} came, {held_back} were held back", all.len());
        }
        let of_it =
            |claimed: &Claimed| claimed.record.as_ref().unwrap().aggregate_id() == aggregate.to_string();
        let types: Vec<&str> = all
            .iter()
            .filter(|claimed| of_it(claimed))
            .map(|claimed| claimed.record.as_ref().unwrap().event_type())
            .collect();
        assert_eq!(types, ["a", "b", "c"]);
    }
}

fn a_record_with_unreadable_headers_is_reported_and_not_lost(store: &dyn Store) {
    store.emit(&[record(1, "a").header("name", "value")]);
    store.execute("UPDATE outbox SET headers = '[1, 2]'");
    let mut source = store.source(SourceOptions::default());
    claim(source.as_mut());
    let claimed = read(source.as_mut(), 10);
    let reason = claimed[0].record.as_ref().unwrap_err();
    assert!(reason.contains("does not hold a JSON object"), "{reason}");
    source.dead_letter(claimed[0].ticket, reason).unwrap();
    source.release().unwrap();
    assert_eq!(store.count("outbox_dead_letter"), 1);
}

fn only_old_sent_rows_are_pruned(store: &dyn Store) {
    store.emit(&records(30));
    let mut options = SourceOptions::default();
    options.sent_rows = SentRows::Keep { retention: Duration::from_secs(24 * 60 * 60) };
    let mut source = store.source(options);
    claim(source.as_mut());
    let claimed = read(source.as_mut(), 100);
    source.settle(&tickets(&claimed[..20])).unwrap();
    source.release().unwrap();
    store.execute(
        "UPDATE outbox SET sent_at = '2001-01-01 00:00:00' WHERE sent_at IS NOT NULL AND seq % 2 = 0",
    );
    let old = store.count("outbox WHERE sent_at < '2002-01-01'");
    assert!(old > 0);
    eventually("the old rows to be pruned", Duration::from_secs(20), || {
        source.wait(Duration::from_millis(1)).unwrap();
        source.upkeep().unwrap();
        (store.count("outbox") == 30 - old).then_some(())
    });
    assert_eq!(store.count("outbox WHERE sent_at IS NULL"), 10);
}

fn the_lag_counts_what_is_unsent(store: &dyn Store) {
    let mut observe = store.observe();
    assert_eq!(observe.lag().unwrap(), Default::default());
    store.emit(&records(12));
    let lag = observe.lag().unwrap();
    assert!(lag.oldest < Duration::from_secs(60), "{lag:?}");
    store.execute(
        "UPDATE outbox SET created_at = '2001-01-01 00:00:00' WHERE seq = (SELECT first FROM (SELECT min(seq) AS first FROM outbox) AS o)",
    );
    let lag = observe.lag().unwrap();
    assert_eq!(lag.unsent, 12);
    assert!(lag.oldest > Duration::from_secs(20 * 365 * 24 * 60 * 60), "{lag:?}");
    let mut source = store.source(SourceOptions::default());
    drain(source.as_mut());
    assert_eq!(observe.lag().unwrap(), Default::default());
}

fn a_waiting_source_wakes_for_an_emitted_record(store: &dyn Store) {
    let mut options = SourceOptions::default();
    // Far longer than the test waits: only a wake-up can end the wait.
    options.poll_interval = Duration::from_secs(3_600);
    let mut source = store.source(options);
    assert!(!source.claim().unwrap());
    eventually("the source to fall asleep", Duration::from_secs(20), || {
        let look = source.wait(Duration::from_millis(100)).unwrap();
        if look {
            assert!(!source.claim().unwrap());
        }
        (!look).then_some(())
    });
    store.emit(&[record(1, "a")]);
    eventually("the source to wake up", Duration::from_secs(20), || {
        source.wait(Duration::from_millis(20)).unwrap().then_some(())
    });
    assert_eq!(drain(source.as_mut()).len(), 1);
}

fn large_payloads_make_batches_smaller(store: &dyn Store) {
    let large: Vec<Record> = (0..48).map(|n| record(n, n).with_payload(vec![7; 1 << 20])).collect();
    store.emit(&large);
    let mut source = store.source(SourceOptions::default());
    claim(source.as_mut());
    let mut first = Vec::new();
    source.read(8, &mut first).unwrap();
    let mut second = Vec::new();
    source.read(10_000, &mut second).unwrap();
    assert!((1..=24).contains(&second.len()), "{} records of 1 MiB in a batch", second.len());
    source.abandon();
}

/// The dead letters come back on both sides of the place up to which the pass has read.
fn a_requeue_in_the_middle_of_a_pass_keeps_the_order(store: &dyn Store) {
    store.emit(&[
        record(1, "a"),
        record(2, "other"),
        record(3, "another"),
        record(1, "b"),
        record(4, "last"),
    ]);
    let mut source = store.source(SourceOptions::default());
    claim(source.as_mut());
    for claimed in read(source.as_mut(), 10) {
        let event_type = claimed.record.unwrap().event_type().to_owned();
        if event_type == "a" || event_type == "b" {
            source.dead_letter(claimed.ticket, "refused").unwrap();
        }
    }
    source.release().unwrap();
    claim(source.as_mut());
    let mut all = Vec::new();
    source.read(2, &mut all).unwrap();
    assert!(!all.is_empty());
    let mut observe = store.observe();
    std::thread::scope(|scope| {
        // On PostgreSQL the requeue waits for the pass, on SQLite it does not.
        let requeued = scope.spawn(move || observe.requeue(&Requeue::All).unwrap());
        if store.requeues_at_once() {
            eventually("the dead letters to be back", Duration::from_secs(20), || {
                requeued.is_finished().then_some(())
            });
        }
        all.extend(read(source.as_mut(), 1));
        source.settle(&tickets(&all)).unwrap();
        source.release().unwrap();
        assert_eq!(requeued.join().unwrap(), 2);
    });
    all.extend(drain(source.as_mut()));
    let of_first: Vec<&str> = all
        .iter()
        .map(|claimed| claimed.record.as_ref().unwrap())
        .filter(|record| record.aggregate_id() == "1")
        .map(Record::event_type)
        .collect();
    assert_eq!(of_first, ["a", "b"]);
    assert_eq!(all.len(), 5);
}

/// A second source that finds nothing to claim waits, and does not query again and again.
fn a_source_that_stands_by_does_not_spin(store: &dyn Store) {
    let mut options = SourceOptions::default();
    options.poll_interval = Duration::from_secs(3_600);
    let (mut first, mut second) = (store.source(options.clone()), store.source(options));
    assert!(!first.claim().unwrap());
    eventually("the second source to fall asleep", Duration::from_secs(20), || {
        assert!(!second.claim().unwrap());
        (!second.wait(Duration::from_millis(100)).unwrap()).then_some(())
    });
}
