//! `outbox verify`

use std::fmt::Write;

use clap::Args;
use diesel_outbox_relay::operate::verify::{Discrepancies, Discrepancy, Kind, Step, Verify, VerifyError};
use diesel_outbox_relay::source::SentRows;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::failure::Failure;
use super::moment::Moment;
use super::origin::Origins;
use super::outboxes::Outboxes;
use super::output::{bar_style, counted, moment, print};
use super::settings::{CommonSettings, ConnectionSettings, RetentionSettings, TopicSettings};

/// What to compare.
#[derive(Debug, Args)]
pub(crate) struct VerifySettings {
    /// Compares what was emitted from then on: a time such as 2026-11-28T09:00:00Z, or how long ago, such as 2h. Without it, all
    /// that the relay keeps (--keep-sent)
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Compares what was emitted before then, likewise [default: now]
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// Others write to the topics too, such as other outboxes: then a record without a row is no phantom
    #[arg(long)]
    shared_topics: bool,
    /// Fails if a record is there more than once, too. After a crash that is allowed, unless the relay sends exactly once
    #[arg(long)]
    no_duplicates: bool,
    /// Lists at most this many findings of each kind
    #[arg(long, value_name = "NUMBER", default_value = "100")]
    limit: usize,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) common: CommonSettings,
    #[command(flatten)]
    connection: ConnectionSettings,
    #[command(flatten)]
    topics: TopicSettings,
    #[command(flatten)]
    retention: RetentionSettings,
}

/// Compares each outbox with its topics, and prints what is wrong.
pub(crate) fn run(settings: &VerifySettings, origins: &Origins) -> Result<(), Failure> {
    let outboxes = Outboxes::chosen(&settings.common, origins)?;
    let kafka = settings.connection.kafka(origins)?;
    let keep_sent = match settings.retention.sent_rows(origins)? {
        // What is pruned by number may be of any age.
        SentRows::Keep { retention } if settings.retention.keep_sent_rows.is_none() => Some(retention),
        _ => None,
    };
    let mut verify = Verify::new()
        .keep_sent(keep_sent)
        .shares_topics(settings.shared_topics || outboxes.are_several)
        .examples(settings.limit);
    if let Some(Moment(since)) = settings.since {
        verify = verify.since(since);
    }
    if let Some(Moment(until)) = settings.until {
        verify = verify.until(until);
    }
    let mut objects = Vec::new();
    let ended = outboxes.each(|database| {
        let bar = ProgressBar::no_length().with_style(bar_style());
        let found =
            verify.run(&mut *database.kept()?, &kafka, &settings.topics.topic.naming, &mut |progress| {
                bar.set_length(progress.all);
                bar.set_position(progress.done);
                let what = if progress.step == Step::Rows { "rows" } else { "records" };
                bar.set_message(format!("{what}, part {} of {}", progress.part, progress.parts));
            });
        bar.finish_and_clear();
        let findings = found.map_err(|error| match error {
            VerifyError::Database(error) => database.failed(error),
            VerifyError::Kafka(error) => Failure::Topics(error),
            error => Failure::Verify { database: database.to_string(), found: error.to_string() },
        })?;
        if settings.json {
            objects.push(outboxes.placed(database, in_json(&findings)));
        } else {
            print(&outboxes.headed(database, &in_words(&findings)))?;
        }
        let is_sound = findings.is_sound() && (findings.duplicated == 0 || !settings.no_duplicates);
        if is_sound {
            return Ok(());
        }
        let found = "Kafka does not have what the outbox has: the findings are listed above".to_owned();
        Err(Failure::Verify { database: database.to_string(), found })
    });
    if settings.json {
        let single = if outboxes.are_several { None } else { objects.pop() };
        if outboxes.are_several || single.is_some() {
            print(&format!("{}\n", single.unwrap_or(Value::from(objects))))?;
        }
    }
    ended
}

fn in_words(findings: &Discrepancies) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "compared {}, emitted from {}\nuntil {}, with {} in {}",
        counted(findings.events, "event"),
        moment(findings.window.since),
        moment(findings.window.until),
        counted(findings.records, "record"),
        counted(findings.topics.len() as u64, "topic"),
    );
    for kind in KINDS {
        let about =
            if kind == Kind::Duplicated && findings.duplicated > 0 { ", as a crash may cause" } else { "" };
        let _ = writeln!(text, "{:<13} {}{about}", format!("{}:", name(kind)), count(findings, kind));
    }
    if findings.beyond_retention > 0 {
        let _ = writeln!(
            text,
            "{} events are so old that Kafka may have deleted their records: they were not compared",
            findings.beyond_retention
        );
    }
    for finding in &findings.examples {
        let id = finding.id.map_or("(no id)".to_owned(), |id| id.to_string());
        let _ = write!(text, "{}: {id}", name(finding.kind));
        if let Some((topic, partition, offset)) = &finding.place {
            let _ = write!(text, " at {topic}[{partition}]@{offset}");
        }
        if let (Some((aggregate_type, aggregate_id)), Some(seq)) = (&finding.aggregate, finding.seq) {
            let _ = write!(text, " of {aggregate_type} {aggregate_id}, number {seq}");
        }
        text.push('\n');
    }
    text
}

const KINDS: [Kind; 4] = [Kind::Lost, Kind::Phantom, Kind::Duplicated, Kind::OutOfOrder];

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Lost => "lost",
        Kind::Phantom => "phantom",
        Kind::Duplicated => "duplicated",
        _ => "out of order",
    }
}

fn count(findings: &Discrepancies, kind: Kind) -> u64 {
    match kind {
        Kind::Lost => findings.lost,
        Kind::Phantom => findings.phantom,
        Kind::Duplicated => findings.duplicated,
        _ => findings.out_of_order,
    }
}

fn in_json(findings: &Discrepancies) -> Value {
    json!({
        "since": moment(findings.window.since),
        "until": moment(findings.window.until),
        "topics": findings.topics,
        "events": findings.events,
        "records": findings.records,
        "lost": findings.lost,
        "phantom": findings.phantom,
        "duplicated": findings.duplicated,
        "out_of_order": findings.out_of_order,
        "beyond_retention": findings.beyond_retention,
        "findings": findings.examples.iter().map(finding_in_json).collect::<Vec<_>>(),
    })
}

fn finding_in_json(finding: &Discrepancy) -> Value {
    let mut object =
        json!({ "kind": name(finding.kind).replace(' ', "_"), "id": finding.id.map(|id| id.to_string()) });
    if let Some((topic, partition, offset)) = &finding.place {
        object["topic"] = json!(topic);
        object["partition"] = json!(partition);
        object["offset"] = json!(offset);
    }
    if let Some((aggregate_type, aggregate_id)) = &finding.aggregate {
        object["aggregate_type"] = json!(aggregate_type);
        object["aggregate_id"] = json!(aggregate_id);
        object["seq"] = json!(finding.seq);
    }
    object
}
