//! Why dead letters are dead letters: those with the same cause have the same event type, and reasons that differ only in names and numbers.

use std::collections::HashMap;
use std::time::SystemTime;

use uuid::Uuid;

use super::DeadLetter;

/// Dead letters that have the same event type and, but for names and numbers, the same reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cause {
    /// Identifies the cause, in twelve hexadecimal digits. It is always the same for the same event type and reason.
    pub key: String,
    /// The event type.
    pub event_type: String,
    /// The reason, with `…` for each number, id and quoted text.
    pub reason: String,
    /// How many dead letters there are.
    pub dead_letters: usize,
    /// When the first of them became a dead letter.
    pub first_failed_at: SystemTime,
    /// When the last of them did.
    pub last_failed_at: SystemTime,
}

impl Cause {
    /// Groups dead letters by their causes, the most frequent first.
    ///
    /// ```no_run
    /// # #[cfg(feature = "postgres")]
    /// # fn f(conn: &mut diesel::PgConnection) -> diesel::QueryResult<()> {
    /// use diesel_outbox_relay::operate::{Cause, Operate};
    ///
    /// for cause in Cause::of_all(&conn.dead_letters(i64::MAX)?) {
    ///     println!("{} times {}: {}", cause.dead_letters, cause.event_type, cause.reason);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn of_all(dead_letters: &[DeadLetter]) -> Vec<Self> {
        let mut causes = HashMap::<(&str, String), Self>::new();
        for DeadLetter { event_type, reason, failed_at, .. } in dead_letters {
            let reason = without_values(reason);
            let cause = causes.entry((event_type, reason.clone())).or_insert_with(|| Self {
                key: key(event_type, &reason),
                event_type: event_type.clone(),
                reason,
                dead_letters: 0,
                first_failed_at: *failed_at,
                last_failed_at: *failed_at,
            });
            cause.dead_letters += 1;
            cause.first_failed_at = cause.first_failed_at.min(*failed_at);
            cause.last_failed_at = cause.last_failed_at.max(*failed_at);
        }
        let mut causes: Vec<Self> = causes.into_values().collect();
        causes.sort_by(|one, other| (other.dead_letters, &one.key).cmp(&(one.dead_letters, &other.key)));
        causes
    }
}

impl DeadLetter {
    /// Returns the [`key`](Cause::key) of its cause.
    #[must_use]
    pub fn cause(&self) -> String {
        key(&self.event_type, &without_values(&self.reason))
    }
}

/// FNV-1a, because it must be the same in every version.
fn key(event_type: &str, reason: &str) -> String {
    let bytes = event_type.bytes().chain([0]).chain(reason.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:012x}", hash >> 16)
}

const VALUE: char = '…';
/// How long a UUID is that is written with hyphens.
const UUID: usize = 36;

/// Replaces what is quoted, and each word with a digit in it.
fn without_values(reason: &str) -> String {
    let mut text = String::with_capacity(reason.len());
    let mut rest = reason;
    while let Some(first) = rest.chars().next() {
        // An apostrophe in a word quotes nothing.
        let begins = !text.ends_with(char::is_alphanumeric);
        let quoted = matches!(first, '`' | '"' | '\'') && begins;
        if quoted && let Some(end) = rest[1..].find(first) {
            text.push(VALUE);
            rest = &rest[end + 2..];
            continue;
        }
        if begins && rest.get(..UUID).is_some_and(|id| Uuid::try_parse(id).is_ok()) {
            text.push(VALUE);
            rest = &rest[UUID..];
            continue;
        }
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        if end == 0 {
            text.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(end);
        if word.contains(|c: char| c.is_ascii_digit()) {
            text.push(VALUE);
        } else {
            text.push_str(word);
        }
        rest = after;
    }
    joined(&text)
}

/// Makes one value of values that hang together, such as the parts of a UUID.
fn joined(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(VALUE) {
        let (before, after) = rest.split_at(at + VALUE.len_utf8());
        joined.push_str(before);
        rest = after;
        while let Some(next) = rest.strip_prefix(['-', '.', ':']).and_then(|next| next.strip_prefix(VALUE)) {
            rest = next;
        }
    }
    joined.push_str(rest);
    joined
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn dead_letter(event_type: &str, reason: &str, failed_at: u64) -> DeadLetter {
        DeadLetter {
            seq: 1,
            id: String::new(),
            aggregate_type: "order".into(),
            aggregate_id: "1".into(),
            event_type: event_type.into(),
            created_at: UNIX_EPOCH,
            reason: reason.into(),
            failed_at: UNIX_EPOCH + Duration::from_secs(failed_at),
        }
    }

    #[test]
    fn numbers_ids_and_quoted_texts_are_no_part_of_a_cause() {
        for (reason, without) in [
            (
                "the topic `shop.order` is not in the relay's allow-list",
                "the topic … is not in the relay's allow-list",
            ),
            ("1000012 bytes are more than message.max.bytes", "… bytes are more than message.max.bytes"),
            ("event 0198c0de-abcd-7000-8000-00000000000a is too large", "event … is too large"),
            ("at 12:30:01.5 it said \"no\" and 'never'", "at … it said … and …"),
            ("an open ` and a last '", "an open ` and a last '"),
            ("", ""),
        ] {
            assert_eq!(without_values(reason), without);
            assert_eq!(without_values(without), without, "{reason}");
        }
    }

    #[test]
    fn dead_letters_are_grouped_by_event_type_and_reason() {
        let letters = [
            dead_letter("Placed", "5 bytes", 7),
            dead_letter("Paid", "5 bytes", 1),
            dead_letter("Placed", "6 bytes", 3),
            dead_letter("Placed", "blocked", 9),
        ];
        let causes = Cause::of_all(&letters);
        let counts: Vec<usize> = causes.iter().map(|cause| cause.dead_letters).collect();
        assert_eq!((counts, &*causes[0].reason), (vec![2, 1, 1], "… bytes"));
        let seconds = |moment: SystemTime| moment.duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!((seconds(causes[0].first_failed_at), seconds(causes[0].last_failed_at)), (3, 7));
        assert!(letters.iter().all(|letter| causes.iter().any(|cause| cause.key == letter.cause())));
        assert_eq!(causes[0].key, letters[2].cause());
        assert_ne!(causes[1].key, causes[2].key);
    }
}
