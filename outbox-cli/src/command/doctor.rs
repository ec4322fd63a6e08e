//! `outbox doctor`

use std::collections::BTreeSet;

use diesel_outbox_relay::operate::{Finding, Verdict, examine_kafka};
use serde_json::{Value, json};

use super::database::OutboxDatabase;
use super::failure::Failure;
use super::origin::Origins;
use super::outboxes::Outboxes;
use super::output::{hanging, print};
use super::settings::{ReadFrom, RelaySettings, items};

/// The column in which what was found begins, behind two words.
const WORDS: usize = 19;

/// Examines each outbox, and Kafka, and prints what was found. Fails if something must be done.
pub(crate) fn run(settings: &RelaySettings, origins: &Origins, json: bool) -> Result<(), Failure> {
    let outboxes = Outboxes::chosen(&settings.common, origins)?;
    let naming = super::relay::topics(&settings.kafka, origins)?;
    let slot = (settings.source.source == ReadFrom::Wal).then_some(&*settings.source.wal.slot);
    let (mut objects, mut failed, mut topics) = (Vec::new(), 0, BTreeSet::new());
    let mut show = |database: Option<&OutboxDatabase>, findings: &[Finding]| {
        failed += findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count();
        if json {
            let these = findings.iter().map(object);
            objects.extend(these.map(|object| match database {
                Some(database) => outboxes.placed(database, object),
                None => object,
            }));
            return Ok(());
        }
        let text: String = findings.iter().map(line).collect();
        print(&database.map_or(text.clone(), |database| outboxes.headed(database, &text)))
    };
    let ended = outboxes.each(|database| {
        let (mut findings, types) = database.examine(slot)?;
        for name in &types {
            match naming.topic(name) {
                Ok(topic) => _ = topics.insert(topic),
                Err(error) => {
                    let text = format!("events with the aggregate type {name} become dead letters: {error}");
                    findings.push(finding("topics", Verdict::Fail, &text));
                }
            }
        }
        show(Some(database), &findings)
    });
    if items(&settings.kafka.connection.cluster.brokers).is_empty() {
        let text = "not examined: name them with --brokers, and whatever else the relay has in its settings";
        show(None, &[finding("brokers", Verdict::Warn, text)])?;
    } else {
        let topics: Vec<String> = topics.into_iter().collect();
        show(None, &examine_kafka(&settings.kafka.connection.kafka(origins)?, &topics))?;
    }
    if json {
        print(&format!("{}\n", Value::from(objects)))?;
    }
    ended?;
    if failed == 0 { Ok(()) } else { Err(Failure::Doctor { failed }) }
}

/// A finding of the command's own.
pub(super) fn finding(check: &'static str, verdict: Verdict, text: &str) -> Finding {
    Finding::new(check, verdict, text)
}

fn object(finding: &Finding) -> Value {
    json!({ "check": finding.check, "verdict": mark(finding.verdict).trim(), "text": finding.text })
}

/// What begins the line of a finding, of `outbox debezium check` too.
pub(super) fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok  ",
        Verdict::Warn => "warn",
        _ => "FAIL",
    }
}

/// The finding, in lines.
fn line(finding: &Finding) -> String {
    hanging(&format!("{} {}", mark(finding.verdict), finding.check), WORDS, &finding.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::output::WIDTH;

    #[test]
    fn a_finding_fits_into_80_columns_and_what_follows_is_aligned() {
        let text = "the role lacks what a relay needs: GRANT UPDATE ON outbox_shard TO relay; GRANT SELECT ON outbox TO relay";
        let shown = line(&finding("dead_letters", Verdict::Fail, text));
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].starts_with("FAIL dead_letters  the role"), "{shown}");
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{shown}");
        assert!(
            lines[1..].iter().all(|line| line.starts_with(&" ".repeat(19)) && line.as_bytes()[19] != b' ')
        );
        assert_eq!(shown.split_whitespace().skip(2).collect::<Vec<_>>().join(" "), text);
    }
}
