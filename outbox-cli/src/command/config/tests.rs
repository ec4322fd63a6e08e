use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::command::args;
use crate::command::settings::SETTINGS;

/// A file with settings, gone when dropped.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name =
            format!("outbox-cli-{}-{}.toml", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("write a file");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path in UTF-8")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn load(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let invocation = args::parse(["outbox", "relay"].iter().chain(arguments)).expect("good arguments");
    Config::load(&invocation.flags, variables.iter().map(|(name, text)| (name.into(), text.into())))
}

fn loaded(arguments: &[&str], variables: &[(&str, &str)]) -> Config {
    load(arguments, variables).expect("good settings")
}

fn problem<T>(result: Result<T, ConfigError>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn a_flag_comes_before_the_environment_before_the_file() {
    let file = File::new("workers = 2\nchunk = 20\nin_flight = 200\n[kafka]\na = 2\n'b.c' = true\nd.e = '2'");
    let config = loaded(
        &["--config", file.path(), "--workers", "4", "--kafka", "a=4"],
        &[
            ("OUTBOX_WORKERS", "3"),
            ("OUTBOX_CHUNK", "30"),
            ("OUTBOX_IN_FLIGHT", ""),
            ("OUTBOX_KAFKA_A", "3"),
            ("OUTBOX_KAFKA_D_E", "3"),
            ("OUTBOX_PORT", "tcp://10.0.0.1:80"),
        ],
    );
    let number = |key| config.number(key).expect("a number");
    assert_eq!((number("workers"), number("chunk"), number("in_flight")), (Some(4), Some(30), Some(200)));
    assert_eq!((number("stop_time"), config.shown("stop_time")), (None, "30s"));
    let properties: Vec<_> = config.properties().map(|(name, value)| (name, value.text())).collect();
    assert_eq!(properties, [("a", "4"), ("b.c", "true"), ("d.e", "3")]);
}

#[test]
fn the_file_can_be_named_by_the_environment() {
    let (one, other) = (File::new("workers = 1"), File::new("workers = 2"));
    let variables = [("OUTBOX_CONFIG", one.path())];
    assert_eq!(loaded(&[], &variables).text("workers"), Some("1"));
    assert_eq!(loaded(&["--config", other.path()], &variables).text("workers"), Some("2"));
}

#[test]
fn the_common_variable_of_the_database_is_the_last_resort() {
    let file = File::new("database_url = 'file.db'");
    let common = ("DATABASE_URL", "common.db");
    assert_eq!(loaded(&[], &[common]).text("database_url"), Some("common.db"));
    assert_eq!(loaded(&["--config", file.path()], &[common]).text("database_url"), Some("file.db"));
    assert_eq!(
        loaded(&[], &[common, ("OUTBOX_DATABASE_URL", "own.db")]).text("database_url"),
        Some("own.db")
    );
}

#[test]
fn a_list_is_written_in_several_ways() {
    let file = File::new("brokers = ['one:9092', 'two:9092']\nallow_topics = 'a, b'");
    let config = loaded(&["--config", file.path()], &[]);
    assert_eq!(config.list("brokers"), ["one:9092", "two:9092"]);
    assert_eq!(config.list("allow_topics"), ["a", "b"]);
    let config = loaded(&["--brokers", "one:9092", "--brokers", "two:9092,three:9092"], &[]);
    assert_eq!(config.list("brokers"), ["one:9092", "two:9092", "three:9092"]);
}

#[test]
fn a_switch_can_be_turned_off_again() {
    let file = File::new("delete_sent = true");
    let on = |arguments: &[&str]| {
        loaded(&[&["--config", file.path()], arguments].concat(), &[])
            .switch("delete_sent")
            .expect("a switch")
    };
    assert_eq!(on(&[]), Some(true));
    assert_eq!((on(&["--delete-sent"]), on(&["--delete-sent=false"])), (Some(true), Some(false)));
    assert_eq!(loaded(&[], &[]).switch("delete_sent").expect("a switch"), None);
}

#[test]
fn the_error_of_a_wrong_value_says_where_it_was_given() {
    let file = File::new("lag_interval = 7");
    let config = loaded(
        &["--config", file.path(), "--workers", "many"],
        &[("OUTBOX_POLL_INTERVAL", "0s"), ("OUTBOX_DELETE_SENT", "yes"), ("OUTBOX_RETENTION", "2000y")],
    );
    let errors = [
        (problem(config.number("workers")), "--workers: `many` is wrong: "),
        (problem(config.duration("poll_interval")), "OUTBOX_POLL_INTERVAL: `0s` is wrong: "),
        (problem(config.switch("delete_sent")), "OUTBOX_DELETE_SENT: `yes` is wrong: "),
        (problem(config.duration("retention")), "OUTBOX_RETENTION: `2000y` is wrong: "),
        (
            problem(config.duration("lag_interval")),
            &format!("`lag_interval` in {}: `7` is wrong: it must be a time with a unit", file.path()),
        ),
    ];
    for (error, beginning) in errors {
        assert!(error.starts_with(beginning), "{error}");
    }
}

#[test]
fn a_key_that_is_none_is_named_beside_those_that_are() {
    let file = File::new("[relay]\nworkers = 2");
    let error = problem(load(&["--config", file.path()], &[]));
    assert!(
        error.starts_with(&format!("`relay` in {} is no setting; those are database_url, ", file.path()))
    );
    assert!(SETTINGS.iter().all(|setting| error.contains(setting.key)), "{error}");
}

#[test]
fn the_error_of_a_file_that_is_no_toml_names_the_line_and_does_not_repeat_it() {
    let file = File::new("workers = 2\ndatabase_url = \"postgres://ann:s3cret@db/shop\nchunk = 2");
    let error = problem(load(&["--config", file.path()], &[]));
    assert!(error.starts_with(&format!("{}, line 2: ", file.path())) && !error.contains("s3cret"), "{error}");
}

#[test]
fn no_error_repeats_a_secret() {
    let file = File::new("database_url = ['s3cret']");
    let errors = [
        problem(load(&["--config", file.path()], &[])),
        problem(load(&["--kafka", "s3cret"], &[])),
        problem(load(&["--config", "/there/is/none.toml"], &[("OUTBOX_DATABASE_URL", "s3cret")])),
    ];
    for error in errors {
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn what_is_missing_is_named_in_every_way_it_can_be_given() {
    let missing = ConfigError::Missing { what: "no broker is named", key: "brokers" };
    let text = "no broker is named: set --brokers, OUTBOX_BROKERS or `brokers` in the file of --config";
    assert_eq!(missing.to_string(), text);
}
