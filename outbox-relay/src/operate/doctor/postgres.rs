use std::time::{Duration, SystemTime};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double, Nullable, Text};

use super::{Examine, Finding, LONG_OPEN, LONG_PREPARED, Verdict, clock_finding, lag_findings, looked};
use crate::operate::Operate;
use crate::source::check::{is_set_back, refusal};
use crate::source::open_writers;
use crate::statement::statement;

/// So many dead rows, and so many times as many as live ones, are worth a warning.
const MANY_DEAD: i64 = 100_000;
/// How few connections may be left.
const FEW_CONNECTIONS: i64 = 5;

impl Examine for PgConnection {
    fn examine(&mut self) -> Vec<Finding> {
        looked("server", briefly(self, |conn| Ok(examined(conn))))
    }

    fn recent_aggregate_types(&mut self) -> QueryResult<Vec<String>> {
        briefly(self, |conn| AggregateTypes::new().load(conn))
    }
}

/// Looks at something, and neither stands in the way of emitters meanwhile nor waits for a migration. Then the session has the timeouts of
/// its role again.
fn briefly<T>(
    conn: &mut PgConnection,
    look: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
) -> QueryResult<T> {
    conn.batch_execute("SET lock_timeout = '2s'; SET statement_timeout = '60s'")?;
    let looked = look(conn);
    conn.batch_execute("RESET lock_timeout; RESET statement_timeout")?;
    looked
}

fn examined(conn: &mut PgConnection) -> Vec<Finding> {
    let mut findings = looked("server", server(conn));
    let tables = refusal(conn);
    let are_there = tables.is_ok();
    findings.push(match tables {
        Ok(()) => Finding::ok("tables", "they are there, with all shards"),
        Err(error) => Finding::fail("tables", error.to_string()),
    });
    findings.extend(looked("role", role(conn)));
    findings.extend(looked("connections", connections(conn)));
    findings.extend(looked("prepared", prepared(conn)));
    findings.extend(looked("clock", clock(conn)));
    if are_there {
        findings.extend(looked("sequence", sequence(conn)));
        findings.extend(looked("writers", writers(conn)));
        findings.extend(looked("bloat", bloat(conn)));
        findings.extend(looked("lag", conn.lag().map(|lag| lag_findings(&lag))));
    }
    findings
}

fn server(conn: &mut PgConnection) -> QueryResult<Vec<Finding>> {
    let (version, number, is_standby, unsafe_settings) =
        Server::new().get_result::<(String, i64, bool, Vec<String>)>(conn)?;
    let problem = if is_standby {
        Some((
            Verdict::Fail,
            "it is a standby, which takes no writes: name the primary in the URL".to_owned(),
        ))
    } else if number < 140_000 {
        Some((
            Verdict::Warn,
            format!("it is PostgreSQL {version}, and the relay is tested with 14 and later: upgrade it"),
        ))
    } else {
        None
    };
    let server = Finding::of("server", problem, format!("it is PostgreSQL {version}, and takes writes"));
    let durability = if unsafe_settings.is_empty() {
        Finding::ok("durability", "what is committed survives a crash")
    } else {
        Finding::warn(
            "durability",
            format!(
                "{}: after a crash of the server, events may be lost that services have committed, and sent again that were settled. \
                 Turn each on",
                unsafe_settings.join(", ")
            ),
        )
    };
    Ok(vec![server, durability])
}

fn role(conn: &mut PgConnection) -> QueryResult<Vec<Finding>> {
    let (role, missing) = MissingGrants::new().get_result::<(String, Vec<String>)>(conn)?;
    let problem = (!missing.is_empty()).then(|| {
        (
            Verdict::Fail,
            format!("the role {role} lacks what a relay needs: {}. See docs/roles.md", missing.join("; ")),
        )
    });
    Ok(vec![Finding::of("role", problem, format!("the role {role} may do what a relay needs"))])
}

fn connections(conn: &mut PgConnection) -> QueryResult<Vec<Finding>> {
    let (free, most) = Connections::new().get_result::<(i64, i64)>(conn)?;
    let problem = (free < FEW_CONNECTIONS).then(|| {
        let text = format!(
            "only {free} of {most} connections are free: raise max_connections, or let services take fewer"
        );
        (Verdict::Warn, text)
    });
    Ok(vec![Finding::of("connections", problem, format!("{free} of {most} are free"))])
}

fn prepared(conn: &mut PgConnection) -> QueryResult<Vec<Finding>> {
    let old = Prepared::new(LONG_PREPARED.as_secs_f64()).load::<(String, f64)>(conn)?;
    let Some((gid, age)) = old.first() else {
        return Ok(vec![Finding::ok("prepared", "no transaction stays prepared")]);
    };
    Ok(vec![Finding::warn(
        "prepared",
        format!(
            "{} transactions stay prepared, the oldest ({gid}) for {age:.0} s: vacuum cannot clean up behind it. Ask its coordinator, and \
             only if that does not know it run COMMIT PREPARED {gid} or ROLLBACK PREPARED {gid}",
            old.len()
        ),
    )])
}

fn clock(conn: &mut PgConnection) -> QueryResult<Vec<Finding>> {
    let before = SystemTime::now();
    Ok(vec![clock_finding(before, Clock::new().get_result(conn)?)])
}

fn sequence(conn: &mut PgConnection) -> QueryResult<Vec<Finding>> {
    let problem = is_set_back(conn)?.then(|| {
        let text = "it was set back below numbers that it gave before: the relay sets it right by itself. Find out who set it back";
        (Verdict::Warn, text.to_owned())
    });
    Ok(vec![Finding::of("sequence", problem, "it gives only new numbers")])
}

fn writers(conn: &mut PgConnection) -> QueryResult<Vec<Finding>> {
    let old: Vec<_> = open_writers(conn)?.into_iter().filter(|(age, _)| *age >= LONG_OPEN).collect();
    if old.is_empty() {
        return Ok(vec![Finding::ok("writers", "no transaction that may have emitted stays open")]);
    }
    let text = |(age, text): (Duration, String)| {
        Finding::warn("writers", format!("for {} s, {text}", age.as_secs()))
    };
    Ok(old.into_iter().map(text).collect())
}

fn bloat(conn: &mut PgConnection) -> QueryResult<Vec<Finding>> {
    let (live, dead, bytes) = Bloat::new().get_result::<(i64, i64, i64)>(conn)?;
    let megabytes = bytes >> 20;
    let problem = (dead > MANY_DEAD && dead > live).then(|| {
        let text = format!(
            "the table has about {dead} dead rows beside {live} live ones, in {megabytes} MB: autovacuum does not keep up. End \
             transactions that stay open, and lower the table's autovacuum_vacuum_scale_factor"
        );
        (Verdict::Warn, text)
    });
    let fine = format!("the table has {megabytes} MB, and about {dead} dead rows beside {live} live ones");
    Ok(vec![Finding::of("bloat", problem, fine)])
}

/// Looks at the slots that this outbox is read from, if there are any, and at all that reading the WAL needs. This takes a second, in which
/// it measures how fast the WAL grows. `chosen` is the slot that the relay's settings name, if it is to read the WAL.
pub fn examine_wal(conn: &mut PgConnection, chosen: Option<&str>) -> Vec<Finding> {
    looked("slot", briefly(conn, |conn| wal(conn, chosen)))
}

fn wal(conn: &mut PgConnection, chosen: Option<&str>) -> QueryResult<Vec<Finding>> {
    let names = Slots::new().load::<String>(conn)?;
    if let Some(chosen) = chosen.filter(|chosen| names.iter().all(|name| name != chosen)) {
        let text = format!(
            "the relay is to read {chosen}, which this outbox does not have: run `outbox wal setup --slot {chosen}`"
        );
        return Ok(vec![Finding::fail("slot", text)]);
    }
    if names.is_empty() {
        return Ok(vec![Finding::ok("slot", "there is none: the table is polled")]);
    }
    let (level, keep, senders) = WalSettings::new().get_result::<(String, i64, i64)>(conn)?;
    let mut findings = vec![Finding::of(
        "wal_level",
        (level != "logical").then(|| {
            let text =
                format!("it is {level}: run ALTER SYSTEM SET wal_level = 'logical', and restart the server");
            (Verdict::Fail, text)
        }),
        "it is logical",
    )];
    findings.push(Finding::of(
        "slot_limit",
        (keep < 0).then(|| {
            let text = "max_slot_wal_keep_size is not set: while no relay reads, the server keeps all WAL until its disk is full. Set it \
                        to what the disk has room for";
            (Verdict::Warn, text.to_owned())
        }),
        format!("a slot retains {keep} MB of the WAL at most (max_slot_wal_keep_size)"),
    ));
    findings.push(Finding::of(
        "senders",
        (senders < 1).then(|| {
            let text = "no WAL sender is free, which a relay that takes over needs: raise max_wal_senders, and restart the server";
            (Verdict::Warn, text.to_owned())
        }),
        format!("{senders} WAL senders are free"),
    ));
    let before = EndOfWal::new().get_result::<i64>(conn)?;
    std::thread::sleep(MEASURING);
    let grows = EndOfWal::new().get_result::<i64>(conn)?.saturating_sub(before).max(0);
    for name in names {
        let found = Slot::new(name.clone()).get_result::<SlotRow>(conn).optional()?;
        findings.extend(slot(&name, found, grows));
    }
    Ok(findings)
}

/// How long the growth of the WAL is measured.
const MEASURING: Duration = Duration::from_secs(1);
/// A slot that is lost sooner is about to be.
const SOON: i64 = 24 * 60 * 60;

/// Whether somebody reads it, its state, how much it retains, how much may still be written before it is lost, whether it fits, and whether
/// standbys should have it and do not.
type SlotRow = (bool, Option<String>, i64, Option<i64>, bool, bool);

fn slot(name: &str, found: Option<SlotRow>, grows: i64) -> Vec<Finding> {
    let Some((is_active, status, retained, left, fits, lacks_failover)) = found else {
        let text = format!(
            "{name} does not exist any more: run `outbox wal setup --slot {name}`, and read there what is sent again"
        );
        return vec![Finding::fail("slot", text)];
    };
    let status = status.unwrap_or_else(|| "lost".to_owned());
    let megabytes = retained >> 20;
    let problem = if !fits {
        Some((
            Verdict::Fail,
            format!("{name} belongs to another database or another plugin than pgoutput: see docs/wal.md"),
        ))
    } else if status == "lost" {
        let text = format!(
            "the server has given {name} up, because it retained too much: run `outbox wal setup --slot {name}`"
        );
        Some((Verdict::Fail, text))
    } else if status == "unreserved" {
        let text = format!("{name} is about to be lost: raise max_slot_wal_keep_size now, and start a relay");
        Some((Verdict::Fail, text))
    } else if !is_active {
        let text = format!(
            "nobody reads {name}, which retains {megabytes} MB of the WAL: start a relay with --source wal"
        );
        Some((Verdict::Warn, text))
    } else {
        None
    };
    let mut findings = vec![Finding::of(
        "slot",
        problem,
        format!("{name} is read, {status}, and retains {megabytes} MB of the WAL"),
    )];
    let rate = format!("the WAL grows by {} kB/s", grows / 1024);
    findings.push(match left.map(|left| left.max(0) / grows.max(1)) {
        Some(seconds) if !is_active && seconds < SOON => Finding::warn(
            "slot_room",
            format!("{rate}, so {name} is lost in {seconds} s if nobody reads it: raise max_slot_wal_keep_size, or start a relay"),
        ),
        Some(seconds) => Finding::ok("slot_room", format!("{rate}: {name} would last {} h without a reader", seconds / 3_600)),
        None => Finding::ok("slot_room", format!("{rate}, and nothing limits what {name} retains but the disk")),
    });
    findings.push(Finding::of(
        "failover",
        lacks_failover.then(|| {
            let text = format!(
                "the server has standbys, and {name} is not synchronized to them (failover => true): after a failover the relay needs a \
                 new slot, and sends events again. See docs/wal.md"
            );
            (Verdict::Warn, text)
        }),
        "no standby lacks the slot, as far as the server knows",
    ));
    findings
}

statement!(
    Pg,
    Server {} -> (Text, BigInt, Bool, Array<Text>),
    "SELECT current_setting('server_version'), current_setting('server_version_num')::bigint, pg_is_in_recovery(), \
     ARRAY(SELECT name || ' is ' || setting FROM pg_settings WHERE name = ANY (ARRAY['fsync', 'full_page_writes', 'synchronous_commit']) \
     AND setting = 'off' ORDER BY name)"
);

statement!(
    Pg,
    /// The role, and the grants of a relay that it lacks on tables that are there. They are those of docs/roles.md: a test compares both.
    MissingGrants {} -> (Text, Array<Text>),
    "SELECT current_user::text, ARRAY(SELECT 'GRANT ' || n.privilege || coalesce(' (' || n.columns || ')', '') || ' ON ' || n.name || ' TO ' \
     || quote_ident(current_user::text) FROM (VALUES \
     ('outbox', 'SELECT', NULL::text), ('outbox', 'DELETE', NULL), ('outbox', 'UPDATE', 'seq, sent_at'), \
     ('outbox', 'INSERT', 'id, aggregatetype, aggregateid, type, payload, headers, shard, created_at'), \
     ('outbox_scheduled', 'SELECT', NULL), ('outbox_scheduled', 'DELETE', NULL), ('outbox_scheduled', 'UPDATE', 'seq'), \
     ('outbox_promotion', 'SELECT', NULL), ('outbox_promotion', 'UPDATE', NULL), \
     ('outbox_shard', 'SELECT', NULL), ('outbox_shard', 'UPDATE', NULL), ('outbox_dead_letter', 'SELECT', NULL), \
     ('outbox_dead_letter', 'INSERT', NULL), ('outbox_requeued', 'SELECT', NULL), ('outbox_requeued', 'UPDATE', 'seq'), ('outbox_requeued', 'DELETE', NULL), \
     ('outbox_slot', 'SELECT', NULL), ('outbox_slot', 'UPDATE', NULL), ('outbox_seq_seq', 'SELECT', NULL), ('outbox_seq_seq', 'UPDATE', NULL), \
     ('outbox_reader', 'UPDATE', NULL)) AS n (name, privilege, columns) \
     WHERE to_regclass(n.name) IS NOT NULL AND NOT CASE \
     WHEN n.name = 'outbox_seq_seq' THEN has_sequence_privilege(to_regclass(n.name)::oid, n.privilege) \
     WHEN n.columns IS NULL THEN has_table_privilege(to_regclass(n.name)::oid, n.privilege) \
     ELSE (SELECT bool_and(has_column_privilege(to_regclass(n.name)::oid, c, n.privilege)) \
     FROM regexp_split_to_table(n.columns, ', ') AS c) END)"
);

statement!(
    Pg,
    Connections {} -> (BigInt, BigInt),
    "SELECT current_setting('max_connections')::bigint - (SELECT sum(numbackends) FROM pg_stat_database)::bigint, \
     current_setting('max_connections')::bigint"
);

statement!(
    Pg,
    Prepared { seconds: f64 => Double } -> (Text, Double),
    "SELECT quote_literal(gid), extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts \
     WHERE database = current_database() AND extract(epoch FROM clock_timestamp() - prepared)::float8 >= ? ORDER BY prepared"
);

statement!(Pg, Clock {} -> BigInt, "SELECT (extract(epoch FROM clock_timestamp()) * 1000::numeric)::bigint");

statement!(
    Pg,
    Bloat {} -> (BigInt, BigInt, BigInt),
    "SELECT n_live_tup, n_dead_tup, pg_total_relation_size(relid) FROM pg_stat_all_tables WHERE relid = 'outbox'::regclass::oid"
);

statement!(
    Pg,
    AggregateTypes {} -> Text,
    "SELECT DISTINCT aggregatetype::text FROM (SELECT aggregatetype FROM outbox ORDER BY seq DESC LIMIT 10000) AS recent ORDER BY 1"
);

statement!(Pg, Slots {} -> Text, "SELECT slot FROM outbox_slot ORDER BY slot");

statement!(
    Pg,
    WalSettings {} -> (Text, BigInt, BigInt),
    "SELECT current_setting('wal_level'), (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
     current_setting('max_wal_senders')::bigint - (SELECT count(*) FROM pg_stat_replication)"
);

statement!(Pg, EndOfWal {} -> BigInt, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint");

statement!(
    Pg,
    /// Only PostgreSQL 17 and later have the column `failover`, so it is taken from the row as JSON.
    Slot { name: String => Text } -> (Bool, Nullable<Text>, BigInt, Nullable<BigInt>, Bool, Bool),
    "SELECT active, wal_status, coalesce(pg_current_wal_insert_lsn() - restart_lsn, 0)::bigint, safe_wal_size, \
     coalesce(plugin = 'pgoutput' AND database = current_database(), false), \
     coalesce(pg_catalog.to_jsonb(s) ->> 'failover' = 'false', false) AND EXISTS (SELECT FROM pg_replication_slots AS p WHERE p.slot_type = 'physical' AND p.active) \
     FROM pg_replication_slots AS s WHERE slot_name = ?"
);
