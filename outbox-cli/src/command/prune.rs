//! `outbox prune`

use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use diesel_outbox_relay::DeadLetterPolicy;
use diesel_outbox_relay::operate::prune::{Prune, PruneTable};
use diesel_outbox_relay::source::SentRows;
use indicatif::ProgressBar;
use serde_json::json;

use super::database::OutboxDatabase;
use super::failure::Failure;
use super::origin::{ConfigError, Layer, Origin, Origins};
use super::outboxes::Outboxes;
use super::output::{bar_style, counted, print, say};
use super::settings::{AfterSettings, CommonSettings, Time};
use super::signals::StopSignals;

/// What to prune.
#[derive(Debug, Args)]
pub(crate) struct PruneSettings {
    /// Prunes sent events [default, if nothing else is named]
    #[arg(long)]
    outbox: bool,
    /// Prunes the ids of events that consumers have handled. An event that is delivered again after that takes effect again
    #[arg(long)]
    inbox: bool,
    /// Prunes dead letters: their events are lost
    #[arg(long)]
    dead_letters: bool,
    /// Only what is older than this, such as 7d
    #[arg(long, value_name = "TIME")]
    older_than: Option<Time>,
    /// Only what is beyond this number. The newest are kept; in the inbox those of each consumer
    #[arg(long, value_name = "NUMBER")]
    keep: Option<u64>,
    /// Only the ids of this consumer
    #[arg(long, value_name = "NAME", requires = "inbox", value_parser = NonEmptyStringValueParser::new())]
    consumer: Option<String>,
    /// Prints how many rows it would delete, and deletes none
    #[arg(long)]
    dry_run: bool,
    /// Prints JSON, an object for each table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) common: CommonSettings,
    #[command(flatten)]
    after: AfterSettings,
}

/// What is pruned, and its names for a person and for JSON.
struct Job {
    prune: Prune,
    thing: &'static str,
    table: &'static str,
}

static STOPPED: AtomicBool = AtomicBool::new(false);

/// Prunes by hand.
pub(crate) fn run(settings: &PruneSettings, origins: &Origins) -> Result<(), Failure> {
    let jobs = settings.jobs(origins)?;
    let outboxes = Outboxes::chosen(&settings.common, origins)?;
    StopSignals::note(&STOPPED).map_err(Failure::Signals)?;
    outboxes.each(|database| jobs.iter().try_for_each(|job| settings.prune(job, &outboxes, database)))
}

impl PruneSettings {
    /// What to do, with the limits of the command or else those of the relay.
    fn jobs(&self, origins: &Origins) -> Result<Vec<Job>, ConfigError> {
        let mut jobs = Vec::new();
        if self.outbox || !(self.inbox || self.dead_letters) {
            let prune = match self.limited(Prune::of(PruneTable::SentRows)) {
                Some(prune) => prune,
                None => self.as_the_relay(origins)?,
            };
            jobs.push(Job { prune, thing: "sent event", table: "outbox" });
        }
        if self.dead_letters {
            if self.after.dead_letter_policy == DeadLetterPolicy::Block {
                return Err(origins.of("dead_letter_policy").wrong(
                    "each dead letter holds its aggregate back, and to prune it would release that: requeue it, or drop it with \
                     `outbox dead-letters drop`",
                ));
            }
            let mut prune = Prune::of(PruneTable::DeadLetters);
            let is_limited = match self.limited(prune.clone()) {
                Some(limited) => {
                    prune = limited;
                    true
                }
                None => {
                    let AfterSettings { keep_dead_letters, keep_dead_letter_rows, .. } = &self.after;
                    if let Some(Time(age)) = keep_dead_letters {
                        prune = prune.older_than(*age);
                    }
                    if let Some(rows) = keep_dead_letter_rows {
                        prune = prune.keep(*rows);
                    }
                    keep_dead_letters.is_some() || keep_dead_letter_rows.is_some()
                }
            };
            if !is_limited {
                return Err(unlimited("--dead-letters"));
            }
            if origins.given("dead_letter_policy").is_none() {
                return Err(origins.of("dead_letter_policy").wrong(
                    "say which policy the relays have, such as --dead-letter-policy continue: with block, to prune the only dead letter of \
                     an aggregate would release that",
                ));
            }
            jobs.push(Job { prune, thing: "dead letter", table: "outbox_dead_letter" });
        }
        if self.inbox {
            let prune = self
                .limited(Prune::of(PruneTable::Inbox(self.consumer.clone())))
                .ok_or_else(|| unlimited("--inbox"))?;
            jobs.push(Job { prune, thing: "inbox id", table: "inbox" });
        }
        Ok(jobs)
    }

    /// With the limits of the command, if it has any.
    fn limited(&self, mut prune: Prune) -> Option<Prune> {
        if let Some(Time(age)) = &self.older_than {
            prune = prune.older_than(*age);
        }
        if let Some(rows) = self.keep {
            prune = prune.keep(rows);
        }
        (self.older_than.is_some() || self.keep.is_some()).then_some(prune)
    }

    fn as_the_relay(&self, origins: &Origins) -> Result<Prune, ConfigError> {
        let prune = Prune::of(PruneTable::SentRows);
        Ok(match (self.after.retention.sent_rows(origins)?, self.after.retention.keep_sent_rows) {
            (SentRows::Keep { retention }, None) => prune.older_than(retention),
            (SentRows::Keep { retention }, Some(rows)) => prune.older_than(retention).keep(rows),
            // A relay that deletes rows may have kept some before.
            _ => prune.keep(0),
        })
    }

    fn prune(&self, job: &Job, outboxes: &Outboxes, database: &OutboxDatabase) -> Result<(), Failure> {
        let mut conn = database.prunable()?;
        let shown = |verb: &str, key: &str, rows: u64| {
            if self.json {
                let object = json!({ "table": job.table, key: rows });
                return format!("{}\n", outboxes.placed(database, object));
            }
            outboxes.headed(database, &format!("{verb} {}\n", counted(rows, job.thing)))
        };
        let expired = job.prune.count(&mut *conn).map_err(|error| database.failed(error))?;
        if self.dry_run {
            return print(&shown("would prune", "would_prune", expired));
        }
        let bar = ProgressBar::new(expired).with_style(bar_style()).with_message("rows");
        let mut has_waited = false;
        let mut rows = 0;
        let ended = job.prune.run(&mut *conn, &mut |pruned| {
            if pruned.waits && !std::mem::replace(&mut has_waited, true) {
                bar.suspend(|| say("a relay prunes at the moment: waiting until it has done so"));
            }
            rows = pruned.rows;
            bar.set_position(rows);
            !STOPPED.load(Ordering::Relaxed)
        });
        bar.finish_and_clear();
        let rows = *ended.as_ref().unwrap_or(&rows);
        print(&shown("pruned", "pruned", rows))?;
        ended.map_err(|error| database.failed(error))?;
        if STOPPED.load(Ordering::Relaxed) { Err(Failure::Prune) } else { Ok(()) }
    }
}

/// No limit comes with this flag.
fn unlimited(flag: &str) -> ConfigError {
    let origin = Origin { layer: Layer::CommandLine, name: flag.to_owned() };
    origin.wrong("nothing says what has expired: give --older-than or --keep with it")
}
