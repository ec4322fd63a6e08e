//! What holds for any input.

use proptest::prelude::*;

use super::database::OutboxDatabase;
use super::invocation::{Invocation, InvocationError};
use super::settings::Time;

fn database(url: &str) -> Result<(), String> {
    let variables = [("OUTBOX_DATABASE_URL".into(), url.into())];
    match Invocation::read(["outbox", "lag"], variables.into_iter()) {
        Ok(Invocation { action, origins }) => OutboxDatabase::chosen(&action.common().database, &origins)
            .map(drop)
            .map_err(|error| error.to_string()),
        Err(InvocationError::Setting(error)) => Err(error.to_string()),
        Err(InvocationError::CommandLine(error)) => Err(error.to_string()),
    }
}

proptest! {
    #[test]
    fn a_time_means_what_it_says(seconds in 1u64..100_000_000, unit in 0usize..4) {
        let (unit, milliseconds) = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)][unit];
        let number = seconds % 800_000 + 1;
        let time: Time = format!("{number}{unit}").parse().unwrap();
        prop_assert_eq!(time.0.as_millis(), u128::from(number * milliseconds));
        let again: Time = humantime::format_duration(time.0).to_string().parse().unwrap();
        prop_assert_eq!(again.0, time.0);
    }

    #[test]
    fn a_text_is_a_time_between_zero_and_a_hundred_years_or_refused(text in "\\PC{0,12}") {
        if let Ok(time) = text.parse::<Time>() {
            prop_assert!(!time.0.is_zero() && time.0.as_secs() <= 100 * 365 * 24 * 60 * 60);
        }
    }

    /// A password may have any characters, and whoever forgets to encode them must not see it in a log.
    #[test]
    fn a_refusal_does_not_repeat_the_password(
        scheme in "(postgres|postgresql|mysql|mariadb)",
        before in "[a-z%@:/?#&=]{0,3}",
        after in "[a-z0-9%@:/?#&=]{0,3}",
        rest in "(@db.example(:5432)?(/shop(\\?sslmode=require)?)?)?",
    ) {
        let url = format!("{scheme}://ann:{before}S3CRET{after}{rest}");
        if let Err(problem) = database(&url) {
            prop_assert!(!problem.contains("S3CRET"), "{} of {}", problem, url);
        }
    }
}
