//! A broker with TLS.

use std::fs;
use std::path::PathBuf;

use super::{Kafka, local};
use crate::authority::Authority;
use crate::docker;
use crate::host::{Host, free_port};
use crate::java;
use crate::scratch::Folder;

/// A broker with several listeners, all on this machine. Its certificates are for the host `localhost`.
pub struct TlsKafka {
    /// For a client without TLS.
    pub kafka: Kafka,
    /// The address for TLS.
    pub tls: String,
    /// The address for TLS, at which it shows a certificate that has expired.
    pub expired: String,
    /// The address for TLS and a login by SCRAM-SHA-256.
    pub scram: String,
    _folder: Folder,
}

impl TlsKafka {
    /// Starts a broker with certificates of this authority, and with a user that has this name and password.
    #[track_caller]
    pub fn start(authority: &Authority, user: &str, password: &str) -> Self {
        assert!(
            docker::engine().is_none(),
            "a broker with TLS is only started from local programs: set DOCKER_HOST to `none://` for this test"
        );
        let folder = Folder::new("kafka-tls");
        let keystore = |name: &str, files: [PathBuf; 2]| {
            let [certificate, key] = files.map(|file| fs::read_to_string(file).expect("a certificate"));
            let store = folder.path().join(name);
            fs::write(&store, key + &certificate).expect("write a key store");
            store.display().to_string()
        };
        let good = keystore("good.pem", authority.certify("localhost"));
        let expired = keystore("expired.pem", authority.certify_expired("localhost"));
        let ports = [(); 4].map(|()| free_port());
        let controller = free_port();
        let at = |names: &str| {
            let names = ["PLAINTEXT", "TLS", "EXPIRED", "SCRAM"].map(|name| format!("{name}{names}"));
            names.iter().zip(ports).map(|(name, port)| format!("{name}:{port}")).collect::<Vec<_>>().join(",")
        };
        let listeners = format!("{},CONTROLLER://127.0.0.1:{controller}", at("://127.0.0.1"));
        let advertised = at("://localhost");
        let login = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let own = [
            ("listeners", &*listeners),
            ("advertised.listeners", &advertised),
            (
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,EXPIRED:SSL,SCRAM:SASL_SSL",
            ),
            ("listener.name.tls.ssl.keystore.type", "PEM"),
            ("listener.name.tls.ssl.keystore.location", &good),
            ("listener.name.expired.ssl.keystore.type", "PEM"),
            ("listener.name.expired.ssl.keystore.location", &expired),
            ("listener.name.scram.ssl.keystore.type", "PEM"),
            ("listener.name.scram.ssl.keystore.location", &good),
            ("sasl.enabled.mechanisms", "SCRAM-SHA-256"),
            ("listener.name.scram.scram-sha-256.sasl.jaas.config", login),
        ];
        let properties = local::properties("localhost", "127.0.0.1", ports[0], controller, &own);
        let scram = format!("SCRAM-SHA-256=[name={user},password={password}]");
        let host = local::install_with(properties, &java::QUICK, &["--add-scram", &scram]);
        let [brokers, tls, expired, scram] = ports.map(|port| format!("localhost:{port}"));
        let kafka = Kafka { host: Box::new(host) as Box<dyn Host>, brokers };
        kafka.host.start();
        kafka.wait_until_ready();
        Self { kafka, tls, expired, scram, _folder: folder }
    }
}
