//! The advisory locks with which the emitters and relays of a PostgreSQL database agree on who is awake. They are only hints,
//! because any role may take them. The constants are the first halves of their keys. The second half is the oid of the table
//! `outbox`, so that each schema has its own locks.

use crate::__private::quoted_literal;

/// Held exclusively by the listening relay while it sleeps and wants to be notified. The number spells "outb".
pub const ASLEEP: i32 = 1_869_968_482;
/// Held exclusively by the one relay that listens for notifications.
pub const LEADER: i32 = ASLEEP + 1;
/// Held shared by every active worker, so that workers can count each other.
pub const WORKING: i32 = ASLEEP + 2;
/// Held exclusively by a process that migrates, so that a second one waits. The table may not exist yet, so the second half of its key
/// is 0.
pub const MIGRATING: i32 = ASLEEP;
/// Held exclusively by the relay that is next in line to read the write-ahead log.
pub const NEXT_READER: i32 = ASLEEP + 4;
/// Held exclusively by whoever prunes, a relay or an operator.
pub const PRUNING: i32 = ASLEEP + 5;

/// An SQL expression that notifies the relay if it sleeps, which it can see because only a sleeping relay holds [`ASLEEP`]. If
/// the relay is awake, or there is none, it notifies nobody, because transactions that notify wait for each other when they commit.
///
/// The expression releases the lock at once, because the relay cannot go to sleep while an emitter holds it. Evaluate it in the
/// statement that inserts: that statement has already locked the table, and a relay that goes to sleep waits for everyone who
/// holds that lock. A session that sets `outbox.notify` to `off` never notifies, because PostgreSQL refuses to prepare a
/// transaction that has notified.
pub const WAKE: &str = "CASE WHEN current_setting('outbox.notify', true) IN ('off', 'false', 'no', '0') THEN NULL \
                        WHEN NOT pg_try_advisory_lock_shared(1869968482, 'outbox'::regclass::oid::int4) \
                        THEN pg_notify('outbox_' || 'outbox'::regclass::oid::text, '') \
                        WHEN NOT pg_advisory_unlock_shared(1869968482, 'outbox'::regclass::oid::int4) THEN NULL END";

/// Returns [`WAKE`] for the table in this schema, whose name must already be quoted.
pub fn wake_in(schema: &str) -> String {
    let table = format!("{}::regclass", quoted_literal(&format!("{schema}.outbox")));
    WAKE.replace("'outbox'::regclass", &table)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_schema_precedes_each_mention_of_the_table() {
        let wake = super::wake_in("\"o'ne\"");
        assert_eq!(wake.matches("'\"o''ne\".outbox'::regclass::oid").count(), 3);
        assert_eq!(wake.matches("regclass").count(), 3);
    }

    #[test]
    fn the_emitter_tries_the_lock_that_the_relay_holds() {
        for function in ["pg_try_advisory_lock_shared", "pg_advisory_unlock_shared"] {
            assert!(super::WAKE.contains(&format!("{function}({},", super::ASLEEP)));
        }
    }
}
