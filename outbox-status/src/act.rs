//! Requeue and drop, for whoever has the token.

use diesel_outbox_relay::operate::{DeadLetter, DeadLetterFilter, Requeue};

use crate::look::Watched;
use crate::text::in_one_line;

/// Among how many dead letters, the oldest ones, a cause is looked for. The page shows causes of fewer.
pub(crate) const MOST: usize = 10_000;

/// What to do with which dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Action {
    pub(crate) is_drop: bool,
    pub(crate) which: Which,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Which {
    /// All with the cause that has this key.
    Cause(String),
    /// The one with this number and this id.
    One(i64, String),
}

impl Which {
    /// As a button has it.
    pub(crate) fn value(&self) -> String {
        match self {
            Self::Cause(key) => format!("cause:{key}"),
            Self::One(seq, id) => format!("one:{seq}:{id}"),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "cause" => Some(Self::Cause(rest.to_owned())),
            "one" => {
                let (seq, id) = rest.split_once(':')?;
                Some(Self::One(seq.parse().ok()?, id.to_owned()))
            }
            _ => None,
        }
    }
}

/// The fields of the form.
pub(crate) struct Asked<'a>(pub(crate) &'a [(String, String)]);

impl Asked<'_> {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// Returns what is to be done, or what is wrong with it. What is to be dropped must have been confirmed.
    pub(crate) fn action(&self) -> Result<Action, &'static str> {
        let (value, is_drop) = match (self.field("requeue"), self.field("drop")) {
            (Some(value), None) => (value, false),
            (None, Some(value)) => (value, true),
            _ => return Err("Nothing was asked for."),
        };
        let which = Which::read(value).ok_or("It is not clear which dead letters are meant.")?;
        if is_drop && !self.0.iter().any(|(field, confirmed)| field == "confirm" && confirmed == value) {
            return Err("Nothing was dropped: confirm first that the events may be lost.");
        }
        Ok(Action { is_drop, which })
    }
}

/// What was done.
pub(crate) struct Done {
    pub(crate) count: usize,
    /// Whether there may be more of the cause, behind the dead letters among which it was looked for.
    pub(crate) may_be_more: bool,
}

/// Does it.
pub(crate) fn act(watched: &Watched, Action { is_drop, which }: &Action) -> Result<Done, String> {
    let done = watched.with(false, |conn| {
        let (chosen, may_be_more) = match which {
            Which::One(seq, id) => (Requeue::These(vec![(*seq, id.clone())]), false),
            Which::Cause(key) => of_cause(&conn.dead_letters(MOST as i64 + 1)?, key),
        };
        let count = if *is_drop { conn.drop_dead_letters(&chosen)? } else { conn.requeue(&chosen)? };
        Ok(Done { count, may_be_more })
    });
    watched.forget();
    done.map_err(|error| in_one_line(&*error))
}

/// Chooses those with this cause among the first ones, and returns whether there are others.
fn of_cause(letters: &[DeadLetter], key: &str) -> (Requeue, bool) {
    let filter = DeadLetterFilter::default().cause(key);
    let chosen = letters.iter().take(MOST).filter(|letter| filter.matches(letter)).collect();
    (chosen, letters.len() > MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(fields: &[(&str, &str)]) -> Result<Action, &'static str> {
        let fields: Vec<(String, String)> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Asked(&fields).action()
    }

    #[test]
    fn a_drop_must_be_confirmed_for_just_these_dead_letters() {
        let which = Which::Cause("0123456789ab".to_owned());
        let requeue = action(&[("requeue", "cause:0123456789ab")]);
        assert_eq!(requeue, Ok(Action { is_drop: false, which: which.clone() }));
        let drop = ("drop", "cause:0123456789ab");
        assert!(action(&[drop]).is_err());
        assert!(action(&[drop, ("confirm", "cause:ab9876543210")]).is_err());
        let confirmed = action(&[("confirm", "one:1:a"), drop, ("confirm", "cause:0123456789ab")]);
        assert_eq!(confirmed, Ok(Action { is_drop: true, which }));
    }

    #[test]
    fn one_dead_letter_is_named_by_its_number_and_its_id_which_may_be_any_text() {
        for id in ["0198c0de-0000-7000-8000-000000000001", "a:b", ""] {
            let which = Which::One(-7, id.to_owned());
            assert_eq!(Which::read(&which.value()), Some(which));
        }
        for wrong in ["", "one", "one:x:y", "all:", "cause"] {
            assert_eq!(Which::read(wrong), None, "{wrong}");
        }
    }
}
