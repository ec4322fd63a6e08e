//! Apache Kafka from Maven artifacts, as broker and controller in one process.

use crate::artifacts;
use crate::host::Local;
use crate::java;
use crate::process::Signal;
use crate::scratch::Folder;

/// Returns the properties of a broker that listens on `listen` and is reached at `address`.
pub(super) fn properties(
    address: &str,
    listen: &str,
    port: u16,
    controller: u16,
    own: &[(&str, &str)],
) -> Vec<(String, String)> {
    let mut properties = vec![
        ("listeners", format!("PLAINTEXT://{listen}:{port},CONTROLLER://127.0.0.1:{controller}")),
        ("advertised.listeners", format!("PLAINTEXT://{address}:{port}")),
        ("controller.quorum.voters", format!("1@127.0.0.1:{controller}")),
    ];
    let fixed = [
        ("process.roles", "broker,controller"),
        ("node.id", "1"),
        ("controller.listener.names", "CONTROLLER"),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("num.partitions", "3"),
        ("auto.create.topics.enable", "true"),
        ("offsets.topic.num.partitions", "1"),
        ("offsets.topic.replication.factor", "1"),
        ("transaction.state.log.num.partitions", "1"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("share.coordinator.state.topic.num.partitions", "1"),
        ("share.coordinator.state.topic.replication.factor", "1"),
        ("share.coordinator.state.topic.min.isr", "1"),
        ("group.initial.rebalance.delay.ms", "0"),
        // After a crash the broker can join again when its former session has ended.
        ("broker.session.timeout.ms", "3000"),
        ("broker.heartbeat.interval.ms", "300"),
    ];
    properties.extend(fixed.iter().chain(own).map(|(key, value)| (*key, (*value).to_owned())));
    properties.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Makes the broker's data folder and returns the broker. Its virtual machine has these options.
pub(super) fn install(properties: Vec<(String, String)>, options: &[&str]) -> Local {
    install_with(properties, options, &[])
}

/// The same, with more arguments for the command that formats the data folder.
pub(super) fn install_with(
    mut properties: Vec<(String, String)>,
    options: &[&str],
    formatting: &[&str],
) -> Local {
    let classes = artifacts::kafka();
    let folder = Folder::new("kafka");
    if !properties.iter().any(|(name, _)| name == "log.dirs") {
        properties.push(("log.dirs".to_owned(), folder.path().join("data").display().to_string()));
    }
    let settings = folder.path().join("server.properties");
    java::write_properties(&settings, &properties);

    let mut format = java::command(&java::QUICK, &classes);
    format.args(["kafka.tools.StorageTool", "format", "--cluster-id", "b3V0Ym94LXRlc3RzLTAwMA", "--config"]);
    artifacts::run(format.arg(&settings).args(formatting), "install a Java runtime, version 17 or later");

    let mut server = java::command(options, &classes);
    server.arg("kafka.Kafka").arg(&settings);
    Local::new(server, folder, Signal::Terminate, Signal::Kill)
}
