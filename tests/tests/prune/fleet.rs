//! Of a fleet, one relay prunes.

use std::collections::BTreeSet;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use outbox_tests::load::{drop_roles, migrated, new_topic, relay_at};
use outbox_tests::{Signal, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
const RELAYS: usize = 10;

/// Each relay has a role of its own, by which the server says which of them prunes. A round of so many rows takes seconds.
#[test]
fn one_relay_of_ten_prunes_and_another_takes_over_when_it_is_killed() {
    let database = migrated();
    let conn = &mut database.connect();
    conn.batch_execute(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at, created_at) SELECT gen_random_uuid(), 'order', '1', \
         'OrderPlaced', n % 16, '2001-01-01', '2001-01-01' FROM generate_series(1, 400000) AS n; ANALYZE outbox",
    )
    .unwrap();
    let roles: Vec<String> = (0..RELAYS).map(|n| format!("{}_{n}", database.name())).collect();
    for role in &roles {
        let create = format!("CREATE ROLE {role} LOGIN PASSWORD '{role}' IN ROLE outbox_test_relay");
        conn.batch_execute(&create).unwrap();
    }
    let topic = new_topic("fleet");
    let arguments = ["--keep-sent", "1d", "--poll-interval", "200ms"];
    let relays: Vec<_> =
        roles.iter().map(|role| Some(relay_at(&database.url_as(role, role), &topic, &arguments))).collect();
    for relay in relays.iter().flatten() {
        relay.wait_for_line("that it has started", PATIENCE, |line| line.contains("the relay has started"));
    }
    let mut relays = relays;
    let mut have_pruned = BTreeSet::new();
    for _ in 0..2 {
        let mut looks = 0;
        let pruning = eventually("one relay to have pruned a while", PATIENCE, || {
            let pruning = who_prunes(conn);
            assert!(pruning.len() <= 1, "several prune: {pruning:?}");
            looks += pruning.len();
            pruning.into_iter().next().filter(|_| looks >= 20)
        });
        assert!(have_pruned.insert(pruning.clone()), "{pruning} prunes although it was killed");
        let place = roles.iter().position(|role| *role == pruning).expect("one of the relays");
        let rows = outbox_tests::load::count(conn, "outbox");
        relays[place].take().unwrap().signal(Signal::Kill);
        eventually("another relay to prune", PATIENCE, || {
            assert!(who_prunes(conn).len() <= 1);
            (outbox_tests::load::count(conn, "outbox") < rows.saturating_sub(5_000)).then_some(())
        });
    }
    drop(relays);
    drop_roles(conn, &roles.join(", "));
}

/// The roles of the sessions that prune at this moment: those that hold the lock, and those that delete without it.
fn who_prunes(conn: &mut PgConnection) -> Vec<String> {
    let sql = "SELECT DISTINCT usename::text FROM pg_stat_activity WHERE datname = current_database() \
               AND application_name = 'outbox pruning' AND (query LIKE '%DELETE FROM ONLY outbox%' OR pid IN \
               (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 1869968487))";
    diesel::dsl::sql::<Text>(sql).load(conn).unwrap()
}
