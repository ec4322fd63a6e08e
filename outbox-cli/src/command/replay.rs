//! `outbox replay`

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use diesel_outbox_relay::operate::replay::{Replay, Replayed};
use indicatif::ProgressBar;
use serde_json::json;
use uuid::Uuid;

use super::failure::Failure;
use super::moment::Moment;
use super::origin::Origins;
use super::outboxes::Outboxes;
use super::output::{bar_style, counted, print};
use super::settings::{CommonSettings, ConnectionSettings, TopicSettings};
use super::signals::StopSignals;

/// Which events to send again.
#[derive(Debug, Args)]
pub(crate) struct ReplaySettings {
    /// Sends what was emitted from then on: a time such as 2026-11-28T09:00:00Z, or how long ago, such as 2h
    #[arg(long, value_name = "TIME", required_unless_present = "id")]
    since: Option<Moment>,
    /// Sends what was emitted before then, likewise [default: now]
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// Only the event with this id
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// Only events of this type
    #[arg(long = "type", value_name = "EVENT TYPE", value_parser = NonEmptyStringValueParser::new())]
    event_type: Option<String>,
    /// Only events of aggregates of this type
    #[arg(long, value_name = "TYPE", value_parser = NonEmptyStringValueParser::new())]
    aggregate_type: Option<String>,
    /// Only events of this aggregate
    #[arg(
        long,
        num_args = 2,
        allow_hyphen_values = true,
        value_names = ["TYPE", "ID"],
        conflicts_with = "aggregate_type",
        value_parser = NonEmptyStringValueParser::new()
    )]
    aggregate: Vec<String>,
    /// Sends at most so many events a second
    #[arg(long, value_name = "NUMBER")]
    rate: Option<NonZeroU32>,
    /// Begins behind this number: an earlier replay that was interrupted printed it
    #[arg(long, value_name = "NUMBER")]
    after: Option<i64>,
    /// Prints how many events it would send, and sends none
    #[arg(long)]
    dry_run: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) common: CommonSettings,
    #[command(flatten)]
    connection: ConnectionSettings,
    #[command(flatten)]
    topics: TopicSettings,
}

/// Sends kept events again.
pub(crate) fn run(settings: &ReplaySettings, origins: &Origins) -> Result<(), Failure> {
    let outboxes = Outboxes::chosen(&settings.common, origins)?;
    if outboxes.are_several {
        return Err(origins.of("schema").wrong("name the schema of one outbox: a replay is of one").into());
    }
    let kafka = settings.connection.kafka(origins)?;
    let replay = settings.replay();
    static STOPPED: AtomicBool = AtomicBool::new(false);
    StopSignals::note(&STOPPED).map_err(Failure::Signals)?;
    outboxes.each(|database| {
        let mut kept = database.kept()?;
        let count = replay.count(&mut *kept).map_err(|error| database.failed(error))?;
        if settings.dry_run {
            return print(&if settings.json {
                format!("{}\n", json!({ "would_send": count }))
            } else {
                format!("would send {}\n", counted(count, "event"))
            });
        }
        let bar = ProgressBar::new(count).with_style(bar_style());
        let ended = replay.run(&mut *kept, &kafka, &settings.topics.topic.naming, &mut |replayed| {
            bar.set_position(replayed.sent + replayed.refused);
            !STOPPED.load(Ordering::Relaxed)
        });
        bar.finish_and_clear();
        let (replayed, failure) = match ended {
            Ok(replayed) => (replayed, None),
            Err(error) => (error.replayed.clone(), Some(error)),
        };
        let is_interrupted = failure.is_some() || STOPPED.load(Ordering::Relaxed);
        print(&settings.shown(&replayed, is_interrupted))?;
        match (failure, &replayed.reason) {
            (Some(error), _) => Err(Failure::Replay(error.to_string())),
            (None, Some(reason)) => Err(Failure::Replay(format!(
                "Kafka did not take {} of the events, the last one because {reason}",
                replayed.refused
            ))),
            (None, None) if settings.id.is_some() && replayed.sent == 0 => Err(Failure::Replay(
                "there is no such event among those that were sent and are kept".to_owned(),
            )),
            (None, None) if is_interrupted => {
                Err(Failure::Replay("it was interrupted by a signal".to_owned()))
            }
            (None, None) => Ok(()),
        }
    })
}

impl ReplaySettings {
    fn replay(&self) -> Replay {
        let mut replay = Replay::new(
            self.since.map_or(SystemTime::UNIX_EPOCH, |since| since.0),
            self.until.map_or_else(SystemTime::now, |until| until.0),
        );
        if let Some(id) = self.id {
            replay = replay.id(id);
        }
        if let Some(event_type) = &self.event_type {
            replay = replay.event_type(event_type);
        }
        if let Some(aggregate_type) = self.aggregate_type.as_ref().or(self.aggregate.first()) {
            replay = replay.aggregate_type(aggregate_type);
        }
        if let Some(aggregate_id) = self.aggregate.get(1) {
            replay = replay.aggregate_id(aggregate_id);
        }
        if let Some(rate) = self.rate {
            replay = replay.rate(rate);
        }
        match self.after {
            Some(after) => replay.after(after),
            None => replay,
        }
    }

    fn shown(&self, replayed: &Replayed, is_interrupted: bool) -> String {
        let after = replayed.through.or(self.after);
        if self.json {
            let object = json!({ "sent": replayed.sent, "refused": replayed.refused, "through": after });
            return format!("{object}\n");
        }
        let next = match after {
            Some(after) if is_interrupted => {
                format!("to go on, run it again with the same --until and --after {after}\n")
            }
            _ => String::new(),
        };
        format!("sent {} again\n{next}", counted(replayed.sent, "event"))
    }
}
