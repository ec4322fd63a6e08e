//! `outbox explain`

use std::time::SystemTime;

use clap::Args;
use diesel_outbox_relay::Kafka;
use diesel_outbox_relay::operate::explain::{Explanation, Pruning, Published, State, find_published};
use serde_json::{Value, json};
use uuid::Uuid;

use super::failure::{Failure, in_one_line};
use super::origin::Origins;
use super::outboxes::Outboxes;
use super::output::{hanging, moment, print};
use super::settings::{AfterSettings, CommonSettings, ConnectionSettings, TopicSettings, items};

/// Which event, and where to look for it.
#[derive(Debug, Args)]
pub(crate) struct ExplainSettings {
    /// The event's id
    #[arg(value_name = "EVENT_ID")]
    id: Uuid,
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
    after: AfterSettings,
}

/// Where the event's record is on Kafka: the topic, the partition and the offset.
type Place = (String, i32, i64);

/// Looks for the event in each outbox, and prints where it is. If it is in none, prints that once.
pub(crate) fn run(settings: &ExplainSettings, origins: &Origins) -> Result<(), Failure> {
    let outboxes = Outboxes::chosen(&settings.common, origins)?;
    let AfterSettings { retention, keep_dead_letters, keep_dead_letter_rows, .. } = &settings.after;
    let pruning = Pruning::default()
        .sent_rows(retention.sent_rows(origins)?)
        .by_number(retention.keep_sent_rows.is_some())
        .dead_letters(keep_dead_letters.is_some() || keep_dead_letter_rows.is_some());
    let has_brokers = !items(&settings.connection.cluster.brokers).is_empty();
    let kafka = has_brokers.then(|| settings.connection.kafka(origins)).transpose()?;
    let (mut found, mut absent) = (Vec::new(), None);
    let ended = outboxes.each(|database| {
        let explained = database.explainer()?.explain(settings.id, pruning);
        let mut explanation = explained.map_err(|error| database.failed(error))?;
        if is_absent(explanation.state) {
            absent.get_or_insert(explanation);
            return Ok(());
        }
        let place = kafka.as_ref().and_then(|kafka| look_it_up(kafka, settings, &mut explanation));
        if settings.json {
            found.push(outboxes.placed(database, in_json(&explanation, place.as_ref())));
        } else {
            print(&outboxes.headed(database, &in_words(&explanation, place.as_ref(), has_brokers)))?;
            found.push(Value::Null);
        }
        match explanation.state {
            State::Dead | State::Blocked => Err(Failure::Unsendable(settings.id)),
            _ => Ok(()),
        }
    });
    match absent {
        Some(absent) if found.is_empty() => {
            if settings.json {
                found.push(in_json(&absent, None));
            } else {
                print(&in_words(&absent, None, true))?;
            }
            print_json(settings, &outboxes, found)?;
            ended.and(Err(Failure::NotThere(settings.id)))
        }
        _ => {
            print_json(settings, &outboxes, found)?;
            ended
        }
    }
}

fn print_json(settings: &ExplainSettings, outboxes: &Outboxes, mut found: Vec<Value>) -> Result<(), Failure> {
    if !settings.json || found.is_empty() && !outboxes.are_several {
        return Ok(());
    }
    let single = if outboxes.are_several { None } else { found.pop() };
    print(&format!("{}\n", single.unwrap_or(Value::from(found))))
}

fn is_absent(state: State) -> bool {
    matches!(state, State::NeverSeen | State::Pruned)
}

/// Looks for the event's record on Kafka, and notes in the explanation what that says.
fn look_it_up(kafka: &Kafka, settings: &ExplainSettings, explanation: &mut Explanation) -> Option<Place> {
    let event = explanation.event.as_ref()?;
    let was_sent = match explanation.state {
        State::Sent => true,
        State::Waiting | State::InFlight => false,
        _ => return None,
    };
    match find_published(kafka, &settings.topics.topic.naming, settings.id, event) {
        Ok(Published::Found(record)) => {
            if !was_sent {
                explanation.state = State::Sent;
                explanation.facts =
                    vec!["Kafka has it, and the relay has not noted that in the database yet".to_owned()];
                explanation.advice = None;
            }
            Some((record.topic, record.partition, record.offset))
        }
        Ok(Published::Missing { topic, is_all }) if was_sent => {
            explanation.facts.push(if is_all {
                format!(
                    "The topic {topic} does not have it any more, from the time of its emit on: Kafka deletes old records, as the topic's \
                     retention.ms says"
                )
            } else {
                format!("It is not among the first 100,000 records of its partition of {topic} from the time of its emit on")
            });
            None
        }
        Ok(_) => None,
        Err(error) => {
            explanation.facts.push(format!("Kafka could not be asked: {}", in_one_line(&error)));
            if !was_sent {
                explanation.advice = Some(
                    "look whether Kafka is there: while it is not, events wait, and nothing is lost"
                        .to_owned(),
                );
            }
            None
        }
    }
}

/// In how many columns the words begin.
const COLUMN: usize = 9;

fn in_words(explanation: &Explanation, place: Option<&Place>, has_brokers: bool) -> String {
    let Explanation { id, state, event, facts, advice, .. } = explanation;
    let mut lines = vec![("event", id.to_string()), ("state", state.name().replace('_', " "))];
    if let Some(event) = event {
        let aggregate = format!("{} of {} {}", event.event_type, event.aggregate_type, event.aggregate_id);
        lines.push(("type", aggregate));
        let number = event.seq.map_or(String::new(), |seq| format!("number {seq}, "));
        lines.push(("place", format!("{number}shard {}", event.shard)));
        lines.push(("emitted", ago(event.created_at)));
        if let (Some(since), Some(name)) = (event.since, since(*state)) {
            lines.push((name, ago(since)));
        }
    }
    match place {
        Some((topic, partition, offset)) => {
            lines.push(("kafka", format!("{topic}, partition {partition}, offset {offset}")));
        }
        None if *state == State::Sent && !has_brokers => {
            lines.push(("kafka", "name the --brokers to learn the partition and the offset".to_owned()));
        }
        None => {}
    }
    if !facts.is_empty() {
        lines.push(("why", format!("{}.", facts.join(". "))));
    }
    if let Some(advice) = advice {
        lines.push(("do", advice.clone()));
    }
    lines.iter().map(|(name, text)| hanging(name, COLUMN, text)).collect()
}

/// What an event's second time is.
fn since(state: State) -> Option<&'static str> {
    match state {
        State::Scheduled => Some("due"),
        State::Sent => Some("sent"),
        State::Dead | State::Blocked => Some("failed"),
        _ => None,
    }
}

fn ago(time: SystemTime) -> String {
    let ago = SystemTime::now().duration_since(time).ok().filter(|ago| ago.as_secs() > 0);
    let ago = ago.map(|ago| std::time::Duration::from_secs(ago.as_secs()));
    let ago = ago.map_or(String::new(), |ago| format!(", {} ago", humantime::format_duration(ago)));
    format!("{}{ago}", moment(time))
}

fn in_json(explanation: &Explanation, place: Option<&Place>) -> Value {
    let Explanation { id, state, event, facts, advice, .. } = explanation;
    let mut object = json!({ "id": id.to_string(), "state": state.name(), "facts": facts, "advice": advice });
    if let Some(event) = event {
        object["seq"] = json!(event.seq);
        object["shard"] = json!(event.shard);
        object["event_type"] = json!(event.event_type);
        object["aggregate_type"] = json!(event.aggregate_type);
        object["aggregate_id"] = json!(event.aggregate_id);
        object["emitted_at"] = json!(moment(event.created_at));
        if let (Some(time), Some(name)) = (event.since, since(*state)) {
            object[format!("{name}_at")] = json!(moment(time));
        }
    }
    if let Some((topic, partition, offset)) = place {
        object["topic"] = json!(topic);
        object["partition"] = json!(partition);
        object["offset"] = json!(offset);
    }
    object
}
