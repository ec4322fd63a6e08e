use diesel_outbox_relay::source::{SentRows, SourceOptions};
use diesel_outbox_relay::{Kafka, Relay, TopicNaming};

use super::*;

fn defaults() -> RelaySettings {
    use clap::FromArgMatches;

    let command = RelaySettings::augment_args(Command::new("outbox"));
    RelaySettings::from_arg_matches(&command.get_matches_from(["outbox"])).expect("defaults")
}

#[test]
fn the_defaults_of_the_help_are_those_of_the_relay() {
    let RelaySettings { kafka, source, after, work, .. } = defaults();
    let relay = format!("{:?}", Relay::from_source(|_| unreachable!("it is not started")));
    for shown in [
        format!("workers: {}", work.workers),
        format!("batch_size: {}", work.batch_size),
        format!("max_in_flight: {}", work.max_in_flight),
        format!("max_in_flight_bytes: {}", work.max_in_flight_bytes),
        format!("max_pass_duration: {:?}", work.max_pass_duration.0),
        format!("stall_timeout: {:?}", work.stall_timeout.0),
        format!("shutdown_timeout: {:?}", work.shutdown_timeout.0),
    ] {
        assert!(relay.contains(&shown), "{shown} is not in {relay}");
    }
    assert_eq!(kafka.topics.topic.naming, TopicNaming::default());
    let publisher = format!("{:?}", Kafka::new("localhost:9092"));
    assert!(publisher.contains(&format!("event_headers: {}", kafka.event_headers)), "{publisher}");
    let options = SourceOptions::default();
    assert_eq!(SentRows::Keep { retention: after.retention.keep_sent.0 }, options.sent_rows);
    assert_eq!(source.poll_interval.0, options.poll_interval);
    assert_eq!(work.lag_interval.0, options.lag_interval);
    assert_eq!(after.dead_letter_policy, options.dead_letter_policy);
}

#[cfg(feature = "postgres")]
#[test]
fn the_defaults_of_the_write_ahead_log_are_those_of_the_relay() {
    let SourceSettings { wal, reading, .. } = defaults().source;
    let options = diesel_outbox_relay::WalOptions::default();
    assert_eq!((wal.slot, wal.publication), (options.slot, options.publication));
    assert_eq!(reading.confirm_interval.0, options.confirm_interval);
    assert_eq!(reading.slot_size_warning, options.slot_size_warning);
}

#[test]
fn the_readme_lists_every_setting_with_its_names_and_its_default() {
    let readme = include_str!("../../../README.md");
    for setting in all() {
        let key = setting.get_id().as_str();
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{}", flag(key))));
        let row = row.unwrap_or_else(|| panic!("no row for {key}"));
        assert!(row.contains(&format!("`{}", variable(key))) && row.contains(key), "{row}");
        for default in setting.get_default_values() {
            assert!(row.contains(&format!("`{}`", default.display())), "{row}");
        }
    }
}

#[test]
fn what_may_be_secret_is_not_shown() {
    let property: Property = "sasl.password=s3cret".parse().expect("a property");
    let shown = format!("{property:?} {:?}", Secret::from("s3cret".to_owned()));
    assert!(shown.contains("sasl.password") && !shown.contains("s3cret"), "{shown}");
}
