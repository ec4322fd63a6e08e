//! What Diesel's and SeaORM's migrations share, so that either finds the other's work done and waits for it.

use crate::advisory_locks;

/// The table that records what has run.
pub const MIGRATION_RECORD: &str = "outbox_migration";

/// Creates that table.
pub const CREATE_MIGRATION_RECORD: &str = "CREATE TABLE IF NOT EXISTS outbox_migration \
     (version varchar(50) PRIMARY KEY, run_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP)";

/// Returns the version of a migration as Diesel makes it of the folder's name.
pub fn migration_version(name: &str) -> String {
    name.split('_').next().unwrap_or_default().replace('-', "")
}

/// Returns the statement that takes the lock of PostgreSQL's migrations until the transaction ends. Any role that may connect can
/// hold that lock, so the statement waits for it only as long as other migrations take, and then names its holder.
pub fn postgres_migration_lock() -> String {
    format!(
        "DO $$
DECLARE
    own_timeout text := current_setting('lock_timeout');
    pid int;
BEGIN
    PERFORM set_config('lock_timeout', '5s', true);
    BEGIN
        PERFORM pg_advisory_xact_lock({key}, 0);
    EXCEPTION WHEN lock_not_available THEN
        SELECT l.pid INTO pid FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
            AND l.classid = {key}::oid AND l.objid = 0::oid
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) LIMIT 1;
        RAISE lock_not_available USING MESSAGE = pg_catalog.concat('another session has held the lock that keeps two processes from '
            'migrating at the same time for 5 s, so nothing was changed: if it is migrating, run this again when it is done; if not, '
            'end it, which rolls back its transaction', CASE WHEN pid IS NULL THEN ' (it is a prepared transaction, in pg_prepared_xacts)'
            ELSE pg_catalog.concat(': SELECT pg_terminate_backend(', pid, ')') END);
    END;
    PERFORM set_config('lock_timeout', own_timeout, true);
END $$",
        key = advisory_locks::MIGRATING
    )
}

/// Selects a row once the session has the lock of MySQL's migrations.
pub const MYSQL_MIGRATION_LOCK: &str =
    "SELECT 1 FROM DUAL WHERE GET_LOCK(CONCAT('outbox_migration_', CRC32(DATABASE())), 5) = 1";

/// Gives that lock back.
pub const MYSQL_MIGRATION_UNLOCK: &str = "DO RELEASE_LOCK(CONCAT('outbox_migration_', CRC32(DATABASE())))";

/// Selects a row if MySQL's database has the table that records what has run.
pub const MYSQL_FIND_MIGRATION_RECORD: &str = "SELECT 1 FROM information_schema.tables \
     WHERE table_schema = DATABASE() AND table_name = 'outbox_migration'";

/// Selects a row if SQLite's database has that table.
pub const SQLITE_FIND_MIGRATION_RECORD: &str =
    "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'outbox_migration'";
