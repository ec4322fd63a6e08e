use std::time::Duration;

use diesel_outbox_relay::source::SourceOptions;

use super::*;
use crate::command::args;
use crate::command::settings::setting;

fn config(arguments: &[&str], variables: &[(&str, &str)]) -> Config {
    let invocation = args::parse(["outbox", "relay"].iter().chain(arguments)).expect("good arguments");
    let variables = variables.iter().map(|(name, text)| (name.into(), text.into()));
    Config::load(&invocation.flags, variables).expect("good settings")
}

fn problem<T>(result: Result<T, ConfigError>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn the_defaults_of_the_help_are_those_of_the_relay() {
    let told = |key| setting(key).expect("a setting").default;
    let time = |key| humantime::parse_duration(told(key)).expect("a time");
    let relay = format!("{:?}", Relay::from_source(|_| unreachable!("it is not started")));
    let shown = |name: &str, value: String| {
        assert!(relay.contains(&format!("{name}: {value}")), "{name}: {value} is not in {relay}");
    };
    shown("batch_size", told("chunk").to_owned());
    shown("max_in_flight", told("in_flight").to_owned());
    shown("max_in_flight_bytes", told("in_flight_bytes").to_owned());
    shown("max_pass_duration", format!("{:?}", time("pass_time")));
    shown("stall_timeout", format!("{:?}", time("stall_time")));
    shown("shutdown_timeout", format!("{:?}", time("stop_time")));
    shown("workers", told("workers").to_owned());
    assert_eq!(told("topic").parse(), Ok(TopicNaming::default()));
    let kafka = format!("{:?}", Kafka::new("localhost:9092"));
    assert!(kafka.contains(&format!("event_headers: {}", told("own_headers"))), "{kafka}");
    let options = SourceOptions::default();
    assert_eq!(SentRows::Keep { retention: time("retention") }, options.sent_rows);
    assert_eq!(time("poll_interval"), options.poll_interval);
    assert_eq!(time("lag_interval"), options.lag_interval);
    assert_eq!(options.dead_letter_policy, DeadLetterPolicy::Continue);
}

#[test]
fn sent_rows_are_kept_or_deleted_as_the_stronger_source_says() {
    let kept = SentRows::Keep { retention: Duration::from_secs(60 * 60) };
    let hour = ("OUTBOX_RETENTION", "1h");
    let rows =
        |arguments: &[&str], variables: &[_]| sent_rows(&config(arguments, variables)).expect("a choice");
    assert_eq!(rows(&[], &[]), SentRows::default());
    assert_eq!(rows(&[], &[hour]), kept);
    assert_eq!(rows(&["--delete-sent"], &[]), SentRows::Delete);
    assert_eq!(rows(&["--delete-sent"], &[hour]), SentRows::Delete);
    assert_eq!(rows(&["--delete-sent=false"], &[hour]), kept);
    assert_eq!(rows(&["--retention", "1h"], &[("OUTBOX_DELETE_SENT", "true")]), kept);
    let both = config(&["--delete-sent", "--retention", "1h"], &[]);
    assert_eq!(
        problem(sent_rows(&both)),
        "--delete-sent and --retention exclude each other: give one of them"
    );
}

#[test]
fn brokers_are_named_by_their_own_setting() {
    assert!(problem(kafka(&config(&[], &[]))).starts_with("no broker is named: set --brokers, "));
    let twice = config(&["--brokers", "one:9092", "--kafka", "bootstrap.servers=two:9092"], &[]);
    assert!(problem(kafka(&twice)).starts_with("--kafka bootstrap.servers: "));
}

#[test]
fn an_allow_list_allows_something() {
    let allowed = |arguments: &[&str]| topics(&config(arguments, &[]));
    assert!(allowed(&[]).expect("topics").topic("order").is_ok());
    let topics =
        allowed(&["--topic", "shop.{aggregatetype}", "--allow-topics", "shop.order"]).expect("topics");
    assert!(topics.topic("order").is_ok() && topics.topic("invoice").is_err());
    assert!(
        problem(allowed(&["--allow-topics", ","])).starts_with("--allow-topics: it allows no topic at all")
    );
    assert!(problem(allowed(&["--topic", "a b"])).starts_with("--topic: `a b` is wrong: "));
}
