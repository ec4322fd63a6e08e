//! How a connector's properties are written.

use std::fmt::Write;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::command::failure::Failure;
use crate::command::output::{print, say};

/// Names and values, in the order in which people read them.
pub(super) type Properties = Vec<(&'static str, String)>;

/// How they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    // The body of a request that makes a connector.
    Json,
    // A file for a standalone worker.
    Properties,
}

/// Whether the connector runs as soon as it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InitialState {
    Running,
    Stopped,
}

impl Format {
    pub(super) fn print(
        self,
        name: &str,
        properties: &Properties,
        notes: &[String],
        state: InitialState,
    ) -> Result<(), Failure> {
        // JSON has no place for notes.
        if self == Self::Json {
            notes.iter().for_each(|note| say(note));
        }
        print(&self.text(name, properties, notes, state))
    }

    fn text(self, name: &str, properties: &Properties, notes: &[String], state: InitialState) -> String {
        match self {
            Self::Json => json(name, properties, state),
            Self::Properties => file(name, properties, notes),
        }
    }
}

fn json(name: &str, properties: &Properties, state: InitialState) -> String {
    let config: Map<String, Value> =
        properties.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let connector = match state {
        InitialState::Running => json!({ "name": name, "config": config }),
        InitialState::Stopped => json!({ "name": name, "initial_state": "STOPPED", "config": config }),
    };
    format!("{connector:#}\n")
}

fn file(name: &str, properties: &Properties, notes: &[String]) -> String {
    let mut text: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    for (name, value) in [("name", name)].into_iter().chain(properties.iter().map(|(n, v)| (*n, v.as_str())))
    {
        let _ = writeln!(text, "{name}={}", escaped(value));
    }
    text
}

/// The value as Java reads it: a backslash escapes, and characters beyond ASCII are written by their code.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for (place, character) in value.char_indices() {
        match character {
            '\\' => text.push_str("\\\\"),
            ' ' if place == 0 => text.push_str("\\ "),
            ' '..='~' => text.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_by_java_as_it_was() {
        for (value, written) in [
            ("a b=c:#d", "a b=c:#d"),
            (" x", "\\ x"),
            ("a\\.b", "a\\\\.b"),
            ("ü\n😀", "\\u00fc\\u000a\\ud83d\\ude00"),
        ] {
            assert_eq!(escaped(value), written);
        }
    }

    #[test]
    fn both_formats_have_the_name_and_every_property() {
        let properties = vec![("tasks.max", "1".to_owned()), ("x", "\"".to_owned())];
        let notes = ["Mind this.".to_owned()];
        let json = |state| -> Value {
            serde_json::from_str(&Format::Json.text("shop", &properties, &notes, state)).expect("JSON")
        };
        let config = json!({ "tasks.max": "1", "x": "\"" });
        assert_eq!(json(InitialState::Running), json!({ "name": "shop", "config": config }));
        let stopped = json!({ "name": "shop", "initial_state": "STOPPED", "config": config });
        assert_eq!(json(InitialState::Stopped), stopped);
        let text = Format::Properties.text("shop", &properties, &notes, InitialState::Stopped);
        assert_eq!(text, "# Mind this.\nname=shop\ntasks.max=1\nx=\"\n");
    }
}
