use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::command::settings::RelaySettings;

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

fn read(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Invocation, InvocationError> {
    let variables = variables.iter().map(|(name, text)| (name.into(), text.into()));
    Invocation::read(["outbox", "relay"].iter().chain(arguments), variables)
}

fn problem(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    match read(arguments, variables) {
        Err(InvocationError::Setting(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flag_comes_before_the_environment_before_the_file() {
    let file = File::new(
        "workers = 2\nbatch_size = 20\nmax_in_flight = 200\n[kafka]\na = 2\n'b.c' = true\nd.e = '2'",
    );
    let (settings, origins) = given(
        &["--config", file.path(), "--workers", "4", "--kafka", "a=4"],
        &[
            ("OUTBOX_WORKERS", "3"),
            ("OUTBOX_BATCH_SIZE", "30"),
            ("OUTBOX_MAX_IN_FLIGHT", ""),
            ("OUTBOX_KAFKA_A", "3"),
            ("OUTBOX_KAFKA_D_E", "3"),
            ("OUTBOX_PORT", "tcp://10.0.0.1:80"),
        ],
    );
    let RelaySettings { kafka, work, .. } = *settings;
    assert_eq!((work.workers, work.batch_size, work.max_in_flight), (4, 30, 200));
    assert_eq!(work.shutdown_timeout.0, Duration::from_secs(30));
    let properties: BTreeMap<_, _> = kafka
        .connection
        .properties
        .iter()
        .map(|property| (property.name.as_str(), property.value.reveal()))
        .collect();
    assert_eq!(properties.into_iter().collect::<Vec<_>>(), [("a", "4"), ("b.c", "true"), ("d.e", "3")]);

    let file = file.path();
    for (key, layer, name) in [
        ("workers", Layer::CommandLine, "--workers"),
        ("batch_size", Layer::Environment, "OUTBOX_BATCH_SIZE"),
        ("max_in_flight", Layer::File, &format!("`max_in_flight` in {file}")),
        ("shutdown_timeout", Layer::Default, "the default of --shutdown-timeout"),
        ("kafka.a", Layer::CommandLine, "--kafka a"),
        ("kafka.d.e", Layer::Environment, "OUTBOX_KAFKA_D_E"),
        ("kafka.b.c", Layer::File, &format!("`kafka.b.c` in {file}")),
    ] {
        assert_eq!(origins.of(key), Origin { layer, name: name.to_owned() });
    }
}

#[test]
fn the_file_can_be_named_by_the_environment() {
    let (one, other) = (File::new("workers = 1"), File::new("workers = 2"));
    let variables = [("OUTBOX_CONFIG", one.path())];
    assert_eq!(given(&[], &variables).0.work.workers, 1);
    assert_eq!(given(&["--config", other.path()], &variables).0.work.workers, 2);
}

#[test]
fn the_variable_that_other_programs_use_is_the_last_resort() {
    let file = File::new("database_url = 'file.db'");
    let common = ("DATABASE_URL", "common.db");
    let url = |arguments: &[&str], variables: &[_]| {
        let url = given(arguments, variables).0.common.database.database_url;
        url.map(|url| url.reveal().to_owned()).unwrap_or_default()
    };
    assert_eq!(url(&[], &[common]), "common.db");
    assert_eq!(url(&["--config", file.path()], &[common]), "file.db");
    assert_eq!(url(&[], &[common, ("OUTBOX_DATABASE_URL", "own.db")]), "own.db");
}

#[test]
fn a_list_can_be_written_in_several_ways() {
    let file = File::new("brokers = ['one:9092', 'two:9092']\nallow_topics = 'a, b'");
    let kafka = |arguments: &[&str]| given(arguments, &[]).0.kafka;
    let from_file = kafka(&["--config", file.path()]);
    assert_eq!(from_file.connection.cluster.brokers, ["one:9092", "two:9092"]);
    assert_eq!(from_file.allow_topics.as_deref(), Some(&["a".to_owned(), "b".to_owned()][..]));
    let from_flags = kafka(&["--brokers", "one:9092", "--brokers", "two:9092,three:9092"]);
    assert_eq!(from_flags.connection.cluster.brokers, ["one:9092", "two:9092", "three:9092"]);
    assert_eq!(from_flags.allow_topics, None);
}

#[test]
fn a_switch_can_be_turned_off_again() {
    let file = File::new("delete_sent = true");
    let deletes = |arguments: &[&str]| {
        given(&[&["--config", file.path()], arguments].concat(), &[]).0.after.retention.delete_sent
    };
    assert!(deletes(&[]) && deletes(&["--delete-sent"]));
    assert!(!deletes(&["--delete-sent=false"]));
    assert!(!given(&[], &[]).0.after.retention.delete_sent);
}

#[test]
fn the_error_of_a_wrong_value_says_where_it_was_given() {
    let file = File::new("lag_interval = 7");
    let in_file = format!("`lag_interval` in {}: `7` is wrong: it must be a time with a unit", file.path());
    for (arguments, variable, beginning) in [
        (&["--workers", "many"][..], None, "--workers: `many` is wrong: it must be a whole number"),
        (&[], Some(("OUTBOX_POLL_INTERVAL", "0s")), "OUTBOX_POLL_INTERVAL: `0s` is wrong: "),
        (&[], Some(("OUTBOX_DELETE_SENT", "yes")), "OUTBOX_DELETE_SENT: `yes` is wrong: "),
        (&[], Some(("OUTBOX_KEEP_SENT", "2000y")), "OUTBOX_KEEP_SENT: `2000y` is wrong: "),
        (
            &[],
            Some(("OUTBOX_DEAD_LETTER_POLICY", "go-on")),
            "OUTBOX_DEAD_LETTER_POLICY: `go-on` is wrong: it must be continue or block",
        ),
        (&["--source", "log"], None, "--source: `log` is wrong: it must be polling or wal"),
        (&["--topic", "a b"], None, "--topic: `a b` is wrong: "),
        (&["--config", file.path()], None, &in_file),
    ] {
        let error = problem(arguments, variable.as_slice());
        assert!(error.starts_with(beginning), "{error}");
    }
}

#[test]
fn a_wrong_value_that_a_higher_layer_covers_does_no_harm() {
    let file = File::new("workers = 'many'");
    let (settings, _) = given(&["--config", file.path()], &[("OUTBOX_WORKERS", "3")]);
    assert_eq!(settings.work.workers, 3);
    let (settings, _) = given(&["--workers", "4"], &[("OUTBOX_WORKERS", "many")]);
    assert_eq!(settings.work.workers, 4);
}

#[test]
fn a_key_that_is_no_setting_is_named_beside_those_that_are() {
    let file = File::new("[relay]\nworkers = 2");
    let error = problem(&["--config", file.path()], &[]);
    assert!(
        error.starts_with(&format!(
            "`relay` in {} is not a setting. The settings are log_format, ",
            file.path()
        )),
        "{error}"
    );
    for setting in settings::all() {
        assert!(error.contains(setting.get_id().as_str()), "{error}");
    }
    let file = File::new("config = 'other.toml'");
    assert!(problem(&["--config", file.path()], &[]).starts_with("`config` in "));
}

#[test]
fn the_error_of_a_file_that_is_not_toml_names_the_line_and_does_not_repeat_it() {
    let file = File::new("workers = 2\ndatabase_url = \"postgres://ann:s3cret@db/shop\nbatch_size = 2");
    let error = problem(&["--config", file.path()], &[]);
    assert!(error.starts_with(&format!("{}, line 2: ", file.path())) && !error.contains("s3cret"), "{error}");
}

#[test]
fn no_error_repeats_a_secret() {
    let file = File::new("database_url = ['s3cret']");
    for (arguments, variables) in [
        (&["--config", file.path()][..], &[][..]),
        (&["--kafka", "s3cret"], &[]),
        (&["--config", "/there/is/none.toml"], &[("OUTBOX_DATABASE_URL", "s3cret")]),
        (&["--workers", "many"], &[("OUTBOX_KAFKA_SASL_PASSWORD", "s3cret")]),
        (&[], &[("OUTBOX_WORKERS", "many"), ("OUTBOX_DATABASE_URL", "postgres://ann:s3cret@db/shop")]),
    ] {
        let error = problem(arguments, variables);
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn what_was_read_is_shown_without_its_secrets() {
    let variables =
        [("OUTBOX_KAFKA_SASL_PASSWORD", "s3cret"), ("DATABASE_URL", "postgres://ann:s3cret@db/shop")];
    let shown = format!("{:?}", read(&[], &variables).expect("good arguments"));
    assert!(shown.contains("sasl.password") && !shown.contains("s3cret"), "{shown}");
}

#[test]
fn the_error_of_a_missing_setting_names_every_way_to_give_it() {
    let missing = ConfigError::Missing { what: "no broker is named", key: "brokers" };
    let text = "no broker is named: set --brokers, OUTBOX_BROKERS or `brokers` in the file of --config";
    assert_eq!(missing.to_string(), text);
}
