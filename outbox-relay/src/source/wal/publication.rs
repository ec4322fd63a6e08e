//! The publication with which the slot is read. While it does not have all inserts, the WAL shows nothing of them and does not say
//! so. So it must always be the same one, unchanged.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_outbox_core::SourceError;

use super::error::RESENDS;
use super::options::WalOptions;
use crate::source::database_error;
use crate::statement::statement;

/// Returns whether the publication has all inserts into the outbox.
pub(super) fn is_whole(conn: &mut PgConnection, name: &str) -> QueryResult<bool> {
    look(conn, "", name).map(|(is_whole, _)| is_whole)
}

/// Returns whether the publication has all inserts now, and was not changed since [`note`].
pub(super) fn is_same(conn: &mut PgConnection, options: &WalOptions) -> QueryResult<bool> {
    look(conn, &options.slot, &options.publication).map(|(_, is_same)| is_same)
}

/// Notes which publication the slot is read with from here on. Nobody inserts meanwhile.
pub(super) fn note(conn: &mut PgConnection, slot: &str, name: &str) -> QueryResult<()> {
    Note::new(name.to_owned(), slot.to_owned()).execute(conn).map(drop)
}

/// Returns an error unless it is the same. If it is, everything that was committed by now came with the publication that was noted.
pub(super) fn check(conn: &mut PgConnection, options: &WalOptions) -> Result<(), SourceError> {
    let (slot, name) = (&options.slot, &options.publication);
    let (is_whole, is_same) =
        look(conn, slot, name).map_err(|error| database_error("looking for the publication", error))?;
    if is_same {
        return Ok(());
    }
    let what = if is_whole {
        format!(
            "the publication `{name}` is not the one that the slot `{slot}` was set up with: somebody has changed it or made it anew"
        )
    } else {
        format!(
            "the publication `{name}` is gone, or no longer has all inserts into the table outbox with all columns that a relay reads"
        )
    };
    Err(SourceError::permanent(format!(
        "{what}. The write-ahead log does not show the events that were emitted meanwhile, but the table has them: stop the relays that \
         stand by, and run `{}` and then `{}`. {RESENDS}",
        options.command("drop", slot),
        options.command("setup", slot)
    )))
}

/// Returns the publication that the slot was set up with, if it exists under another name than this.
pub(super) fn other(conn: &mut PgConnection, slot: &str, name: &str) -> QueryResult<Option<String>> {
    Other::new(slot.to_owned(), name.to_owned()).get_result(conn).optional()
}

fn look(conn: &mut PgConnection, slot: &str, name: &str) -> QueryResult<(bool, bool)> {
    Look::new(name.to_owned(), slot.to_owned()).get_result(conn)
}

/// An identity that any change of the publication changes, even if somebody takes the change back, because its rows in the catalog are
/// other rows then. Null if it does not have all inserts with what a relay reads of them; from PostgreSQL 15 on it can have a filter
/// (`prqual`), and a list of columns (`prattrs`).
macro_rules! identity {
    () => {
        "(SELECT pg_catalog.concat_ws(' ', p.oid, p.xmin, r.oid, r.xmin) FROM pg_publication AS p \
         LEFT JOIN pg_publication_rel AS r ON r.prpubid = p.oid AND r.prrelid = 'outbox'::regclass::oid \
         WHERE p.pubname = ? AND p.pubinsert \
         AND (p.puballtables OR r.oid IS NOT NULL AND pg_catalog.jsonb_object_field_text(pg_catalog.to_jsonb(r), 'prqual') IS NULL \
         AND (pg_catalog.jsonb_object_field_text(pg_catalog.to_jsonb(r), 'prattrs') IS NULL OR NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = 'outbox'::regclass::oid \
         AND a.attname IN ('seq', 'id', 'aggregatetype', 'aggregateid', 'type', 'payload', 'headers', 'created_at') \
         AND a.attnum::text <> ALL (string_to_array(translate(pg_catalog.jsonb_object_field_text(pg_catalog.to_jsonb(r), 'prattrs'), '[],', ''), ' '))))))"
    };
}

statement!(
    Pg,
    Look { name: String => Text, slot: String => Text } -> (Bool, Bool),
    concat!(
        "SELECT now.identity IS NOT NULL, coalesce(now.identity = o.publication, false) FROM (SELECT ",
        identity!(),
        " AS identity) AS now LEFT JOIN outbox_slot AS o ON o.slot = ?"
    )
);

statement!(
    Pg,
    Other { slot: String => Text, name: String => Text } -> Text,
    "SELECT p.pubname::text FROM pg_publication AS p JOIN outbox_slot AS o ON split_part(o.publication, ' ', 1) = p.oid::text \
     WHERE o.slot = ? AND p.pubname <> ?"
);

statement!(
    Pg,
    Note { name: String => Text, slot: String => Text } -> BigInt,
    concat!("UPDATE outbox_slot SET publication = ", identity!(), " WHERE slot = ?")
);
