//! A page is open while events come, one becomes a dead letter, the relay is started anew, and somebody requeues.

use diesel::prelude::*;
use diesel_outbox::Emit;
use outbox_tests::browser::keys;
use outbox_tests::{Browser, Kafka, Signal, Tables, eventually};

use super::{PATIENCE, Relay, TOKEN, emit, record};

fn allowing(topic: &str, types: &[&str]) -> [String; 4] {
    let allowed: Vec<String> = types.iter().map(|name| format!("{topic}.{name}")).collect();
    ["--topic".into(), format!("{topic}.{{aggregatetype}}"), "--allow-topics".into(), allowed.join(",")]
}

fn started(address: &str, url: &str, settings: &[String]) -> Relay {
    Relay::start_at(address, url, &settings.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_page_follows_what_happens_outlives_a_restart_and_requeues_by_keyboard() {
    let database = outbox_tests::load::migrated();
    let topic = Kafka::shared().unique("status");
    let relay = started("127.0.0.1:0", database.url(), &allowing(&topic, &["order"]));
    let browser = Browser::start();
    browser.show(1280, 900, "light", 1);
    browser.open(&relay.url());
    browser.wait_for_text("#state", "Up to date");
    browser.wait_for_text("#causes", "There are none.");

    // It follows what is emitted: the rate on the page is above zero while events come.
    let conn = &mut database.connect();
    eventually("the rate of what is emitted", PATIENCE, || {
        emit(conn, "order", 50);
        let rate = browser.run("return document.querySelectorAll('.tile .value')[2].textContent");
        (rate.as_str().is_some_and(|rate| rate != "0" && rate != "–")).then_some(())
    });

    // A dead letter comes, with its cause and its record.
    conn.transaction(|c| {
        c.emit_all([record("invoice", 7, "InvoiceSent"), record("invoice", 8, "InvoiceSent")])
    })
    .unwrap();
    browser.wait_for_text("#state", "Dead letters");
    browser.wait_for_text("#causes summary", "InvoiceSent");
    browser.wait_for_text("#causes summary .count", "2");
    browser.run("document.querySelector('#causes summary').click()");
    browser.wait_for_text("#causes details[open]", "invoice 7");
    let id = browser.text("#causes tbody th");

    // The relay is started anew, and may write to the topic now. The page says that it is gone, and goes on by itself.
    let address = relay.address.clone();
    relay.process.signal(Signal::Terminate);
    relay.process.wait(PATIENCE);
    browser.wait_for_text("#connection", "does not answer");
    let relay = started(&address, database.url(), &allowing(&topic, &["order", "invoice"]));
    browser.wait_for("the page to go on", "return document.querySelector('#connection').textContent === ''");
    // What was open is open.
    assert!(browser.text("#causes details[open]").contains(&id));

    // A wrong token changes nothing.
    browser.tab_to("#token");
    browser.press("not-the-right-token");
    browser.tab_to("#causes button[name=requeue]");
    browser.press(keys::ENTER);
    browser.wait_for_text("#answer", "The token is wrong");
    assert_eq!(database.count("outbox_dead_letter"), 2);

    // With the right one, by keys alone. To drop takes a tick first.
    browser.run("document.querySelector('#token').value = ''; document.querySelector('#token').focus()");
    browser.press(TOKEN);
    browser.tab_to("#causes button[name=drop]");
    browser.press(keys::ENTER);
    browser.wait_for_text("#answer", "confirm first");
    assert_eq!(database.count("outbox_dead_letter"), 2);
    browser.run("document.querySelector('#token').focus()");
    browser.tab_to("#causes button[name=requeue]");
    browser.press(keys::ENTER);
    browser.wait_for_text("#answer", "2 dead letters requeued.");
    browser.wait_for_text("#causes", "There are none.");
    let arrived = Kafka::shared().read_at_least(&format!("{topic}.invoice"), 2, PATIENCE);
    assert!(arrived.iter().any(|record| record.header("id") == Some(id.trim())), "{id} in {arrived:?}");
    browser.wait_for_text("#state", "Up to date");

    // The token is kept for this tab, and nowhere else.
    assert_eq!(browser.run("return sessionStorage.getItem('outbox-token')"), TOKEN);
    assert_eq!(browser.run("return localStorage.length + document.cookie.length"), 0);
    drop(relay);
}

#[test]
fn what_is_dropped_is_gone_and_needs_no_script() {
    let database = outbox_tests::load::migrated();
    let topic = Kafka::shared().unique("status-drop");
    let relay = started("127.0.0.1:0", database.url(), &allowing(&topic, &["order"]));
    database.connect().transaction(|c| c.emit(&record("invoice", 7, "InvoiceSent"))).unwrap();
    eventually("the dead letter", PATIENCE, || (database.count("outbox_dead_letter") == 1).then_some(()));
    let browser = Browser::start();
    browser.allow_scripts(false);
    browser.open(&relay.url());
    // chromedriver's own scripts run all the same.
    eventually("the dead letter on the page", PATIENCE, || {
        browser.open(&relay.url());
        browser.text("#causes").contains("InvoiceSent").then_some(())
    });
    browser.run(
        "document.querySelector('#causes details').open = true; document.querySelector('#token').focus()",
    );
    browser.press(TOKEN);
    browser.tab_to("#causes input[name=confirm]");
    browser.press(keys::SPACE);
    browser.tab_to("#causes button[name=drop]");
    browser.press(keys::ENTER);
    browser.wait_for_text("#answer", "1 dead letter dropped.");
    assert_eq!(database.count("outbox_dead_letter"), 0);
}
