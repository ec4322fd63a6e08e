use diesel::result::Error as DieselError;
use diesel_outbox_core::__private::one_line;

/// What follows from a new slot. It stands in each error that advises one.
pub(super) const RESENDS: &str = "The relay then sends every event in the table that is not known to have been sent, some of them \
                                  perhaps twice; it cannot send an event whose row the service deleted unsent";

/// Why [`setup`](super::setup()) or [`drop`](super::drop()) failed. Relays go on as before. Run it again when the reason is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// The server does not write enough into its WAL.
    #[error(
        "the server's wal_level is `{level}`: run ALTER SYSTEM SET wal_level = 'logical' and restart the server (on a \
         managed server its logical replication setting)"
    )]
    Level {
        /// The setting `wal_level`.
        level: String,
    },
    /// The connections go through a pooler that gives them another session for each transaction.
    #[error("{0}")]
    Pooler(String),
    /// A relay reads the slot.
    #[error("a relay reads the write-ahead log: stop it, and those that stand by; then run this again")]
    Active,
    /// The outbox is read from the WAL already.
    #[error(
        "the outbox is read from the slot `{slot}` already, which is confirmed up to {confirmed}: start relays with `--source wal`"
    )]
    Exists {
        /// The slot.
        slot: String,
        /// Up to where it is confirmed.
        confirmed: String,
    },
    /// A slot of that name belongs to somebody else, such as the database that this one is a copy of.
    #[error(
        "the replication slot `{slot}` belongs to another outbox or another database, or is of another kind: run \
         `{command}` and start relays with `--slot {free}`"
    )]
    Taken {
        /// The slot.
        slot: String,
        /// A name that no slot has.
        free: String,
        /// The command with that name.
        command: String,
    },
    /// The outbox is read from another slot.
    #[error("this outbox is read from the slot `{slot}`: run `{command}`")]
    OtherSlot {
        /// The other slot.
        slot: String,
        /// The command with its name.
        command: String,
    },
    /// The outbox is read from no slot, and the slot of that name belongs to somebody else.
    #[error(
        "the whole outbox is polled, and the replication slot `{slot}` does not belong to it: there is nothing to drop"
    )]
    NothingToDrop {
        /// The slot.
        slot: String,
    },
    /// The slot is read with another publication.
    #[error(
        "the slot `{slot}` is read with the publication `{publication}`: run this again with `--publication {publication}`"
    )]
    OtherPublication {
        /// The slot.
        slot: String,
        /// The other publication.
        publication: String,
    },
    /// A publication of that name exists, but does not have all inserts into the outbox, or not all columns that a relay reads.
    #[error(
        "the publication `{publication}` does not have all inserts into the table outbox with all columns that a relay reads: {advice}"
    )]
    Publication {
        /// The publication.
        publication: String,
        /// What to do, and what that costs.
        advice: String,
    },
    /// Some events are in the WAL only, because their rows were deleted.
    #[error(
        "{count} events are only in the WAL, because their rows were deleted: let a relay send them, and then run `outbox wal drop` again"
    )]
    OnlyInWal {
        /// How many events those are.
        count: usize,
    },
    /// The table outbox is not as it must be, or the WAL cannot be decoded.
    #[error("{0}")]
    Unusable(String),
    /// The database refused.
    #[error("the database refused: {}", one_line(&.0.to_string()))]
    Database(#[from] DieselError),
}
