//! `outbox debezium setup-sql` for PostgreSQL

use diesel_outbox::__private::{quoted_identifier, quoted_literal};

use super::DebeziumOutbox;

/// The statements that an administrator runs before Debezium starts.
pub(super) fn text(outbox: &DebeziumOutbox) -> String {
    let DebeziumOutbox { server, schema, slot, publication } = outbox;
    let (role, database, table) = (
        quoted_identifier(&server.user),
        quoted_identifier(&server.database),
        format!("{}.outbox", quoted_identifier(schema)),
    );
    let (role_text, slot_text) = (quoted_literal(&server.user), quoted_literal(slot));
    let (publication_text, table_text) = (quoted_literal(publication), quoted_literal(&table));
    format!(
        "-- Run this as an administrator in the database {database}, one statement after the other.

-- The role that Debezium connects as. Give it a password with \\password. A managed server may have a role to grant instead
-- of REPLICATION, such as rds_replication.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {role_text}) THEN
        CREATE ROLE {role} LOGIN;
    END IF;
END $$;

ALTER ROLE {role} REPLICATION;

GRANT CONNECT ON DATABASE {database} TO {role};

GRANT USAGE ON SCHEMA {schema} TO {role};

-- Debezium reads the columns' types from the table. With snapshot.mode=no_data it reads no row of it.
GRANT SELECT ON {table} TO {role};

-- `outbox debezium check` needs this to see how far relays have come.
GRANT SELECT ON {schema}.outbox_shard, {schema}.outbox_slot TO {role};

-- The rest is for an outbox that is still empty. If it has events, let `outbox wal setup` make the publication and the slot
-- instead: a relay polls the events that wait.
CREATE PUBLICATION {publication} FOR TABLE {table} WITH (publish = 'insert');

-- This waits until all open transactions have ended. From PostgreSQL 17 on, standbys keep the slot too.
DO $$ BEGIN
    IF current_setting('server_version_num')::int >= 170000 THEN
        PERFORM pg_catalog.pg_create_logical_replication_slot({slot_text}, 'pgoutput', failover => true);
    ELSE
        PERFORM pg_catalog.pg_create_logical_replication_slot({slot_text}, 'pgoutput');
    END IF;
END $$;

-- Notes that all events are read from the slot and none is polled, so that a relay can take over from Debezium.
DO $$ BEGIN
    IF EXISTS (SELECT FROM {table}) THEN
        RAISE EXCEPTION 'the outbox has events, perhaps some from before the slot: drop the slot and the publication, and run outbox wal setup';
    END IF;
    INSERT INTO {schema}.outbox_slot (slot, start_lsn, publication)
        SELECT s.slot_name, s.confirmed_flush_lsn, pg_catalog.concat_ws(' ', p.oid, p.xmin, r.oid, r.xmin)
        FROM pg_replication_slots AS s, pg_publication AS p JOIN pg_publication_rel AS r ON r.prpubid = p.oid
        WHERE s.slot_name = {slot_text} AND p.pubname = {publication_text} AND r.prrelid = {table_text}::regclass::oid;
    UPDATE {schema}.outbox_shard SET polled_through = 0;
END $$;
",
        schema = quoted_identifier(schema),
        publication = quoted_identifier(publication),
    )
}
