use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::LazyLock;

use diesel::QueryResult;
use diesel_outbox_core::__private::{from_unix_ms, unix_ms};

use super::*;
use crate::operate::kept::{KeptRecord, KeptRow, Selection};

const TOPICS: &str = "events";

/// A time that is `ms` after one three days ago.
fn at(ms: u64) -> SystemTime {
    static BEGINNING: LazyLock<i64> =
        LazyLock::new(|| unix_ms(SystemTime::now() - Duration::from_secs(3 * 24 * 60 * 60)));
    from_unix_ms(*BEGINNING) + Duration::from_millis(ms)
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// Event `n` of an aggregate, which was emitted at `n` ms.
fn row(n: i64, aggregate_id: &str) -> KeptRow {
    KeptRow {
        seq: n,
        id: Some(id(n as u128)),
        aggregate_type: "order".to_owned(),
        aggregate_id: aggregate_id.to_owned(),
        created_at: at(n as u64),
        is_sent: true,
    }
}

/// Its record.
fn record(n: i64, aggregate_id: &str) -> PublishedRecord {
    let mut record = PublishedRecord::default();
    record.topic = TOPICS.to_owned();
    record.id = Some(id(n as u128));
    record.key = Some(aggregate_id.as_bytes().to_vec());
    record.timestamp = Some(at(n as u64));
    record
}

#[derive(Default)]
struct Table {
    rows: Vec<KeptRow>,
    /// Which come after the first look.
    late: Vec<KeptRow>,
}

impl Kept for Table {
    fn count(&mut self, window: &Window) -> QueryResult<u64> {
        Ok(self.rows(window, i64::MIN, i64::MAX)?.len() as u64)
    }

    fn rows(&mut self, window: &Window, after: i64, limit: i64) -> QueryResult<Vec<KeptRow>> {
        let is_in = |row: &&KeptRow| {
            row.seq > after && row.created_at >= window.since && row.created_at < window.until
        };
        Ok(self.rows.iter().filter(is_in).take(limit as usize).cloned().collect())
    }

    fn count_sent(&mut self, _: &Selection) -> QueryResult<u64> {
        Ok(0)
    }

    fn sent(&mut self, _: &Selection, _: i64, _: i64) -> QueryResult<Vec<KeptRecord>> {
        Ok(Vec::new())
    }

    fn find(&mut self, ids: &[Uuid]) -> QueryResult<Vec<KeptRow>> {
        let has = |row: &&KeptRow| row.id.is_some_and(|id| ids.contains(&id));
        Ok(self.rows.iter().chain(&self.late).filter(has).cloned().collect())
    }
}

struct Topic {
    records: VecDeque<PublishedRecord>,
    kept_since: Option<SystemTime>,
}

impl Records for Topic {
    fn expected(&self) -> u64 {
        self.records.len() as u64
    }

    fn kept_since(&self, _: &str, _: u32) -> Option<SystemTime> {
        self.kept_since
    }

    fn next_record(&mut self) -> Result<Option<PublishedRecord>, PublishError> {
        Ok(self.records.pop_front())
    }
}

fn verified(verify: &Verify, table: &mut Table, records: &[PublishedRecord]) -> Discrepancies {
    let opened = RefCell::new(0);
    let open = |_: &BTreeSet<String>, _| {
        *opened.borrow_mut() += 1;
        Ok(Topic { records: records.iter().cloned().collect(), kept_since: None })
    };
    let naming: TopicNaming = TOPICS.parse().unwrap();
    verify.clone().until(at(1_000_000)).compared(table, &open, &naming, &mut |_| {}).unwrap()
}

fn kinds(findings: &Discrepancies) -> Vec<(Kind, u128)> {
    findings.examples.iter().map(|finding| (finding.kind, finding.id.unwrap().as_u128())).collect()
}

#[test]
fn each_kind_of_fault_is_found_and_named() {
    let mut table = Table { rows: (1..=6).map(|n| row(n, "a")).collect(), ..Table::default() };
    // 2 is lost, 4 comes before 3, 5 comes twice, and nobody has emitted 9.
    let records = [1, 4, 3, 5, 5, 9, 6].map(|n| record(n, "a"));
    let findings = verified(&Verify::new(), &mut table, &records);
    let expected = [(Kind::OutOfOrder, 3), (Kind::Duplicated, 5), (Kind::Phantom, 9), (Kind::Lost, 2)];
    assert_eq!(kinds(&findings), expected);
    assert_eq!((findings.events, findings.records, findings.is_sound()), (6, 7, false));
}

#[test]
fn a_repetition_in_order_is_a_duplicate_and_nothing_else() {
    let mut table = Table { rows: (1..=3).map(|n| row(n, "a")).collect(), ..Table::default() };
    let findings = verified(&Verify::new(), &mut table, &[1, 2, 3, 2, 3].map(|n| record(n, "a")));
    assert!(findings.is_sound());
    assert_eq!(findings.duplicated, 2);
}

#[test]
fn an_event_that_is_not_marked_as_sent_may_be_on_kafka_or_not() {
    let unsent = |n| KeptRow { is_sent: false, ..row(n, "a") };
    let mut table = Table { rows: vec![row(1, "a"), unsent(2), unsent(3)], ..Table::default() };
    let findings = verified(&Verify::new(), &mut table, &[record(1, "a"), record(2, "a")]);
    assert_eq!(kinds(&findings), []);
}

#[test]
fn a_row_that_comes_after_the_first_look_is_no_phantom() {
    let mut table = Table { rows: vec![row(1, "a")], late: vec![row(2, "a")] };
    let findings = verified(&Verify::new(), &mut table, &[record(1, "a"), record(2, "a")]);
    assert_eq!(kinds(&findings), []);
}

#[test]
fn records_of_pruned_rows_and_of_others_are_no_phantoms() {
    let mut table = Table { rows: vec![row(5, "a")], ..Table::default() };
    let old = SystemTime::now() - Duration::from_secs(8 * 24 * 60 * 60);
    let mut pruned = record(2, "a");
    pruned.timestamp = Some(old);
    assert_eq!(kinds(&verified(&Verify::new(), &mut table, &[pruned, record(5, "a")])), []);
    let foreign = [record(5, "a"), record(7, "a")];
    assert_eq!(kinds(&verified(&Verify::new().shares_topics(true), &mut table, &foreign)), []);
    assert_eq!(kinds(&verified(&Verify::new().keep_sent(None), &mut table, &foreign)), []);
    assert_eq!(kinds(&verified(&Verify::new(), &mut table, &foreign)), [(Kind::Phantom, 7)]);
}

#[test]
fn what_is_compared_in_parts_gives_the_same_findings() {
    let aggregate = |n: i64| format!("{}", n % 40);
    let mut table = Table { rows: (1..=1_000).map(|n| row(n, &aggregate(n))).collect(), ..Table::default() };
    let mut records: Vec<_> = (1..=1_000).filter(|n| n % 97 != 0).map(|n| record(n, &aggregate(n))).collect();
    records.extend([record(5_000, "7"), record(50, &aggregate(50))]);
    let whole = verified(&Verify::new(), &mut table, &records);
    let parts = verified(&Verify::new().part(90), &mut table, &records);
    assert_eq!((whole.lost, whole.phantom, whole.duplicated, whole.out_of_order), (10, 1, 1, 0));
    let sorted = |findings: &Discrepancies| {
        let mut kinds: Vec<String> = kinds(findings).iter().map(|found| format!("{found:?}")).collect();
        kinds.sort();
        kinds
    };
    assert_eq!(sorted(&whole), sorted(&parts));
    assert_eq!((whole.events, whole.records), (parts.events, parts.records));
}

#[test]
fn what_kafka_has_deleted_by_now_is_not_lost() {
    let mut table = Table { rows: (1..=4).map(|n| row(n, "a")).collect(), ..Table::default() };
    let open =
        |_: &BTreeSet<String>, _| Ok(Topic { records: [record(4, "a")].into(), kept_since: Some(at(3)) });
    let naming: TopicNaming = TOPICS.parse().unwrap();
    let verify = Verify::new().until(at(1_000));
    let findings = verify.compared(&mut table, &open, &naming, &mut |_| {}).unwrap();
    assert_eq!((kinds(&findings), findings.beyond_retention), (vec![(Kind::Lost, 3)], 2));
}

#[test]
fn only_so_many_findings_are_listed_and_all_are_counted() {
    let mut table = Table { rows: (1..=50).map(|n| row(n, "a")).collect(), ..Table::default() };
    let findings = verified(&Verify::new().examples(3), &mut table, &[]);
    assert_eq!((findings.lost, findings.examples.len()), (50, 3));
}
