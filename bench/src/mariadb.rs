//! MariaDB as the database of a benchmark.

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay};
use outbox_tests::{Kafka, Mariadb, MariadbDatabase};

/// Room for large tables, and patience with connections that are frozen while others are measured.
const SETTINGS: &[&str] =
    &["innodb_buffer_pool_size=2G", "innodb_log_file_size=1G", "net_write_timeout=31536000"];

/// What matters of the settings of every MariaDB that the tests start.
pub(crate) const CONDITIONS: &str =
    "MariaDB with the binary log on, innodb_flush_log_at_trx_commit=2, sync_binlog=0";

/// How many rows one statement appends.
const APPENDED: usize = 100_000;

pub(crate) fn start_mariadb() -> Mariadb {
    Mariadb::start_with(SETTINGS)
}

/// Returns a relay with default settings, to one topic.
pub(crate) fn relay(database: &MariadbDatabase<'_>, kafka: &Kafka, topic: &str) -> Relay {
    Relay::mysql(database.url()).broker(Broker::new(kafka.brokers())).topic_naming(topic.parse().unwrap())
}

/// Returns what the server counts under this name.
pub(crate) fn status(conn: &mut MysqlConnection, name: &str) -> u64 {
    let value = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = ";
    sql::<Text>(value).bind::<Text, _>(name).get_result::<String>(conn).unwrap().parse().unwrap()
}

/// Rows that are made once and copied into the outbox by the server before each round.
pub(crate) struct Template<'a> {
    pub(crate) database: &'a MariadbDatabase<'a>,
    rows: usize,
}

const COLUMNS: &str = "aggregatetype, aggregateid, type, payload, headers, shard, created_at";

impl<'a> Template<'a> {
    /// Makes the tables of a new database, and the rows.
    pub(crate) fn new(database: &'a MariadbDatabase<'a>, records: &[Record]) -> Self {
        let conn = &mut database.connect();
        Migrations::new().run(conn).unwrap();
        conn.transaction(|c| c.emit_all(records)).unwrap();
        let template = Self { database, rows: records.len() };
        template.execute(&format!(
            "CREATE TABLE template (PRIMARY KEY (seq)) AS \
             SELECT ROW_NUMBER() OVER (ORDER BY outbox.seq) AS seq, id, {COLUMNS} FROM outbox"
        ));
        template
    }

    /// Empties the outbox and fills it with the rows, unsent, in one transaction.
    pub(crate) fn refill(&self) {
        self.empty();
        self.execute(&format!(
            "INSERT INTO outbox (id, {COLUMNS}) SELECT id, {COLUMNS} FROM template ORDER BY seq"
        ));
    }

    pub(crate) fn empty(&self) {
        self.execute(
            "TRUNCATE TABLE outbox; UPDATE outbox_shard SET sent_through = 0, unsent = '', witness = NULL",
        );
    }

    /// Appends the rows under new ids, in transactions of `size`.
    pub(crate) fn append_in_transactions(&self, size: usize) {
        let conn = &mut self.database.connect();
        for done in (0..self.rows).step_by(size) {
            conn.batch_execute(&format!(
                "INSERT INTO outbox (id, {COLUMNS}) SELECT UUID(), {COLUMNS} FROM template \
                 WHERE seq > {done} AND seq <= {done} + {size} ORDER BY seq"
            ))
            .unwrap();
        }
    }

    /// Appends this many rows, which are the template's again and again under new ids.
    pub(crate) fn append_many(&self, rows: usize) {
        for done in (0..rows).step_by(APPENDED) {
            let (count, times) = (APPENDED.min(rows - done), APPENDED.div_ceil(self.rows));
            self.execute(&format!(
                "INSERT INTO outbox (id, {COLUMNS}) SELECT UUID(), {COLUMNS} FROM seq_1_to_{times} AS times \
                 STRAIGHT_JOIN template LIMIT {count}"
            ));
        }
    }

    fn execute(&self, sql: &str) {
        self.database.connect().batch_execute(sql).unwrap();
    }
}
