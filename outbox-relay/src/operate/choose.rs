//! Which dead letters.

use std::time::SystemTime;

use uuid::Uuid;

use super::{DeadLetter, Requeue};

/// Which dead letters: those that meet every condition. Without conditions, all.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # fn f(conn: &mut diesel::PgConnection) -> diesel::QueryResult<()> {
/// use diesel_outbox_relay::operate::{DeadLetterFilter, Operate, Requeue};
///
/// let filter = DeadLetterFilter::default().event_type("OrderPlaced");
/// let dead_letters = conn.dead_letters(i64::MAX)?;
/// let chosen: Requeue = dead_letters.iter().filter(|letter| filter.matches(letter)).collect();
/// conn.requeue(&chosen)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterFilter {
    id: Option<Uuid>,
    event_type: Option<String>,
    aggregate: Option<(String, String)>,
    cause: Option<String>,
    failed_from: Option<SystemTime>,
    failed_before: Option<SystemTime>,
}

impl DeadLetterFilter {
    /// The event has this id.
    #[must_use]
    pub fn id(self, id: Uuid) -> Self {
        Self { id: Some(id), ..self }
    }

    /// The event has this type.
    #[must_use]
    pub fn event_type(self, event_type: impl Into<String>) -> Self {
        Self { event_type: Some(event_type.into()), ..self }
    }

    /// The event is of the aggregate with this type and id.
    #[must_use]
    pub fn aggregate(self, aggregate_type: impl Into<String>, aggregate_id: impl Into<String>) -> Self {
        Self { aggregate: Some((aggregate_type.into(), aggregate_id.into())), ..self }
    }

    /// The cause has this [`key`](super::Cause::key).
    #[must_use]
    pub fn cause(self, key: impl Into<String>) -> Self {
        Self { cause: Some(key.into()), ..self }
    }

    /// It became a dead letter at this time or later.
    #[must_use]
    pub fn failed_from(self, time: SystemTime) -> Self {
        Self { failed_from: Some(time), ..self }
    }

    /// It became a dead letter before this time.
    #[must_use]
    pub fn failed_before(self, time: SystemTime) -> Self {
        Self { failed_before: Some(time), ..self }
    }

    /// Returns whether the dead letter meets every condition.
    #[must_use]
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        // As text, the id may be written in capitals.
        self.id.is_none_or(|id| Uuid::try_parse(&letter.id) == Ok(id))
            && self.event_type.as_ref().is_none_or(|event_type| *event_type == letter.event_type)
            && self.aggregate.as_ref().is_none_or(|(aggregate_type, id)| {
                *aggregate_type == letter.aggregate_type && *id == letter.aggregate_id
            })
            && self.cause.as_ref().is_none_or(|cause| *cause == letter.cause())
            && self.failed_from.is_none_or(|time| letter.failed_at >= time)
            && self.failed_before.is_none_or(|time| letter.failed_at < time)
    }
}

/// Chooses exactly these.
impl<'a> FromIterator<&'a DeadLetter> for Requeue {
    fn from_iter<T: IntoIterator<Item = &'a DeadLetter>>(dead_letters: T) -> Self {
        Self::These(dead_letters.into_iter().map(|letter| (letter.seq, letter.id.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn each_condition_must_be_met() {
        let second = |second| UNIX_EPOCH + Duration::from_secs(second);
        let letter = DeadLetter {
            seq: 1,
            id: "0198C0DE-0000-7000-8000-000000000001".into(),
            aggregate_type: "order".into(),
            aggregate_id: "7".into(),
            event_type: "Placed".into(),
            created_at: UNIX_EPOCH,
            reason: "5 bytes".into(),
            failed_at: second(9),
        };
        let all = DeadLetterFilter::default();
        let id = Uuid::try_parse(&letter.id).unwrap();
        for (filter, matches) in [
            (all.clone(), true),
            (all.clone().id(id), true),
            (all.clone().id(Uuid::nil()), false),
            (all.clone().event_type("Placed"), true),
            (all.clone().event_type("placed"), false),
            (all.clone().aggregate("order", "7"), true),
            (all.clone().aggregate("order", "8"), false),
            (all.clone().cause(letter.cause()), true),
            (all.clone().cause("0"), false),
            (all.clone().failed_from(second(9)).failed_before(second(10)), true),
            (all.clone().failed_from(second(10)), false),
            (all.clone().failed_before(second(9)), false),
            (all.event_type("Placed").aggregate("order", "8"), false),
        ] {
            assert_eq!(filter.matches(&letter), matches, "{filter:?}");
        }
    }
}
