//! `outbox dead-letters`, `outbox dead-letters drop` and `outbox requeue`

use std::fmt::Write;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, value_parser};
use diesel::QueryResult;
use diesel_outbox_relay::operate::{Cause, DeadLetter, DeadLetterFilter, Operate, Requeue};
use serde_json::{Value, json};
use uuid::Uuid;

use super::failure::Failure;
use super::moment::Moment;
use super::origin::Origins;
use super::outboxes::Outboxes;
use super::output::{moment, print, say};
use super::settings::CommonSettings;

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// Prints JSON
    #[arg(long)]
    json: bool,
    /// Groups them by event type and reason, and prints a key for each cause
    #[arg(long, conflicts_with = "limit")]
    by_cause: bool,
    /// Lists at most this many
    #[arg(long, value_name = "NUMBER", value_parser = value_parser!(i64).range(1..), default_value = "100")]
    limit: i64,
    #[command(flatten)]
    conditions: Conditions,
}

/// Which dead letters to change.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// All of them
    #[arg(long, required_unless_present_any = CONDITIONS, conflicts_with_all = CONDITIONS)]
    all: bool,
    #[command(flatten)]
    conditions: Conditions,
    /// Lists them, and changes nothing
    #[arg(long)]
    dry_run: bool,
}

const CONDITIONS: [&str; 6] = ["id", "aggregate", "event_type", "cause", "failed_from", "failed_before"];

/// What a dead letter must be. It must meet each condition that is given.
#[derive(Debug, Args)]
pub(crate) struct Conditions {
    /// The event with this id
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// Events of this aggregate
    #[arg(
        long,
        num_args = 2,
        allow_hyphen_values = true,
        value_names = ["TYPE", "ID"],
        value_parser = NonEmptyStringValueParser::new()
    )]
    aggregate: Vec<String>,
    /// Events of this type
    #[arg(long, value_name = "TYPE")]
    event_type: Option<String>,
    /// Those with this cause, as --by-cause prints it
    #[arg(long, value_name = "KEY")]
    cause: Option<String>,
    /// Those that failed at this time or later, such as 2026-11-29T13:00:00Z, or so long ago, such as 2h
    #[arg(long, value_name = "TIME")]
    failed_from: Option<Moment>,
    /// Those that failed before this time
    #[arg(long, value_name = "TIME")]
    failed_before: Option<Moment>,
}

impl Conditions {
    fn filter(&self) -> DeadLetterFilter {
        let Self { id, aggregate, event_type, cause, failed_from, failed_before } = self;
        let mut filter = DeadLetterFilter::default();
        if let Some(id) = id {
            filter = filter.id(*id);
        }
        if let [aggregate_type, aggregate_id] = aggregate.as_slice() {
            filter = filter.aggregate(aggregate_type, aggregate_id);
        }
        if let Some(event_type) = event_type {
            filter = filter.event_type(event_type);
        }
        if let Some(cause) = cause {
            filter = filter.cause(cause);
        }
        if let Some(Moment(time)) = failed_from {
            filter = filter.failed_from(*time);
        }
        if let Some(Moment(time)) = failed_before {
            filter = filter.failed_before(*time);
        }
        filter
    }
}

impl Which {
    /// Returns the choice, if it can be made without a look at the dead letters.
    pub(super) fn without_looking(&self) -> Option<Requeue> {
        let Conditions { id, aggregate, event_type, cause, failed_from, failed_before } = &self.conditions;
        let has_others =
            event_type.is_some() || cause.is_some() || failed_from.is_some() || failed_before.is_some();
        match (id, aggregate.as_slice()) {
            _ if has_others => None,
            (None, []) => Some(Requeue::All),
            (Some(id), []) => Some(Requeue::Id(*id)),
            (None, [aggregate_type, aggregate_id]) => Some(Requeue::Aggregate {
                aggregate_type: aggregate_type.clone(),
                aggregate_id: aggregate_id.clone(),
            }),
            _ => None,
        }
    }

    fn choose(&self, operations: &mut dyn Operate) -> QueryResult<Requeue> {
        match self.without_looking() {
            Some(which) => Ok(which),
            None => Ok(matching(operations, &self.conditions)?.iter().collect()),
        }
    }
}

/// Returns the dead letters that meet the conditions.
fn matching(operations: &mut dyn Operate, conditions: &Conditions) -> QueryResult<Vec<DeadLetter>> {
    let filter = conditions.filter();
    let mut dead_letters = operations.dead_letters(i64::MAX)?;
    dead_letters.retain(|letter| filter.matches(letter));
    Ok(dead_letters)
}

/// Lists the dead letters, the oldest first, or their causes.
pub(crate) fn list(common: &CommonSettings, origins: &Origins, listing: &Listing) -> Result<(), Failure> {
    let Listing { json, by_cause, limit, conditions } = listing;
    let outboxes = Outboxes::chosen(common, origins)?;
    let mut objects = Vec::new();
    let ended = outboxes.each(|database| {
        let mut operations = database.operations()?;
        let mut dead_letters = if *by_cause || conditions.filter() != DeadLetterFilter::default() {
            matching(operations.as_mut(), conditions)
        } else {
            operations.dead_letters(limit.saturating_add(1))
        }
        .map_err(|error| database.failed(error))?;
        if *by_cause {
            let causes = Cause::of_all(&dead_letters);
            if *json {
                objects.extend(causes.iter().map(|cause| outboxes.placed(database, cause_json(cause))));
                return Ok(());
            }
            return print(&outboxes.headed(database, &causes_text(&causes)));
        }
        let shown = usize::try_from(*limit).unwrap_or(usize::MAX);
        if dead_letters.len() > shown {
            dead_letters.truncate(shown);
            let of = if outboxes.are_several { format!(" in {database}") } else { String::new() };
            say(&format!("there are more than {limit}{of}: see --limit"));
        }
        if *json {
            let these = dead_letters.iter().map(dead_letter_json);
            objects.extend(these.map(|object| outboxes.placed(database, object)));
            return Ok(());
        }
        print(&outboxes.headed(database, &dead_letters_text(&dead_letters)))
    });
    if *json && (ended.is_ok() || outboxes.are_several) {
        print(&format!("{}\n", Value::from(objects)))?;
    }
    ended
}

fn dead_letter_json(dead_letter: &DeadLetter) -> Value {
    json!({
        "seq": dead_letter.seq,
        "id": dead_letter.id,
        "aggregate_type": dead_letter.aggregate_type,
        "aggregate_id": dead_letter.aggregate_id,
        "event_type": dead_letter.event_type,
        "created_at": moment(dead_letter.created_at),
        "reason": dead_letter.reason,
        "failed_at": moment(dead_letter.failed_at),
    })
}

fn cause_json(cause: &Cause) -> Value {
    json!({
        "cause": cause.key,
        "event_type": cause.event_type,
        "reason": cause.reason,
        "dead_letters": cause.dead_letters,
        "first_failed_at": moment(cause.first_failed_at),
        "last_failed_at": moment(cause.last_failed_at),
    })
}

fn dead_letters_text(dead_letters: &[DeadLetter]) -> String {
    if dead_letters.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut text = String::new();
    for dead_letter in dead_letters {
        let DeadLetter { seq, id, aggregate_type, aggregate_id, event_type, reason, .. } = dead_letter;
        let (created_at, failed_at) = (moment(dead_letter.created_at), moment(dead_letter.failed_at));
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{id}\n  event:   {event_type} of {aggregate_type} {aggregate_id}\n  emitted: {created_at}, number {seq}\n  \
             failed:  {failed_at}\n  reason:  {reason}\n",
        );
    }
    text
}

fn causes_text(causes: &[Cause]) -> String {
    if causes.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut text = String::new();
    for Cause { key, event_type, reason, dead_letters, first_failed_at, last_failed_at, .. } in causes {
        let (first, last) = (moment(*first_failed_at), moment(*last_failed_at));
        let _ = write!(
            text,
            "{key}\n  events:  {dead_letters}, {event_type}\n  failed:  {first} to {last}\n  reason:  {reason}\n"
        );
    }
    text
}

/// Brings dead letters back to the outbox.
pub(crate) fn requeue(common: &CommonSettings, origins: &Origins, which: &Which) -> Result<(), Failure> {
    change(common, origins, which, "requeued", |operations, which| operations.requeue(which))
}

/// Deletes dead letters for good.
pub(crate) fn drop(common: &CommonSettings, origins: &Origins, which: &Which) -> Result<(), Failure> {
    change(common, origins, which, "dropped", |operations, which| operations.drop_dead_letters(which))
}

fn change(
    common: &CommonSettings,
    origins: &Origins,
    which: &Which,
    done: &str,
    work: impl Fn(&mut dyn Operate, &Requeue) -> QueryResult<usize>,
) -> Result<(), Failure> {
    let outboxes = Outboxes::chosen(common, origins)?;
    let mut total = 0;
    let ended = outboxes.each(|database| {
        let mut operations = database.operations()?;
        if which.dry_run {
            let dead_letters = matching(operations.as_mut(), &which.conditions);
            let dead_letters = dead_letters.map_err(|error| database.failed(error))?;
            total += dead_letters.len();
            let text = dead_letters_text(&dead_letters);
            return print(
                &outboxes.headed(database, &format!("{text}{} to be {done}\n", counted(dead_letters.len()))),
            );
        }
        let count = which.choose(operations.as_mut()).and_then(|which| work(operations.as_mut(), &which));
        let count = count.map_err(|error| database.failed(error))?;
        total += count;
        if count == 0 && !which.all {
            return Ok(());
        }
        print(&outboxes.headed(database, &format!("{done} {}\n", counted(count))))
    });
    ended?;
    if total == 0 && !which.all { Err(Failure::NoDeadLetter) } else { Ok(()) }
}

fn counted(count: usize) -> String {
    if count == 1 { "1 dead letter".to_owned() } else { format!("{count} dead letters") }
}
