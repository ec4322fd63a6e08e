//! The main job: what was committed arrives, what was rolled back does not.

use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay, Topics};
use outbox_tests::{Kafka, Postgres, eventually};

#[test]
fn first() {
    let database = Postgres::shared().database();
    let mut conn = database.connect();
    Migrations::new().run(&mut conn).unwrap();
    let kafka = Kafka::shared();
    let topic = kafka.unique("order");
    kafka.create_topic(&topic, 3);
    let relay = Relay::postgres(database.url())
        .publisher(Broker::new(kafka.brokers()))
        .topics(Topics::pattern(&topic).unwrap())
        .spawn()
        .unwrap();
    for n in 0..10 {
        conn.transaction(|c| {
            c.emit(
                &Record::new("order", n.to_string(), "OrderPlaced").with_payload(*b"{ }").header("a", "b"),
            )?;
            diesel::QueryResult::Ok(())
        })
        .unwrap();
    }
    let records = eventually("all", std::time::Duration::from_secs(30), || {
        let records = kafka.read_all(&topic);
        (records.len() == 10).then_some(records)
    });
    println!("{records:#?}");
    tokio::runtime::Runtime::new().unwrap().block_on(relay.stop()).unwrap();
}
