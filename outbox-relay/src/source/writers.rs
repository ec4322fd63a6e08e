//! Transactions that have emitted and stay open. Until they end, the relay cannot forget what it has sent since they began, and
//! pruning and vacuum wait for them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Double, Integer, Nullable, Text};

use crate::statement::statement;

/// How old a transaction is before the relay warns of it, and how often it does.
const LONG: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(600);

/// The transactions that were open at the last look.
#[derive(Default)]
pub(super) struct Writers {
    known: HashMap<String, Known>,
}

struct Known {
    seen: Instant,
    warned: Option<Instant>,
}

/// A transaction that is open now.
struct OpenWriter {
    /// No other transaction has this name, now or later.
    name: String,
    /// Its age, if the server shows it: that of another role's transaction only to members of `pg_read_all_stats`.
    age: Option<Duration>,
    who: Who,
}

enum Who {
    Session {
        pid: i32,
        role: Option<String>,
        application: Option<String>,
    },
    /// `literal` is the name as an SQL literal.
    Prepared {
        gid: String,
        literal: String,
    },
}

impl Writers {
    /// Warns of transactions that have been open for long, and returns how long the oldest has been open.
    pub(super) fn look(&mut self, conn: &mut PgConnection) -> QueryResult<Duration> {
        let open =
            OpenWriters::new().load::<WriterRow>(conn)?.into_iter().filter_map(OpenWriter::of_row).collect();
        let (oldest, due) = self.due(open, Instant::now());
        for (who, age) in due {
            who.warn(age.as_secs());
        }
        Ok(oldest)
    }

    /// Returns the age of the oldest, and those that the relay should warn of.
    fn due(&mut self, open: Vec<OpenWriter>, now: Instant) -> (Duration, Vec<(Who, Duration)>) {
        let mut before = std::mem::take(&mut self.known);
        let (mut oldest, mut due) = (Duration::ZERO, Vec::new());
        for OpenWriter { name, age, who } in open {
            let mut known = before.remove(&name).unwrap_or(Known { seen: now, warned: None });
            let age = age.unwrap_or_else(|| now.saturating_duration_since(known.seen));
            oldest = oldest.max(age);
            let is_warned = known.warned.is_some_and(|warned| now.saturating_duration_since(warned) < AGAIN);
            if age >= LONG && !is_warned {
                known.warned = Some(now);
                due.push((who, age));
            }
            self.known.insert(name, known);
        }
        (oldest, due)
    }
}

/// Returns the sessions whose transactions may have emitted and are open now, each with its age and what to do about it. The age is zero if
/// the server does not show it.
pub(crate) fn open_writers(conn: &mut PgConnection) -> QueryResult<Vec<(Duration, String)>> {
    let open = OpenWriters::new().load::<WriterRow>(conn)?.into_iter().filter_map(OpenWriter::of_row);
    let sessions = open.filter(|writer| matches!(writer.who, Who::Session { .. }));
    Ok(sessions.map(|writer| (writer.age.unwrap_or_default(), writer.who.advice())).collect())
}

/// Returns who has a transaction open that may have emitted, and for how long if the server shows it.
pub(crate) fn named_open_writers(conn: &mut PgConnection) -> QueryResult<Vec<String>> {
    let open = OpenWriters::new().load::<WriterRow>(conn)?.into_iter().filter_map(OpenWriter::of_row);
    let named = |OpenWriter { age, who, .. }: OpenWriter| {
        let age = age.map_or(String::new(), |age| format!(", open for {} s", age.as_secs()));
        format!("{}{age}", who.name())
    };
    Ok(open.map(named).collect())
}

impl Who {
    /// Returns who it is, in words.
    fn name(&self) -> String {
        match self {
            Self::Session { pid, role, application } => {
                let role = role.as_ref().map_or(String::new(), |role| format!(" of role {role}"));
                let application = application.as_ref().filter(|name| !name.is_empty());
                let application = application.map_or(String::new(), |name| format!(" ({name})"));
                format!("process {pid}{role}{application}")
            }
            Self::Prepared { literal, .. } => format!("the prepared transaction {literal}"),
        }
    }

    fn warn(self, seconds: u64) {
        let advice = self.advice();
        match self {
            Self::Session { pid, role, application } => {
                tracing::warn!(pid, role, application, seconds, "{advice}");
            }
            Self::Prepared { gid, .. } => tracing::warn!(gid, seconds, "{advice}"),
        }
    }

    /// Returns what this means and what to do.
    fn advice(&self) -> String {
        match self {
            Self::Session { pid, .. } => format!(
                "a transaction that may have emitted stays open: until it ends, the database keeps every version of the \
                 rows that are sent, and the table grows; find out what it waits for, or end it, which rolls it back: \
                 SELECT pg_terminate_backend({pid})"
            ),
            Self::Prepared { literal, .. } => format!(
                "a transaction that may have emitted is still prepared: until it ends, the database keeps every \
                 version of the rows that are sent, and the table grows; ask its coordinator, or end it in this database as \
                 its owner or a superuser. To keep what it did: COMMIT PREPARED {literal}; to undo it: ROLLBACK PREPARED {literal}"
            ),
        }
    }
}

/// Name, seconds, process, role, application, and the name of a prepared transaction, plain and as an SQL literal.
type WriterRow =
    (String, Option<f64>, Option<i32>, Option<String>, Option<String>, Option<String>, Option<String>);

impl OpenWriter {
    fn of_row((name, seconds, pid, role, application, gid, literal): WriterRow) -> Option<Self> {
        let who = match (pid, gid.zip(literal)) {
            (Some(pid), _) => Who::Session { pid, role, application },
            (None, Some((gid, literal))) => Who::Prepared { gid, literal },
            // It was ended between the server's look at its locks and at its name.
            (None, None) => return None,
        };
        // A clock that was set back makes it negative.
        let age = seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
        Some(Self { name, age, who })
    }
}

statement!(
    Pg,
    /// The transactions that hold the lock on the table that an insert takes. A prepared one is known by its transaction id, which it has
    /// locked too, because transactions of other processes may have had the same name before they were prepared.
    OpenWriters {} -> (
        Text, Nullable<Double>, Nullable<Integer>, Nullable<Text>, Nullable<Text>, Nullable<Text>, Nullable<Text>
    ),
    "WITH locks AS MATERIALIZED (SELECT locktype, database, relation, mode, pid, virtualtransaction, transactionid FROM pg_locks), \
     writers AS (SELECT DISTINCT pid, virtualtransaction FROM locks WHERE locktype = 'relation' \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND relation = 'outbox'::regclass::oid \
     AND mode = 'RowExclusiveLock' AND pid IS DISTINCT FROM pg_backend_pid()) \
     SELECT pg_catalog.concat_ws(' ', w.virtualtransaction, p.gid), \
     extract(epoch FROM clock_timestamp() - coalesce(p.prepared, a.xact_start))::float8, w.pid, a.usename::text, \
     a.application_name, p.gid, quote_literal(p.gid) FROM writers AS w LEFT JOIN pg_stat_activity AS a ON a.pid = w.pid \
     LEFT JOIN (locks AS t JOIN pg_prepared_xacts AS p ON p.transaction = t.transactionid AND t.locktype = 'transactionid') \
     ON w.pid IS NULL AND t.pid IS NULL AND t.virtualtransaction = w.virtualtransaction"
);

#[cfg(test)]
mod tests {
    use super::*;

    fn open(name: &str, age: Option<u64>) -> OpenWriter {
        let who = Who::Session { pid: 7, role: None, application: None };
        OpenWriter { name: name.to_owned(), age: age.map(Duration::from_secs), who }
    }

    fn seconds((oldest, due): (Duration, Vec<(Who, Duration)>)) -> (u64, Vec<u64>) {
        (oldest.as_secs(), due.into_iter().map(|(_, age)| age.as_secs()).collect())
    }

    #[test]
    fn a_writer_is_warned_of_after_a_minute_and_every_ten_minutes() {
        let mut writers = Writers::default();
        let began = Instant::now();
        let mut look = |open, after| seconds(writers.due(open, began + Duration::from_secs(after)));
        let at_age = |age| vec![open("3/45", Some(age)), open("4/1", Some(0))];
        assert_eq!(look(at_age(59), 0), (59, vec![]));
        assert_eq!(look(at_age(61), 2), (61, vec![61]));
        assert_eq!(look(at_age(660), 601), (660, vec![]));
        assert_eq!(look(at_age(661), 602), (661, vec![661]));
        // Another one that has its name is not known.
        assert_eq!(look(vec![], 603), (0, vec![]));
        assert_eq!(look(at_age(5_000), 604), (5_000, vec![5_000]));
    }

    #[test]
    fn one_whose_age_the_server_does_not_show_is_as_old_as_it_is_known() {
        let mut writers = Writers::default();
        let began = Instant::now();
        let mut look = |after| {
            let open = vec![open("3/45", None)];
            seconds(writers.due(open, began + Duration::from_secs(after)))
        };
        assert_eq!(look(0), (0, vec![]));
        assert_eq!(look(61), (61, vec![61]));
        assert_eq!(look(62), (62, vec![]));
    }
}
