use outbox_tests::load::{migrated, new_topic, write};
use outbox_tests::{Kafka, Process, Proxy, Signal, Tables, eventually};

use super::outbox::{FromWal, Outbox};
use super::{PATIENCE, Step, assert_sent_exactly_once_to, emit_from, emit_more, start_to};

#[test]
fn an_owner_that_is_cut_off_from_kafka_writes_nothing_more_when_its_requests_arrive_late() {
    let proxy = Proxy::open();
    let address = format!("PLAINTEXT://127.0.0.1:{}", proxy.port());
    let kafka = Kafka::start_with(&[("advertised.listeners", &address)]);
    proxy.lead_to(kafka.brokers());
    for outbox in [migrated(), migrated()] {
        cut_off(&kafka, &proxy, &outbox);
    }
    cut_off(&kafka, &proxy, &FromWal::new());
}

/// Starts a relay that freezes in the middle of its work.
fn frozen_owner(kafka: &Kafka, outbox: &impl Outbox, topic: &str, url: Option<String>) -> Process {
    let step =
        Step { name: "publish after".to_owned(), occurrence: 1_000, freezes: true, url, ..Step::default() };
    let owner = start_to(kafka, outbox, topic, &step);
    owner.wait_for_line("the step", PATIENCE, |line| line.contains("reached: "));
    owner
}

#[test]
fn an_owner_that_is_cut_off_from_its_database_commits_nothing_more() {
    cut_off_from_the_database(&migrated());
    cut_off_from_the_database(&FromWal::new());
}

/// The server ends the owner's sessions, which the owner does not hear of until another relay has done its work.
fn cut_off_from_the_database(outbox: &impl Outbox) {
    let (proxy, kafka, tables) = (Proxy::open(), Kafka::shared(), outbox.tables());
    let url = tables.relay_url();
    let server = url.rsplit_once('@').unwrap().1.split_once('/').unwrap().0;
    proxy.lead_to(server);
    let url = url.replace(server, &format!("127.0.0.1:{}", proxy.port()));
    let topic = new_topic("cut-off");
    let mut committed = write(&mut tables.connect(), 0, 1, 50, 5_000);
    let owner = frozen_owner(kafka, outbox, &topic, Some(url));
    proxy.hold();
    owner.signal(Signal::Continue);
    tables.end_sessions();
    let next = start_to(kafka, outbox, &topic, &Step::default());
    assert_sent_exactly_once_to(kafka, outbox, &topic, &committed);
    proxy.heal();
    owner.wait_for_line("a failure", PATIENCE, |line| line.contains("failed; trying again"));
    committed.extend(emit_more(&mut tables.connect()));
    assert_sent_exactly_once_to(kafka, outbox, &topic, &committed);
    drop((owner, next));
}

/// What the owner has sent when it is cut off is on its way until another relay has taken over.
fn cut_off(kafka: &Kafka, proxy: &Proxy, outbox: &impl Outbox) {
    let tables = outbox.tables();
    let topic = kafka.unique("cut-off");
    kafka.create_topic(&topic, 3);
    // The broker connects to itself when a relay takes over for the first time, and that connection goes through the proxy too.
    let mut committed = emit_from(&mut tables.connect(), 0);
    let first = start_to(kafka, outbox, &topic, &Step::default());
    outbox.wait_until_settled();
    first.signal(Signal::Kill);
    first.wait(PATIENCE);
    for number in 1..25 {
        committed.extend(emit_from(&mut tables.connect(), 200 * number));
    }
    let others = proxy.let_in();
    let owner = frozen_owner(kafka, outbox, &topic, None);
    proxy.hold_those_after(others);
    // It goes on, and its requests go no further than the proxy.
    owner.signal(Signal::Continue);
    owner.wait_for_line("that the broker is silent", PATIENCE, |line| line.contains("failed; trying again"));
    owner.signal(Signal::Kill);
    owner.wait(PATIENCE);
    tables.end_sessions();
    let next = start_to(kafka, outbox, &topic, &Step::default());
    assert_sent_exactly_once_to(kafka, outbox, &topic, &committed);
    let before = kafka.read_all_uncommitted(&topic).len();
    let late = proxy.late();
    proxy.heal();
    eventually("the late requests to pass", PATIENCE, || (proxy.late() > late).then_some(()));
    committed.extend(emit_more(&mut tables.connect()));
    assert_sent_exactly_once_to(kafka, outbox, &topic, &committed);
    let after = kafka.read_all_uncommitted(&topic).len();
    assert_eq!(after - before, 200, "the owner that was cut off wrote something");
    drop(next);
}
