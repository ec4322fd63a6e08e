//! Takes the pictures of the page that the guide shows.
//!
//! ```sh
//! scripts/test --test status pictures -- --ignored
//! ```

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_outbox::Emit;
use outbox_tests::{Browser, Kafka};

use super::{Relay, emit, record};

/// For so long events come before the pictures are taken.
const SHOWN: Duration = Duration::from_secs(300);

#[test]
#[ignore = "it takes five minutes, and writes into docs/images"]
fn pictures_for_the_guide() {
    let database = outbox_tests::load::migrated();
    let topic = Kafka::shared().unique("shop");
    let allowed = ["order", "payment", "parcel"].map(|name| format!("{topic}.{name}")).join(",");
    let relay = Relay::start(
        database.url(),
        &["--topic", &format!("{topic}.{{aggregatetype}}"), "--allow-topics", &allowed, "--workers", "2"],
    );
    let conn = &mut database.connect();
    let seconds = std::env::var("PICTURES_AFTER").ok().and_then(|text| text.parse().ok());
    let (began, shown) = (Instant::now(), seconds.map_or(SHOWN, Duration::from_secs));
    let dead = (0..14).map(|id| record("invoice", format!("2026-{:04}", 1_180 + id), "InvoiceSent"));
    conn.transaction(|c| c.emit_all(dead.chain([record("refund", "88120", "RefundPaid")]))).unwrap();
    while began.elapsed() < shown {
        // More in one minute than in the next.
        let wave = (began.elapsed().as_secs_f64() / 40.0).sin() + 1.4;
        for name in ["order", "payment", "parcel"] {
            emit(conn, name, (wave * 9.0) as usize);
        }
        thread::sleep(Duration::from_millis(120));
    }
    let browser = Browser::start();
    for (name, width, height, scheme, scale) in
        [("light", 1120, 940, "light", 1), ("dark", 1120, 940, "dark", 1), ("phone", 390, 844, "light", 2)]
    {
        browser.show(width, height, scheme, scale);
        browser.open(&relay.url());
        browser.wait_for_text("#causes summary", "InvoiceSent");
        // Two looks have a rate.
        for _ in 0..20 {
            emit(conn, "order", 20);
            thread::sleep(Duration::from_millis(150));
        }
        emit(conn, "order", 900);
        let picture = browser.picture();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/images");
        std::fs::write(folder.join(format!("status-page-{name}.png")), picture).unwrap();
    }
}
