//! The page as a part of a service.

use diesel::prelude::*;
use diesel_outbox_relay::Kafka as Broker;
use diesel_outbox_status::{Outbox, StatusPage, Token};
use outbox_tests::{Browser, Kafka, Tables};

use super::{TOKEN, asked, emit};

#[test]
fn a_service_has_the_page_below_a_path_of_its_own() {
    let database = outbox_tests::load::migrated();
    let topic = Kafka::shared().unique("status-embedded");
    let naming = topic.parse().unwrap();
    let relay =
        database.relay().broker(Broker::new(Kafka::shared().brokers())).topic_naming(naming).spawn().unwrap();
    let url = database.relay_url();
    let shop = Outbox::new("shop", move || PgConnection::establish(&url)).relay(&relay);
    let page = StatusPage::new().outbox(shop).actions(Token::new(TOKEN).unwrap());
    let service = axum::Router::new()
        .route("/", axum::routing::get(|| async { "the service" }))
        .nest("/ops/outbox", page.router());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    runtime.spawn(async move { axum::serve(listener, service).await });

    let browser = Browser::start();
    browser.open(&format!("http://{address}/ops/outbox"));
    browser.wait_for_text("h1", "shop");
    browser.wait_for_text("#state", "Up to date");
    // Its stylesheet and its script have come from below the same path.
    assert_eq!(browser.run("return document.styleSheets.length"), 1);
    emit(&mut database.connect(), "order", 3);
    browser.wait_for(
        "the page to be updated",
        "return document.querySelector('#now').dataset.was !== undefined",
    );
    Kafka::shared().read_at_least(&topic, 3, super::PATIENCE);
    let form = asked(
        &address,
        &format!(
            "POST /ops/outbox/dead-letters HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        ),
        "token=x",
    );
    assert!(form.status == 403 && form.body.contains("href=\"/ops/outbox\""), "{}", form.body);
    drop(browser);
    runtime.shutdown_background();
    relay.stop_blocking().unwrap();
}
