//! Where an event is, and why it is there.

// A build for one database needs fewer of these.
#![cfg_attr(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")), allow(dead_code))]

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "kafka")]
mod published;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use diesel::QueryResult;
use diesel_outbox_core::__private::from_unix_ms;
use uuid::Uuid;

#[cfg(feature = "kafka")]
pub use self::published::{Published, find_published};
use crate::source::{BLOCKED, SentRows};

/// What becomes of an event, on a plain `PgConnection`, a plain `SqliteConnection`, or a `Conn` of the crate `mysql`.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # fn f(conn: &mut diesel::PgConnection, id: uuid::Uuid) -> diesel::QueryResult<()> {
/// use diesel_outbox_relay::operate::explain::Explain;
///
/// let explanation = conn.explain(id, Default::default())?;
/// println!("{}: {}", explanation.state.name(), explanation.facts.join(". "));
/// # Ok(())
/// # }
/// ```
pub trait Explain {
    /// Looks for the event, and returns where it is and what to do. It changes nothing and keeps no relay waiting. No index has the ids, so it
    /// reads the tables once, which takes about a second for every few million rows.
    ///
    /// `pruning` is what the relay's settings say: whether an event that is not there may have been pruned.
    ///
    /// # Errors
    /// Returns the database's error.
    fn explain(&mut self, id: Uuid, pruning: Pruning) -> QueryResult<Explanation>;
}

/// What the relay's settings say of rows that are deleted. By default, those that were sent are, after a week.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Pruning {
    sent_rows: SentRows,
    by_number: bool,
    dead_letters: bool,
}

impl Pruning {
    /// Sets what becomes of sent rows.
    #[must_use]
    pub fn sent_rows(mut self, sent_rows: SentRows) -> Self {
        self.sent_rows = sent_rows;
        self
    }

    /// Sets whether only a number of sent rows is kept. Default: false.
    #[must_use]
    pub fn by_number(mut self, is_so: bool) -> Self {
        self.by_number = is_so;
        self
    }

    /// Sets whether dead letters are pruned. Default: false.
    #[must_use]
    pub fn dead_letters(mut self, is_so: bool) -> Self {
        self.dead_letters = is_so;
        self
    }
}

/// Where an event is, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explanation {
    /// The event's id.
    pub id: Uuid,
    /// Where it is.
    pub state: State,
    /// The event, if it is in a table.
    pub event: Option<Event>,
    /// What is known beyond that, in sentences.
    pub facts: Vec<String>,
    /// What to do, if anything.
    pub advice: Option<String>,
}

/// Where an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Its transaction is open. Only MySQL and MariaDB show its row.
    NotCommitted,
    /// It is to be sent later.
    Scheduled,
    /// It is in the outbox, and no relay has claimed it.
    Waiting,
    /// It is in the outbox, and a relay has claimed its shard.
    InFlight,
    /// It was sent.
    Sent,
    /// It is held back behind a dead letter of its aggregate.
    Blocked,
    /// It is a dead letter.
    Dead,
    /// It is in no table, and so old that it may have been sent and pruned.
    Pruned,
    /// It is in no table: it is not committed, was rolled back, or was never emitted.
    NeverSeen,
}

impl State {
    /// Returns its name, which stays the same: a word, or words with underscores.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotCommitted => "not_committed",
            Self::Scheduled => "scheduled",
            Self::Waiting => "waiting",
            Self::InFlight => "in_flight",
            Self::Sent => "sent",
            Self::Blocked => "blocked",
            Self::Dead => "dead",
            Self::Pruned => "pruned",
            Self::NeverSeen => "never_seen",
        }
    }
}

/// An event as its table has it, without what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Its place in the order, unless it is scheduled.
    pub seq: Option<i64>,
    /// The aggregate's type.
    pub aggregate_type: String,
    /// The aggregate's id.
    pub aggregate_id: String,
    /// The event's type.
    pub event_type: String,
    /// Its shard, 0 to 15.
    pub shard: i16,
    /// When it was emitted.
    pub created_at: SystemTime,
    /// When it was, or became, what it is: when it was sent if that is known, is due, or became a dead letter.
    pub since: Option<SystemTime>,
}

/// A row as the databases return it: its seq, the aggregate's type and id, the event's type, the shard, when it was emitted and what
/// [`Event::since`] says, both in milliseconds since 1970.
type Row = (Option<i64>, String, String, String, i16, i64, Option<i64>);

fn event((seq, aggregate_type, aggregate_id, event_type, shard, created_at, since): Row) -> Event {
    let (created_at, since) = (from_unix_ms(created_at), since.map(from_unix_ms));
    Event { seq, aggregate_type, aggregate_id, event_type, shard, created_at, since }
}

/// What a database knows of an event.
trait Look {
    fn scheduled(&mut self, id: Uuid) -> QueryResult<Option<Row>>;

    fn stored(&mut self, id: Uuid) -> QueryResult<Option<Stored>>;

    /// A dead letter, and its reason.
    fn dead(&mut self, id: Uuid) -> QueryResult<Option<(Row, String)>>;

    /// The row of an open transaction, if the database shows it.
    fn not_committed(&mut self, _: Uuid) -> QueryResult<Option<Row>> {
        Ok(None)
    }

    /// The transactions that may have emitted it and are open, or `None` if the database does not show them.
    fn open_transactions(&mut self) -> QueryResult<Option<Vec<String>>>;

    /// The id and the reason of the first dead letter of an aggregate that nothing holds back.
    fn first_dead_letter(&mut self, event: &Event) -> QueryResult<Option<(String, String)>>;

    /// How many events of the shard come before it and were not sent.
    fn before(&mut self, shard: i16, seq: i64) -> QueryResult<i64>;

    /// Whose pass has claimed the shard.
    fn claim(&mut self, shard: i16) -> QueryResult<Claim>;

    /// Whether a relay is connected, or `None` if the database does not show it.
    fn has_relay(&mut self) -> QueryResult<Option<bool>>;

    /// How the slot is read that the row is in.
    fn slot(&mut self) -> QueryResult<Option<Slot>> {
        Ok(None)
    }
}

struct Stored {
    row: Row,
    is_sent: bool,
    is_read_from_wal: bool,
}

enum Claim {
    /// By this session, if the database names it.
    Claimed(Option<String>),
    Free,
    Unknown,
}

/// A replication slot: its name, the session that reads it, how many bytes are not confirmed, and its status.
struct Slot {
    name: String,
    reader: Option<i32>,
    bytes: u64,
    status: String,
}

fn explain<C: Look>(conn: &mut C, id: Uuid, pruning: Pruning) -> QueryResult<Explanation> {
    // In the order in which events move. One that is requeued or that moves on meanwhile is found at the second look.
    for _ in 0..2 {
        if let Some(row) = conn.scheduled(id)? {
            return Ok(scheduled(id, event(row)));
        }
        if let Some(stored) = conn.stored(id)? {
            return of_stored(conn, id, stored);
        }
        if let Some((row, reason)) = conn.dead(id)? {
            return dead(conn, id, event(row), reason);
        }
    }
    let open = conn.open_transactions()?;
    if let Some(row) = conn.not_committed(id)? {
        return Ok(Explanation {
            id,
            state: State::NotCommitted,
            event: Some(event(row)),
            facts: writers(open, "Transactions that have changed something and are open"),
            advice: Some(
                "wait until its transaction ends: a relay sends the event after the commit".to_owned(),
            ),
        });
    }
    Ok(absent(id, pruning, open, SystemTime::now()))
}

fn scheduled(id: Uuid, event: Event) -> Explanation {
    let is_due = event.since.is_some_and(|due| due <= SystemTime::now());
    let (fact, advice) = if is_due {
        (
            "It is due, and a relay moves it into the outbox",
            Some(
                "if it stays so for longer than a few seconds, look whether a relay runs, or run `outbox scheduled --promote`",
            ),
        )
    } else {
        ("A relay moves it into the outbox when it is due", None)
    };
    Explanation {
        id,
        state: State::Scheduled,
        event: Some(event),
        facts: vec![fact.to_owned()],
        advice: advice.map(str::to_owned),
    }
}

fn dead<C: Look>(conn: &mut C, id: Uuid, event: Event, reason: String) -> QueryResult<Explanation> {
    if reason == BLOCKED {
        let first = conn.first_dead_letter(&event)?;
        let fact = first.map_or(
            "No dead letter of its aggregate is left that holds it back".to_owned(),
            |(first, reason)| format!("The dead letter {first} of its aggregate holds it back: {reason}"),
        );
        let advice = format!(
            "remove the cause, then run `outbox requeue --aggregate {} {}`, which requeues the whole aggregate in its order",
            for_a_shell(&event.aggregate_type),
            for_a_shell(&event.aggregate_id)
        );
        return Ok(Explanation {
            id,
            state: State::Blocked,
            event: Some(event),
            facts: vec![fact],
            advice: Some(advice),
        });
    }
    Ok(Explanation {
        id,
        state: State::Dead,
        event: Some(event),
        facts: vec![reason],
        advice: Some(format!(
            "remove the cause, then run `outbox requeue --id {id}`; if nobody needs it, run `outbox dead-letters drop --id {id}`"
        )),
    })
}

fn of_stored<C: Look>(conn: &mut C, id: Uuid, stored: Stored) -> QueryResult<Explanation> {
    let Stored { row, is_sent, is_read_from_wal } = stored;
    let event = event(row);
    if is_sent {
        return Ok(Explanation {
            id,
            state: State::Sent,
            event: Some(event),
            facts: Vec::new(),
            advice: None,
        });
    }
    if is_read_from_wal {
        let slot = conn.slot()?;
        return Ok(in_the_wal(id, event, slot));
    }
    let mut facts = Vec::new();
    let before = conn.before(event.shard, event.seq.unwrap_or_default())?;
    facts.push(match before {
        0 => format!("It is the next one of shard {}", event.shard),
        1 => format!("1 unsent event of shard {} comes before it", event.shard),
        _ => format!("{before} unsent events of shard {} come before it", event.shard),
    });
    if let Some((first, reason)) = conn.first_dead_letter(&event)? {
        facts.push(format!(
            "Its aggregate has a dead letter, {first} ({reason}): a relay whose dead_letter_policy is block holds the event back"
        ));
    }
    let (claim, has_relay) = (conn.claim(event.shard)?, conn.has_relay()?);
    let (state, fact, advice) = match (claim, has_relay) {
        (Claim::Claimed(who), _) => {
            let who = who.map_or(String::new(), |who| format!(" ({who})"));
            (
                State::InFlight,
                format!(
                    "A relay has claimed the shard{who}, and sends it in this pass or in one of the next"
                ),
                "if it stays so for longer than a minute, look at the relay's log: Kafka may be away",
            )
        }
        (_, Some(false)) => (
            State::Waiting,
            "No relay is connected to the database".to_owned(),
            "start a relay: `outbox relay`, or the service that has it embedded",
        ),
        (Claim::Free, _) => (
            State::Waiting,
            "No relay has claimed the shard at this moment".to_owned(),
            "if it stays so for longer than a few seconds, look at the relay's log and at /readyz, or run `outbox doctor`",
        ),
        (Claim::Unknown, _) => (
            State::Waiting,
            "The database does not show whether a relay works".to_owned(),
            "if it stays so for longer than a few seconds, look whether a relay runs, and at its log",
        ),
    };
    facts.push(fact);
    Ok(Explanation { id, state, event: Some(event), facts, advice: Some(advice.to_owned()) })
}

fn in_the_wal(id: Uuid, event: Event, slot: Option<Slot>) -> Explanation {
    let found = |state, fact: String, advice: Option<&str>| Explanation {
        id,
        state,
        event: Some(event.clone()),
        facts: vec![fact],
        advice: advice.map(str::to_owned),
    };
    let Some(Slot { name, reader, bytes, status }) = slot else {
        let fact = "It is read from the write-ahead log, and there is no slot from which".to_owned();
        return found(State::Waiting, fact, Some("run `outbox doctor`, which says what became of the slot"));
    };
    match reader {
        _ if status == "lost" => found(
            State::Waiting,
            format!("The server has dropped the WAL that the slot {name} needs"),
            Some("run `outbox doctor`, and see docs/wal.md for what to do about a slot that is lost"),
        ),
        _ if bytes == 0 => {
            found(State::Sent, format!("The slot {name} has confirmed all that the WAL has"), None)
        }
        None => found(
            State::Waiting,
            format!("No relay reads the slot {name}, which has {bytes} bytes to be read"),
            Some("start a relay: `outbox relay --source wal`"),
        ),
        Some(pid) => found(
            State::Waiting,
            format!(
                "A relay reads the slot {name} (process {pid} of the server), with {bytes} bytes that are not confirmed; the event may be \
                 sent already"
            ),
            Some(
                "name the --brokers to look for it on Kafka; if the bytes do not become fewer, look at the relay's log",
            ),
        ),
    }
}

/// The event is in no table.
fn absent(id: Uuid, pruning: Pruning, open: Option<Vec<String>>, now: SystemTime) -> Explanation {
    let emitted = time_of(id);
    let mut facts = vec![match emitted {
        Some(_) => "It is in no table of this outbox".to_owned(),
        None => "It is in no table of this outbox, and the id does not say when it was made".to_owned(),
    }];
    let is_old = |retention: Duration| {
        emitted.is_some_and(|emitted| now.duration_since(emitted).is_ok_and(|age| age > retention))
    };
    let pruned = match pruning.sent_rows {
        SentRows::Keep { retention } if is_old(retention) => {
            Some("Its id is older than sent rows are kept, so it was sent and pruned, or was never committed")
        }
        SentRows::Keep { .. } if pruning.by_number => Some(
            "Only so many sent rows are kept, so it may have been sent and pruned, or was never committed",
        ),
        SentRows::Delete => {
            Some("Rows are deleted when they are sent, so it was sent, or was never committed")
        }
        _ => None,
    };
    let dead = "It may have been a dead letter that was pruned too, which was never sent";
    let none_is_open = open.as_ref().is_some_and(Vec::is_empty);
    let (state, advice) = match pruned {
        Some(fact) => {
            facts.push(fact.to_owned());
            facts.extend(pruning.dead_letters.then(|| dead.to_owned()));
            (State::Pruned, "look for it on its topic, whose records have the id as a header".to_owned())
        }
        None if none_is_open => {
            facts.push("No transaction that may have emitted it is open".to_owned());
            let advice = "look whether its transaction was rolled back, and whether this is its outbox";
            (State::NeverSeen, advice.to_owned())
        }
        None => {
            let advice = "it may be that of a transaction that is open: wait until that ends. Else look whether its transaction was rolled back, \
                          and whether this is its outbox";
            (State::NeverSeen, advice.to_owned())
        }
    };
    facts.extend(writers(open, "Transactions that may have emitted it and are open"));
    Explanation { id, state, event: None, facts, advice: Some(advice) }
}

fn writers(open: Option<Vec<String>>, what: &str) -> Vec<String> {
    match open {
        Some(open) if open.is_empty() => Vec::new(),
        Some(open) => vec![format!("{what}: {}", open.join("; "))],
        None => vec!["The database does not show this role which transactions are open".to_owned()],
    }
}

/// Returns the text as a shell takes it for one word.
fn for_a_shell(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Returns when an id was made, if it says so.
pub fn time_of(id: Uuid) -> Option<SystemTime> {
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    (id.get_version_num() == 7).then(|| UNIX_EPOCH + Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn state(id: Uuid, sent_rows: SentRows, open: Option<&[&str]>, now: SystemTime) -> (State, String) {
        let open = open.map(|open| open.iter().map(|who| (*who).to_owned()).collect());
        let explanation = absent(id, Pruning::default().sent_rows(sent_rows), open, now);
        (explanation.state, explanation.facts.join(". "))
    }

    #[test]
    fn an_event_that_is_not_there_was_pruned_only_if_its_id_is_old_enough() {
        let (id, now) = (Uuid::now_v7(), SystemTime::now());
        let kept = SentRows::Keep { retention: DAY };
        assert_eq!(state(id, kept, Some(&[]), now).0, State::NeverSeen);
        assert_eq!(state(id, kept, Some(&[]), now + 2 * DAY).0, State::Pruned);
        assert_eq!(state(id, SentRows::Delete, Some(&[]), now).0, State::Pruned);
        let by_number =
            absent(id, Pruning::default().by_number(true).dead_letters(true), Some(Vec::new()), now);
        assert_eq!(by_number.state, State::Pruned);
        assert!(by_number.facts.concat().contains("never sent"), "{by_number:?}");
        // Its first digits are no time.
        let other: Uuid = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736".parse().unwrap();
        let (other, facts) = state(other, kept, None, now + 2 * DAY);
        assert_eq!(other, State::NeverSeen);
        assert!(facts.contains("does not say when") && facts.contains("does not show"), "{facts}");
    }

    #[test]
    fn an_aggregate_is_one_word_for_a_shell() {
        let words = ["order", "a b", "it's", "", "$(rm)"].map(for_a_shell);
        assert_eq!(words, ["order", "'a b'", r"'it'\''s'", "''", "'$(rm)'"]);
    }

    #[test]
    fn an_open_transaction_is_named() {
        let kept = SentRows::Keep { retention: DAY };
        let (state, facts) = state(Uuid::now_v7(), kept, Some(&["process 7"]), SystemTime::now());
        assert_eq!(state, State::NeverSeen);
        assert!(facts.contains("process 7"), "{facts}");
    }
}
