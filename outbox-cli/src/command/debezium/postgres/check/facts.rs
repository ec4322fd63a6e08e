//! What the server reports about itself, the table, the publication and the slot.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text};
use diesel_outbox::__private::quoted_identifier;

#[derive(Debug, QueryableByName)]
pub(super) struct Facts {
    #[diesel(sql_type = Text)]
    pub(super) wal_level: String,
    #[diesel(sql_type = Bool)]
    pub(super) may_replicate: bool,
    #[diesel(sql_type = BigInt)]
    pub(super) free_slots: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) free_senders: i64,
    /// -1 for no limit.
    #[diesel(sql_type = BigInt)]
    pub(super) keep_megabytes: i64,
}

impl Facts {
    pub(super) fn look(conn: &mut PgConnection) -> QueryResult<Self> {
        diesel::sql_query(
            "SELECT current_setting('wal_level') AS wal_level, \
             (SELECT r.rolreplication OR r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user) OR EXISTS \
             (SELECT FROM pg_roles AS r WHERE r.rolname IN ('rds_replication', 'rds_superuser') \
             AND pg_has_role(r.oid, 'MEMBER')) AS may_replicate, \
             current_setting('max_replication_slots')::bigint - (SELECT count(*) FROM pg_replication_slots) AS free_slots, \
             current_setting('max_wal_senders')::bigint - (SELECT count(*) FROM pg_stat_replication) AS free_senders, \
             (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep_megabytes",
        )
        .get_result(conn)
    }
}

/// The table `outbox`.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) is_there: bool,
    pub(super) may_select: bool,
    /// Columns that the router reads, and that are missing or of another type.
    pub(super) wrong_columns: Vec<String>,
    /// Whether later rows are read from the WAL. `None` if the role may not see that.
    pub(super) is_cut_over: Option<bool>,
    /// Whether a relay that polls would send something.
    pub(super) waiting: Option<bool>,
}

#[derive(Debug, QueryableByName)]
struct TableRow {
    #[diesel(sql_type = Bool)]
    may_select: bool,
    #[diesel(sql_type = Array<Text>)]
    wrong_columns: Vec<String>,
    #[diesel(sql_type = Bool)]
    may_look_at_shards: bool,
}

#[derive(Debug, QueryableByName)]
struct Cutover {
    #[diesel(sql_type = Bool)]
    is_cut_over: bool,
    #[diesel(sql_type = Bool)]
    waiting: bool,
}

impl Table {
    pub(super) fn look(conn: &mut PgConnection, schema: &str) -> QueryResult<Self> {
        let row = diesel::sql_query(
            "SELECT has_table_privilege(c.oid, 'SELECT') AS may_select, \
             ARRAY(SELECT wanted.name || ' ' || wanted.type FROM (VALUES ('id', 'uuid'), ('aggregatetype', 'character varying'), \
             ('aggregateid', 'character varying'), ('type', 'character varying'), ('payload', 'bytea'), \
             ('created_at', 'timestamp without time zone')) AS wanted (name, type) WHERE NOT EXISTS \
             (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = wanted.name AND NOT a.attisdropped \
             AND format_type(a.atttypid, NULL) = wanted.type)) AS wrong_columns, \
             EXISTS (SELECT FROM pg_class AS s WHERE s.relname = 'outbox_shard' AND s.relnamespace = n.oid \
             AND has_table_privilege(s.oid, 'SELECT')) AS may_look_at_shards \
             FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = 'outbox' AND c.relkind IN ('r', 'p') \
             AND has_schema_privilege(n.oid, 'USAGE')",
        )
        .bind::<Text, _>(schema)
        .get_result::<TableRow>(conn)
        .optional()?;
        let Some(row) = row else {
            return Ok(Self {
                is_there: false,
                may_select: false,
                wrong_columns: Vec::new(),
                is_cut_over: None,
                waiting: None,
            });
        };
        let cutover = match row.may_look_at_shards && row.may_select {
            true => Some(Self::cutover(conn, schema)?),
            false => None,
        };
        Ok(Self {
            is_there: true,
            may_select: row.may_select,
            wrong_columns: row.wrong_columns,
            is_cut_over: cutover.as_ref().map(|cutover| cutover.is_cut_over),
            waiting: cutover.map(|cutover| cutover.waiting),
        })
    }

    fn cutover(conn: &mut PgConnection, schema: &str) -> QueryResult<Cutover> {
        let schema = quoted_identifier(schema);
        diesel::sql_query(format!(
            "SELECT min(s.polled_through) < 9223372036854775807 AS is_cut_over, bool_or(EXISTS (SELECT FROM {schema}.outbox AS o \
             WHERE o.shard = s.shard AND o.seq > s.sent_through AND o.seq <= s.polled_through AND o.sent_at IS NULL)) AS waiting \
             FROM {schema}.outbox_shard AS s"
        ))
        .get_result(conn)
    }
}

#[derive(Debug, QueryableByName)]
pub(super) struct Publication {
    #[diesel(sql_type = Bool)]
    pub(super) inserts: bool,
    #[diesel(sql_type = Bool)]
    pub(super) more_than_inserts: bool,
    #[diesel(sql_type = Bool)]
    pub(super) has_table: bool,
    #[diesel(sql_type = Bool)]
    pub(super) has_more: bool,
}

impl Publication {
    pub(super) fn look(conn: &mut PgConnection, name: &str, schema: &str) -> QueryResult<Option<Self>> {
        diesel::sql_query(
            "SELECT p.pubinsert AS inserts, p.pubupdate OR p.pubdelete OR p.pubtruncate AS more_than_inserts, \
             EXISTS (SELECT FROM pg_publication_tables AS t WHERE t.pubname = p.pubname AND t.schemaname = $2 \
             AND t.tablename = 'outbox') AS has_table, \
             EXISTS (SELECT FROM pg_publication_tables AS t WHERE t.pubname = p.pubname \
             AND (t.schemaname <> $2 OR t.tablename <> 'outbox')) AS has_more FROM pg_publication AS p WHERE p.pubname = $1",
        )
        .bind::<Text, _>(name)
        .bind::<Text, _>(schema)
        .get_result(conn)
        .optional()
    }
}

#[derive(Debug)]
pub(super) struct ReplicationSlot {
    /// Whether it is a slot of this database and of the right kind.
    pub(super) fits: bool,
    pub(super) status: String,
    pub(super) confirmed: String,
    /// Who reads it.
    pub(super) reader: Option<String>,
    /// How many bytes of the WAL wait in it.
    pub(super) behind: i64,
    /// Up to where a relay has sent its events, if that is past what is confirmed.
    pub(super) sent_up_to: Option<String>,
}

#[derive(Debug, QueryableByName)]
struct SlotRow {
    #[diesel(sql_type = Bool)]
    fits: bool,
    #[diesel(sql_type = Text)]
    status: String,
    #[diesel(sql_type = Text)]
    confirmed: String,
    #[diesel(sql_type = Nullable<Text>)]
    reader: Option<String>,
    #[diesel(sql_type = BigInt)]
    behind: i64,
    #[diesel(sql_type = Bool)]
    may_look_at_slots: bool,
}

#[derive(Debug, QueryableByName)]
struct SentUpTo {
    #[diesel(sql_type = Text)]
    start: String,
}

impl ReplicationSlot {
    pub(super) fn look(conn: &mut PgConnection, name: &str) -> QueryResult<Option<Self>> {
        let row = diesel::sql_query(
            "SELECT coalesce(s.slot_type = 'logical' AND s.plugin = 'pgoutput' AND s.database = current_database(), false) \
             AS fits, coalesce(s.wal_status, 'lost') AS status, coalesce(s.confirmed_flush_lsn::text, 'nowhere') AS confirmed, \
             CASE WHEN s.active THEN coalesce(nullif(a.application_name, ''), 'process ' || s.active_pid) END AS reader, \
             coalesce(pg_current_wal_lsn() - s.confirmed_flush_lsn, 0)::bigint AS behind, \
             coalesce(has_table_privilege(to_regclass('outbox_slot'), 'SELECT'), false) AS may_look_at_slots \
             FROM pg_replication_slots AS s LEFT JOIN pg_stat_activity AS a ON a.pid = s.active_pid WHERE s.slot_name = $1",
        )
        .bind::<Text, _>(name)
        .get_result::<SlotRow>(conn)
        .optional()?;
        let Some(row) = row else { return Ok(None) };
        let sent_up_to = if row.may_look_at_slots { Self::sent_up_to(conn, name)? } else { None };
        Ok(Some(Self {
            fits: row.fits,
            status: row.status,
            confirmed: row.confirmed,
            reader: row.reader,
            behind: row.behind,
            sent_up_to,
        }))
    }

    fn sent_up_to(conn: &mut PgConnection, name: &str) -> QueryResult<Option<String>> {
        let row = diesel::sql_query(
            "SELECT o.start_lsn::text AS start FROM outbox_slot AS o JOIN pg_replication_slots AS s ON s.slot_name = o.slot \
             WHERE o.slot = $1 AND o.start_lsn > s.confirmed_flush_lsn",
        )
        .bind::<Text, _>(name)
        .get_result::<SentUpTo>(conn)
        .optional()?;
        Ok(row.map(|row| row.start))
    }
}
