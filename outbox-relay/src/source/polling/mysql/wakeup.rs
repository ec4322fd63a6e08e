//! When a relay looks at the table, and which of several does.
//!
//! MySQL and MariaDB notify nobody, so a relay looks at the table: every few milliseconds while there is traffic, and less and less often
//! when there is none. Of several relays one leads, and looks so often. The others stand by: now and then they ask whether the leader is
//! gone or wants help, and look whether it leaves something unsent. They agree by user-level locks, which the server releases when their
//! session ends.

use std::time::{Duration, Instant};

use mysql::Conn;
use mysql::prelude::Queryable;

use super::connection::Statements;
use crate::source::SourceOptions;
use crate::source::interval::has_passed;

/// The pause between two looks is this part of the time for which nothing has come.
const PATIENCE: u32 = 8;
const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(1_250);
/// A relay that does not lead stands by again after it has found nothing for this time.
const STAND_BY_AFTER: Duration = Duration::from_secs(1);
/// How often the relays that stand by ask, all of them together.
const STAND_BY_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_STAND_BY: Duration = Duration::from_secs(10);
const SHORTEST_STAND_BY: Duration = Duration::from_secs(1);
/// A relay that stands by looks at the table after this many asks. If each ask had a look, 50 relays would send ten queries a second.
const ASKS_A_LOOK: u32 = 3;
/// How often a worker counts the workers at work.
const COUNT_INTERVAL: Duration = Duration::from_millis(250);
/// How long a worker waits with a read because another one asks whether the table is in use, and how often it looks meanwhile.
const LONGEST_HOLD: Duration = Duration::from_secs(3);
const HOLD_PAUSE: Duration = Duration::from_millis(5);
/// How many relays and workers can count each other. More of them work and stand by all the same.
const PLACES: u32 = 64;

pub(super) struct Wake {
    /// What the names of the locks begin with: other outboxes on the server have others.
    prefix: String,
    place: Option<u32>,
    leads: bool,
    /// Whether it looks for records although it does not lead.
    helps: bool,
    calls_for_help: bool,
    /// How often it has asked while it stands by.
    asks: u32,
    workers: usize,
    relays: usize,
    counted: Option<Instant>,
    found: Instant,
    looked: Instant,
    longest_pause: Duration,
    /// Whether only the leader works, because records are sent exactly once.
    exactly_once: bool,
}

fn prefix(conn: &mut Conn) -> mysql::Result<String> {
    let prefix: Option<Option<String>> =
        conn.first("SELECT CONCAT('outbox_', LEFT(DATABASE(), 36), '_', CRC32(DATABASE()), '_')")?;
    let prefix = prefix.flatten().unwrap_or_else(|| "outbox_".to_owned());
    Ok(prefix.replace(['\'', '\\'], "_"))
}

/// Returns the name of the lock of whoever prunes the outbox in the connection's database.
pub(crate) fn prune_lock(conn: &mut Conn) -> mysql::Result<String> {
    Ok(format!("{}prune", prefix(conn)?))
}

/// Returns whether a relay looks at the outbox in the connection's database.
pub(crate) fn is_polled(conn: &mut Conn) -> mysql::Result<bool> {
    let prefix = prefix(conn)?;
    let polled: Option<bool> = conn.first(&format!("SELECT IS_USED_LOCK('{prefix}leader') IS NOT NULL"))?;
    Ok(polled == Some(true))
}

/// A session of a relay: its number, whether it leads, whether it works, and from where it comes, if the role may see that.
pub(crate) type RelaySession = (i64, bool, bool, Option<String>);

/// Returns the sessions of relays that look at the outbox in the connection's database: those that have a place.
pub(crate) fn relays(conn: &mut Conn) -> mysql::Result<Vec<RelaySession>> {
    let prefix = prefix(conn)?;
    let place = |place| {
        format!(
            "SELECT IS_USED_LOCK('{prefix}r{place}') AS id, IS_USED_LOCK('{prefix}w{place}') IS NOT NULL AS works"
        )
    };
    let places = (0..PLACES).map(place).collect::<Vec<_>>().join(" UNION ALL ");
    conn.query(format!(
        "SELECT CAST(r.id AS SIGNED), COALESCE(r.id = IS_USED_LOCK('{prefix}leader'), 0), r.works, \
         (SELECT p.host FROM information_schema.processlist AS p WHERE p.id = r.id) FROM ({places}) AS r WHERE r.id IS NOT NULL"
    ))
}

impl Wake {
    pub(super) fn start(conn: &mut Conn, options: &SourceOptions) -> mysql::Result<Self> {
        let exactly_once = options.exactly_once;
        let mut wake = Self {
            prefix: prefix(conn)?,
            place: None,
            leads: false,
            helps: !exactly_once,
            calls_for_help: false,
            asks: 0,
            workers: 1,
            relays: 1,
            counted: None,
            found: Instant::now(),
            looked: Instant::now(),
            longest_pause: options.poll_interval.min(LONGEST),
            exactly_once,
        };
        for place in 0..PLACES {
            if wake.lock(conn, &format!("r{place}"))? {
                wake.place = Some(place);
                break;
            }
        }
        wake.works(conn, wake.helps)?;
        Ok(wake)
    }

    fn lock(&self, conn: &mut Conn, name: &str) -> mysql::Result<bool> {
        let locked = conn.first::<Option<i64>>(&format!("SELECT GET_LOCK('{}{name}', 0)", self.prefix))?;
        Ok(locked == Some(Some(1)))
    }

    fn unlock(&self, conn: &mut Conn, name: &str) -> mysql::Result<()> {
        conn.execute(&format!("DO RELEASE_LOCK('{}{name}')", self.prefix)).map(drop)
    }

    /// How many workers share the shards.
    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    pub(super) fn leads(&self) -> bool {
        self.leads
    }

    /// Joins the workers that share the shards, or leaves them.
    fn works(&mut self, conn: &mut Conn, works: bool) -> mysql::Result<()> {
        self.helps = works;
        if let Some(place) = self.place {
            if works {
                self.lock(conn, &format!("w{place}"))?;
            } else {
                self.unlock(conn, &format!("w{place}"))?;
            }
        }
        Ok(())
    }

    /// Returns whether to look at the table now. A relay that stands by asks only whether it is needed.
    pub(super) fn look(&mut self, conn: &mut Conn) -> mysql::Result<bool> {
        self.looked = Instant::now();
        if !self.leads && self.helps && self.found.elapsed() >= STAND_BY_AFTER {
            self.works(conn, false)?;
        }
        if !self.leads {
            if self.helps { self.count(conn)? } else { self.ask(conn)? }
        }
        Ok(self.leads || self.helps)
    }

    /// Returns whether a relay that stands by looks now whether the leader leaves something unsent.
    pub(super) fn looks_after_leader(&mut self) -> bool {
        self.asks = self.asks.wrapping_add(1);
        self.asks.is_multiple_of(ASKS_A_LOOK)
    }

    /// Works instead of standing by, until nothing has come for a while.
    pub(super) fn help(&mut self, conn: &mut Conn) -> mysql::Result<()> {
        self.found = Instant::now();
        self.works(conn, true)
    }

    /// Counts the workers if it is time to.
    pub(super) fn count(&mut self, conn: &mut Conn) -> mysql::Result<()> {
        if has_passed(self.counted, COUNT_INTERVAL) { self.ask(conn) } else { Ok(()) }
    }

    /// Asks which other relays there are, and whether the leader wants help. If there is no leader, this relay becomes it.
    fn ask(&mut self, conn: &mut Conn) -> mysql::Result<()> {
        self.counted = Some(Instant::now());
        let count = |kind| {
            let held = |place| format!("(IS_USED_LOCK('{}{kind}{place}') IS NOT NULL)", self.prefix);
            (0..PLACES).map(held).collect::<Vec<_>>().join("+")
        };
        let lead = if self.leads { "1".to_owned() } else { format!("GET_LOCK('{}leader', 0)", self.prefix) };
        let row: Option<(Option<i64>, i64, usize, usize)> = conn.first(&format!(
            "SELECT {lead}, IS_USED_LOCK('{}help') IS NOT NULL, {}, {}",
            self.prefix,
            count('w'),
            count('r')
        ))?;
        let Some((leads, help, workers, relays)) = row else { return Ok(()) };
        (self.workers, self.relays) = (workers.max(1), relays.max(1));
        self.leads = leads == Some(1);
        if (self.leads || help == 1) && !self.helps {
            self.help(conn)?;
        }
        Ok(())
    }

    /// Notes that something was claimed.
    pub(super) fn found(&mut self) {
        self.found = Instant::now();
    }

    /// Asks the others for help while the leader has more than it can read at once.
    pub(super) fn call_for_help(&mut self, conn: &mut Conn, wants_help: bool) -> mysql::Result<()> {
        if !self.leads || self.exactly_once || wants_help == self.calls_for_help {
            return Ok(());
        }
        self.calls_for_help = wants_help;
        if wants_help { self.lock(conn, "help").map(drop) } else { self.unlock(conn, "help") }
    }

    /// Keeps the other workers from reading for a moment. Returns `false` if another one does so already. `conn` may be any session.
    pub(super) fn hold_reads(&self, conn: &mut Conn) -> mysql::Result<bool> {
        self.lock(conn, "reads")
    }

    /// Lets them read again, in the same session.
    pub(super) fn let_read(&self, conn: &mut Conn) -> mysql::Result<()> {
        self.unlock(conn, "reads")
    }

    /// Waits while another worker keeps this one from reading, but not for ever.
    pub(super) fn wait_to_read(&self, conn: &mut Conn) -> mysql::Result<()> {
        let is_held = format!("SELECT IS_FREE_LOCK('{}reads') = 0", self.prefix);
        let began = Instant::now();
        while began.elapsed() < LONGEST_HOLD && conn.first::<Option<i64>>(&is_held)? == Some(Some(1)) {
            std::thread::sleep(HOLD_PAUSE);
        }
        Ok(())
    }

    /// Sleeps until it is time for the next look, but no longer than `limit`. Returns whether it is time.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let due = self.pause().saturating_sub(self.looked.elapsed());
        std::thread::sleep(due.min(limit));
        due <= limit
    }

    fn pause(&self) -> Duration {
        if self.leads || self.helps {
            (self.found.elapsed() / PATIENCE).clamp(SHORTEST, self.longest_pause.max(SHORTEST))
        } else {
            let relays = u32::try_from(self.relays).unwrap_or(PLACES);
            (STAND_BY_PAUSE * relays).clamp(SHORTEST_STAND_BY, LONGEST_STAND_BY)
        }
    }
}
