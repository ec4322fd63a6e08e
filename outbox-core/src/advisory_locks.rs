//! The advisory locks by which emitters and relays of a PostgreSQL database agree on who is awake. They are hints only: any role may
//! take them. These are the first halves of their keys; the second half is the oid of the table `outbox`, so that each schema has
//! its own.

/// Held exclusively by the relay that listens, while it sleeps and is to be notified. It is "outb" as a number.
pub const ASLEEP: i32 = 1_869_968_482;
/// Held exclusively by the one relay that listens for notifications.
pub const LEADER: i32 = ASLEEP + 1;
/// Held shared by every worker that is at work, so that they can count each other.
pub const WORKING: i32 = ASLEEP + 2;
/// Held exclusively by the next in line to read the write-ahead log.
pub const NEXT_READER: i32 = ASLEEP + 4;

/// An SQL expression that notifies the relay if it sleeps: only then is its lock held. If it is awake, or there is none, nothing is
/// notified, because transactions that notify wait for each other when they commit. The lock that tells is let go at once: the relay
/// could not lie down while an emitter has it. Who sets `outbox.notify` to `off` never notifies, because PostgreSQL prepares no
/// transaction that has.
pub const WAKE: &str = "CASE WHEN current_setting('outbox.notify', true) IN ('off', 'false', 'no', '0') THEN NULL \
                        WHEN NOT pg_try_advisory_lock_shared(1869968482, 'outbox'::regclass::oid::int4) \
                        THEN pg_notify('outbox_' || 'outbox'::regclass::oid, '') \
                        WHEN NOT pg_advisory_unlock_shared(1869968482, 'outbox'::regclass::oid::int4) THEN NULL END";

/// [`WAKE`] for the table in this schema, which is quoted already.
pub fn wake_in(schema: &str) -> String {
    let table = format!("'{}.outbox'::regclass", schema.replace('\'', "''"));
    WAKE.replace("'outbox'::regclass", &table)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_schema_stands_before_each_mention_of_the_table() {
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
