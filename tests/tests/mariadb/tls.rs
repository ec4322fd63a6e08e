//! Servers that take only connections with TLS.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use outbox_tests::load::{new_topic, relay_command, stop};
use outbox_tests::{Authority, Kafka, Mariadb, Process, eventually};

use super::commands::{done, outbox};
use super::{count, emit};

#[test]
fn relay_and_commands_reach_a_mariadb_that_insists_on_tls_by_one_url() {
    let authority = Authority::new();
    reach_a_server_that_insists_on_tls_by_one_url(&Mariadb::start_with_tls(&authority), &authority);
}

#[test]
fn relay_and_commands_reach_a_mysql_that_insists_on_tls_by_one_url() {
    let authority = Authority::new();
    reach_a_server_that_insists_on_tls_by_one_url(&Mariadb::start_mysql_with_tls(&authority), &authority);
}

fn reach_a_server_that_insists_on_tls_by_one_url(server: &Mariadb, authority: &Authority) {
    let database = server.database();
    // Connected before the server insists.
    let conn = &mut database.connect();
    conn.batch_execute("SET GLOBAL require_secure_transport = ON").unwrap();
    let trusting = |authority: &Authority| format!("root_cert_path={}", authority.certificate().display());
    let url = |parameters: &str| format!("{}?tcp_connect_timeout_ms=9000&{parameters}", database.url());

    let (is_done, text) = outbox(database.url(), &["migrate"]);
    // MariaDB 10.11 does not say why.
    let says = ["require_secure_transport", "Access denied"];
    assert!(!is_done && says.iter().any(|says| text.contains(says)), "{text}");
    for parameters in ["danger_skip_domain_validation=false", &trusting(&Authority::new())] {
        let (is_done, text) = outbox(&url(parameters), &["migrate"]);
        assert!(!is_done && text.contains("certificate"), "{parameters}: {text}");
    }
    // Another name of the server, which is not in its certificate.
    let renamed = url(&trusting(authority)).replace("127.0.0.1", "localhost");
    let (is_done, text) = outbox(&renamed, &["migrate"]);
    assert!(!is_done && text.contains("certificate"), "{text}");

    let url = url(&trusting(authority));
    assert!(done(&url, &["migrate"]).contains("create_outbox"));
    for lax in [
        format!("{renamed}&danger_skip_domain_validation=true"),
        format!("{}?danger_accept_invalid_certs=true", database.url()),
    ] {
        assert!(done(&lax, &["migrate"]).contains("is up to date"));
    }
    emit(conn, [1, 2, 3]);
    let lag = done(&url, &["lag"]);
    assert!(lag.contains('3'), "{lag}");
    let topic = new_topic("tls");
    let relay = Process::start(&relay_command(Kafka::shared().brokers(), &url, &topic, &[]));
    eventually("the events to be sent", Duration::from_secs(60), || {
        (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(())
    });
    stop(&relay);
    assert_eq!(Kafka::shared().read_all(&topic).len(), 3);
}
