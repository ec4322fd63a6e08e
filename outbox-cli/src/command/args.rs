//! The command line.

use std::path::PathBuf;

#[cfg(any(feature = "mysql", feature = "postgres"))]
use clap::value_parser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::dead_letters::{Listing, Which};
#[cfg(any(feature = "mysql", feature = "postgres"))]
use super::debezium::{Format, connector_name};
use super::explain::ExplainSettings;
use super::prune::PruneSettings;
use super::replay::ReplaySettings;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use super::settings::BrokerSettings;
use super::settings::{CommonSettings, RelaySettings, Time, TopicSettings, WalSettings};
use super::verify::VerifySettings;

/// Brings the events of a transactional outbox to Kafka
#[derive(Debug, Parser)]
#[command(
    name = "outbox",
    version,
    arg_required_else_help = true,
    after_help = "Settings come from the command line, then the environment, then the file that --config names.\n\
                  Exit codes: 0 success, 1 failure, 2 usage error, 130 or 143 ended by a second signal."
)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) action: Action,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Creates the tables, or brings them up to date
    Migrate {
        /// Creates only the table inbox, for a service that consumes and does not emit
        #[arg(long)]
        inbox_only: bool,
        #[command(flatten)]
        roles: RoleSettings,
        #[command(flatten)]
        common: CommonSettings,
    },
    /// Sends events to Kafka until SIGTERM or SIGINT stops it
    Relay(Box<RelaySettings>),
    /// Prints the state of the outbox: lag, rates, relays and their shards, the slot, and dead letters by cause
    Status {
        /// Looks again and again, every 2s or after this time, such as --watch=5s, until Ctrl-C. Then it shows rates, too
        #[arg(
            long,
            value_name = "TIME",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "2s"
        )]
        watch: Option<Time>,
        /// Prints JSON, one line for each look
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        common: CommonSettings,
    },
    /// Prints how many events wait to be sent, and how old the oldest is
    Lag {
        /// Prints JSON
        #[arg(long)]
        json: bool,
        /// Prints how many events wait for each topic, or in each shard, instead
        #[arg(long, value_name = "WHAT", value_enum)]
        by: Option<LagBy>,
        #[command(flatten)]
        common: CommonSettings,
        #[command(flatten)]
        topics: TopicSettings,
    },
    /// Lists the events that Kafka will never accept, and why
    #[command(args_conflicts_with_subcommands = true)]
    DeadLetters {
        #[command(subcommand)]
        action: Option<DeadLetterAction>,
        #[command(flatten)]
        listing: Listing,
        #[command(flatten)]
        common: CommonSettings,
    },
    /// Puts dead letters back into the outbox, at their old places in the order; at the end if the WAL is read
    Requeue {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        common: CommonSettings,
    },
    /// Prints how many events are scheduled, and when the next is due
    Scheduled {
        /// First moves those that are due into the outbox, as a relay does by itself
        #[arg(long)]
        promote: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        common: CommonSettings,
    },
    /// Deletes what has expired, as a relay does by itself: sent events, or dead letters and ids in the inbox
    #[command(
        after_help = "Without --older-than and --keep, what the relay's settings let expire. It never deletes an event that was not sent.\n\
                      To go on after an interruption, run it again."
    )]
    Prune(Box<PruneSettings>),
    /// Sends events again that were sent and are kept, under the same ids
    Replay(Box<ReplaySettings>),
    /// Compares the outbox with what Kafka has: lost, phantom, duplicated and out of order
    Verify(Box<VerifySettings>),
    /// Prints where an event is, why, and what to do
    #[command(
        after_help = "Give it the settings of the relay. It changes nothing. With --brokers, it looks for the event on Kafka too.\n\
                      Exit codes: 0 if the event was sent or is on its way, 3 if it is a dead letter or blocked by one, 4 if it is in no\n\
                      table, 1 failure, 2 usage error."
    )]
    Explain(Box<ExplainSettings>),
    /// Looks for everything that can go wrong, before it does, and prints what to do
    #[command(
        after_help = "Give it the settings of the relay. It changes nothing. Each line is ok, warn or FAIL.\n\
                      Exit codes: 0 if no line is FAIL, 1 if one is or the database cannot be reached, 2 usage error."
    )]
    Doctor {
        /// Prints JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: Box<RelaySettings>,
    },
    /// Prepares PostgreSQL for a relay that reads the write-ahead log (WAL)
    #[command(subcommand, arg_required_else_help = true)]
    Wal(WalAction),
    /// Prints what a shell needs to complete commands and flags
    Completions {
        /// The shell
        shell: Shell,
        #[command(flatten)]
        common: CommonSettings,
    },
    /// Writes man pages, one for each command
    Man {
        /// The folder for them, such as /usr/local/share/man/man1
        folder: PathBuf,
        #[command(flatten)]
        common: CommonSettings,
    },
    /// Prepares Debezium to relay the outbox instead (PostgreSQL, MySQL, MariaDB)
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    #[command(subcommand, arg_required_else_help = true)]
    Debezium(DebeziumAction),
}

impl Action {
    pub(crate) fn common(&self) -> &CommonSettings {
        match self {
            Self::Prune(settings) => &settings.common,
            Self::Replay(settings) => &settings.common,
            Self::Verify(settings) => &settings.common,
            Self::Explain(settings) => &settings.common,
            Self::Relay(settings) | Self::Doctor { settings, .. } => &settings.common,
            Self::Migrate { common, .. }
            | Self::Status { common, .. }
            | Self::Lag { common, .. }
            | Self::DeadLetters { action: Some(DeadLetterAction::Drop { common, .. }), .. }
            | Self::DeadLetters { action: None, common, .. }
            | Self::Requeue { common, .. }
            | Self::Completions { common, .. }
            | Self::Man { common, .. }
            | Self::Scheduled { common, .. }
            | Self::Wal(WalAction::Setup { common, .. } | WalAction::Drop { common, .. }) => common,
            #[cfg(any(feature = "mysql", feature = "postgres"))]
            Self::Debezium(action) => action.common(),
        }
    }

    pub(crate) fn common_mut(&mut self) -> &mut CommonSettings {
        match self {
            Self::Prune(settings) => &mut settings.common,
            Self::Replay(settings) => &mut settings.common,
            Self::Verify(settings) => &mut settings.common,
            Self::Explain(settings) => &mut settings.common,
            Self::Relay(settings) | Self::Doctor { settings, .. } => &mut settings.common,
            Self::Migrate { common, .. }
            | Self::Status { common, .. }
            | Self::Lag { common, .. }
            | Self::DeadLetters { action: Some(DeadLetterAction::Drop { common, .. }), .. }
            | Self::DeadLetters { action: None, common, .. }
            | Self::Requeue { common, .. }
            | Self::Completions { common, .. }
            | Self::Man { common, .. }
            | Self::Scheduled { common, .. }
            | Self::Wal(WalAction::Setup { common, .. } | WalAction::Drop { common, .. }) => common,
            #[cfg(any(feature = "mysql", feature = "postgres"))]
            Self::Debezium(
                DebeziumAction::Connector { common, .. }
                | DebeziumAction::SetupSql { common, .. }
                | DebeziumAction::Check { common, .. }
                | DebeziumAction::Offset { common, .. },
            ) => common,
        }
    }
}

/// What the lag is split by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LagBy {
    Topic,
    Shard,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetterAction {
    /// Deletes dead letters for good: their events are lost
    Drop {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        common: CommonSettings,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum WalAction {
    /// Makes the publication and the replication slot: later events are read from the WAL, earlier ones are polled
    Setup {
        #[command(flatten)]
        common: CommonSettings,
        #[command(flatten)]
        wal: WalSettings,
    },
    /// Drops the slot and the publication, so that all events are polled again. Stop the relays that read the WAL first
    Drop {
        #[command(flatten)]
        common: CommonSettings,
        #[command(flatten)]
        wal: WalSettings,
    },
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
#[derive(Debug, Subcommand)]
pub(crate) enum DebeziumAction {
    /// Prints the connector's configuration, without the database's password
    Connector {
        /// The connector's name, and the topic.prefix of its offsets and its heartbeats
        #[arg(long, value_name = "NAME", value_parser = connector_name, default_value = "outbox")]
        name: String,
        /// json, to be posted to Connect, or properties, for a standalone worker
        #[arg(long, value_name = "FORMAT", value_enum, default_value = "json")]
        format: Format,
        /// Under which number the connector reads the binlog (MySQL, MariaDB). No server and no replica may have the same. Without it,
        /// the number follows from the names of the connector and the database
        #[arg(long, value_name = "NUMBER", value_parser = value_parser!(u32).range(1..))]
        server_id: Option<u32>,
        #[command(flatten)]
        common: CommonSettings,
        #[command(flatten)]
        wal: WalSettings,
        #[command(flatten)]
        brokers: BrokerSettings,
        #[command(flatten)]
        topics: TopicSettings,
    },
    /// Prints the SQL that an administrator runs first
    SetupSql {
        #[command(flatten)]
        common: CommonSettings,
        #[command(flatten)]
        wal: WalSettings,
    },
    /// Checks that Debezium can start, and prints what to do if it cannot
    Check {
        #[command(flatten)]
        common: CommonSettings,
        #[command(flatten)]
        wal: WalSettings,
    },
    /// Prints where the binlog ends now, as the offset at which the connector is to begin (MySQL, MariaDB)
    Offset {
        /// The connector's name
        #[arg(long, value_name = "NAME", value_parser = connector_name, default_value = "outbox")]
        name: String,
        #[command(flatten)]
        common: CommonSettings,
    },
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
impl DebeziumAction {
    pub(crate) fn common(&self) -> &CommonSettings {
        match self {
            Self::Connector { common, .. }
            | Self::SetupSql { common, .. }
            | Self::Check { common, .. }
            | Self::Offset { common, .. } => common,
        }
    }
}

/// Which roles get which grants. An empty name leaves a role out.
#[derive(Debug, Args)]
#[command(next_help_heading = "Roles")]
pub(crate) struct RoleSettings {
    /// Then makes the roles that are missing, as groups that cannot log in, and grants each what it needs and no more. Connect as an
    /// administrator, and run this again after each new migration
    #[arg(long)]
    pub(crate) roles: bool,
    /// Prints the statements of --roles, and changes nothing
    #[arg(long, requires = "roles")]
    pub(crate) print: bool,
    /// Role of services that emit
    #[arg(long, value_name = "NAME", requires = "roles", default_value = "outbox_emitter")]
    pub(crate) emitter_role: String,
    /// Role of relays
    #[arg(long, value_name = "NAME", requires = "roles", default_value = "outbox_relay")]
    pub(crate) relay_role: String,
    /// Role of consumers
    #[arg(long, value_name = "NAME", requires = "roles", default_value = "outbox_consumer")]
    pub(crate) consumer_role: String,
    /// Role of whoever migrates and requeues dead letters. On PostgreSQL it becomes the owner of the tables
    #[arg(long, value_name = "NAME", requires = "roles", default_value = "outbox_migrator")]
    pub(crate) migrator_role: String,
}

/// Which dead letters are meant.
#[cfg(test)]
mod tests;
