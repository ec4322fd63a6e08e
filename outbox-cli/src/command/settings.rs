//! Every setting, once. A field is a setting: its name is the key in the file, and the flag and the variable follow from
//! it. `poll_interval` is `--poll-interval` on the command line and `OUTBOX_POLL_INTERVAL` in the environment.

mod values;

use std::cmp::Ordering;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args, Command, ValueEnum};
use diesel_outbox_relay::source::SentRows;
use diesel_outbox_relay::{DeadLetterPolicy, Kafka};

pub(crate) use self::values::{Property, Secret, Time, TopicPattern};
use self::values::{switch, trimmed, whole};
use super::layers::property_key;
use super::log::LogFormat;
use super::origin::{ConfigError, Origin, Origins};

/// What the names of variables begin with.
pub(crate) const PREFIX: &str = "OUTBOX_";

/// The key of the settings that are librdkafka's properties.
pub(crate) const PROPERTIES: &str = "kafka";

/// Settings of every command.
#[derive(Debug, Args)]
pub(crate) struct CommonSettings {
    /// Reads settings from this TOML file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Format of the log lines on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "human")]
    pub(crate) log_format: LogFormat,
    #[command(flatten)]
    pub(crate) database: DatabaseSettings,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Database")]
pub(crate) struct DatabaseSettings {
    /// The database that holds the outbox: a postgres:// or mysql:// URL, or an SQLite file as a path, sqlite:// or file: URL. Prefer
    /// the variable to the flag, because every user of the machine can see a command's arguments. If nothing sets it,
    /// DATABASE_URL is used
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<Secret>,
    /// The schemas that hold the tables (PostgreSQL). A * in a name stands for any characters: tenant_* means each schema whose
    /// name begins with tenant_ and that has the tables. Without this setting, the connection's search_path decides
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = trimmed)]
    pub(crate) schema: Vec<String>,
    /// The databases of the file, if it has several.
    #[arg(skip)]
    pub(crate) databases: Vec<DatabaseTable>,
}

/// A `[[database]]` of the file.
#[derive(Debug, Clone)]
pub(crate) struct DatabaseTable {
    pub(crate) url: Secret,
    /// Where the URL was given.
    pub(crate) origin: Origin,
    /// The schemas, and where they were given.
    pub(crate) schema: Option<(Vec<String>, Origin)>,
}

/// The items of a list that have a text.
pub(crate) fn items(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).filter(|item| !item.is_empty()).collect()
}

/// Settings of the commands that are about the write-ahead log.
#[derive(Debug, Args)]
#[command(next_help_heading = "Write-ahead log (WAL)")]
pub(crate) struct WalSettings {
    /// Replication slot to read. Slot names are unique on a server, so each outbox needs its own
    #[arg(long, value_name = "NAME", default_value = "outbox")]
    pub(crate) slot: String,
    /// Publication with which to read the slot
    #[arg(long, value_name = "NAME", default_value = "outbox")]
    pub(crate) publication: String,
}

/// The setting of the commands that name Kafka's servers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Kafka")]
pub(crate) struct BrokerSettings {
    /// Kafka's addresses
    #[arg(long, value_name = "HOST:PORT,..", value_delimiter = ',', value_parser = trimmed)]
    pub(crate) brokers: Vec<String>,
}

impl BrokerSettings {
    /// The addresses, with commas. There must be one.
    pub(crate) fn list(&self) -> Result<String, ConfigError> {
        let brokers = items(&self.brokers).join(",");
        if brokers.is_empty() {
            return Err(ConfigError::Missing { what: "no broker is named", key: "brokers" });
        }
        Ok(brokers)
    }
}

/// The setting of the commands that name topics.
#[derive(Debug, Args)]
#[command(next_help_heading = "Kafka")]
pub(crate) struct TopicSettings {
    /// How topics are named. {aggregatetype} stands for the event's aggregate type; without it all events go to one topic
    #[arg(long, value_name = "PATTERN", default_value = "outbox.event.{aggregatetype}")]
    pub(crate) topic: TopicPattern,
}

/// Settings of `outbox relay`, which has all that there are.
#[derive(Debug, Args)]
pub(crate) struct RelaySettings {
    #[command(flatten)]
    pub(crate) common: CommonSettings,
    #[command(flatten)]
    pub(crate) kafka: KafkaSettings,
    #[command(flatten)]
    pub(crate) source: SourceSettings,
    #[command(flatten)]
    pub(crate) after: AfterSettings,
    #[command(flatten)]
    pub(crate) work: WorkSettings,
    #[command(flatten)]
    pub(crate) probes: ProbeSettings,
}

/// Settings of the commands that connect to Kafka.
#[derive(Debug, Args)]
#[command(next_help_heading = "Kafka")]
pub(crate) struct ConnectionSettings {
    #[command(flatten)]
    pub(crate) cluster: BrokerSettings,
    /// Sets a property of librdkafka, such as compression.type=lz4. Can be repeated. Put secrets into the environment or the
    /// file: OUTBOX_KAFKA_SASL_PASSWORD sets sasl.password
    #[arg(long = PROPERTIES, id = PROPERTIES, value_name = "NAME=VALUE")]
    pub(crate) properties: Vec<Property>,
}

impl ConnectionSettings {
    /// Kafka with these settings.
    pub(crate) fn kafka(&self, origins: &Origins) -> Result<Kafka, ConfigError> {
        let mut kafka = Kafka::new(self.cluster.list()?);
        for property in &self.properties {
            if ["bootstrap.servers", "metadata.broker.list"].contains(&property.name.as_str()) {
                let origin = origins.of(&property_key(&property.name));
                return Err(origin.wrong("name the brokers with the setting `brokers` instead"));
            }
            kafka = kafka.set(&property.name, property.value.reveal());
        }
        Ok(kafka)
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Kafka")]
pub(crate) struct KafkaSettings {
    #[command(flatten)]
    pub(crate) connection: ConnectionSettings,
    #[command(flatten)]
    pub(crate) topics: TopicSettings,
    /// The only topics that the relay may write to; a name that ends in * allows all topics that begin with the
    /// rest of it. An event for another topic becomes a dead letter. Without this setting all topics are allowed
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = trimmed)]
    pub(crate) allow_topics: Option<Vec<String>>,
    /// Sends an event's own headers after id and eventType. With =false, a record is the same as from Debezium
    #[arg(
        long,
        value_name = "BOOL",
        value_parser = switch,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "true"
    )]
    pub(crate) event_headers: bool,
    #[command(flatten)]
    pub(crate) exactly_once: ExactlyOnceSettings,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Kafka")]
pub(crate) struct ExactlyOnceSettings {
    /// Sends each record exactly once, for consumers that read with isolation.level=read_committed. For PostgreSQL, polled or from
    /// the WAL, MySQL and MariaDB. All relays of the outbox must have it
    #[arg(
        long,
        value_name = "BOOL",
        value_parser = switch,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub(crate) exactly_once: bool,
    /// What precedes the outbox's name in the name of its Kafka transactions, and of the topic for their progress
    #[arg(long, value_name = "PREFIX", default_value = "outbox.progress")]
    pub(crate) exactly_once_prefix: String,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Source")]
pub(crate) struct SourceSettings {
    /// Where events are read: polling reads the table, wal reads PostgreSQL's write-ahead log, after `outbox wal setup`
    #[arg(long, value_name = "SOURCE", value_enum, default_value = "polling")]
    pub(crate) source: ReadFrom,
    /// How often the relay looks at the table if nothing wakes it
    #[arg(long, value_name = "TIME", default_value = "15s")]
    pub(crate) poll_interval: Time,
    #[command(flatten)]
    pub(crate) wal: WalSettings,
    #[command(flatten)]
    pub(crate) reading: WalReadingSettings,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Write-ahead log (WAL)")]
pub(crate) struct WalReadingSettings {
    /// How often the relay confirms to the server what it has sent, at least 1ms. After a crash it sends again what it had
    /// not confirmed
    #[arg(long, value_name = "TIME", default_value = "100ms")]
    pub(crate) confirm_interval: Time,
    /// How many bytes of the WAL the slot may retain before the relay logs a warning
    #[arg(long, value_name = "BYTES", default_value = "1073741824", value_parser = whole::<u64>)]
    pub(crate) slot_size_warning: u64,
}

/// Settings of the commands that need to know which rows are there.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sent rows and dead letters")]
pub(crate) struct RetentionSettings {
    /// How long sent rows stay in the table
    #[arg(long, value_name = "TIME", default_value = "7d")]
    pub(crate) keep_sent: Time,
    /// How many sent rows stay in the table at most, the newest ones. Without this setting, any number does
    #[arg(long, value_name = "NUMBER", value_parser = whole::<u64>)]
    pub(crate) keep_sent_rows: Option<u64>,
    /// Deletes rows as soon as they are sent, instead of keeping them
    #[arg(
        long,
        value_name = "BOOL",
        value_parser = switch,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub(crate) delete_sent: bool,
}

impl RetentionSettings {
    /// Sent rows are kept for a time, or deleted. The setting that was given in the higher layer counts.
    pub(crate) fn sent_rows(&self, origins: &Origins) -> Result<SentRows, ConfigError> {
        let kept = SentRows::Keep { retention: self.keep_sent.0 };
        if !self.delete_sent {
            return Ok(kept);
        }
        let (deleting, keeping) = (origins.of("delete_sent"), origins.of("keep_sent"));
        match deleting.layer.cmp(&keeping.layer) {
            Ordering::Greater => Ok(SentRows::Delete),
            Ordering::Less => Ok(kept),
            Ordering::Equal => Err(ConfigError::Conflict { origin: deleting, other: keeping }),
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sent rows and dead letters")]
pub(crate) struct AfterSettings {
    #[command(flatten)]
    pub(crate) retention: RetentionSettings,
    /// What happens to the later events of an aggregate that has a dead letter: continue sends them, block makes them dead
    /// letters too, until the aggregate is requeued
    #[arg(
        long,
        value_name = "POLICY",
        default_value = "continue",
        value_parser = PossibleValuesParser::new(["continue", "block"]).map(policy)
    )]
    pub(crate) dead_letter_policy: DeadLetterPolicy,
    /// How long dead letters stay, if an event that Kafka has not taken by then may be lost. Not with the policy block. Without this
    /// setting, they stay until they are requeued or dropped
    #[arg(long, value_name = "TIME")]
    pub(crate) keep_dead_letters: Option<Time>,
    /// How many dead letters stay at most, the last ones. Not with the policy block. Without this setting, all do
    #[arg(long, value_name = "NUMBER", value_parser = whole::<u64>)]
    pub(crate) keep_dead_letter_rows: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Workers and limits")]
pub(crate) struct WorkSettings {
    /// How many workers the relay has, 1 to 16 (1 with --source wal). Each is a thread with its own connection and producer. If a
    /// database has several schemas, the default is 2
    #[arg(long, value_name = "NUMBER", default_value = "1", value_parser = whole::<usize>)]
    pub(crate) workers: usize,
    /// How many records are read and settled at once, 1 to 100,000
    #[arg(long, value_name = "NUMBER", default_value = "2000", value_parser = whole::<usize>)]
    pub(crate) batch_size: usize,
    /// How many records may wait for Kafka's acknowledgement at once, 1 to 1,000,000
    #[arg(long, value_name = "NUMBER", default_value = "8000", value_parser = whole::<usize>)]
    pub(crate) max_in_flight: usize,
    /// How many bytes of payloads and headers a worker may hold, read and unacknowledged together, at least 16777216
    #[arg(long, value_name = "BYTES", default_value = "67108864", value_parser = whole::<usize>)]
    pub(crate) max_in_flight_bytes: usize,
    /// How many records are sent in a second at most, 1 to 10,000,000, so that a backlog does not take what others of the database need.
    /// Without it, as many as the relay can
    #[arg(long, value_name = "NUMBER", value_parser = whole::<u32>)]
    pub(crate) max_rate: Option<u32>,
    /// How long a pass keeps reading before it commits what it has settled
    #[arg(long, value_name = "TIME", default_value = "500ms")]
    pub(crate) max_pass_duration: Time,
    /// How long the relay waits without an acknowledgement from Kafka before it gives up the pass and tries again, 1s to 20s
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub(crate) stall_timeout: Time,
    /// How long a graceful stop may take. What is in flight after that may be sent again
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) shutdown_timeout: Time,
    /// How often the relay measures the lag and logs it
    #[arg(long, value_name = "TIME", default_value = "15s")]
    pub(crate) lag_interval: Time,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Metrics and probes")]
pub(crate) struct ProbeSettings {
    /// Serves the status page, /metrics, /healthz and /readyz by HTTP at this address, such as 127.0.0.1:9464. There is no access
    /// control. Without this setting, nothing is served
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// How long the relay may make no progress while something waits before /readyz reports that it is not ready
    #[arg(long, value_name = "TIME", default_value = "1m")]
    pub(crate) ready_timeout: Time,
    #[command(flatten)]
    pub(crate) status: StatusSettings,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Status page")]
pub(crate) struct StatusSettings {
    /// Serves the status page at --listen. Without this setting it is served if only this machine can reach that address
    #[arg(
        long,
        value_name = "BOOL",
        value_parser = switch,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(crate) status_page: Option<bool>,
    /// Names, besides localhost and addresses in numbers, under which browsers may ask for the status page
    #[arg(long, value_name = "HOST,..", value_delimiter = ',', value_parser = trimmed)]
    pub(crate) status_hosts: Vec<String>,
    /// Lets whoever has this token requeue and drop dead letters on the status page. Only the variable and the file of settings may have it,
    /// because every user of the machine can see a command's arguments
    #[arg(long, value_name = "TOKEN", hide = true)]
    pub(crate) status_token: Option<Secret>,
    /// Lets whoever has the token in this file requeue and drop dead letters on the status page. The variable OUTBOX_STATUS_TOKEN may have the
    /// token itself. Without both, nobody can
    #[arg(long, value_name = "FILE")]
    pub(crate) status_token_file: Option<PathBuf>,
    /// Shows the payloads and headers of dead letters on the status page
    #[arg(
        long,
        value_name = "BOOL",
        value_parser = switch,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub(crate) status_payloads: bool,
}

/// What the relay reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReadFrom {
    Polling,
    Wal,
}

fn policy(text: String) -> DeadLetterPolicy {
    if text == "block" { DeadLetterPolicy::Block } else { DeadLetterPolicy::Continue }
}

/// All settings, in the order of the help.
pub(crate) fn all() -> Vec<Arg> {
    let relay = RelaySettings::augment_args(Command::new("outbox"));
    relay.get_arguments().filter(|argument| argument.get_id() != "config").cloned().collect()
}

/// The flag of the setting with this key.
pub(crate) fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// The variable of the setting with this key.
pub(crate) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase())
}

#[cfg(test)]
mod tests;
