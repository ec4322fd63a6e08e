//! The same on MariaDB.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Datetime;
use diesel_outbox::{Emit as _, Migrations, Record};
use outbox_tests::MariadbDatabase;
use uuid::Uuid;

use super::clients::{Clients, How};
use super::{BATCH, Emit, Pair, contenders, ratios, speeds};
use crate::contenders::take_turns;
use crate::mariadb::start_mariadb;
use crate::report::Report;
use crate::rows::{record, records};

diesel::table! {
    orders (id) {
        id -> Text,
        customer -> Text,
        total -> BigInt,
    }
}

diesel::table! {
    outbox (seq) {
        seq -> BigInt,
        id -> Text,
        aggregatetype -> Text,
        aggregateid -> Text,
        #[sql_name = "type"]
        event_type -> Text,
        payload -> Nullable<Binary>,
        headers -> Nullable<Text>,
        shard -> SmallInt,
        created_at -> Datetime,
    }
}

impl Emit {
    pub(super) fn run_on_mariadb(&self, rounds: usize) -> Report {
        let mariadb = start_mariadb();
        let database = &mariadb.database();
        let conn = &mut database.connect();
        Migrations::new().run(conn).unwrap();
        conn.batch_execute(
            "CREATE TABLE orders (id char(36) PRIMARY KEY, customer varchar(255) NOT NULL, total bigint NOT NULL)",
        )
        .unwrap();
        let time = Duration::from_secs_f64(self.seconds);
        let one = Clients { count: 1, time, pause: Duration::ZERO, bytes: self.bytes };
        let many = Clients { count: 16, ..one };
        let alone = |clients: Clients| {
            move |how| {
                empty(database);
                orders_with_events(clients, database, how)
            }
        };
        let batches = |how| {
            empty(database);
            events_in_batches(one, database, how)
        };
        let pairs = [
            Pair::new("sync, 1 client", "transactions/s", 0.90, alone(one)),
            Pair::new("sync, 16 clients", "transactions/s", 0.90, alone(many)),
            Pair::new("1,000 events at once", "events/s", 0.90, batches),
        ];
        let measured = take_turns(rounds, contenders(&pairs));
        let speeds = speeds(&pairs, measured.into_iter().map(|[values]| values));
        let mut figures = ratios(&pairs, &speeds);
        figures.extend(speeds.into_iter().flat_map(|(emit, insert)| [emit, insert]));
        Report {
            benchmark: "emit on MariaDB".into(),
            conditions: format!(
                "{} s each, {} bytes of payload, MariaDB with the binary log on, innodb_flush_log_at_trx_commit 2",
                self.seconds, self.bytes
            ),
            figures,
        }
    }
}

fn empty(database: &MariadbDatabase<'_>) {
    database.connect().batch_execute("TRUNCATE TABLE orders; TRUNCATE TABLE outbox").unwrap();
}

/// Transactions per second, each with an order and an event.
fn orders_with_events(clients: Clients, database: &MariadbDatabase<'_>, how: How) -> f64 {
    clients.run(&|| database.connect(), |conn: &mut MysqlConnection, n| {
        conn.transaction(|c| {
            let order = (
                orders::id.eq(Uuid::now_v7().to_string()),
                orders::customer.eq("somebody@example.org"),
                orders::total.eq(n as i64),
            );
            diesel::insert_into(orders::table).values(order).execute(c)?;
            let event = record(n, clients.bytes);
            match how {
                How::Emit => c.emit(&event).map(drop),
                How::Insert => insert(c, &[event]),
            }
        })
    })
}

/// Events per second, many in each transaction.
fn events_in_batches(clients: Clients, database: &MariadbDatabase<'_>, how: How) -> f64 {
    let events = records(BATCH, clients.bytes);
    let transactions = clients.run(&|| database.connect(), |conn: &mut MysqlConnection, _| {
        conn.transaction(|c| match how {
            How::Emit => c.emit_all(&events).map(drop),
            How::Insert => insert(c, &events),
        })
    });
    transactions * BATCH as f64
}

/// Inserts the columns that `emit` fills.
fn insert(conn: &mut MysqlConnection, events: &[Record]) -> QueryResult<()> {
    let row = |event| {
        let event: &Record = event;
        (
            outbox::id.eq(event.id().to_string()),
            outbox::aggregatetype.eq(event.aggregate_type().to_owned()),
            outbox::aggregateid.eq(event.aggregate_id().to_owned()),
            outbox::event_type.eq(event.event_type().to_owned()),
            outbox::payload.eq(event.payload().map(<[u8]>::to_vec)),
            outbox::headers.eq(None::<String>),
            outbox::shard.eq(event.shard()),
            outbox::created_at.eq(sql::<Datetime>("UTC_TIMESTAMP(3)")),
        )
    };
    let insert = diesel::insert_into(outbox::table);
    match events {
        // Only this one becomes a prepared statement.
        [event] => insert.values(row(event)).execute(conn).map(drop),
        events => insert.values(events.iter().map(row).collect::<Vec<_>>()).execute(conn).map(drop),
    }
}
