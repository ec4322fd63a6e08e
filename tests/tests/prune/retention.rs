//! What a relay keeps, by age and by number.

use std::time::{Duration, Instant};

use diesel_outbox_core::DeadLetterPolicy;
use diesel_outbox_relay::operate::prune::{Prune, PruneTable};
use diesel_outbox_relay::source::{SentRows, SourceOptions};
use diesel_outbox_relay::{Relay, RelayError};
use outbox_tests::load::migrated;
use outbox_tests::{eventually, logged, start_logging};

use super::site::{BLOCKED, LONG_AGO, NOW, Site, dead_letter, insert, on_each_database};

const PATIENCE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

on_each_database!(
    the_newest_sent_rows_are_kept_by_number_and_all_that_were_not_sent,
    old_dead_letters_are_pruned_except_those_of_blocked_aggregates,
    the_last_dead_letters_are_kept_by_number,
    a_relay_that_blocks_aggregates_prunes_no_dead_letter,
    a_relay_prunes_nothing_while_somebody_else_prunes,
);

/// Lets a source look after the table until this is so.
fn looked_after(site: &dyn Site, options: SourceOptions, what: &str, is_so: impl Fn() -> bool) {
    let mut source = site.source(options);
    let has_claimed = source.claim().unwrap();
    if has_claimed {
        source.release().unwrap();
    }
    eventually(what, PATIENCE, || {
        source.wait(Duration::from_millis(1)).unwrap();
        source.upkeep().unwrap();
        is_so().then_some(())
    });
}

fn the_newest_sent_rows_are_kept_by_number_and_all_that_were_not_sent(site: &dyn Site) {
    insert(site, 1, 3, Some(NOW));
    insert(site, 4, 5, None);
    insert(site, 6, 10, Some(NOW));
    insert(site, 11, 12, None);
    insert(site, 13, 30, Some(NOW));
    insert(site, 31, 33, None);
    looked_after(site, SourceOptions::default().keep_sent_rows(20), "the oldest to be pruned", || {
        site.count("outbox WHERE seq IN (1, 2, 3, 6, 7, 8)") == 0
    });
    // Of the twenty, two lie before those that wait.
    assert_eq!(site.count("outbox WHERE sent_at IS NOT NULL"), 20);
    assert_eq!(site.count("outbox WHERE sent_at IS NULL"), 7);
}

fn old_dead_letters_are_pruned_except_those_of_blocked_aggregates(site: &dyn Site) {
    site.let_prune_dead_letters();
    dead_letter(site, 1, "old", LONG_AGO, "too large");
    dead_letter(site, 2, "blocked", LONG_AGO, "too large");
    dead_letter(site, 3, "blocked", LONG_AGO, BLOCKED);
    dead_letter(site, 4, "new", NOW, "too large");
    let options = SourceOptions::default().sent_rows(SentRows::Delete).keep_dead_letters(DAY);
    let gone = || site.count("outbox_dead_letter") == 3;
    looked_after(site, options, "the old dead letter to be pruned", gone);
    assert_eq!(site.count("outbox_dead_letter WHERE aggregateid IN ('blocked', 'new')"), 3);
}

fn the_last_dead_letters_are_kept_by_number(site: &dyn Site) {
    site.let_prune_dead_letters();
    for seq in 1..=5 {
        dead_letter(site, seq, &seq.to_string(), &format!("2001-01-0{} 00:00:00", 6 - seq), "too large");
    }
    let options = SourceOptions::default().keep_dead_letter_rows(2);
    looked_after(site, options, "dead letters to be pruned", || site.count("outbox_dead_letter") == 2);
    // The first two have failed last.
    assert_eq!(site.count("outbox_dead_letter WHERE seq <= 2"), 2);
}

/// What expires later than they shows that it has looked.
fn a_relay_that_blocks_aggregates_prunes_no_dead_letter(site: &dyn Site) {
    site.let_prune_dead_letters();
    dead_letter(site, 1, "first", LONG_AGO, "too large");
    insert(site, 2, 9, Some(LONG_AGO));
    let options = SourceOptions::default()
        .dead_letter_policy(DeadLetterPolicy::Block)
        .keep_dead_letters(DAY)
        .keep_dead_letter_rows(0);
    looked_after(site, options, "old rows to be pruned", || site.count("outbox") == 0);
    assert_eq!(site.count("outbox_dead_letter"), 1);
}

fn a_relay_prunes_nothing_while_somebody_else_prunes(site: &dyn Site) {
    insert(site, 1, 12_000, Some(LONG_AGO));
    let mut source = site.source(SourceOptions::default());
    source.claim().unwrap();
    let mut conn = site.prunable();
    let pruned = Prune::of(PruneTable::SentRows).keep(0).run(&mut *conn, &mut |pruned| {
        if pruned.rows == 0 {
            return true;
        }
        let left = site.count("outbox");
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            source.wait(Duration::from_millis(20)).unwrap();
            source.upkeep().unwrap();
        }
        assert_eq!(site.count("outbox"), left, "a relay has pruned meanwhile");
        false
    });
    assert!((1..12_000).contains(&pruned.unwrap()));
    eventually("the relay to prune the rest", PATIENCE, || {
        source.wait(Duration::from_millis(20)).unwrap();
        source.upkeep().unwrap();
        (site.count("outbox") == 0).then_some(())
    });
}

#[test]
fn a_relay_that_may_not_delete_dead_letters_says_so_and_prunes_the_rest() {
    start_logging();
    let database = migrated();
    dead_letter(&database, 1, "old", LONG_AGO, "too large");
    insert(&database, 2, 9, Some(LONG_AGO));
    let options = SourceOptions::default().keep_dead_letters(DAY);
    looked_after(&database, options, "old rows to be pruned", || Site::count(&database, "outbox") == 0);
    let advice = "GRANT DELETE ON outbox_dead_letter";
    assert!(logged(&["expired dead letters could not be pruned", advice]).is_some());
    assert_eq!(Site::count(&database, "outbox_dead_letter"), 1);
}

#[test]
fn a_relay_that_would_release_blocked_aggregates_does_not_start() {
    let relay = |set: fn(Relay) -> Relay| {
        let relay = Relay::sqlite("none").broker(diesel_outbox_relay::Kafka::new("localhost:1"));
        set(relay.dead_letter_policy(DeadLetterPolicy::Block)).spawn().map(drop)
    };
    for set in [|relay: Relay| relay.keep_dead_letters(DAY), |relay: Relay| relay.keep_dead_letter_rows(9)] {
        let error = relay(set).unwrap_err();
        assert!(matches!(error, RelayError::Setting { .. }), "{error}");
        assert!(error.to_string().contains("holds its aggregate back"), "{error}");
    }
}
