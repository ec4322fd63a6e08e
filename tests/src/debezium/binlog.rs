//! Debezium for MariaDB and MySQL, with what `outbox debezium` prints.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Text;

use crate::artifacts;
use crate::connect::Connect;
use crate::kafka::Kafka;
use crate::mariadb::MariadbDatabase;
use crate::process::workspace_binary;

/// What every user of a test has as its password.
const PASSWORD: &str = "s3cret";

/// Debezium's connector for an outbox on MariaDB or MySQL, made in the way of the documentation: with the user that
/// `outbox debezium setup-sql` makes, and the configuration and the offset that `outbox debezium` prints. The connector and the user have
/// the database's name.
pub struct BinlogDebezium<'a> {
    database: &'a MariadbDatabase<'a>,
    /// The worker, as soon as it is needed.
    connect: OnceLock<&'a Connect>,
    connector: String,
    /// The binary `outbox`.
    binary: PathBuf,
}

impl<'a> BinlogDebezium<'a> {
    /// Starts a worker that a test may crash, for connectors to the server of this database.
    pub fn start_connect(database: &MariadbDatabase<'_>) -> Connect {
        Self::start_connect_for(is_mysql(database))
    }

    fn start_connect_for(mysql: bool) -> Connect {
        let classes = if mysql { artifacts::debezium_for_mysql() } else { artifacts::debezium_for_mariadb() };
        Connect::start(&classes, Kafka::shared(), PASSWORD)
    }

    /// Starts a worker for measurements of MariaDB.
    pub fn start_connect_for_benchmark(kafka: &Kafka) -> Connect {
        Connect::start_for_benchmark(&artifacts::debezium_for_mariadb(), kafka, PASSWORD)
    }

    /// Returns the worker that the connectors of this process to such servers share. It starts on first use.
    fn shared_connect(mysql: bool) -> &'static Connect {
        static SHARED: [OnceLock<Connect>; 2] = [const { OnceLock::new() }; 2];
        SHARED[usize::from(mysql)].get_or_init(|| Self::start_connect_for(mysql))
    }

    /// Makes the user and prints the configuration for this pattern of topics.
    pub fn prepared(database: &'a MariadbDatabase<'a>, topic: &str) -> Self {
        Self::prepared_by(workspace_binary("outbox"), database, Kafka::shared(), topic)
    }

    /// The same for this broker, by this binary `outbox`.
    pub fn prepared_by(
        binary: PathBuf,
        database: &'a MariadbDatabase<'a>,
        kafka: &Kafka,
        topic: &str,
    ) -> Self {
        let mut debezium = Self::new(binary, database);
        debezium.set_up();
        debezium.set_password();
        let print = ["connector", "--name", database.name(), "--topic", topic];
        debezium.connector = debezium.print(&[&print[..], &["--brokers", kafka.brokers()]].concat());
        debezium
    }

    fn new(binary: PathBuf, database: &'a MariadbDatabase<'a>) -> Self {
        Self { database, connect: OnceLock::new(), connector: String::new(), binary }
    }

    /// Makes a user without privileges.
    pub fn without_privileges(database: &'a MariadbDatabase<'a>) -> Self {
        database.connect().batch_execute(&format!("CREATE USER `{}`", database.name())).expect("a user");
        let debezium = Self::new(workspace_binary("outbox"), database);
        debezium.set_password();
        debezium
    }

    /// Runs the statements for an administrator.
    #[track_caller]
    pub fn set_up(&self) {
        let conn = &mut self.database.connect();
        for statement in self.print(&["setup-sql"]).split(";\n").filter(|text| !text.trim().is_empty()) {
            conn.batch_execute(statement).unwrap_or_else(|error| panic!("{error}: {statement}"));
        }
    }

    fn set_password(&self) {
        let name = self.database.name();
        let statement = format!("ALTER USER `{name}`@'%' IDENTIFIED BY '{PASSWORD}' ACCOUNT UNLOCK");
        self.database.connect().batch_execute(&statement).expect("a password");
    }

    /// Runs `outbox debezium` with these arguments as the user.
    pub fn outbox(&self, arguments: &[&str]) -> Output {
        let (_, rest) = self.database.url().split_once('@').expect("a user in the URL");
        let scheme = if is_mysql(self.database) { "mysql" } else { "mariadb" };
        let url = format!("{scheme}://{}:{PASSWORD}@{rest}", self.database.name());
        let mut outbox = Command::new(&self.binary);
        outbox.arg("debezium").args(arguments).env("OUTBOX_DATABASE_URL", url);
        outbox.output().expect("run the binary")
    }

    /// Runs `outbox debezium` with these arguments as the user, and returns what it prints. It must succeed.
    #[track_caller]
    pub fn print(&self, arguments: &[&str]) -> String {
        let output = self.outbox(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Returns the connector as it is printed.
    pub fn connector(&self) -> &str {
        &self.connector
    }

    /// Uses this worker.
    pub fn on(mut self, connect: &'a Connect) -> Self {
        self.connect = OnceLock::from(connect);
        self
    }

    /// Returns the worker.
    pub fn connect(&self) -> &'a Connect {
        self.connect.get_or_init(|| Self::shared_connect(is_mysql(self.database)))
    }

    /// Changes a property of the connector before it begins.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        let mut connector: serde_json::Value = serde_json::from_str(&self.connector).expect("JSON");
        connector["config"][name] = value.into();
        self.connector = connector.to_string();
        self
    }

    /// Prints where the binlog ends now.
    #[track_caller]
    pub fn offset(&self) -> String {
        self.print(&["offset", "--name", self.database.name()])
    }

    /// Lets the connector begin there.
    #[track_caller]
    pub fn begin(&self, offset: &str) {
        self.connect().begin(self.database.name(), &self.connector, offset);
    }

    /// Stops the connector.
    #[track_caller]
    pub fn stop(&self) {
        self.connect().stop(self.database.name());
    }

    /// Lets the stopped connector continue.
    #[track_caller]
    pub fn resume(&self) {
        self.connect().resume(self.database.name());
    }
}

fn is_mysql(database: &MariadbDatabase<'_>) -> bool {
    let version: String =
        diesel::select(sql::<Text>("VERSION()")).get_result(&mut database.connect()).expect("a version");
    !version.contains("MariaDB")
}

impl Drop for BinlogDebezium<'_> {
    fn drop(&mut self) {
        let Some(connect) = self.connect.get() else { return };
        if std::thread::panicking() {
            eprintln!("Kafka Connect: {}", connect.log_end());
        }
        connect.forget(self.database.name());
    }
}
