//! Functions, operators and tables of others that have the names of those that the relay uses do not reach it.

use std::fs;
use std::path::Path;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use diesel_outbox::{Emit, Inbox, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::operate::{Operate, Requeue};
use diesel_outbox_relay::source::{DeadLetterPolicy, PostgresSource, SentRows, SourceOptions, enter_schema};
use outbox_tests::load::{count, new_topic, relay, relay_at, stop, wal, wal_relay};
use outbox_tests::{Database, Kafka, Postgres, Process, eventually};
use uuid::Uuid;

use super::{PATIENCE, done};

/// Functions and operators for all types that the statements have, each of which the server would rather use than its own if a statement
/// does not name the schema, because it fits better. Whoever calls one gets an error.
const TRAPS: &str = r#"
SET search_path = pg_catalog;
DO $$
DECLARE
    types text[] := '{bpchar,int2,int4,int8,text,varchar,name,oid,regclass,uuid,timestamptz,bytea,json,jsonb,bool,float8,
        numeric,tid,xid,pg_lsn,"\"char\"",int8[],int2[],text[],tid[],oid[]}';
    few text[] := '{int4,int8,text,varchar,name,oid,regclass,json,jsonb,bool,pg_lsn,timestamptz,float8}';
    operators text[] := '{=,<>,<,<=,>,>=,+,-,*,/,%,||,~~,!~~,@>,<@,&&,->,->>}';
    a text; b text; o text; f text; trap text; made int := 0;
BEGIN
    FOREACH a IN ARRAY types LOOP
        FOREACH b IN ARRAY types LOOP
            trap := 'trap_' || md5(a || b);
            EXECUTE format('CREATE FUNCTION %I.%I(%s, %s) RETURNS bool LANGUAGE plpgsql AS %L', TG, trap, a, b,
                format('BEGIN RAISE EXCEPTION ''captured: an operator of %s and %s''; END', a, b));
            FOREACH o IN ARRAY operators LOOP
                IF NOT EXISTS (SELECT FROM pg_operator WHERE oprname = o AND oprleft = a::regtype AND oprright = b::regtype
                        AND oprnamespace = 'pg_catalog'::regnamespace) THEN
                    EXECUTE format('CREATE OPERATOR %I.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = %I.%I)', TG, o, a, b, TG, trap);
                    made := made + 1;
                END IF;
            END LOOP;
        END LOOP;
    END LOOP;
    FOR f IN SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY (NAMES) LOOP
        FOREACH a IN ARRAY types LOOP
            IF to_regprocedure(format('pg_catalog.%I(%s)', f, a)) IS NULL THEN
                EXECUTE format('CREATE FUNCTION %I.%I(%s) RETURNS bool LANGUAGE plpgsql AS %L', TG, f, a,
                    format('BEGIN RAISE EXCEPTION ''captured: %s(%s)''; END', f, a));
                made := made + 1;
            END IF;
        END LOOP;
        CONTINUE WHEN NOT EXISTS (SELECT FROM pg_proc WHERE proname = f AND (pronargs >= 2 OR provariadic <> 0));
        FOREACH a IN ARRAY few LOOP
            FOREACH b IN ARRAY few LOOP
                IF to_regprocedure(format('pg_catalog.%I(%s, %s)', f, a, b)) IS NULL THEN
                    EXECUTE format('CREATE FUNCTION %I.%I(%s, %s) RETURNS bool LANGUAGE plpgsql AS %L', TG, f, a, b,
                        format('BEGIN RAISE EXCEPTION ''captured: %s(%s, %s)''; END', f, a, b));
                    made := made + 1;
                END IF;
            END LOOP;
        END LOOP;
    END LOOP;
    DROP FUNCTION IF EXISTS TG.make_interval(float8);
    CREATE FUNCTION TG.make_interval(secs float8) RETURNS interval LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''captured''; END';
    CREATE FUNCTION TG.concat_ws(text, text, text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''captured''; END';
    CREATE FUNCTION TG.concat_ws(text, oid, xid, oid, xid) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''captured''; END';
    CREATE FUNCTION TG.pg_copy_logical_replication_slot(text, text, bool) RETURNS bool LANGUAGE plpgsql
        AS 'BEGIN RAISE EXCEPTION ''captured''; END';
    ASSERT made > 5000, made;
END $$;
RESET search_path;
"#;

/// Copies of the server's own, for a path that has them before the server's.
const COPIES: &str = "
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.captured() RETURNS bool LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''captured by a copy''; END';
CREATE FUNCTION hostile.equal(oid, oid) RETURNS bool LANGUAGE sql AS 'SELECT hostile.captured()';
CREATE FUNCTION hostile.equal(text, text) RETURNS bool LANGUAGE sql AS 'SELECT hostile.captured()';
CREATE FUNCTION hostile.equal(int8, int8) RETURNS bool LANGUAGE sql AS 'SELECT hostile.captured()';
CREATE OPERATOR hostile.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = hostile.equal);
CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.equal);
CREATE OPERATOR hostile.= (LEFTARG = int8, RIGHTARG = int8, FUNCTION = hostile.equal);
CREATE OPERATOR hostile.> (LEFTARG = int8, RIGHTARG = int8, FUNCTION = hostile.equal);
CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT hostile.captured(); SELECT clock_timestamp()';
CREATE FUNCTION hostile.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT hostile.captured(); SELECT now()';
CREATE FUNCTION hostile.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT hostile.captured(); SELECT 1';
CREATE FUNCTION hostile.to_regclass(text) RETURNS regclass LANGUAGE sql AS 'SELECT hostile.captured(); SELECT NULL::regclass';
CREATE FUNCTION hostile.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT hostile.captured(); SELECT $1';
CREATE FUNCTION hostile.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT hostile.captured()';
CREATE FUNCTION hostile.unnest(int8[]) RETURNS SETOF int8 LANGUAGE sql AS 'SELECT hostile.captured(); SELECT 1::int8';
CREATE TABLE hostile.pg_locks (locktype text, relation oid);
CREATE TABLE hostile.pg_class (oid oid, relname text);
CREATE TABLE hostile.outbox_slot (slot text);
GRANT USAGE ON SCHEMA hostile TO PUBLIC;
";

/// All that looks like a function's name in the crates that write statements.
fn called(folder: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            called(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let before = text.split('(').map(|before| {
                let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                before.rsplit(|c| !is_name(c)).next().unwrap_or_default().to_owned()
            });
            names.extend(before.filter(|name| !name.is_empty()));
        }
    }
}

/// Plants the traps in this schema.
fn plant(conn: &mut PgConnection, schema: &str) {
    let mut names = Vec::new();
    for crate_name in ["outbox-relay", "outbox-core", "outbox-diesel"] {
        called(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(crate_name).join("src"), &mut names);
    }
    names.sort();
    names.dedup();
    let names = format!("'{{{}}}'::text[]", names.join(","));
    let traps = TRAPS.replace("NAMES", &names);
    // In `format` the schema is a literal, and elsewhere a name.
    let traps = traps.replace("TG.", &format!("{schema}.")).replace("TG", &format!("'{schema}'"));
    conn.batch_execute(&traps).unwrap_or_else(|error| panic!("{error}"));
}

fn emit(conn: &mut PgConnection, aggregate: &str, events: usize) {
    let events: Vec<Record> =
        (0..events).map(|number| Record::new("order", aggregate, number.to_string())).collect();
    conn.transaction(|c| c.emit_all(&events)).unwrap();
}

/// Claims all, makes a dead letter of the first and settles the others.
fn work(url: &str, options: SourceOptions) {
    let mut source = PostgresSource::new(url, options);
    assert!(source.claim().unwrap());
    let mut claimed = Vec::new();
    while source.read(100, &mut claimed).unwrap() {
        source.read_ahead(100).unwrap();
    }
    let tickets: Vec<u64> = claimed.iter().map(|claimed| claimed.ticket).collect();
    source.dead_letter(tickets[0], "too large").unwrap();
    source.settle(&tickets[1..]).unwrap();
    source.release().unwrap();
    source.upkeep().unwrap();
}

/// Waits until a relay process has sent all that is unsent, and ends it.
fn sends_all(conn: &mut PgConnection, relay: &Process, unsent: &str) {
    eventually("all to be sent", PATIENCE, || {
        assert!(!relay.output().contains("captured"), "{}", relay.output());
        (count(conn, unsent) == 0).then_some(())
    });
    stop(relay);
    assert!(!relay.output().contains("captured"), "{}", relay.output());
}

/// The tables are in `public`, in which everybody may make functions and operators before PostgreSQL 15.
#[test]
fn functions_and_operators_in_the_schema_of_the_tables_are_not_used() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    plant(conn, "public");
    database.migrate();
    use_everything(&database);
}

/// The path of the whole database has a schema before the server's own.
#[test]
fn a_search_path_that_has_copies_of_the_servers_functions_and_tables_first_is_not_followed() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    database.migrate();
    emit(conn, "1", 300);
    conn.batch_execute(COPIES).unwrap();
    let path = format!("ALTER DATABASE {} SET search_path = hostile, public, pg_catalog", database.name());
    conn.batch_execute(&path).unwrap();
    let url = database.relay_url();
    work(&url, SourceOptions::default().dead_letter_policy(DeadLetterPolicy::Block));
    emit(conn, "2", 300);
    work(&url, SourceOptions::default().sent_rows(SentRows::Delete).schema("public"));
    emit(conn, "3", 300);
    let topic = new_topic("path");
    sends_all(conn, &relay(&database, &topic, &[]), "outbox WHERE sent_at IS NULL");
    for command in ["lag", "dead-letters"] {
        done(&url, &[command, "--schema", "public"]);
    }
    wal(&database, "setup");
    emit(conn, "4", 10);
    let log = wal_relay(&database, &topic);
    let counter = Kafka::shared().counter(&topic);
    eventually("the events of the WAL", PATIENCE, || (counter.count() >= 310).then_some(()));
    stop(&log);
    assert!(!log.output().contains("captured"), "{}", log.output());
    wal(&database, "drop");
}

/// A session's own temporary tables come first by default.
#[test]
fn temporary_tables_do_not_hide_the_tables() {
    let database = Postgres::shared().database();
    database.migrate();
    let conn = &mut database.connect();
    conn.batch_execute("CREATE TEMP TABLE outbox (n int); CREATE TEMP TABLE pg_class (n int); CREATE TEMP TABLE pg_locks (n int)")
        .unwrap();
    enter_schema(conn, Some("public")).unwrap();
    for (name, schema) in [("outbox", "public"), ("pg_class", "pg_catalog"), ("pg_locks", "pg_catalog")] {
        let same = format!("SELECT '{name}'::regclass = '{schema}.{name}'::regclass");
        assert_eq!(diesel::dsl::sql::<Bool>(&same).get_result(conn), Ok(true), "{name}");
    }
    assert_eq!(conn.lag().unwrap().unsent, 0);
}

fn use_everything(database: &Database<'_>) {
    let conn = &mut database.connect();
    let emitting = &mut database.connect_as_emitter();
    emitting.transaction(|c| c.emit(&Record::new("order", "0", "One"))).unwrap();
    emit(emitting, "1", 300);
    let url = database.relay_url();
    work(&url, SourceOptions::default().dead_letter_policy(DeadLetterPolicy::Block));
    emit(emitting, "2", 300);
    work(&url, SourceOptions::default().sent_rows(SentRows::Delete));

    // Somebody has set the sequence back, and rows have expired.
    conn.batch_execute(
        "ALTER SEQUENCE outbox_seq_seq RESTART; UPDATE outbox SET sent_at = sent_at - interval '9 days', \
         created_at = created_at - interval '9 days'",
    )
    .unwrap();
    conn.batch_execute("DELETE FROM outbox WHERE seq < 20").unwrap();
    emit(emitting, "3", 10);
    assert!(conn.lag().unwrap().unsent >= 10);
    work(&url, SourceOptions::default());
    assert!(!conn.dead_letters(10).unwrap().is_empty());
    let aggregate = Requeue::Aggregate { aggregate_type: "order".into(), aggregate_id: "0".into() };
    assert!(conn.requeue(&aggregate).unwrap() > 0);
    for command in [&["lag"][..], &["dead-letters"], &["requeue", "--all"], &["migrate"]] {
        done(database.url(), command);
    }

    // Two processes, of which one stands by and is called for help; then one for several schemas.
    emit(emitting, "4", 5_000);
    let topic = new_topic("names");
    let relays = [(); 2].map(|()| relay(database, &topic, &["--lag-interval", "1s"]));
    for relay in &relays {
        sends_all(conn, relay, "outbox WHERE sent_at IS NULL");
    }
    emit(emitting, "5", 300);
    let several = relay_at(&url, &topic, &["--schema", "public", "--schema", "pub*", "--lag-interval", "1s"]);
    sends_all(conn, &several, "outbox WHERE sent_at IS NULL");

    // The write-ahead log, with a dead letter, and back.
    wal(database, "setup");
    let before = Kafka::shared().counter(&topic).count();
    emit(emitting, "6", 300);
    let large = Record::new("order", "large", "TooLarge").with_payload(vec![b'x'; 2_000_000]);
    emitting.transaction(|c| c.emit(&large)).unwrap();
    let log = wal_relay(database, &topic);
    let counter = Kafka::shared().counter(&topic);
    eventually("the events of the WAL", PATIENCE, || (counter.count() >= before + 300).then_some(()));
    sends_all(
        conn,
        &log,
        "(SELECT 1 WHERE NOT EXISTS (SELECT FROM outbox_dead_letter WHERE aggregateid::text = 'large')) AS missing",
    );
    emit(emitting, "7", 10);
    wal(database, "drop");

    let consuming = &mut PgConnection::establish(&database.consumer_url()).unwrap();
    let inbox = Inbox::new("billing");
    assert!(inbox.has_table(consuming).unwrap());
    let _ = inbox.once(consuming, Uuid::now_v7(), |_| QueryResult::Ok(())).unwrap();
    inbox.prune(consuming, std::time::Duration::ZERO).unwrap();
}
