use std::time::Duration;

use super::*;
use crate::command::invocation::given;

fn problem<T>(result: Result<T, ConfigError>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn sent_rows_are_kept_or_deleted_as_the_stronger_source_says() {
    let kept = SentRows::Keep { retention: Duration::from_secs(60 * 60) };
    let hour = ("OUTBOX_KEEP_SENT", "1h");
    let choice = |arguments: &[&str], variables: &[_]| {
        let (settings, origins) = given(arguments, variables);
        settings.after.retention.sent_rows(&origins)
    };
    let rows = |arguments: &[&str], variables: &[_]| choice(arguments, variables).expect("a choice");
    assert_eq!(rows(&[], &[]), SentRows::default());
    assert_eq!(rows(&[], &[hour]), kept);
    assert_eq!(rows(&["--delete-sent"], &[]), SentRows::Delete);
    assert_eq!(rows(&["--delete-sent"], &[hour]), SentRows::Delete);
    assert_eq!(rows(&["--delete-sent=false"], &[hour]), kept);
    assert_eq!(rows(&["--keep-sent", "1h"], &[("OUTBOX_DELETE_SENT", "true")]), kept);
    assert_eq!(
        problem(choice(&["--delete-sent", "--keep-sent", "1h"], &[])),
        "--delete-sent and --keep-sent exclude each other: give only one of them"
    );
}

#[test]
fn brokers_are_named_by_their_own_setting() {
    let problem = |arguments: &[&str]| {
        let (settings, origins) = given(arguments, &[]);
        problem(kafka(&settings.kafka, &origins))
    };
    assert!(problem(&[]).starts_with("no broker is named: set --brokers, "));
    let twice = ["--brokers", "one:9092", "--kafka", "bootstrap.servers=two:9092"];
    assert!(problem(&twice).starts_with("--kafka bootstrap.servers: "));
}

#[test]
fn an_allow_list_allows_something() {
    let allowed = |arguments: &[&str]| {
        let (settings, origins) = given(arguments, &[]);
        topics(&settings.kafka, &origins)
    };
    assert!(allowed(&[]).expect("topics").topic("order").is_ok());
    let topics =
        allowed(&["--topic", "shop.{aggregatetype}", "--allow-topics", "shop.order"]).expect("topics");
    assert!(topics.topic("order").is_ok() && topics.topic("invoice").is_err());
    assert!(
        problem(allowed(&["--allow-topics", ","])).starts_with("--allow-topics: it allows no topic at all")
    );
}
