//! What the page refuses, and what it never shows.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::Emit;
use diesel_outbox_relay::operate::Operate;
use outbox_tests::{Browser, Kafka, Tables, eventually};

use super::{Answer, PATIENCE, Relay, TOKEN, asked, record};

/// Makes dead letters of these aggregate types, and returns them.
fn with_dead_letters(
    database: &outbox_tests::Database<'_>,
    relay: &Relay,
    records: &[diesel_outbox::Record],
) {
    database.connect().transaction(|c| c.emit_all(records)).unwrap();
    let count = records.len();
    eventually("the dead letters", PATIENCE, || {
        (database.count("outbox_dead_letter") == count).then_some(())
    });
    eventually("the dead letters on the page", PATIENCE, || {
        relay.get("/").body.contains("cause-").then_some(())
    });
}

#[test]
fn nothing_is_changed_without_the_token_or_for_another_site() {
    let database = outbox_tests::load::migrated();
    let topic = Kafka::shared().unique("status-guards");
    let relay = Relay::start(database.url(), &["--topic", "{aggregatetype}", "--allow-topics", &topic]);
    with_dead_letters(&database, &relay, &[record("invoice", 1, "InvoiceSent")]);
    let cause = database.connect().dead_letters(1).unwrap()[0].cause();
    let requeue = |token: &str| format!("token={token}&requeue=cause%3A{cause}");
    let own = format!("Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", relay.address);
    for (headers, fields, says) in [
        ("Sec-Fetch-Site: cross-site\r\n", requeue(TOKEN), "another site"),
        ("Sec-Fetch-Site: same-site\r\n", requeue(TOKEN), "another site"),
        ("Origin: https://evil.example\r\n", requeue(TOKEN), "another site"),
        ("Origin: null\r\n", requeue(TOKEN), "another site"),
        (&own, requeue("wrong"), "The token is wrong"),
        (&own, requeue(""), "The token is wrong"),
        (&own, format!("requeue=cause%3A{cause}"), "The token is wrong"),
    ] {
        let answer = relay.post(headers, &fields);
        assert_eq!(answer.status, 403, "{headers}{fields}");
        assert!(answer.body.contains(says) && !answer.body.contains(TOKEN), "{}", answer.body);
    }
    let unconfirmed = format!("token={TOKEN}&drop=cause%3A{cause}");
    assert_eq!(relay.post(&own, &unconfirmed).status, 400);
    // Only a form changes something.
    assert_eq!(relay.get(&format!("/dead-letters?{}", requeue(TOKEN))).status, 405);
    assert_eq!(database.count("outbox_dead_letter"), 1);
    let log = relay.process.output();
    assert!(log.contains("a wrong token") && !log.contains(TOKEN), "{log}");
    // And with all that it takes, it does.
    assert_eq!(relay.post(&own, &requeue(TOKEN)).status, 200);
    assert!(relay.process.output().contains("dead letters were requeued on the status page"));
}

#[test]
fn a_relays_own_role_may_not_requeue_and_the_page_says_so() {
    let database = outbox_tests::load::migrated();
    let relay =
        Relay::start(&database.relay_url(), &["--topic", "{aggregatetype}", "--allow-topics", "nothing"]);
    with_dead_letters(&database, &relay, &[record("invoice", 1, "InvoiceSent")]);
    let cause = database.connect().dead_letters(1).unwrap()[0].cause();
    let answer = relay.post("", &format!("token={TOKEN}&requeue=cause%3A{cause}"));
    assert_eq!(answer.status, 502, "{}", answer.body);
    assert!(
        answer.body.contains("permission denied") && answer.body.contains("docs/status-page.md"),
        "{}",
        answer.body
    );
    assert_eq!(database.count("outbox_dead_letter"), 1);
    // With the grants of that page it may.
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/status-page.md")).unwrap();
    let grants: String = page.lines().filter(|line| line.starts_with("GRANT ")).collect();
    database.connect().batch_execute(&grants.replace("TO outbox_relay", "TO outbox_test_relay")).unwrap();
    assert_eq!(relay.post("", &format!("token={TOKEN}&requeue=cause%3A{cause}")).status, 200);
}

#[test]
fn another_name_is_refused_and_every_answer_forbids_what_the_page_does_not_need() {
    let database = outbox_tests::load::migrated();
    let relay = Relay::start(&database.relay_url(), &["--status-hosts", "ops.example.com"]);
    let of = |host: &str| asked(&relay.address, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n"), "");
    for (host, status) in [
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("ops.example.com", 200),
        ("localhost:1", 200),
    ] {
        assert_eq!(of(host).status, status, "{host}");
    }
    assert!(!of("evil.example").body.contains(database.name()));
    for path in ["/", "/status.css", "/status.js", "/status.svg", "/dead-letter"] {
        let answer = relay.get(path);
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "cache-control: no-store",
            "referrer-policy: same-origin",
        ] {
            assert!(answer.head.contains(header), "{path} has no {header}:\n{}", answer.head);
        }
        assert!(!answer.body.contains("http://") || path == "/status.svg", "{path} leads elsewhere");
    }
    // No answer has a password.
    let secret = database.relay_url();
    let secret = secret.split(['@', ':']).nth(2).expect("a password");
    let page = relay.get("/").body;
    assert!(page.contains(database.name()) && !page.contains(&format!(":{secret}@")), "{page}");
    // Prometheus and probes may use any name.
    assert_eq!(asked(&relay.address, "GET /metrics HTTP/1.1\r\nHost: relay.example\r\n", "").status, 200);
}

#[test]
fn only_an_address_of_this_machine_has_the_page_unless_somebody_wants_it() {
    let database = outbox_tests::load::migrated();
    let status = |more: &[&str]| {
        let relay = Relay::start_at(more[0], &database.relay_url(), &more[1..]);
        let port = relay.address.rsplit(':').next().unwrap().to_owned();
        asked(&format!("127.0.0.1:{port}"), "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", "").status
    };
    assert_eq!(status(&["0.0.0.0:0"]), 404);
    assert_eq!(status(&["0.0.0.0:0", "--status-page"]), 200);
    assert_eq!(status(&["127.0.0.1:0"]), 200);
    assert_eq!(status(&["127.0.0.1:0", "--status-page=false"]), 404);
}

#[test]
fn nothing_that_an_event_holds_becomes_a_part_of_the_page() {
    let database = outbox_tests::load::migrated();
    let evil = "<img src=x onerror=\"window.evil=1\"><script>window.evil=1</script>";
    let relay = Relay::start(
        database.url(),
        &["--topic", "{aggregatetype}", "--allow-topics", "nothing", "--status-payloads"],
    );
    let event = record("invoice", evil, evil)
        .with_payload(evil.as_bytes().to_vec())
        .with_headers(vec![("evil".to_owned(), evil.to_owned())]);
    with_dead_letters(&database, &relay, &[event]);
    let browser = Browser::start();
    browser.open(&relay.url());
    browser.wait_for_text("#causes summary", evil);
    browser.run("document.querySelector('#causes summary').click()");
    assert!(browser.text("#causes tbody").contains(evil));
    browser.run("document.querySelector('#causes tbody a').click()");
    browser.wait_for_text("#payload", evil);
    browser.wait_for_text("#headers", "window.evil");
    assert_eq!(browser.run("return window.evil ?? null"), serde_json::Value::Null);
    assert_eq!(browser.run("return document.querySelectorAll('main img, main script').length"), 0);
}

#[test]
fn a_payload_is_not_shown_unless_somebody_wants_it() {
    let database = outbox_tests::load::migrated();
    let relay =
        Relay::start(&database.relay_url(), &["--topic", "{aggregatetype}", "--allow-topics", "nothing"]);
    with_dead_letters(&database, &relay, &[record("invoice", 1, "InvoiceSent")]);
    let letter = &database.connect().dead_letters(1).unwrap()[0];
    let page = relay.get(&format!("/dead-letter?seq={}&id={}", letter.seq, letter.id));
    assert_eq!(page.status, 200);
    assert!(page.body.contains(&letter.id) && page.body.contains("status_payloads"), "{}", page.body);
    assert!(!page.body.contains("total"), "{}", page.body);
    assert_eq!(relay.get("/dead-letter?seq=1&id=none").status, 404);
}

#[test]
fn a_stuck_database_holds_one_request_up_and_the_others_are_told_to_try_again() {
    let database = outbox_tests::load::migrated();
    let relay =
        Relay::start(&database.relay_url(), &["--topic", "{aggregatetype}", "--allow-topics", "nothing"]);
    with_dead_letters(&database, &relay, &[record("invoice", 1, "InvoiceSent")]);
    let letter = &database.connect().dead_letters(1).unwrap()[0];
    let path = format!("/dead-letter?seq={}&id={}", letter.seq, letter.id);
    let mut holder = database.connect();
    holder.batch_execute("BEGIN; LOCK TABLE outbox_dead_letter").unwrap();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..5).map(|_| scope.spawn(|| relay.get(&path))).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    for Answer { status, head, body } in &answers {
        match status {
            502 => assert!(body.contains("lock timeout"), "{body}"),
            503 => assert!(head.contains("retry-after: 5") && body.contains("try again"), "{head}{body}"),
            other => panic!("{other}: {body}"),
        }
    }
    // A lock is waited for 2 s, and the turn for 3 s.
    let limited = answers.iter().filter(|answer| answer.status == 502).count();
    assert!((1..=2).contains(&limited), "{limited}");
    holder.batch_execute("ROLLBACK").unwrap();
    eventually("the dead letter", PATIENCE, || (relay.get(&path).status == 200).then_some(()));
}

#[test]
fn a_cause_with_very_many_dead_letters_is_done_in_parts() {
    let database = outbox_tests::load::migrated();
    let dead = "INSERT INTO outbox_dead_letter (seq, id, aggregatetype, aggregateid, type, shard, created_at, reason) \
                SELECT n, gen_random_uuid(), 'invoice', n::text, 'InvoiceSent', 0, now(), 'too large' FROM generate_series(1, 10005) AS n";
    database.connect().batch_execute(dead).unwrap();
    let relay = Relay::start(database.url(), &["--topic", "{aggregatetype}", "--allow-topics", "nothing"]);
    let cause = database.connect().dead_letters(1).unwrap()[0].cause();
    let drop = format!("token={TOKEN}&drop=cause%3A{cause}&confirm=cause%3A{cause}");
    let answer = relay.post("", &drop).body;
    assert!(answer.contains("10,000 dead letters dropped. Only the oldest 10,000"), "{answer}");
    assert_eq!(database.count("outbox_dead_letter"), 5);
    assert!(relay.post("", &drop).body.contains("5 dead letters dropped.<"));
}

#[test]
fn another_site_cannot_have_a_dead_letter_looked_up() {
    let database = outbox_tests::load::migrated();
    let relay =
        Relay::start(&database.relay_url(), &["--topic", "{aggregatetype}", "--allow-topics", "nothing"]);
    with_dead_letters(&database, &relay, &[record("invoice", 1, "InvoiceSent")]);
    let letter = &database.connect().dead_letters(1).unwrap()[0];
    let get = |headers: &str| {
        let head = format!(
            "GET /dead-letter?seq={}&id={} HTTP/1.1\r\nHost: {}\r\n{headers}",
            letter.seq, letter.id, relay.address
        );
        asked(&relay.address, &head, "")
    };
    for headers in ["Sec-Fetch-Site: cross-site\r\n", "Origin: https://evil.example\r\n"] {
        let answer = get(headers);
        assert!(answer.status == 403 && answer.body.contains("another site"), "{headers}: {}", answer.body);
        assert!(!answer.body.contains(&letter.id), "{}", answer.body);
    }
    for headers in ["Sec-Fetch-Site: same-origin\r\n", "Sec-Fetch-Site: none\r\n", ""] {
        assert_eq!(get(headers).status, 200, "{headers}");
    }
}
