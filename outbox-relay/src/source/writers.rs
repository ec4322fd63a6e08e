//! Transactions that have emitted and stay open. What was sent since cannot be forgotten, and pruning and vacuum wait for them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Integer, Nullable, Text};

use crate::statement::statement;

/// When somebody is to know of one, and how often.
const LONG: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct Writers {
    /// Since when each is known.
    open: HashMap<String, Instant>,
    warned: HashMap<String, Instant>,
}

impl Writers {
    /// These are open now.
    pub(super) fn watch(&mut self, names: &HashSet<String>) {
        let now = Instant::now();
        self.open.retain(|name, _| names.contains(name));
        self.warned.retain(|name, _| names.contains(name));
        for name in names {
            if !self.open.contains_key(name) {
                self.open.insert(name.clone(), now);
            }
        }
    }

    /// How long the oldest has been open, as far as it was watched.
    pub(super) fn oldest(&self) -> Duration {
        self.open.values().map(Instant::elapsed).max().unwrap_or_default()
    }

    /// Those that have been open for long, and for how many seconds, as far as nobody was told of them of late.
    fn due(&mut self, now: Instant) -> Vec<(String, u64)> {
        let mut due = Vec::new();
        for (name, since) in &self.open {
            let open = now.saturating_duration_since(*since);
            let is_known =
                self.warned.get(name).is_some_and(|warned| now.saturating_duration_since(*warned) < AGAIN);
            if open >= LONG && !is_known {
                self.warned.insert(name.clone(), now);
                due.push((name.clone(), open.as_secs()));
            }
        }
        due
    }

    /// Warns of those that have been open for long.
    pub(super) fn warn(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        for (name, seconds) in self.due(Instant::now()) {
            let Some((pid, role, application, prepared)) =
                Who::new(name).get_result::<Found>(conn).optional()?
            else {
                continue;
            };
            match (pid, prepared) {
                (Some(pid), _) => tracing::warn!(
                    pid,
                    role,
                    application,
                    seconds,
                    "a transaction that may have emitted stays open: until it ends the database keeps every version of the \
                     rows that are sent, and the table grows; look what it waits for, or end it, which rolls it back: \
                     SELECT pg_terminate_backend({pid})"
                ),
                (None, Some(gid)) => tracing::warn!(
                    gid,
                    seconds,
                    "a prepared transaction that may have emitted waits to be ended: until then the database keeps every \
                     version of the rows that are sent, and the table grows; ask its coordinator, or end it by hand with \
                     COMMIT PREPARED or ROLLBACK PREPARED"
                ),
                (None, None) => {}
            }
        }
        Ok(())
    }
}

/// Process, role, application, and the name of a prepared transaction.
type Found = (Option<i32>, Option<String>, Option<String>, Option<String>);

statement!(
    Pg,
    Who { name: String => Text } -> (Nullable<Integer>, Nullable<Text>, Nullable<Text>, Nullable<Text>),
    "SELECT l.pid, a.usename::text, a.application_name, p.gid FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid \
     LEFT JOIN pg_prepared_xacts AS p ON l.pid IS NULL AND p.transaction = l.transactionid \
     WHERE l.virtualtransaction = ? AND (l.locktype = 'transactionid' \
     OR l.locktype = 'relation' AND l.relation = 'outbox'::regclass) ORDER BY p.gid LIMIT 1"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_told_of_after_a_minute_and_every_ten_minutes() {
        let mut writers = Writers::default();
        let long = HashSet::from(["3/45".to_owned()]);
        writers.watch(&long);
        let began = Instant::now();
        let due = |writers: &mut Writers, seconds| writers.due(began + Duration::from_secs(seconds));
        assert!(due(&mut writers, 59).is_empty());
        assert_eq!(due(&mut writers, 61), [("3/45".to_owned(), 61)]);
        assert!(due(&mut writers, 660).is_empty());
        assert_eq!(due(&mut writers, 661), [("3/45".to_owned(), 661)]);
        // Another one that has its name is not known.
        writers.watch(&HashSet::new());
        writers.watch(&long);
        assert_eq!(due(&mut writers, 700).len(), 1);
    }
}
