//! Kafka Connect for tests, with connectors that are made by requests.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::debezium::settings;
use crate::host::{Host, Local, free_port, wait_until_ready};
use crate::java;
use crate::kafka::Kafka;
use crate::process::Signal;
use crate::scratch::Folder;
use crate::wait::eventually_ok;

/// How long an answer may take, and a connector to start. It loads many classes when it is asked for the first time.
const PATIENCE: Duration = Duration::from_secs(180);

/// A worker of Kafka Connect. It knows no connector after a restart, but still has their offsets.
pub struct Connect {
    host: Local,
    port: u16,
}

impl Connect {
    /// Starts a worker that has this class path. Its environment has the password, by the name that a printed connector uses.
    pub fn start(classes: &str, kafka: &Kafka, password: &str) -> Self {
        Self::launch(classes, kafka, password, &java::QUICK, &settings::ASKED_FOR)
    }

    /// Starts a worker for measurements. It is faster once it is warm, and stores offsets as seldom as by default.
    pub fn start_for_benchmark(classes: &str, kafka: &Kafka, password: &str) -> Self {
        Self::launch(classes, kafka, password, &java::FAST, &settings::ASKED_FOR[1..])
    }

    fn launch(
        classes: &str,
        kafka: &Kafka,
        password: &str,
        java_options: &[&str],
        own: &[(&str, &str)],
    ) -> Self {
        let (folder, port) = (Folder::new("connect"), free_port());
        let file = folder.path().join("worker.properties");
        let listener = format!("http://127.0.0.1:{port}");
        let own = [own, &[("listeners", &listener)]].concat();
        java::write_properties(&file, &settings::worker(kafka.brokers(), folder.path(), &own));
        let mut command = java::command(java_options, classes);
        command.arg("-Dorg.apache.logging.log4j.level=WARN");
        command.arg("org.apache.kafka.connect.cli.ConnectStandalone").arg(file);
        command.env("OUTBOX_DATABASE_PASSWORD", password);
        let connect = Self { host: Local::new(command, folder, Signal::Terminate, Signal::Kill), port };
        connect.host.start();
        connect.wait_until_ready();
        connect
    }

    fn wait_until_ready(&self) {
        wait_until_ready(&self.host, "Kafka Connect", || match self.try_request("GET", "/connectors", "") {
            Ok((200, _)) => Ok(()),
            Ok((status, body)) => Err(format!("{status} {body}")),
            Err(error) => Err(error.to_string()),
        });
    }

    /// Shuts it down, and starts it again without its connectors.
    pub fn restart(&self) {
        self.host.stop();
        self.host.start();
        self.wait_until_ready();
    }

    /// Kills it, and starts it again without its connectors.
    pub fn crash(&self) {
        self.host.crash();
        self.host.start();
        self.wait_until_ready();
    }

    /// Freezes the whole worker. Its connections stay open, but it reads nothing.
    pub fn freeze(&self) {
        self.host.pause();
    }

    /// Lets it go on after it was frozen.
    pub fn thaw(&self) {
        self.host.resume();
    }

    /// Returns the memory that it occupies in KiB, if the system reports it.
    pub fn resident_kb(&self) -> Option<u64> {
        self.host.resident_kb()
    }

    /// Returns the last lines that it has printed.
    pub fn log_end(&self) -> String {
        self.host.log_end()
    }

    fn try_request(&self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // By this version of HTTP, the answer ends with the connection.
        let head = format!("{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\n");
        write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
    }

    /// Sends a request that must succeed, and returns the answer.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, answer) = self.try_request(method, path, body).expect("an answer of Kafka Connect");
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}\n{}", self.log_end());
        serde_json::from_str(&answer).unwrap_or_default()
    }

    /// Returns the state of the connector's task, and why it has failed.
    pub fn task(&self, name: &str) -> (String, String) {
        let status = self.request("GET", &format!("/connectors/{name}/status"), "");
        let task = &status["tasks"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&task["state"]), text(&task["trace"]))
    }

    /// Waits until the connector's task runs.
    #[track_caller]
    pub fn wait_until_running(&self, name: &str) {
        eventually_ok(&format!("the connector {name} to run"), PATIENCE, || match self.task(name) {
            (state, _) if state == "RUNNING" => Ok(()),
            (state, trace) => Err(format!("{state} {trace}\n{}", self.log_end())),
        });
    }

    /// Waits until the connector's task has failed, and returns why.
    #[track_caller]
    pub fn wait_until_failed(&self, name: &str) -> String {
        eventually_ok(&format!("the connector {name} to fail"), PATIENCE, || match self.task(name) {
            (state, trace) if state == "FAILED" => Ok(trace),
            (state, _) => Err(state),
        })
    }

    /// Makes a connector that waits for its first offset, as it is printed. Gives it that offset, and lets it run.
    #[track_caller]
    pub fn begin(&self, name: &str, connector: &str, offset: &str) {
        self.request("POST", "/connectors", connector);
        self.request("PATCH", &format!("/connectors/{name}/offsets"), offset);
        self.resume(name);
    }

    /// Makes a connector that has run before, as it is printed, and lets it run.
    #[track_caller]
    pub fn continue_with(&self, name: &str, connector: &str) {
        self.request("POST", "/connectors", connector);
        self.resume(name);
    }

    /// Lets a stopped connector run, and waits until it does.
    #[track_caller]
    pub fn resume(&self, name: &str) {
        self.request("PUT", &format!("/connectors/{name}/resume"), "");
        self.wait_until_running(name);
    }

    /// Stops a connector, and waits until it has stored its offset.
    #[track_caller]
    pub fn stop(&self, name: &str) {
        self.request("PUT", &format!("/connectors/{name}/stop"), "");
        eventually_ok(&format!("the connector {name} to stop"), PATIENCE, || {
            let status = self.request("GET", &format!("/connectors/{name}/status"), "");
            let state = status["connector"]["state"].as_str().unwrap_or_default().to_owned();
            let is_stopped = state == "STOPPED" && status["tasks"].as_array().is_some_and(Vec::is_empty);
            if is_stopped { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// Deletes a connector, if there is one.
    pub fn forget(&self, name: &str) {
        self.thaw(); // because a frozen worker does not answer
        let _ = self.try_request("DELETE", &format!("/connectors/{name}"), "");
    }

    /// Returns the offset that is stored for the connector.
    pub fn offset(&self, name: &str) -> Value {
        self.request("GET", &format!("/connectors/{name}/offsets"), "")["offsets"][0]["offset"].clone()
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        self.host.crash();
    }
}
