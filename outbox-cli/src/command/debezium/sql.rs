//! `outbox debezium sql`

use super::Outbox;

/// What an administrator runs before Debezium starts, in statements that stand apart.
pub(super) fn text(outbox: &Outbox) -> String {
    let Outbox { server, schema, slot, publication } = outbox;
    let (role, database, table) =
        (identifier(&server.user), identifier(&server.database), format!("{}.outbox", identifier(schema)));
    let (role_text, slot_text) = (literal(&server.user), literal(slot));
    let (publication_text, table_text) = (literal(publication), literal(&table));
    format!(
        "-- To be run by an administrator in the database {database}, one statement after the other.

-- The role that Debezium connects as; give it a password with \\password. On a managed server REPLICATION may be a
-- role to be granted instead, such as rds_replication.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {role_text}) THEN
        CREATE ROLE {role} LOGIN;
    END IF;
END $$;

ALTER ROLE {role} REPLICATION;

GRANT CONNECT ON DATABASE {database} TO {role};

GRANT USAGE ON SCHEMA {schema} TO {role};

-- To see the columns; with snapshot.mode=no_data no row is read from the table.
GRANT SELECT ON {table} TO {role};

-- So that `outbox debezium check` sees how far relays have come.
GRANT SELECT ON {schema}.outbox_shard, {schema}.outbox_slot TO {role};

-- What follows is for an outbox that is empty yet. Else let `outbox wal setup` make publication and slot instead: what waits
-- is polled then.
CREATE PUBLICATION {publication} FOR TABLE {table} WITH (publish = 'insert');

-- It waits for the transactions that are open. On PostgreSQL 17 and later standbys keep the slot too.
DO $$ BEGIN
    IF current_setting('server_version_num')::int >= 170000 THEN
        PERFORM pg_create_logical_replication_slot({slot_text}, 'pgoutput', failover => true);
    ELSE
        PERFORM pg_create_logical_replication_slot({slot_text}, 'pgoutput');
    END IF;
END $$;

-- All events are read from the slot, and none is polled: a relay can take its place, and what was sent is known.
DO $$ BEGIN
    IF EXISTS (SELECT FROM {table}) THEN
        RAISE EXCEPTION 'the outbox has events, some perhaps from before the slot: drop the slot and the publication, and run outbox wal setup';
    END IF;
    INSERT INTO {schema}.outbox_slot (slot, start_lsn, publication)
        SELECT s.slot_name, s.confirmed_flush_lsn, concat_ws(' ', p.oid, p.xmin, r.oid, r.xmin)
        FROM pg_replication_slots AS s, pg_publication AS p JOIN pg_publication_rel AS r ON r.prpubid = p.oid
        WHERE s.slot_name = {slot_text} AND p.pubname = {publication_text} AND r.prrelid = {table_text}::regclass;
    UPDATE {schema}.outbox_shard SET polled_through = 0;
END $$;
",
        schema = identifier(schema),
        publication = identifier(publication),
    )
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
