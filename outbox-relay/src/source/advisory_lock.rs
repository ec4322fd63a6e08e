//! Taking and letting go of advisory locks, of which [`diesel_outbox_core::advisory_locks`] has the keys. None is waited for.

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
