//! The state as text of at most 80 columns.

use std::time::Duration;

use diesel_outbox_relay::operate::{Cause, RelaySession, Status};
use diesel_outbox_status::__private::{age, bytes, number, rate, sparkline};

use super::Seen;
use crate::command::output::moment;

/// So wide is a line at most.
const WIDTH: usize = 80;
/// How many rows a table has at most.
const ROWS: usize = 8;

/// The state of the outbox with this name.
pub(super) fn text(name: &str, seen: &Seen) -> String {
    let Seen { status, causes, trail } = seen;
    let mut text = format!("{}\nas of {}\n\n", cut(name, WIDTH), moment(status.at));
    text.push_str(&summary(status));
    if trail.len() > 1 {
        let rates = || trail.iter().map(|(rates, _)| *rates);
        let line = |name: &str, now: String, line: String| format!("{name:<13} {now:>12}  {line}\n");
        let now = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{}/s", rate(value)));
        let emitted = || rates().map(|rates| rates.map(|rates| rates.emitted)).collect::<Vec<_>>();
        let sent = || rates().map(|rates| rates.and_then(|rates| rates.sent)).collect::<Vec<_>>();
        let drawn = |values: Vec<Option<f64>>| sparkline(values.into_iter());
        text.push('\n');
        text.push_str(&line("emitted", now(emitted().last().copied().flatten()), drawn(emitted())));
        if status.lag.wal.is_none() {
            text.push_str(&line("sent", now(sent().last().copied().flatten()), drawn(sent())));
        }
        let oldest = trail.iter().map(|(_, oldest)| Some(*oldest)).collect();
        text.push_str(&line("oldest", age(status.lag.oldest), drawn(oldest)));
    }
    text.push_str(&waiting(status));
    text.push_str(&relays(status));
    text.push_str(&dead_letters(causes));
    text
}

fn summary(status: &Status) -> String {
    let lag = &status.lag;
    let line = |name: &str, value: String, note: String| {
        format!("{name:<13} {value:>12}  {}", cut(&note, WIDTH - 28)).trim_end().to_owned() + "\n"
    };
    let oldest = if lag.unsent > 0 { format!("the oldest for {}", age(lag.oldest)) } else { String::new() };
    let blocked = match lag.blocked_aggregates {
        0 => String::new(),
        blocked => format!("which hold back {} aggregates", number(blocked)),
    };
    let mut text = line("waiting", number(lag.unsent), oldest);
    text += &line("dead letters", number(lag.dead_letters), blocked);
    if let Some(schedule) = &status.schedule {
        let next = schedule.next.map_or(String::new(), |next| format!("the next in {}", age(next)));
        text += &line("scheduled", number(schedule.scheduled), next);
    }
    if let (Some(slot), Some(wal)) = (&status.slot, &lag.wal) {
        let read = if slot.is_active { "read now" } else { "nobody reads it" };
        text += &line("WAL to read", bytes(wal.bytes), format!("slot {}, {}, {read}", slot.name, wal.status));
        let safe = slot
            .safe_bytes
            .map_or("no limit".to_owned(), |safe| format!("{} more before it is given up", bytes(safe)));
        text += &line("WAL kept", bytes(wal.retained_bytes), safe);
    }
    text
}

fn waiting(status: &Status) -> String {
    let mut types: Vec<(&str, u64, Duration)> = Vec::new();
    for unsent in &status.unsent {
        match types.iter_mut().find(|(name, ..)| *name == unsent.aggregate_type) {
            Some((_, count, oldest)) => {
                (*count, *oldest) = (*count + unsent.count, (*oldest).max(unsent.oldest))
            }
            None => types.push((&unsent.aggregate_type, unsent.count, unsent.oldest)),
        }
    }
    if types.is_empty() {
        return String::new();
    }
    types.sort_by_key(|(_, _, oldest)| std::cmp::Reverse(*oldest));
    let mut text = format!("\n{:<50} {:>14} {:>14}\n", "AGGREGATE TYPE", "WAITING", "OLDEST");
    for (name, count, oldest) in types.iter().take(ROWS) {
        text += &format!("{:<50} {:>14} {:>14}\n", cut(name, 50), number(*count), age(*oldest));
    }
    text + &more(types.len())
}

fn relays(status: &Status) -> String {
    let hidden = status.relays.hidden.map_or(String::new(), |hidden| format!("{}\n", wrapped(hidden)));
    let Some(sessions) = &status.relays.sessions else { return format!("\n{hidden}") };
    if sessions.is_empty() {
        return "\nNo relay has a session in this database: nothing is sent until one runs.\n".to_owned();
    }
    let mut text =
        format!("\n{:<10} {:<22} {:>12}  {:<15}  {}\n", "SESSION", "FROM", "OPEN FOR", "DOES", "SHARDS");
    for session in sessions.iter().take(ROWS) {
        let RelaySession { id, client, age: open, leads, works, .. } = session;
        let does = match (leads, works) {
            (true, true) => "leads and works",
            (true, false) => "leads",
            (false, true) => "works",
            (false, false) => "stands by",
        };
        let (client, open) = (client.as_deref().unwrap_or("–"), open.map_or("–".to_owned(), age));
        let line =
            format!("{id:<10} {:<22} {open:>12}  {does:<15}  {}", cut(client, 22), shards_of(*id, status));
        text += &format!("{}\n", line.trim_end());
    }
    text + &more(sessions.len()) + &hidden
}

/// The shards that a session has claimed, such as `0-3 7`.
fn shards_of(session: i64, status: &Status) -> String {
    let Some(claims) = &status.relays.claims else { return "–".to_owned() };
    let claims = claims.iter().filter(|claim| claim.session == session);
    ranges(&claims.map(|claim| claim.shard).collect::<Vec<_>>())
}

fn ranges(sorted: &[i16]) -> String {
    let mut ranges: Vec<(i16, i16)> = Vec::new();
    for shard in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *shard => *last = *shard,
            _ => ranges.push((*shard, *shard)),
        }
    }
    let range = |(first, last): &(i16, i16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    cut(&ranges.iter().map(range).collect::<Vec<_>>().join(" "), 13)
}

fn dead_letters(causes: &[Cause]) -> String {
    if causes.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{:<12} {:>12}  {:<20}  {}\n", "CAUSE", "DEAD LETTERS", "EVENT TYPE", "REASON");
    for cause in causes.iter().take(ROWS) {
        let (key, event_type) = (&cause.key, cut(&cause.event_type, 20));
        text += &format!(
            "{key:<12} {:>12}  {event_type:<20}  {}\n",
            number(cause.dead_letters as u64),
            cut(&cause.reason, 30)
        );
    }
    text + &more(causes.len())
}

fn more(rows: usize) -> String {
    if rows > ROWS { format!("and {} more\n", rows - ROWS) } else { String::new() }
}

/// The text in one line, with an ellipsis if it is longer than so many characters. Nothing in it moves the cursor.
fn cut(text: &str, most: usize) -> String {
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if flat.chars().count() <= most {
        return flat;
    }
    flat.chars().take(most - 1).chain(['…']).collect()
}

/// The text in lines of at most 80 columns.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| line.chars().count() + word.chars().count() < WIDTH);
        match line {
            Some(line) if !line.is_empty() => *line += &format!(" {word}"),
            Some(line) => *line += word,
            None => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_that_follow_each_other_are_written_as_a_range() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[0, 1, 2, 3, 7]), "0-3 7");
        assert_eq!(ranges(&(0..16).collect::<Vec<_>>()), "0-15");
        assert_eq!(ranges(&[0, 2, 4, 6, 8, 10, 12]).chars().count(), 13);
    }

    #[test]
    fn what_is_too_long_or_moves_the_cursor_does_not_spoil_a_table() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("a\n\x1b[2J", 9), "a  [2J");
        let long = wrapped(
            "MySQL and MariaDB do not show a relay's role which session has locked a shard, and so on.",
        );
        assert!(
            long.lines().count() == 2 && long.lines().all(|line| line.chars().count() <= WIDTH),
            "{long}"
        );
    }
}
