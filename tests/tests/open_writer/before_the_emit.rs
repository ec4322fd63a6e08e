//! Transactions that have locked the table or taken a number, and have not emitted yet.

use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable};
use diesel_outbox::{Emit, Record};
use diesel_outbox_core::Source;
use outbox_tests::load::migrated_on;
use outbox_tests::{Postgres, eventually};

use super::{
    PATIENCE, commit, emit, emit_until_there_is_a_second_bound, go_on_until_it_is_forgotten, keep_sent, pass,
    send, source,
};

/// Begins a transaction that has taken a number of the sequence, but does not have a transaction id yet.
fn draw(conn: &mut PgConnection) -> i64 {
    eventually("a number without a transaction id", PATIENCE, || {
        // Each 32nd call writes the sequence, which assigns a transaction id.
        let sql = "SELECT CASE WHEN pg_current_xact_id_if_assigned() IS NULL THEN n END FROM nextval('outbox_seq_seq') AS n";
        conn.batch_execute("BEGIN; DELETE FROM outbox WHERE false").unwrap();
        let drawn = diesel::dsl::sql::<Nullable<BigInt>>(sql).get_result::<Option<i64>>(conn).unwrap();
        if drawn.is_none() {
            conn.batch_execute("ROLLBACK").unwrap();
        }
        drawn
    })
}

/// A relay that has just started knows less about open transactions than the one before it.
#[test]
fn a_relay_that_starts_beside_an_open_writer_does_not_claim_for_ever() {
    let database = migrated_on(Postgres::shared_version(15));
    let (conn, writer) = (&mut database.connect(), &mut database.connect());
    let mut relay = source(&database);
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    writer.emit(&Record::new("order", "other", "First")).unwrap();
    emit_until_there_is_a_second_bound(&mut relay, conn);
    drop(relay);
    let other = &mut database.connect();
    draw(other);
    commit(writer);
    let mut relay = source(&database);
    assert_eq!(send(&mut relay, "First"), ["First"]);
    eventually("nothing to be claimed any more", Duration::from_secs(5), || {
        let sent = pass(&mut relay);
        assert!(sent.is_empty(), "{sent:?}");
        let claimed = relay.claim().unwrap();
        relay.release().unwrap();
        (!claimed).then_some(())
    });
    other.batch_execute("ROLLBACK").unwrap();
    emit(conn, "other", "After");
    assert_eq!(send(&mut relay, "After"), ["After"]);
}

/// For example a transaction whose statement deletes nothing, or that has not come to its inserts yet.
#[test]
fn a_transaction_that_has_not_emitted_yet_holds_nothing_back() {
    let database = migrated_on(Postgres::shared_version(15));
    let (conn, writer) = (&mut database.connect(), &mut database.connect());
    let mut relay = source(&database);
    writer.batch_execute("BEGIN; DELETE FROM outbox WHERE false").unwrap();
    keep_sent(conn);
    go_on_until_it_is_forgotten(&mut relay, conn);
    assert!(!relay.claim().unwrap());
    for event_type in ["First", "Second"] {
        writer
            .batch_execute(&format!(
                "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard) \
             VALUES (gen_random_uuid(), 'order', 'slow', '{event_type}', 1)"
            ))
            .unwrap();
        emit(conn, "other", "Other");
        send(&mut relay, "Other");
    }
    writer.batch_execute("COMMIT").unwrap();
    assert_eq!(send(&mut relay, "Second"), ["First", "Second"]);
}

/// The transaction may insert a row with that number at any time, and nothing then distinguishes that row from others.
#[test]
fn the_relay_waits_for_a_transaction_that_has_taken_a_number() {
    let database = migrated_on(Postgres::shared_version(15));
    let (conn, writer) = (&mut database.connect(), &mut database.connect());
    let mut relay = source(&database);
    let seq = draw(writer);
    keep_sent(conn);
    // Longer than the relay waits for a transaction before it counts it as one that stays open.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2_500) {
        emit(conn, "other", "Other");
        pass(&mut relay);
    }
    writer
        .batch_execute(&format!(
            "INSERT INTO outbox (seq, id, aggregatetype, aggregateid, type, shard) \
             VALUES ({seq}, gen_random_uuid(), 'order', 'slow', 'First', 1); COMMIT"
        ))
        .unwrap();
    assert_eq!(send(&mut relay, "First"), ["First"]);
}
