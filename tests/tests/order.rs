//! The order within an aggregate in races: transactions can commit in another order than that in which they took their numbers.

use std::time::Duration;

use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use diesel_outbox_core::{Claimed, Source};
use diesel_outbox_relay::source::{DeadLetterPolicy, SourceOptions};
use outbox_tests::{Tables, eventually, on_postgres_and_mariadb};

on_postgres_and_mariadb!(
    an_event_that_commits_in_the_middle_of_a_pass_is_not_overtaken,
    an_event_that_commits_between_the_claim_and_the_first_read_is_not_overtaken,
    an_event_that_commits_behind_what_a_pass_has_read_is_not_missed,
    the_next_pass_reads_what_was_not_settled,
    what_comes_before_a_dead_letter_of_its_aggregate_is_not_held_back,
);

fn record(aggregate: impl ToString, event_type: &str) -> Record {
    Record::new("order", aggregate.to_string(), event_type).with_payload(*b"{}")
}

/// Builds events of other aggregates.
fn others(count: usize) -> Vec<Record> {
    (0..count).map(|n| record(n, "other")).collect()
}

fn names(claimed: &[Claimed], aggregate: &str) -> Vec<String> {
    let records = claimed.iter().map(|claimed| claimed.record.as_ref().unwrap());
    let its = records.filter(|record| record.aggregate_id() == aggregate);
    its.map(|record| record.event_type().to_owned()).collect()
}

/// Reads the rest of the pass.
fn read_to_the_end(source: &mut dyn Source, all: &mut Vec<Claimed>) {
    let mut before = None;
    while before != Some(all.len()) {
        before = Some(all.len());
        if source.read(50, all).unwrap() {
            source.read_ahead(50).unwrap();
        }
    }
}

fn settle(source: &mut dyn Source, claimed: &[Claimed]) {
    source.settle(&claimed.iter().map(|claimed| claimed.ticket).collect::<Vec<_>>()).unwrap();
}

/// Settles what the pass has read, and makes more passes until everything is read.
fn settle_and_go_on(source: &mut dyn Source, all: &mut Vec<Claimed>) {
    let mut settled = 0;
    loop {
        settle(source, &all[settled..]);
        source.release().unwrap();
        settled = all.len();
        if settled == 202 {
            return;
        }
        eventually("the rest", Duration::from_secs(20), || source.claim().unwrap().then_some(()));
        read_to_the_end(source, all);
    }
}

/// The transaction of the first event commits after the pass has read beyond its number, and the second event is emitted then.
/// If the pass read the second event now, it would send it before the first.
fn an_event_that_commits_in_the_middle_of_a_pass_is_not_overtaken(tables: &impl Tables) {
    let (early, late) = (&mut tables.connect(), &mut tables.connect());
    let source = &mut *tables.source(SourceOptions::default());
    let mut all = Vec::new();
    let result: QueryResult<()> = late.transaction(|late| {
        late.emit(&record("slow", "first"))?;
        early.transaction(|c| c.emit_all(others(200)))?;
        assert!(source.claim().unwrap());
        source.read(50, &mut all).unwrap();
        source.read_ahead(50).unwrap();
        assert!(all.len() >= 50);
        Ok(())
    });
    result.unwrap();
    early.transaction(|c| c.emit(&record("slow", "second"))).unwrap();
    read_to_the_end(source, &mut all);
    settle_and_go_on(source, &mut all);
    assert_eq!(names(&all, "slow"), ["first", "second"]);
}

/// The same after the pass has read everything and reads again. In the meantime it has learned that thousands of numbers are
/// sent, but not the one that is still to commit.
fn an_event_that_commits_behind_what_a_pass_has_read_is_not_missed(tables: &impl Tables) {
    let (early, late) = (&mut tables.connect(), &mut tables.connect());
    let source = &mut *tables.source(SourceOptions::default());
    let mut all = Vec::new();
    let result: QueryResult<()> = late.transaction(|late| {
        late.emit(&record("slow", "first"))?;
        for _ in 0..3 {
            early.transaction(|c| c.emit_all(others(1_000)))?;
            if all.is_empty() {
                assert!(source.claim().unwrap());
            }
            let known = all.len();
            read_to_the_end(source, &mut all);
            settle(source, &all[known..]);
            // Longer than the fence stands at the least.
            std::thread::sleep(Duration::from_millis(30));
        }
        Ok(())
    });
    result.unwrap();
    early.transaction(|c| c.emit(&record("slow", "second"))).unwrap();
    let known = all.len();
    assert_eq!(known, 3_000);
    read_to_the_end(source, &mut all);
    assert_eq!(names(&all, "slow"), ["first", "second"]);
    settle(source, &all[known..]);
    source.release().unwrap();
    assert!(!source.claim().unwrap());
}

/// Records that were read and not settled are read again, although thousands of later ones have been settled.
fn the_next_pass_reads_what_was_not_settled(tables: &impl Tables) {
    let conn = &mut tables.connect();
    let source = &mut *tables.source(SourceOptions::default());
    conn.transaction(|c| c.emit(&record("slow", "first"))).unwrap();
    assert!(source.claim().unwrap());
    let mut all = Vec::new();
    for _ in 0..3 {
        conn.transaction(|c| c.emit_all(others(1_000))).unwrap();
        let known = all.len();
        read_to_the_end(source, &mut all);
        settle(source, &all[known.max(1)..]);
        std::thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(all.len(), 3_001);
    source.release().unwrap();
    assert!(source.claim().unwrap());
    let mut again = Vec::new();
    read_to_the_end(source, &mut again);
    assert_eq!(names(&again, "slow"), ["first"]);
    assert_eq!(again.len(), 1);
}

/// Kafka refuses a record while earlier ones are on their way, and the pass ends before it knows what became of those.
fn what_comes_before_a_dead_letter_of_its_aggregate_is_not_held_back(tables: &impl Tables) {
    let mut options = SourceOptions::default();
    options.dead_letter_policy = DeadLetterPolicy::Block;
    let source = &mut *tables.source(options);
    let records = ["first", "second", "refused", "after"].map(|name| record("slow", name));
    tables.connect().transaction(|c| c.emit_all(records)).unwrap();
    assert!(source.claim().unwrap());
    let mut all = Vec::new();
    read_to_the_end(source, &mut all);
    assert!(source.dead_letter(all[2].ticket, "refused").unwrap().holds_back);
    source.release().unwrap();
    assert!(source.claim().unwrap());
    let mut again = Vec::new();
    read_to_the_end(source, &mut again);
    assert_eq!(names(&again, "slow"), ["first", "second"]);
    settle(source, &again);
    source.release().unwrap();
    let dead_letters = tables.operate().dead_letters(9).unwrap();
    let dead_letters: Vec<&str> = dead_letters.iter().map(|letter| &*letter.event_type).collect();
    assert_eq!(dead_letters, ["refused", "after"]);
}

/// The same between the claim and the first read.
fn an_event_that_commits_between_the_claim_and_the_first_read_is_not_overtaken(tables: &impl Tables) {
    let (conn, late) = (&mut tables.connect(), &mut tables.connect());
    let source = &mut *tables.source(SourceOptions::default());
    // MariaDB lists the table whose lock is about to be taken, when a source begins.
    assert!(!source.claim().unwrap());
    let mut all = Vec::new();
    late.transaction(|late| {
        late.emit(&record("slow", "first"))?;
        conn.transaction(|c| c.emit_all(others(200)))?;
        assert!(source.claim().unwrap());
        QueryResult::Ok(())
    })
    .unwrap();
    conn.transaction(|c| c.emit(&record("slow", "second"))).unwrap();
    read_to_the_end(source, &mut all);
    settle_and_go_on(source, &mut all);
    assert_eq!(names(&all, "slow"), ["first", "second"]);
}
