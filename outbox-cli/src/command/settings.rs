//! Every setting, once. Its names follow from its key: `poll_interval` in the file, `--poll-interval` on the command
//! line, `OUTBOX_POLL_INTERVAL` in the environment.

/// One setting.
pub(crate) struct Setting {
    /// Its key in the file, from which its other names follow.
    pub(crate) key: &'static str,
    pub(crate) shape: Shape,
    pub(crate) scope: Scope,
    /// What stands for its value in the help.
    pub(crate) value: &'static str,
    pub(crate) help: &'static str,
    /// What it is where it is not set, as it would be written; empty where there is no such text.
    pub(crate) default: &'static str,
}

/// How a value is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One text or number.
    One,
    /// Yes or no.
    Switch,
    /// Any number of texts.
    List,
    /// Any number of names with values.
    Properties,
}

/// Which commands have it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Every,
    /// Those that are about the write-ahead log.
    Wal,
    /// Those that say where events go, too.
    Topic,
    Relay,
}

impl Setting {
    pub(crate) fn flag(&self) -> String {
        format!("--{}", self.key.replace('_', "-"))
    }

    pub(crate) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.key.to_uppercase())
    }
}

/// What the names of the environment's variables begin with.
pub(crate) const PREFIX: &str = "OUTBOX_";

/// The setting with this key.
pub(crate) fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

const fn every(key: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { key, shape: Shape::One, scope: Scope::Every, value, help, default }
}

const fn wal(key: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { key, shape: Shape::One, scope: Scope::Wal, value, help, default }
}

const fn relay(key: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { key, shape: Shape::One, scope: Scope::Relay, value, help, default }
}

impl Setting {
    const fn shaped(self, shape: Shape) -> Self {
        Self { shape, ..self }
    }

    const fn scoped(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }
}

/// All of them, in the order of the help.
pub(crate) const SETTINGS: [Setting; 25] = [
    every(
        "database_url",
        "URL",
        "",
        "The database that holds the outbox: a postgres:// URL, or an SQLite file as a path, sqlite:// or file: URL. \
         Prefer the environment: arguments are seen by everybody on the machine. Where nothing else names a database, \
         DATABASE_URL does",
    ),
    every("schema", "NAME", "", "The schema that holds the tables (PostgreSQL); else the connection's search_path"),
    every("log_format", "FORMAT", "human", "How log lines are written to standard error: human or json"),
    wal("slot", "NAME", "outbox", "The replication slot that is read (source wal, Debezium); its name is unique on the server"),
    wal("publication", "NAME", "outbox", "The publication that the slot is read with (source wal, Debezium)"),
    relay(
        "source",
        "SOURCE",
        "polling",
        "Where events are read: polling (the table) or wal (PostgreSQL's write-ahead log, after `outbox wal setup`)",
    ),
    relay(
        "confirm_interval",
        "TIME",
        "100ms",
        "How often what was sent is confirmed to the server, at least 1ms (source wal). What was not confirmed is sent again \
         after a crash",
    ),
    relay(
        "retained_warning",
        "BYTES",
        "1073741824",
        "A warning is logged where the slot retains more of the write-ahead log than this (source wal)",
    ),
    relay("brokers", "HOST:PORT,..", "", "Kafka's addresses").shaped(Shape::List),
    relay(
        "kafka",
        "NAME=VALUE",
        "",
        "A property of librdkafka, such as compression.type=lz4; any number of times. Give secrets by the environment \
         or the file: OUTBOX_KAFKA_SASL_PASSWORD sets sasl.password",
    )
    .shaped(Shape::Properties),
    relay(
        "topic",
        "PATTERN",
        "outbox.event.{aggregatetype}",
        "How topics are named; {aggregatetype} stands for the record's aggregate type",
    )
    .scoped(Scope::Topic),
    relay(
        "allow_topics",
        "NAME,..",
        "",
        "The only topics that may be written to, where given; a name that ends in * allows all that begin so. Records \
         for other topics become dead letters",
    )
    .shaped(Shape::List),
    relay(
        "own_headers",
        "BOOL",
        "true",
        "Sends an event's own headers after id and eventType; with =false a record is what Debezium makes of it",
    )
    .shaped(Shape::Switch),
    relay(
        "workers",
        "NUMBER",
        "1",
        "How many workers, each a thread with a connection and a producer of its own, 1 to 16 (source polling)",
    ),
    relay("retention", "TIME", "7d", "How long sent rows are kept"),
    relay("delete_sent", "BOOL", "false", "Deletes rows as soon as they are sent, instead of keeping them")
        .shaped(Shape::Switch),
    relay(
        "dead_letter_policy",
        "POLICY",
        "go-on",
        "What happens to the later records of an aggregate that has a dead letter: go-on (they are sent) or block (they \
         join the dead letters until the aggregate is requeued)",
    ),
    relay("poll_interval", "TIME", "15s", "How often a relay that is not notified looks at the table"),
    relay("lag_interval", "TIME", "15s", "How often the lag is measured and logged"),
    relay("chunk", "NUMBER", "2000", "How many records are read and settled at once, 1 to 100,000"),
    relay("in_flight", "NUMBER", "8000", "How many records may be unacknowledged at once, 1 to 1,000,000"),
    relay(
        "in_flight_bytes",
        "BYTES",
        "67108864",
        "How many bytes of payloads and headers a worker may hold, read and unacknowledged together, at least 16777216",
    ),
    relay("pass_time", "TIME", "500ms", "How long a pass goes on reading before it commits what it settled"),
    relay(
        "stall_time",
        "TIME",
        "5s",
        "How long the broker may acknowledge nothing before the pass is given up, 1s to 20s",
    ),
    relay("stop_time", "TIME", "30s", "How long a graceful stop may take"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_tells_every_setting() {
        let readme = include_str!("../../README.md");
        for setting in &SETTINGS {
            let row = readme.lines().find(|line| line.contains(&format!("| `{}", setting.flag())));
            let row = row.unwrap_or_else(|| panic!("no row for {}", setting.key));
            assert!(row.contains(&format!("`{}", setting.variable())), "{row}");
            assert!(row.contains(setting.key) && row.contains(setting.default), "{row}");
        }
    }
}
