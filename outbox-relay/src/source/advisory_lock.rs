//! Taking and releasing the advisory locks of an outbox, whose keys are in [`diesel_outbox_core::advisory_locks`]. None of these
//! statements waits.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Integer, Oid};

use crate::statement::statement;

/// Returns the oid of the outbox that the session's `search_path` has. It is the second half of the locks' keys.
pub(super) fn table_oid(conn: &mut PgConnection) -> QueryResult<u32> {
    TableOid::new().get_result(conn)
}

statement!(Pg, TableOid {} -> Oid, "SELECT 'outbox'::regclass::oid");

/// Takes the lock with this key of a table if it is free, and returns whether it was.
macro_rules! try_lock {
    ($table:literal) => {
        concat!("pg_try_advisory_lock(?, ", $table, "::int4)")
    };
}
pub(super) use try_lock;

statement!(
    Pg,
    pub(super) Lock { key: i32 => Integer, table: u32 => Oid } -> Bool,
    concat!("SELECT ", try_lock!("?"))
);

statement!(
    Pg,
    /// Takes the locks of all these tables that are free, and returns those.
    pub(super) LockThoseFree { tables: Vec<u32> => Array<Oid>, key: i32 => Integer } -> Oid,
    concat!("SELECT o FROM pg_catalog.unnest(?) AS o WHERE ", try_lock!("o"))
);

statement!(
    Pg,
    pub(super) LockShared { key: i32 => Integer, table: u32 => Oid } -> Bool,
    "SELECT pg_try_advisory_lock_shared(?, ?::int4)"
);

statement!(
    Pg,
    pub(super) Unlock { key: i32 => Integer, table: u32 => Oid } -> Bool,
    "SELECT pg_advisory_unlock(?, ?::int4)"
);

statement!(
    Pg,
    pub(super) UnlockShared { key: i32 => Integer, table: u32 => Oid } -> Bool,
    "SELECT pg_advisory_unlock_shared(?, ?::int4)"
);
