//! What the page knows of an outbox. It asks the database only while somebody looks, once a second at most, and in a small part of the time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel_outbox_relay::operate::{Cause, DeadLetter, Rates, Status};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::text::in_one_line;
use crate::{BoxError, Connect, Connection, Discover};

/// How often it looks at the outbox that is shown, and at the others if there are several.
pub(crate) const SHOWN: Duration = Duration::from_secs(1);
pub(crate) const LISTED: Duration = Duration::from_secs(15);
/// Looking takes at most this part of the time.
const LONGEST_SHARE: u32 = 20;
/// What a look that failed counts for at most, so that the page soon knows when a database is back that was away.
const LONGEST_FAILURE: Duration = Duration::from_secs(10);
/// How long a request waits for the database. A look that takes longer ends by itself.
const PATIENCE: Duration = Duration::from_secs(3);
/// How soon a connection fails that was lost meanwhile. What fails later has met a limit, and would meet it again.
const LOST: Duration = Duration::from_secs(1);
/// How long a connection stays open while nobody looks.
const IDLE: Duration = Duration::from_secs(30);
/// How many dead letters are read, the oldest ones.
pub(crate) const DEAD_LETTERS: i64 = 1_000;
/// How long a list of outboxes is good for.
const LIST: Duration = Duration::from_secs(15);

/// What was seen at a moment, or why nothing was.
pub(crate) type Look = Result<Seen, String>;

/// Dead letters by their causes.
type ByCause = Vec<(Cause, Vec<DeadLetter>)>;

#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) status: Status,
    /// Since the look before.
    pub(crate) rates: Option<Rates>,
    /// The oldest dead letters by their causes.
    pub(crate) causes: ByCause,
}

/// An outbox, and what was last seen of it.
pub(crate) struct Watched {
    pub(crate) name: String,
    connect: Connect,
    conn: Mutex<Option<Connection>>,
    last: Mutex<Option<Last>>,
    /// When the page that shows it was last asked for. `None` if there is no connection to close.
    requested: Mutex<Option<Instant>>,
    /// Whoever uses the connection has it.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
struct Last {
    look: Arc<Look>,
    /// The last status, from which rates follow, even if a look failed since.
    status: Option<Status>,
    at: Instant,
    took: Duration,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    pub(crate) fn new(name: String, connect: Connect) -> Self {
        Self {
            name,
            connect,
            conn: Mutex::default(),
            last: Mutex::default(),
            requested: Mutex::default(),
            turn: Arc::default(),
        }
    }

    /// Returns what was seen at most so long ago, if the database answers soon; else what was seen last.
    pub(crate) async fn look(self: &Arc<Self>, at_most_ago: Duration) -> Arc<Look> {
        let is_shown = at_most_ago == SHOWN;
        if is_shown {
            self.close_when_idle();
        }
        if self.is_due(at_most_ago) {
            // If somebody looks already, this waits for that look.
            let looking = self.in_turn(move |watched| {
                if watched.is_due(at_most_ago) {
                    watched.look_now(is_shown);
                }
            });
            let _ = timeout(PATIENCE, looking).await;
        }
        let last = locked(&self.last).as_ref().map(|last| last.look.clone());
        last.unwrap_or_else(|| Arc::new(Err("the database has not answered yet".to_owned())))
    }

    /// Does something that may wait for the database, when nobody else does. Returns `None` if others do for too long, or if it panicked.
    /// Whoever waits for the turn has no thread, so a database that is stuck keeps one of them.
    pub(crate) async fn in_turn<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let turn = timeout(PATIENCE, self.turn.clone().lock_owned()).await.ok()?;
        let watched = self.clone();
        let working = spawn_blocking(move || {
            let done = work(&watched);
            drop(turn);
            done
        });
        working.await.ok()
    }

    fn is_due(&self, at_most_ago: Duration) -> bool {
        let last = locked(&self.last);
        let pause = |last: &Last| at_most_ago.max(last.took.saturating_mul(LONGEST_SHARE));
        last.as_ref().is_none_or(|last| last.at.elapsed() >= pause(last))
    }

    fn look_now(&self, keep: bool) {
        // To connect to a database that is away costs it nothing.
        let mut took = Duration::ZERO;
        let seen = self.with(keep, |conn| {
            let began = Instant::now();
            let seen = see(conn);
            took += began.elapsed();
            seen
        });
        let mut last = locked(&self.last);
        let before = last.take().and_then(|last| last.status);
        let (look, status, took) = match seen {
            Ok((status, causes)) => {
                let rates = before.as_ref().and_then(|before| status.rates_since(before));
                (Ok(Seen { status: status.clone(), rates, causes }), Some(status), took)
            }
            Err(error) => (Err(in_one_line(&*error)), before, took.min(LONGEST_FAILURE)),
        };
        *last = Some(Last { look: Arc::new(look), status, at: Instant::now(), took });
    }

    /// Does something on the connection, which may have been lost: then another one serves. Call it [in turn](Self::in_turn).
    pub(crate) fn with<T>(
        &self,
        keep: bool,
        mut work: impl FnMut(&mut Connection) -> Result<T, BoxError>,
    ) -> Result<T, BoxError> {
        let mut kept = locked(&self.conn);
        if let Some(mut conn) = kept.take() {
            let began = Instant::now();
            match work(&mut conn) {
                Ok(done) => {
                    *kept = keep.then_some(conn);
                    return Ok(done);
                }
                Err(error) if began.elapsed() >= LOST => return Err(error),
                Err(_) => {}
            }
        }
        let mut conn = (self.connect)()?;
        conn.limit_waits()?;
        let done = work(&mut conn)?;
        *kept = keep.then_some(conn);
        Ok(done)
    }

    /// Forgets what was seen, because something was changed.
    pub(crate) fn forget(&self) {
        if let Some(last) = locked(&self.last).as_mut() {
            last.took = Duration::ZERO;
            last.at = last.at.checked_sub(LISTED).unwrap_or(last.at);
        }
    }

    /// Closes the connection some time after the last request.
    fn close_when_idle(self: &Arc<Self>) {
        if locked(&self.requested).replace(Instant::now()).is_some() {
            return;
        }
        let watched = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut rest = IDLE;
            loop {
                sleep(rest).await;
                let Some(watched) = watched.upgrade() else { return };
                let _turn = watched.turn.lock().await;
                rest = watched.close_if_idle();
                if rest.is_zero() {
                    return;
                }
            }
        });
    }

    /// Closes the connection if it is time, and returns how much time there is left.
    fn close_if_idle(&self) -> Duration {
        let mut requested = locked(&self.requested);
        let rest = requested.map_or(Duration::ZERO, |at| IDLE.saturating_sub(at.elapsed()));
        if rest.is_zero() {
            *requested = None;
            *locked(&self.conn) = None;
        }
        rest
    }
}

fn see(conn: &mut Connection) -> Result<(Status, ByCause), BoxError> {
    let status = conn.status()?;
    let dead_letters =
        if status.lag.dead_letters > 0 { conn.dead_letters(DEAD_LETTERS)? } else { Vec::new() };
    Ok((status, by_cause(dead_letters)))
}

/// The causes, each with its dead letters.
fn by_cause(dead_letters: Vec<DeadLetter>) -> ByCause {
    let mut of = HashMap::<String, Vec<DeadLetter>>::new();
    let causes = Cause::of_all(&dead_letters);
    for letter in dead_letters {
        of.entry(letter.cause()).or_default().push(letter);
    }
    let with_letters = |cause: Cause| {
        let letters = of.remove(&cause.key).unwrap_or_default();
        (cause, letters)
    };
    causes.into_iter().map(with_letters).collect()
}

/// The outboxes of one relay. Some may come and go.
pub(crate) struct Watch {
    discover: Discover,
    known: Mutex<Known>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Known {
    outboxes: Vec<Arc<Watched>>,
    problem: Option<String>,
    listed: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(discover: Discover) -> Self {
        Self { discover, known: Mutex::default(), turn: Arc::default() }
    }

    /// Returns the outboxes, and why some may be missing.
    pub(crate) async fn outboxes(self: &Arc<Self>) -> (Vec<Arc<Watched>>, Option<String>) {
        let is_due = || locked(&self.known).listed.is_none_or(|listed| listed.elapsed() >= LIST);
        if is_due() {
            let wait = async {
                let turn = self.turn.clone().lock_owned().await;
                if is_due() {
                    let watch = self.clone();
                    let listing = spawn_blocking(move || {
                        watch.list();
                        drop(turn);
                    });
                    let _ = listing.await;
                }
            };
            let _ = timeout(PATIENCE, wait).await;
        }
        let known = locked(&self.known);
        (known.outboxes.clone(), known.problem.clone())
    }

    fn list(&self) {
        let found = (self.discover)();
        let mut known = locked(&self.known);
        known.listed = Some(Instant::now());
        match found {
            Err(error) => known.problem = Some(in_one_line(&*error)),
            Ok(found) => {
                let mut before: HashMap<String, Arc<Watched>> = std::mem::take(&mut known.outboxes)
                    .into_iter()
                    .map(|watched| (watched.name.clone(), watched))
                    .collect();
                let watched = |(name, connect): (String, Connect)| {
                    before.remove(&name).unwrap_or_else(|| Arc::new(Watched::new(name, connect)))
                };
                known.outboxes = found.into_iter().map(watched).collect();
                known.problem = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use diesel::QueryResult;
    use diesel::result::Error::NotFound;
    use diesel_outbox_relay::Lag;
    use diesel_outbox_relay::operate::{Content, Observe, Operate, Relays, Requeue, Schedule, Unsent};

    use super::*;

    /// A database that answers nothing, and counts how often it is asked.
    struct Asked(Arc<AtomicUsize>);

    impl Observe for Asked {
        fn status(&mut self) -> QueryResult<Status> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(NotFound)
        }

        fn relays(&mut self) -> QueryResult<Relays> {
            Err(NotFound)
        }

        fn last_number(&mut self) -> QueryResult<i64> {
            Err(NotFound)
        }

        fn dead_letter(&mut self, _: i64, _: &str) -> QueryResult<Option<DeadLetter>> {
            Err(NotFound)
        }

        fn limit_waits(&mut self) -> QueryResult<()> {
            Ok(())
        }

        fn content(&mut self, _: i64, _: &str) -> QueryResult<Option<Content>> {
            Err(NotFound)
        }
    }

    impl Operate for Asked {
        fn lag(&mut self) -> QueryResult<Lag> {
            Err(NotFound)
        }

        fn unsent(&mut self) -> QueryResult<Vec<Unsent>> {
            Err(NotFound)
        }

        fn dead_letters(&mut self, _: i64) -> QueryResult<Vec<DeadLetter>> {
            Err(NotFound)
        }

        fn requeue(&mut self, _: &Requeue) -> QueryResult<usize> {
            Err(NotFound)
        }

        fn drop_dead_letters(&mut self, _: &Requeue) -> QueryResult<usize> {
            Err(NotFound)
        }

        fn schedule(&mut self) -> QueryResult<Schedule> {
            Err(NotFound)
        }

        fn promote(&mut self) -> QueryResult<usize> {
            Err(NotFound)
        }
    }

    fn watched(asked: &Arc<AtomicUsize>) -> Arc<Watched> {
        let asked = asked.clone();
        let connect: Connect = Arc::new(move || Ok(Box::new(Asked(asked.clone())) as Connection));
        Arc::new(Watched::new("shop".to_owned(), connect))
    }

    #[tokio::test]
    async fn however_many_look_at_once_the_database_is_asked_once() {
        let asked = Arc::new(AtomicUsize::new(0));
        let watched = watched(&asked);
        let look = |ago| {
            let watched = watched.clone();
            tokio::spawn(async move { watched.look(ago).await })
        };
        let viewers: Vec<_> = (0..20).map(|_| look(Duration::from_secs(3_600))).collect();
        for viewer in viewers {
            assert!(viewer.await.is_ok_and(|look| look.is_err()));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(look(Duration::ZERO).await.is_ok());
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn while_the_database_is_stuck_one_thread_waits_for_it_and_others_are_turned_away() {
        let watched = watched(&Arc::default());
        let (go_on, stuck) = std::sync::mpsc::channel::<()>();
        let first = watched.clone();
        let first = tokio::spawn(async move { first.in_turn(move |_| stuck.recv().is_err()).await });
        while watched.turn.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..20)
            .map(|_| {
                let watched = watched.clone();
                tokio::spawn(async move { watched.in_turn(|_| ()).await })
            })
            .collect();
        for other in others {
            assert_eq!(other.await.unwrap(), None);
        }
        drop(go_on);
        assert_eq!(first.await.unwrap(), Some(true));
        assert_eq!(watched.in_turn(|_| ()).await, Some(()));
    }

    #[test]
    fn a_connection_is_closed_half_a_minute_after_the_last_request_however_long_looking_took() {
        let asked = Arc::default();
        let watched = watched(&asked);
        let last = Last {
            look: Arc::new(Err(String::new())),
            status: None,
            at: Instant::now(),
            took: Duration::from_secs(30),
        };
        *locked(&watched.last) = Some(last);
        *locked(&watched.conn) = Some(Box::new(Asked(asked)));
        *locked(&watched.requested) = Some(Instant::now());
        assert!(watched.close_if_idle() > Duration::ZERO && locked(&watched.conn).is_some());
        *locked(&watched.requested) = Instant::now().checked_sub(IDLE);
        assert!(watched.close_if_idle().is_zero() && locked(&watched.conn).is_none());
    }

    #[test]
    fn looking_takes_a_twentieth_of_the_time_even_if_it_takes_long() {
        let watched = watched(&Arc::default());
        let ended = |ago: u64| {
            *locked(&watched.last) = Some(Last {
                look: Arc::new(Err(String::new())),
                status: None,
                at: Instant::now()
                    .checked_sub(Duration::from_secs(ago))
                    .expect("a machine that runs for longer"),
                took: Duration::from_secs(10),
            });
            watched.is_due(SHOWN)
        };
        assert!(!ended(190) && ended(201));
    }
}
