//! `outbox status`

mod tables;

use std::collections::{HashMap, VecDeque};
use std::io::{self, IsTerminal};
use std::thread;

use diesel_outbox_relay::operate::{Cause, DeadLetter, Rates, Status};
use serde_json::{Value, json};

use self::tables::text;
use super::database::OutboxDatabase;
use super::failure::{Failure, in_one_line};
use super::origin::Origins;
use super::outboxes::Outboxes;
use super::output::{moment, print, print_to_reader};
use super::settings::{CommonSettings, Time};

/// How many dead letters are read, the oldest ones.
const DEAD_LETTERS: i64 = 1_000;
/// How many looks a sparkline has.
const LOOKS: usize = 40;

/// What was seen of an outbox at once.
struct Seen {
    status: Status,
    causes: Vec<Cause>,
    /// The rates and the age of the oldest event, of the last looks.
    trail: VecDeque<(Option<Rates>, f64)>,
}

/// What the looks before have seen, by the outbox's name.
type Before = HashMap<String, (Status, VecDeque<(Option<Rates>, f64)>)>;

/// Prints the state of each outbox, once or again and again.
pub(crate) fn run(
    common: &CommonSettings,
    origins: &Origins,
    watch: Option<Time>,
    json: bool,
) -> Result<(), Failure> {
    let mut before = Before::new();
    let Some(Time(interval)) = watch else {
        let (text, ended) = look(common, origins, json, &mut before);
        print(&text)?;
        return ended;
    };
    let redraws = !json && io::stdout().is_terminal();
    if redraws {
        print("\x1b[2J")?;
    }
    loop {
        let (mut text, ended) = look(common, origins, json, &mut before);
        // A database that is away for a moment ends nothing. What cannot become right does.
        if let Err(failure) = ended {
            if failure.exit_code() == 2 {
                return Err(failure);
            }
            let line = in_one_line(&failure);
            text.push_str(&if json {
                format!("{}\n", json!({ "error": line }))
            } else {
                format!("outbox: {line}\n")
            });
        }
        if !print_to_reader(&if redraws { redrawn(&text) } else { text })? {
            return Ok(());
        }
        thread::sleep(interval);
    }
}

/// The text over the one before, without an empty screen between.
fn redrawn(text: &str) -> String {
    let lines: String = text.lines().map(|line| format!("{line}\x1b[K\r\n")).collect();
    format!("\x1b[?2026h\x1b[H{lines}\x1b[J\x1b[?2026l")
}

/// Looks at each outbox once, and returns what to print.
fn look(
    common: &CommonSettings,
    origins: &Origins,
    json: bool,
    before: &mut Before,
) -> (String, Result<(), Failure>) {
    let outboxes = match Outboxes::chosen(common, origins) {
        Ok(outboxes) => outboxes,
        Err(failure) => return (String::new(), Err(failure)),
    };
    let (mut texts, mut objects) = (Vec::new(), Vec::new());
    let ended = outboxes.each(|database| {
        let seen = seen(database, before)?;
        if json {
            objects.push(outboxes.placed(database, object(&seen)));
        } else {
            texts.push(text(&database.to_string(), &seen));
        }
        Ok(())
    });
    let printed = match (json, outboxes.are_several) {
        (false, _) => texts.join("\n"),
        (true, true) => format!("{}\n", Value::from(objects)),
        (true, false) => objects.pop().map(|object| format!("{object}\n")).unwrap_or_default(),
    };
    (printed, ended)
}

fn seen(database: &OutboxDatabase, before: &mut Before) -> Result<Seen, Failure> {
    let mut conn = database.operations()?;
    let status = conn.status().map_err(|error| database.failed(error))?;
    let mut dead_letters: Vec<DeadLetter> = Vec::new();
    if status.lag.dead_letters > 0 {
        dead_letters = conn.dead_letters(DEAD_LETTERS).map_err(|error| database.failed(error))?;
    }
    let (rates, mut trail) = match before.remove(&database.to_string()) {
        Some((earlier, trail)) => (status.rates_since(&earlier), trail),
        None => (None, VecDeque::new()),
    };
    if trail.len() == LOOKS {
        trail.pop_front();
    }
    trail.push_back((rates, status.lag.oldest.as_secs_f64()));
    before.insert(database.to_string(), (status.clone(), trail.clone()));
    Ok(Seen { status, causes: Cause::of_all(&dead_letters), trail })
}

fn object(Seen { status, causes, trail }: &Seen) -> Value {
    let lag = &status.lag;
    let unsent = status.unsent.iter().map(|unsent| {
        json!({
            "aggregate_type": unsent.aggregate_type, "shard": unsent.shard, "unsent": unsent.count,
            "oldest_seconds": unsent.oldest.as_secs_f64(),
        })
    });
    let claims = status.relays.claims.as_ref().map(|claims| {
        claims
            .iter()
            .map(|claim| json!({ "shard": claim.shard, "session": claim.session }))
            .collect::<Vec<_>>()
    });
    let sessions = status.relays.sessions.as_ref().map(|sessions| {
        let session = sessions.iter().map(|session| {
            json!({
                "session": session.id, "client": session.client, "leads": session.leads, "works": session.works,
                "age_seconds": session.age.map(|age| age.as_secs_f64()),
            })
        });
        session.collect::<Vec<_>>()
    });
    let causes = causes.iter().map(|cause| {
        json!({ "cause": cause.key, "event_type": cause.event_type, "reason": cause.reason, "dead_letters": cause.dead_letters })
    });
    let mut object = json!({
        "at": moment(status.at),
        "unsent": lag.unsent,
        "oldest_seconds": lag.oldest.as_secs_f64(),
        "dead_letters": lag.dead_letters,
        "blocked_aggregates": lag.blocked_aggregates,
        "scheduled": status.schedule.as_ref().map(|schedule| schedule.scheduled),
        "last_number": status.last_number,
        "waiting": unsent.collect::<Vec<_>>(),
        "claims": claims,
        "sessions": sessions,
        "causes": causes.collect::<Vec<_>>(),
    });
    if let Some((Some(rates), _)) = trail.back() {
        object["emitted_per_second"] = json!(rates.emitted);
        object["sent_per_second"] = json!(rates.sent);
    }
    if let (Some(slot), Some(wal)) = (&status.slot, &lag.wal) {
        object["slot"] = json!({
            "name": slot.name, "is_active": slot.is_active, "status": wal.status, "bytes": wal.bytes,
            "retained_bytes": wal.retained_bytes, "safe_bytes": slot.safe_bytes,
        });
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_written_over_and_never_empty() {
        assert_eq!(redrawn("a\nb\n"), "\x1b[?2026h\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[J\x1b[?2026l");
    }
}
