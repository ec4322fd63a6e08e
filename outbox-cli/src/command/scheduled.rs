//! `outbox scheduled`

use std::time::Duration;

use diesel_outbox_relay::operate::Schedule;
use serde_json::{Value, json};

use super::failure::Failure;
use super::origin::Origins;
use super::outboxes::Outboxes;
use super::output::print;
use super::settings::CommonSettings;

/// Prints what is scheduled. With `promote`, first moves what is due into the outbox.
pub(crate) fn run(
    common: &CommonSettings,
    origins: &Origins,
    promote: bool,
    json: bool,
) -> Result<(), Failure> {
    let outboxes = Outboxes::chosen(common, origins)?;
    let mut objects = Vec::new();
    let ended = outboxes.each(|database| {
        let mut operations = database.operations()?;
        let moved =
            promote.then(|| operations.promote()).transpose().map_err(|error| database.failed(error))?;
        let schedule = operations.schedule().map_err(|error| database.failed(error))?;
        if json {
            objects.push(outboxes.placed(database, schedule_json(&schedule, moved)));
            return Ok(());
        }
        print(&outboxes.headed(database, &schedule_text(&schedule, moved)))
    });
    if json {
        let single = if outboxes.are_several { None } else { objects.pop() };
        // A single one that failed has no object.
        if outboxes.are_several || single.is_some() {
            print(&format!("{}\n", single.unwrap_or(Value::from(objects))))?;
        }
    }
    ended
}

fn schedule_json(schedule: &Schedule, moved: Option<usize>) -> Value {
    let mut object = json!({
        "scheduled": schedule.scheduled,
        "overdue_seconds": schedule.overdue.as_secs_f64(),
        "next_seconds": schedule.next.map(|next| next.as_secs_f64()),
    });
    if let Some(moved) = moved {
        object["promoted"] = moved.into();
    }
    object
}

fn schedule_text(schedule: &Schedule, moved: Option<usize>) -> String {
    let moved = match moved {
        None => String::new(),
        Some(1) => "moved 1 event into the outbox\n".to_owned(),
        Some(moved) => format!("moved {moved} events into the outbox\n"),
    };
    let rounded = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
    let due = match schedule.next {
        None => return format!("{moved}no event is scheduled\n"),
        Some(Duration::ZERO) => format!("overdue:   {}", rounded(schedule.overdue)),
        Some(next) => format!("next:      in {}", rounded(next)),
    };
    format!("{moved}scheduled: {}\n{due}\n", schedule.scheduled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_printed_in_words_and_in_json() {
        let mut schedule = Schedule::default();
        assert_eq!(
            schedule_text(&schedule, Some(1)),
            "moved 1 event into the outbox\nno event is scheduled\n"
        );
        (schedule.scheduled, schedule.next) = (3, Some(Duration::from_millis(61_500)));
        assert_eq!(schedule_text(&schedule, None), "scheduled: 3\nnext:      in 1m 1s\n");
        (schedule.next, schedule.overdue) = (Some(Duration::ZERO), Duration::from_secs(7));
        assert_eq!(schedule_text(&schedule, None), "scheduled: 3\noverdue:   7s\n");
        let json = schedule_json(&schedule, Some(0)).to_string();
        assert_eq!(json, r#"{"next_seconds":0.0,"overdue_seconds":7.0,"promoted":0,"scheduled":3}"#);
    }
}
