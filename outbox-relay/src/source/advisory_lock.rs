//! Taking and releasing advisory locks, whose keys are in [`diesel_outbox_core::advisory_locks`]. None of these statements waits.

use diesel::pg::Pg;
use diesel::sql_types::{Bool, Integer};

use crate::statement::statement;

statement!(
    Pg,
    pub(super) Lock { key: i32 => Integer } -> Bool,
    "SELECT pg_try_advisory_lock(?, 'outbox'::regclass::oid::int4)"
);

statement!(
    Pg,
    pub(super) LockShared { key: i32 => Integer } -> Bool,
    "SELECT pg_try_advisory_lock_shared(?, 'outbox'::regclass::oid::int4)"
);

statement!(
    Pg,
    pub(super) Unlock { key: i32 => Integer } -> Bool,
    "SELECT pg_advisory_unlock(?, 'outbox'::regclass::oid::int4)"
);

statement!(
    Pg,
    pub(super) UnlockShared { key: i32 => Integer } -> Bool,
    "SELECT pg_advisory_unlock_shared(?, 'outbox'::regclass::oid::int4)"
);
