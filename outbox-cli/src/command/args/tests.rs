use diesel_outbox_relay::operate::Requeue;
use uuid::Uuid;

use super::*;
use crate::command::invocation::{Invocation, InvocationError, command};
use crate::command::settings;

fn read(arguments: &[&str]) -> Result<Invocation, InvocationError> {
    Invocation::read(["outbox"].iter().chain(arguments), std::iter::empty())
}

fn refused(arguments: &[&str]) -> clap::Error {
    match read(arguments) {
        Err(InvocationError::CommandLine(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn requeue_needs_to_know_what() {
    let which = |arguments: &[&str]| match read(&[&["requeue"], arguments].concat()) {
        Ok(Invocation { action: Action::Requeue { which, .. }, .. }) => which.without_looking(),
        _ => None,
    };
    let id = "0198c0de-0000-7000-8000-000000000001";
    assert_eq!(which(&["--all"]), Some(Requeue::All));
    assert_eq!(which(&["--id", id]), Uuid::parse_str(id).ok().map(Requeue::Id));
    let aggregate = Requeue::Aggregate { aggregate_type: "order".into(), aggregate_id: "-7".into() };
    assert_eq!(which(&["--aggregate", "order", "-7"]), Some(aggregate));
    for several in [
        &["--cause", "c0ffee"][..],
        &["--id", id, "--event-type", "Placed"],
        &["--failed-from", "2026-11-29T13:00:00Z"],
    ] {
        assert_eq!(which(several), None, "{several:?}");
        assert!(read(&[&["requeue"], several].concat()).is_ok(), "{several:?}");
    }
    for wrong in [
        &[][..],
        &["--all", "--id", id],
        &["--dry-run"],
        &["--id", "7"],
        &["--aggregate", "order"],
        &["--failed-before", "yesterday"],
    ] {
        for command in [&["requeue"][..], &["dead-letters", "drop"]] {
            assert_eq!(refused(&[command, wrong].concat()).exit_code(), 2, "{wrong:?}");
        }
    }
}

#[test]
fn an_argument_in_the_wrong_place_is_not_repeated_in_full() {
    for arguments in [
        &["relay", "postgres://ann:s3cret@db/shop"][..],
        &["postgres://ann:s3cret@db/shop"],
        &["relay", "sasl.password=s3cret"],
        &["relay", "--kafak=sasl.password=s3cret"],
    ] {
        let error = refused(arguments);
        assert!(!error.render().to_string().contains("s3cret"), "{error}");
    }
}

#[test]
fn the_help_has_every_name_of_a_setting_and_its_default() {
    let help = refused(&["relay", "--help"]).render().to_string();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for setting in settings::all() {
        let key = setting.get_id().as_str();
        assert!(help.contains(&settings::flag(key)), "{key}");
        assert!(help.contains(&format!("[env: {}", settings::variable(key))), "{key}");
        for default in setting.get_default_values() {
            assert!(help.contains(&format!("[default: {}]", default.display())), "{key}");
        }
    }
}
