//! Times are right in any time zone of the session.

use std::time::{Duration, SystemTime};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::operate::Operate;
use diesel_outbox_relay::source::{PostgresSource, SentRows, SourceOptions};
use outbox_tests::load::count;
use outbox_tests::{Database, Postgres, eventually};

/// Local times are ahead of UTC in the east, and behind it in the west.
const ZONES: [&str; 2] = ["Pacific/Kiritimati", "Pacific/Pago_Pago"];

fn migrated(zone: &str) -> Database<'static> {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    conn.batch_execute(&format!("ALTER DATABASE {} SET timezone = '{zone}'", database.name())).unwrap();
    Migrations::new().run(conn).unwrap();
    database
}

fn emit(conn: &mut PgConnection, event_type: &str) {
    conn.transaction(|c| c.emit(&Record::new("order", "1", event_type))).unwrap();
}

/// This is the case after a relay has read the WAL: no row is marked as sent.
#[test]
fn rows_without_a_mark_are_pruned_by_the_time_of_their_emit() {
    for zone in ZONES {
        let database = migrated(zone);
        let conn = &mut database.connect();
        // A relay has run before, and knows the sequence.
        PostgresSource::new(database.url(), SourceOptions::default()).claim().unwrap();
        for (event_type, hours) in [("Old", 13), ("Young", 11)] {
            emit(conn, event_type);
            let age = format!(
                "UPDATE outbox SET created_at = created_at - interval '{hours} hours' WHERE type = '{event_type}'"
            );
            conn.batch_execute(&age).unwrap();
        }
        conn.batch_execute("UPDATE outbox_shard SET sent_through = 2, unmarked = 2, unmarked_until = now()")
            .unwrap();
        let mut options = SourceOptions::default();
        options.sent_rows = SentRows::Keep { retention: Duration::from_secs(12 * 60 * 60) };
        let mut source = PostgresSource::new(database.url(), options);
        eventually("the old row to be pruned", Duration::from_secs(20), || {
            source.wait(Duration::from_millis(1)).unwrap();
            source.upkeep().unwrap();
            (count(conn, "outbox WHERE type = 'Old'") == 0).then_some(())
        });
        assert_eq!(count(conn, "outbox WHERE type = 'Young'"), 1, "{zone}");
    }
}

#[test]
fn an_event_and_its_dead_letter_keep_the_time_of_the_emit() {
    for zone in ZONES {
        let database = migrated(zone);
        let conn = &mut database.connect();
        emit(conn, "Placed");
        assert!(conn.lag().unwrap().oldest < Duration::from_secs(60));
        let mut source = PostgresSource::new(database.url(), SourceOptions::default());
        let mut claimed = Vec::new();
        assert!(source.claim().unwrap());
        source.read(10, &mut claimed).unwrap();
        let emitted = claimed[0].record.as_ref().unwrap().created_at().unwrap();
        let (now, minute) = (SystemTime::now(), Duration::from_secs(60));
        assert!((now - minute..=now).contains(&emitted), "{zone}: {emitted:?} at {now:?}");

        source.dead_letter(claimed[0].ticket, "refused").unwrap();
        source.release().unwrap();
        let dead = &conn.dead_letters(1).unwrap()[0];
        assert_eq!(dead.created_at, emitted, "{zone}");
        assert!((now - minute..=now + minute).contains(&dead.failed_at), "{zone}");
    }
}
