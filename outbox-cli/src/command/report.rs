//! `outbox lag`

use std::collections::BTreeMap;
use std::time::Duration;

use diesel_outbox_relay::operate::Unsent;
use diesel_outbox_relay::{Lag, WalLag};
use serde_json::{Value, json};

use super::args::LagBy;
use super::failure::Failure;
use super::origin::Origins;
use super::outboxes::Outboxes;
use super::output::print;
use super::settings::{CommonSettings, TopicPattern};

/// Prints how far behind the relay is.
pub(crate) fn lag(common: &CommonSettings, origins: &Origins, json: bool) -> Result<(), Failure> {
    let outboxes = Outboxes::chosen(common, origins)?;
    let mut objects = Vec::new();
    let ended = outboxes.each(|database| {
        let lag = database.operations()?.lag().map_err(|error| database.failed(error))?;
        if json {
            objects.push(outboxes.placed(database, lag_json(&lag)));
            return Ok(());
        }
        print(&outboxes.headed(database, &lag_text(&lag)))
    });
    if json {
        let single = if outboxes.are_several { None } else { objects.pop() };
        // A single one that failed has no object.
        if outboxes.are_several || single.is_some() {
            print(&format!("{}\n", single.unwrap_or(Value::from(objects))))?;
        }
    }
    ended
}

fn lag_json(lag: &Lag) -> Value {
    let mut object = json!({
        "unsent": lag.unsent,
        "oldest_seconds": lag.oldest.as_secs_f64(),
        "dead_letters": lag.dead_letters,
        "blocked_aggregates": lag.blocked_aggregates,
    });
    if let Some(WalLag { bytes, retained_bytes, status, .. }) = &lag.wal {
        object["wal"] = json!({ "bytes": bytes, "retained_bytes": retained_bytes, "slot_status": status });
    }
    object
}

fn lag_text(lag: &Lag) -> String {
    let wal = lag.wal.as_ref().map_or(String::new(), |wal| {
        let WalLag { bytes, retained_bytes, status, .. } = wal;
        format!(
            "WAL:    {bytes} bytes to be read, with the changes of all tables\n\
             slot:   {status}, retains {retained_bytes} bytes of the WAL\n"
        )
    });
    let polled = match lag.unsent {
        0 if lag.wal.is_some() => "no event waits to be polled\n".to_owned(),
        0 => "no event waits to be sent\n".to_owned(),
        unsent => {
            let oldest = humantime::format_duration(Duration::from_millis(whole_millis(lag.oldest)));
            format!("unsent: {unsent}\noldest: {oldest}\n")
        }
    };
    let dead = match (lag.dead_letters, lag.blocked_aggregates) {
        (0, _) => String::new(),
        (dead, 0) => format!("dead letters: {dead}\n"),
        (dead, blocked) => format!("dead letters: {dead}, which hold back {blocked} aggregates\n"),
    };
    format!("{polled}{wal}{dead}")
}

/// Prints how many events wait for each topic or in each shard.
pub(crate) fn lag_by(
    common: &CommonSettings,
    origins: &Origins,
    by: LagBy,
    topics: &TopicPattern,
    json: bool,
) -> Result<(), Failure> {
    let outboxes = Outboxes::chosen(common, origins)?;
    let mut objects = Vec::new();
    let ended = outboxes.each(|database| {
        let unsent = database.operations()?.unsent().map_err(|error| database.failed(error))?;
        let shares = shares(&unsent, by, topics);
        if json {
            let these = shares.iter().map(|share| share.json(by));
            objects.extend(these.map(|object| outboxes.placed(database, object)));
            return Ok(());
        }
        print(&outboxes.headed(database, &shares_text(&shares)))
    });
    if json && (ended.is_ok() || outboxes.are_several) {
        print(&format!("{}\n", Value::from(objects)))?;
    }
    ended
}

/// What waits for one topic or in one shard.
#[derive(Debug, PartialEq, Eq)]
struct Share {
    of: String,
    unsent: u64,
    oldest: Duration,
}

impl Share {
    fn json(&self, by: LagBy) -> Value {
        let mut object = json!({ "unsent": self.unsent, "oldest_seconds": self.oldest.as_secs_f64() });
        match by {
            LagBy::Topic => object["topic"] = json!(self.of),
            LagBy::Shard => object["shard"] = json!(self.of.parse::<i16>().ok()),
        }
        object
    }
}

/// The share with the oldest event comes first.
fn shares(unsent: &[Unsent], by: LagBy, topics: &TopicPattern) -> Vec<Share> {
    let mut shares = BTreeMap::<String, (u64, Duration)>::new();
    for Unsent { aggregate_type, shard, count, oldest, .. } in unsent {
        let of = match by {
            // It becomes a dead letter, because no topic can have such a name.
            LagBy::Topic => topics.naming.topic(aggregate_type).unwrap_or_else(|_| "(no topic)".to_owned()),
            LagBy::Shard => shard.to_string(),
        };
        let (sum, age) = shares.entry(of).or_default();
        *sum += count;
        *age = (*age).max(*oldest);
    }
    let share = |(of, (unsent, oldest))| Share { of, unsent, oldest };
    let mut shares: Vec<Share> = shares.into_iter().map(share).collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.oldest));
    shares
}

fn shares_text(shares: &[Share]) -> String {
    if shares.is_empty() {
        return "no event waits to be sent\n".to_owned();
    }
    let width = shares.iter().map(|share| share.of.chars().count()).max().unwrap_or_default();
    let line = |Share { of, unsent, oldest }: &Share| {
        let oldest = humantime::format_duration(Duration::from_millis(whole_millis(*oldest)));
        format!("{of:width$}  unsent: {unsent}  oldest: {oldest}\n")
    };
    shares.iter().map(line).collect()
}

fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_printed_in_words_and_in_json() {
        let lag = |unsent, ms| {
            let mut lag = Lag::default();
            (lag.unsent, lag.oldest) = (unsent, Duration::from_millis(ms));
            lag
        };
        assert_eq!(lag_text(&lag(0, 0)), "no event waits to be sent\n");
        assert_eq!(lag_text(&lag(7, 61_500)), "unsent: 7\noldest: 1m 1s 500ms\n");
        assert_eq!(
            lag_json(&lag(7, 61_500)).to_string(),
            "{\"blocked_aggregates\":0,\"dead_letters\":0,\"oldest_seconds\":61.5,\"unsent\":7}"
        );
    }
}
