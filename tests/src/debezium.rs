//! Debezium for tests: another relay, which reads the same outbox from PostgreSQL's WAL.

mod binlog;
pub(crate) mod settings;

pub use self::binlog::BinlogDebezium;

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Bool;

use crate::artifacts;
use crate::host::{Host, Local, wait_until_ready};
use crate::java;
use crate::kafka::Kafka;
use crate::postgres::Database;
use crate::process::{Signal, workspace_binary};
use crate::scratch::Folder;

/// An unmodified Debezium on a Kafka Connect of its own, with the Outbox Event Router on the table `outbox`.
///
/// It always runs from local programs, and needs Java 17 or later and Maven.
///
/// It sends what the relay sends, except for an event's own headers, which the router cannot send.
pub struct Debezium<'a> {
    database: &'a Database<'a>,
    /// The name of its replication slot, and of its publication if that was made for it.
    name: String,
    /// Whether the slot and the publication are dropped with it.
    has_own_slot: bool,
    host: Local,
}

impl<'a> Debezium<'a> {
    /// Connector properties for [`Debezium::start`] that make it fast. It polls every 5 ms instead of 500, and takes large
    /// batches. Its producer is set as the relay's: idempotent, with five requests in flight, and without lingering.
    pub const TUNED: [(&'static str, &'static str); 6] = settings::TUNED;

    /// Starts it. It publishes what is committed to the outbox from then on, but nothing from before.
    ///
    /// `topic` is the router's `route.topic.replacement`: a topic, or a pattern such as `outbox.event.${routedByValue}`, which
    /// contains the aggregate type. `properties` are the connector's. They come after those that this sets, and replace those
    /// of the same name. When this is dropped, it drops its replication slot and its publication.
    pub fn start(
        database: &'a Database<'a>,
        kafka: &Kafka,
        topic: &str,
        properties: &[(&str, &str)],
    ) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("debezium_{}_{}", database.name(), COUNT.fetch_add(1, Ordering::Relaxed));
        let publish = format!("create publication {name} for table public.outbox with (publish = 'insert')");
        database.connect().batch_execute(&publish).expect("a publication of the table outbox");

        let connector = settings::connector(database, &name, topic, properties);
        Self::launch(database, kafka, name, true, &java::properties(&connector))
    }

    /// Starts it with a connector as `outbox debezium connector --format properties` prints it. The slot and the publication
    /// exist already, and stay. The worker has the settings that the connector asks for, and stores offsets each second.
    pub fn with_connector(database: &'a Database<'a>, kafka: &Kafka, connector: &str) -> Self {
        let slot = connector.lines().find_map(|line| line.strip_prefix("slot.name=")).expect("a slot");
        Self::launch(database, kafka, slot.to_owned(), false, connector)
    }

    /// Starts it with what `outbox debezium connector` prints for this pattern of topics. It reads the slot that has the
    /// database's name.
    pub fn as_printed(database: &'a Database<'a>, kafka: &Kafka, topic: &str) -> Self {
        let mut outbox = Command::new(workspace_binary("outbox"));
        outbox.args(["debezium", "connector", "--format", "properties", "--topic", topic]);
        outbox.args(["--name", database.name(), "--slot", database.name()]);
        let output = outbox.env("OUTBOX_DATABASE_URL", database.url()).output().expect("run the binary");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self::with_connector(database, kafka, &String::from_utf8_lossy(&output.stdout))
    }

    fn launch(
        database: &'a Database<'a>,
        kafka: &Kafka,
        name: String,
        has_own_slot: bool,
        connector: &str,
    ) -> Self {
        let folder = Folder::new("debezium");
        let (worker, file) =
            (folder.path().join("worker.properties"), folder.path().join("outbox.properties"));
        let asked_for = if has_own_slot { &[][..] } else { &settings::ASKED_FOR };
        java::write_properties(&worker, &settings::worker(kafka.brokers(), folder.path(), asked_for));
        fs::write(&file, connector).expect("write the connector's properties");
        let mut command = java::command(&java::FAST, &artifacts::debezium());
        command.arg("-Dorg.apache.logging.log4j.level=WARN");
        command.arg("org.apache.kafka.connect.cli.ConnectStandalone").arg(worker).arg(file);
        command.env("OUTBOX_DATABASE_PASSWORD", &database.address().password);

        let host = Local::new(command, folder, Signal::Terminate, Signal::Kill);
        let debezium = Self { database, name, has_own_slot, host };
        debezium.host.start();
        debezium.wait_until_ready();
        debezium
    }

    /// Shuts it down. It stores what it has published, and what is committed in the meantime waits for its next start.
    pub fn stop(&self) {
        self.host.stop();
    }

    /// Starts it again where it was. If it runs, it is stopped first.
    pub fn restart(&self) {
        self.host.stop();
        self.host.start();
        self.wait_until_ready();
    }

    /// Kills it. Its next start publishes again what it has published since it last stored its offsets.
    pub fn crash(&self) {
        self.host.crash();
    }

    /// Freezes it. Its connections stay open, but it reads nothing. PostgreSQL ends such a connection after
    /// `wal_sender_timeout`.
    pub fn pause(&self) {
        self.host.pause();
    }

    /// Resumes it after it was frozen.
    pub fn resume(&self) {
        self.host.resume();
    }

    /// Returns the id of its process while it runs.
    pub fn id(&self) -> Option<u32> {
        self.host.id()
    }

    /// Returns the memory that it occupies in KiB while it runs, if the system reports it.
    pub fn resident_kb(&self) -> Option<u64> {
        self.host.resident_kb()
    }

    /// Waits until it reads the WAL. An active slot alone is not enough, because a slot is also active while it is made.
    fn wait_until_ready(&self) {
        let mut conn = self.database.connect();
        let reads = format!(
            "exists (select from pg_replication_slots s join pg_stat_replication r on r.pid = s.active_pid \
             where s.slot_name = '{}' and r.state in ('catchup', 'streaming'))",
            self.name
        );
        wait_until_ready(&self.host, "Debezium", || {
            match diesel::select(sql::<Bool>(&reads)).get_result(&mut conn) {
                Ok(true) => Ok(()),
                Ok(false) => Err(format!("it does not read the database's log; {}", self.host.log_end())),
                Err(error) => Err(error.to_string()),
            }
        });
    }
}

impl Drop for Debezium<'_> {
    fn drop(&mut self) {
        self.host.crash();
        if !self.has_own_slot {
            return;
        }
        // A slot that is left behind retains the server's WAL, and prevents the drop of the database.
        if let Ok(mut conn) = PgConnection::establish(self.database.url()) {
            let name = &self.name;
            let _ = conn.batch_execute(&format!(
                "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots \
                 where slot_name = '{name}' and active; \
                 select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{name}'; \
                 drop publication {name}"
            ));
        }
    }
}
