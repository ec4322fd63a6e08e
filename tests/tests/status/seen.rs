//! What the page shows on each database, and to whom.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Integer, Text};
use diesel_outbox::Emit;
use diesel_outbox_relay::mysql::prelude::Queryable;
use diesel_outbox_relay::operate::{Observe, Operate};
use outbox_tests::{Browser, Folder, Kafka, artifacts, eventually, migrated_mariadb};
use serde_json::{Value, json};

use super::{PATIENCE, Relay, emit, record};

#[test]
fn a_shard_shows_the_session_that_has_claimed_it() {
    let database = outbox_tests::load::migrated();
    let mut conn = database.connect();
    emit(&mut conn, "order", 40);
    let waiting = conn.status().unwrap();
    assert_eq!((waiting.lag.unsent, waiting.relays.claims.as_deref()), (40, Some(&[][..])));
    assert_eq!((0..16).map(|shard| waiting.waits_in(shard).0).sum::<u64>(), 40);
    let mut worker = database.connect();
    worker
        .batch_execute(
            "SET application_name = 'outbox relay'; SELECT pg_advisory_lock(1869968483, 'outbox'::regclass::oid::int4); \
             BEGIN; SELECT FROM outbox_shard WHERE shard IN (3, 5) FOR UPDATE",
        )
        .unwrap();
    let id: i32 = diesel::dsl::sql::<diesel::sql_types::Integer>("SELECT pg_backend_pid()")
        .get_result(&mut worker)
        .unwrap();
    let seen = conn.status().unwrap().relays;
    let claims: Vec<_> = seen.claims.unwrap().iter().map(|claim| (claim.shard, claim.session)).collect();
    assert_eq!(claims, [(3, id.into()), (5, id.into())]);
    let sessions = seen.sessions.unwrap();
    assert_eq!(
        sessions.iter().map(|session| (session.id, session.leads, session.works)).collect::<Vec<_>>(),
        [(id.into(), true, false)]
    );
    worker.batch_execute("ROLLBACK").unwrap();
    assert_eq!(conn.status().unwrap().relays.claims.unwrap(), []);
}

#[test]
fn the_page_shows_what_waits_and_who_works_on_mariadb() {
    let database = migrated_mariadb();
    let relay = Relay::start(
        &database.relay_url(),
        &["--topic", &Kafka::shared().unique("status-mariadb"), "--kafka", "socket.timeout.ms=10000"],
    );
    eventually("the relay's session", PATIENCE, || {
        let page = relay.get("/").body;
        (page.contains("leads") && page.contains("do not show a relay's role which session")).then_some(())
    });
    emit(&mut database.connect(), "order", 5);
    let mut conn = diesel_outbox_relay::mysql::Conn::new(database.url()).unwrap();
    eventually("the events to be sent", PATIENCE, || (conn.status().unwrap().lag.unsent == 0).then_some(()));
    assert_eq!(conn.last_number().unwrap(), 5);
    assert!(relay.get("/").body.contains(database.name()));
}

#[test]
fn the_page_shows_an_sqlite_file() {
    let folder = Folder::new("status");
    let path = folder.path().join("outbox.db");
    let path = path.to_str().unwrap();
    let mut conn = SqliteConnection::establish(path).unwrap();
    // The relay writes too.
    conn.batch_execute("PRAGMA busy_timeout = 30000").unwrap();
    diesel_outbox::Migrations::new().run(&mut conn).unwrap();
    emit(&mut conn, "order", 3);
    let relay =
        Relay::start(path, &["--topic", "{aggregatetype}", "--allow-topics", "nothing", "--status-payloads"]);
    eventually("the dead letters", PATIENCE, || relay.get("/").body.contains("OrderPlaced").then_some(()));
    let letter = &conn.dead_letters(1).unwrap()[0];
    let page = relay.get(&format!("/dead-letter?seq={}&id={}", letter.seq, letter.id)).body;
    assert!(page.contains("{&quot;total&quot;:12}"), "{page}");
    assert_eq!(conn.last_number().unwrap(), 3);
}

#[test]
fn one_dead_letter_is_found_by_its_number_and_its_id_on_each_database() {
    let folder = Folder::new("content");
    let path = folder.path().join("outbox.db");
    let mut sqlite = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    diesel_outbox::Migrations::new().run(&mut sqlite).unwrap();
    let (postgres, mariadb) = (outbox_tests::load::migrated(), migrated_mariadb());
    let insert = |id: &str| {
        format!(
            "INSERT INTO outbox_dead_letter (seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, reason, failed_at) \
             VALUES (1, '{id}', 'a', '1', 't', 'abc', '{{}}', 0, '2026-01-01 00:00:00', 'r', '2026-01-01 00:00:00')"
        )
    };
    let id = "0198c0de-0000-7000-8000-000000000001";
    postgres.connect().batch_execute(&insert(id)).unwrap();
    mariadb.connect().batch_execute(&insert(id)).unwrap();
    sqlite.batch_execute(&insert(id)).unwrap();
    let mut mysql = diesel_outbox_relay::mysql::Conn::new(mariadb.url()).unwrap();
    let connections: [&mut dyn Observe; 3] = [&mut postgres.connect(), &mut mysql, &mut sqlite];
    for conn in connections {
        let content = conn.content(1, id).unwrap().expect("a dead letter");
        assert_eq!((content.payload.as_deref(), content.payload_bytes), (Some(&b"abc"[..]), 3));
        assert_eq!(content.headers.as_deref(), Some("{}"));
        assert_eq!(conn.content(2, id).unwrap(), None);
        assert_eq!(conn.content(1, "x").unwrap(), None);
        let letter = conn.dead_letter(1, id).unwrap();
        assert!(letter.is_some() && letter == conn.dead_letters(1).unwrap().pop(), "{letter:?}");
        assert_eq!(conn.dead_letter(2, id).unwrap(), None);
        assert_eq!(conn.dead_letter(1, "x").unwrap(), None);
    }
}

#[test]
fn a_statement_of_the_page_ends_by_itself_on_each_database() {
    let (database, mariadb) = (outbox_tests::load::migrated(), migrated_mariadb());
    let mut postgres = database.connect();
    postgres.limit_waits().unwrap();
    let setting = |name: &str| {
        let sql = format!("SELECT current_setting('{name}')");
        diesel::dsl::sql::<Text>(&sql).get_result::<String>(&mut postgres).unwrap()
    };
    assert_eq!(["statement_timeout", "lock_timeout"].map(setting), ["10s", "2s"]);
    let mut mysql = diesel_outbox_relay::mysql::Conn::new(mariadb.url()).unwrap();
    mysql.limit_waits().unwrap();
    let set = "SELECT @@max_statement_time, @@lock_wait_timeout, @@innodb_lock_wait_timeout";
    assert_eq!(mysql.query_first::<(f64, u32, u32), _>(set).unwrap(), Some((10.0, 2, 2)));
    let mut sqlite = SqliteConnection::establish(":memory:").unwrap();
    sqlite.limit_waits().unwrap();
    let busy = diesel::dsl::sql::<Integer>("SELECT timeout FROM pragma_busy_timeout");
    assert_eq!(busy.get_result::<i32>(&mut sqlite).unwrap(), 2_000);
}

#[test]
fn several_schemas_are_listed_and_each_can_be_looked_at() {
    let database = outbox_tests::load::migrated();
    for schema in ["tenant_a", "tenant_b"] {
        database.migrate_in(schema);
    }
    let relay = Relay::start(
        &database.relay_url(),
        &["--schema", "tenant_*", "--topic", "{aggregatetype}", "--allow-topics", "x"],
    );
    let conn = &mut database.connect();
    conn.batch_execute("SET search_path TO tenant_b").unwrap();
    emit(conn, "invoice", 2);
    let page = eventually("both schemas and the dead letters of one", PATIENCE, || {
        let page = relay.get("/").body;
        let has_both = page.contains("schema tenant_a") && page.contains("schema tenant_b");
        (has_both && page.contains("Dead letters</span>")).then_some(page)
    });
    let link = page
        .split("href=\"")
        .find(|link| link.starts_with("/?outbox=") && link.contains("tenant_b"))
        .unwrap();
    let link = link.split('"').next().unwrap();
    let of_b = relay.get(link);
    assert_eq!(of_b.status, 200);
    assert!(of_b.body.contains("cause-"), "{}", of_b.body);
    assert_eq!(relay.get("/?outbox=none").status, 404);
}

/// What axe finds that is serious or critical, and the widest thing on the page.
fn obstacles(browser: &Browser) -> Value {
    browser.run(&artifacts::axe());
    browser.run_async(&format!(
        "{};
         const found = await axe.run(document, {{ resultTypes: ['violations'] }});
         const serious = found.violations.filter(v => ['serious', 'critical'].includes(v.impact));
         return serious.map(v => v.id + ': ' + v.nodes.map(n => n.target + ' ' + n.failureSummary).join(' | '));",
        artifacts::axe()
    ))
}

#[test]
fn the_page_has_no_obstacles_in_light_and_dark_and_fits_on_a_phone() {
    let database = outbox_tests::load::migrated();
    let topic = Kafka::shared().unique("status-axe");
    let relay = Relay::start(
        database.url(),
        &[
            "--topic",
            &format!("{topic}.{{aggregatetype}}"),
            "--allow-topics",
            &format!("{topic}.order"),
            "--status-payloads",
        ],
    );
    let conn = &mut database.connect();
    emit(conn, "order", 20);
    conn.transaction(|c| {
        c.emit(&record(
            "invoice",
            "a-very-long-aggregate-id-without-any-space-in-it-0123456789",
            "InvoiceSent",
        ))
    })
    .unwrap();
    let browser = Browser::start();
    browser.open(&relay.url());
    browser.wait_for_text("#causes summary", "InvoiceSent");
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")] {
        browser.show(width, 800, scheme, 1);
        browser.open(&relay.url());
        browser.run("document.querySelector('#causes details').open = true");
        assert_eq!(obstacles(&browser), json!([]), "{width} {scheme}");
        let too_wide =
            browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth");
        assert_eq!(too_wide, 0, "{width} {scheme}");
        browser.run("document.querySelector('#causes tbody a').click()");
        browser.wait_for_text("h1", "Dead letter");
        assert_eq!(obstacles(&browser), json!([]), "a dead letter, {width} {scheme}");
        let too_wide =
            browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth");
        assert_eq!(too_wide, 0, "a dead letter, {width} {scheme}");
    }
}
