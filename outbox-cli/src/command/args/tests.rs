use super::*;

fn refused(arguments: &[&str]) -> clap::Error {
    parse(["outbox"].iter().chain(arguments)).err().expect("arguments that are refused")
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn requeue_needs_to_know_what() {
    let which =
        |arguments: &[&str]| match parse(["outbox", "requeue"].iter().chain(arguments)).map(|i| i.action) {
            Ok(Action::Requeue(which)) => Some(which),
            _ => None,
        };
    let id = "0198c0de-0000-7000-8000-000000000001";
    assert_eq!(which(&["--all"]), Some(Requeue::All));
    assert_eq!(which(&["--id", id]), Uuid::parse_str(id).ok().map(Requeue::Id));
    let aggregate = Requeue::Aggregate { aggregate_type: "order".into(), aggregate_id: "-7".into() };
    assert_eq!(which(&["--aggregate", "order", "-7"]), Some(aggregate));
    for wrong in [&[][..], &["--all", "--id", id], &["--id", "7"], &["--aggregate", "order"]] {
        assert_eq!(refused(&[&["requeue"], wrong].concat()).exit_code(), 2, "{wrong:?}");
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
fn the_help_tells_every_name_of_a_setting() {
    let help = refused(&["relay", "--help"]).render().to_string();
    for setting in &SETTINGS {
        assert!(help.contains(&setting.flag()) && help.contains(&setting.variable()), "{}", setting.key);
    }
}
