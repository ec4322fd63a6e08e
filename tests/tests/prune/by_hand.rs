//! `outbox prune` does by hand what a relay does by itself.

use std::process::{Command, Output};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use outbox_tests::load::{drop_roles, migrated};
use outbox_tests::{Postgres, Process, Signal, workspace_binary};

use super::site::{BLOCKED, LONG_AGO, NOW, Site, dead_letter, insert, on_each_database};

const PATIENCE: Duration = Duration::from_secs(30);

on_each_database!(
    sent_rows_are_counted_and_pruned_and_what_was_not_sent_stays,
    dead_letters_are_pruned_except_those_of_blocked_aggregates,
    each_consumer_keeps_its_newest_ids,
);

fn command(site: &dyn Site, arguments: &[&str]) -> Command {
    let mut command = Command::new(workspace_binary("outbox"));
    command.args(["prune", "--database-url", site.url()]).args(arguments);
    command.env_remove("RUST_LOG").env_remove("DATABASE_URL");
    command
}

fn ran(site: &dyn Site, arguments: &[&str]) -> (String, String, Option<i32>) {
    let Output { status, stdout, stderr } = command(site, arguments).output().unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status.code())
}

#[track_caller]
fn done(site: &dyn Site, arguments: &[&str]) -> String {
    let (stdout, stderr, code) = ran(site, arguments);
    assert_eq!((stderr.as_str(), code), ("", Some(0)), "{stdout}");
    stdout
}

fn sent_rows_are_counted_and_pruned_and_what_was_not_sent_stays(site: &dyn Site) {
    insert(site, 1, 5_990, Some(LONG_AGO));
    insert(site, 5_991, 6_000, None);
    insert(site, 6_001, 6_030, Some(LONG_AGO));
    insert(site, 6_031, 6_050, Some(NOW));
    assert_eq!(done(site, &["--older-than", "1d", "--dry-run"]), "would prune 6020 sent events\n");
    // Without a limit, that of the relay counts.
    assert_eq!(done(site, &["--dry-run"]), "would prune 6020 sent events\n");
    assert_eq!(done(site, &["--keep-sent-rows", "10", "--dry-run"]), "would prune 6030 sent events\n");
    assert_eq!(done(site, &["--delete-sent", "--dry-run"]), "would prune 6040 sent events\n");
    assert_eq!(
        done(site, &["--keep", "6000", "--dry-run", "--json"]),
        "{\"table\":\"outbox\",\"would_prune\":40}\n"
    );
    assert_eq!(site.count("outbox"), 6_050);
    assert_eq!(done(site, &["--outbox", "--keep", "6000"]), "pruned 40 sent events\n");
    assert_eq!(site.count("outbox WHERE seq <= 40"), 0);
    assert_eq!(done(site, &["--older-than", "1d", "--json"]), "{\"pruned\":5980,\"table\":\"outbox\"}\n");
    assert_eq!((site.count("outbox"), site.count("outbox WHERE sent_at IS NULL")), (30, 10));
    assert_eq!(done(site, &["--keep", "0"]), "pruned 20 sent events\n");
    assert_eq!((site.count("outbox"), site.count("outbox WHERE sent_at IS NULL")), (10, 10));
}

fn dead_letters_are_pruned_except_those_of_blocked_aggregates(site: &dyn Site) {
    dead_letter(site, 1, "old", LONG_AGO, "too large");
    dead_letter(site, 2, "blocked", LONG_AGO, "too large");
    dead_letter(site, 3, "blocked", LONG_AGO, BLOCKED);
    dead_letter(site, 4, "new", NOW, "too large");
    let (_, stderr, code) = ran(site, &["--dead-letters"]);
    assert!(code == Some(2) && stderr.contains("--older-than"), "{stderr}");
    // The relay's settings say that each of them holds its aggregate back.
    let (_, stderr, code) =
        ran(site, &["--dead-letters", "--older-than", "1d", "--dead-letter-policy", "block"]);
    assert!(code == Some(2) && stderr.contains("outbox dead-letters drop"), "{stderr}");
    // Nobody knows what their policy is.
    let (_, stderr, code) = ran(site, &["--dead-letters", "--older-than", "1d"]);
    assert!(code == Some(2) && stderr.contains("which policy the relays have"), "{stderr}");
    let prune = ["--dead-letters", "--dead-letter-policy", "continue"];
    let done = |limits: &[&str]| done(site, &[&prune, limits].concat());
    assert_eq!(done(&["--older-than", "1d", "--dry-run"]), "would prune 1 dead letter\n");
    assert_eq!(site.count("outbox_dead_letter"), 4);
    assert_eq!(done(&["--keep-dead-letters", "1d"]), "pruned 1 dead letter\n");
    assert_eq!(done(&["--keep", "0"]), "pruned 0 dead letters\n");
    assert_eq!(site.count("outbox_dead_letter"), 3);
}

fn each_consumer_keeps_its_newest_ids(site: &dyn Site) {
    for (consumer, marks) in [("billing", 2_005), ("Ä \"b''s\"", 3)] {
        let rows: Vec<String> = (0..marks)
            .map(|n| {
                let (hour, minute) = (n / 60 % 24, n % 60);
                let day = 1 + n / 1_440;
                format!("('{consumer}', '00000000-0000-0000-0000-{n:012}', '2001-01-0{day} {hour:02}:{minute:02}:00')")
            })
            .collect();
        site.execute(&format!(
            "INSERT INTO inbox (consumer, event_id, received_at) VALUES {}",
            rows.join(",")
        ));
    }
    let (_, stderr, code) = ran(site, &["--inbox"]);
    assert!(code == Some(2) && stderr.contains("--older-than"), "{stderr}");
    assert_eq!(done(site, &["--inbox", "--keep", "2", "--dry-run"]), "would prune 2004 inbox ids\n");
    assert_eq!(done(site, &["--inbox", "--consumer", "billing", "--keep", "2004"]), "pruned 1 inbox id\n");
    assert_eq!(done(site, &["--inbox", "--keep", "2"]), "pruned 2003 inbox ids\n");
    assert_eq!(site.count("inbox WHERE consumer = 'billing'"), 2);
    assert_eq!(site.count("inbox"), 4);
    assert_eq!(done(site, &["--inbox", "--older-than", "1d"]), "pruned 4 inbox ids\n");
}

/// Its role may do nothing but consume.
#[test]
fn an_inbox_without_an_outbox_is_pruned() {
    let database = Postgres::shared().database();
    let mut migrate = Command::new(workspace_binary("outbox"));
    let migrated =
        migrate.args(["migrate", "--inbox-only", "--database-url", database.url()]).output().unwrap();
    assert!(migrated.status.success(), "{migrated:?}");
    let role = database.name();
    Site::execute(
        &database,
        &format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT SELECT, INSERT, DELETE ON inbox TO {role}; \
             INSERT INTO inbox (consumer, event_id, received_at) VALUES ('billing', gen_random_uuid(), '{LONG_AGO}')"
        ),
    );
    let mut prune = Command::new(workspace_binary("outbox"));
    prune.args(["prune", "--inbox", "--older-than", "1d", "--database-url", &database.url_as(role, "x")]);
    let Output { stdout, stderr, .. } = prune.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&stdout),
        "pruned 1 inbox id\n",
        "{}",
        String::from_utf8_lossy(&stderr)
    );
    drop_roles(&mut database.connect(), role);
}

/// Nothing marks what was read from the write-ahead log.
#[test]
fn what_was_sent_from_the_write_ahead_log_counts_as_sent_and_no_more() {
    let database = migrated();
    insert(&database, 1, 100, None);
    Site::execute(&database, "UPDATE outbox_shard SET polled_through = 0, sent_through = 50");
    assert_eq!(done(&database, &["--keep", "10", "--dry-run"]), "would prune 40 sent events\n");
    assert_eq!(done(&database, &["--keep", "0"]), "pruned 50 sent events\n");
    assert_eq!(Site::count(&database, "outbox WHERE seq > 50"), 50);
}

/// The WAL was read up to a number, and the sequence was set back later.
#[test]
fn an_unsent_event_with_a_number_that_came_again_is_not_pruned() {
    let database = migrated();
    insert(&database, 1, 10, None);
    Site::execute(
        &database,
        "UPDATE outbox SET created_at = now() AT TIME ZONE 'utc'; \
         UPDATE outbox_shard SET sent_through = 1000, unmarked = 1000, unmarked_until = now() - interval '1 hour'",
    );
    assert_eq!(done(&database, &["--keep", "0"]), "pruned 0 sent events\n");
    assert_eq!(Site::count(&database, "outbox"), 10);
}

#[test]
fn it_waits_for_a_relay_that_prunes_and_an_interruption_leaves_the_rest() {
    let database = migrated();
    insert(&database, 1, 100, Some(LONG_AGO));
    let mut relay = database.connect();
    relay.batch_execute("SELECT pg_advisory_lock(1869968487, 'outbox'::regclass::oid::int4)").unwrap();
    let waits = || {
        let prune = Process::start(&command(&database, &["--older-than", "1d"]));
        prune.wait_for_line("that it waits", PATIENCE, |line| line.contains("a relay prunes at the moment"));
        prune
    };
    let interrupted = waits();
    interrupted.signal(Signal::Interrupt);
    assert_eq!(interrupted.wait(PATIENCE).code(), Some(1), "{}", interrupted.output());
    assert!(interrupted.output().contains("run it again"), "{}", interrupted.output());
    assert_eq!(Site::count(&database, "outbox"), 100);
    let patient = waits();
    drop(relay);
    assert!(patient.wait(PATIENCE).success(), "{}", patient.output());
    assert_eq!(Site::count(&database, "outbox"), 0);
}
