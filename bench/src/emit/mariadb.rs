//! The same on MariaDB.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Datetime;
use diesel_async::{AsyncConnection, AsyncMysqlConnection};
use diesel_outbox::{AsyncEmit, Emit as _, Migrations, Record};
use outbox_tests::MariadbDatabase;
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::clients::{Client, Clients, How};
use super::{BATCH, Emit, Pair, contenders, ratios, speeds};
use crate::contenders::take_turns;
use crate::mariadb::{CONDITIONS, start_mariadb};
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

/// The order with this number, as values of an insert.
macro_rules! order {
    ($n:expr) => {
        (
            orders::id.eq(Uuid::now_v7().to_string()),
            orders::customer.eq("somebody@example.org"),
            orders::total.eq($n as i64),
        )
    };
}

/// The columns that `emit` fills, as values of an insert.
macro_rules! row {
    ($event:expr) => {{
        let event: &Record = $event;
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
    }};
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
        let runtime = Runtime::new().unwrap();
        let tasks = |clients: Clients| {
            let runtime = &runtime;
            move |how| {
                empty(database);
                clients.as_tasks::<AsyncMysqlConnection>(runtime, database.url(), how)
            }
        };
        let batches = |how| {
            empty(database);
            events_in_batches(one, database, how)
        };
        let pairs = [
            Pair::new("sync, 1 client", "transactions/s", 0.90, alone(one)),
            Pair::new("sync, 16 clients", "transactions/s", 0.90, alone(many)),
            Pair::new("async, 1 client", "transactions/s", 0.90, tasks(one)),
            Pair::new("async, 16 clients", "transactions/s", 0.90, tasks(many)),
            Pair::new("1,000 events at once", "events/s", 0.90, batches),
        ];
        let measured = take_turns(rounds, contenders(&pairs));
        let speeds = speeds(&pairs, measured.into_iter().map(|[values]| values));
        let mut figures = ratios(&pairs, &speeds);
        figures.extend(speeds.into_iter().flat_map(|(emit, insert)| [emit, insert]));
        Report {
            benchmark: "emit --database mariadb".into(),
            conditions: format!("{} s each, {} bytes of payload; {CONDITIONS}", self.seconds, self.bytes),
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
            diesel::insert_into(orders::table).values(order!(n)).execute(c)?;
            let event = record(n, clients.bytes);
            match how {
                How::Emit => c.emit(&event).map(drop),
                How::Insert => diesel::insert_into(outbox::table).values(row!(&event)).execute(c).map(drop),
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
            How::Insert => {
                let rows: Vec<_> = events.iter().map(|event| row!(event)).collect();
                diesel::insert_into(outbox::table).values(rows).execute(c).map(drop)
            }
        })
    });
    transactions * BATCH as f64
}

impl Client for AsyncMysqlConnection {
    async fn transact(&mut self, n: usize, bytes: usize, how: How) -> QueryResult<()> {
        use diesel_async::RunQueryDsl;

        self.transaction(async |c| {
            RunQueryDsl::execute(diesel::insert_into(orders::table).values(order!(n)), c).await?;
            let event = record(n, bytes);
            match how {
                How::Emit => AsyncEmit::emit(c, &event).await.map(drop)?,
                How::Insert => {
                    RunQueryDsl::execute(diesel::insert_into(outbox::table).values(row!(&event)), c)
                        .await
                        .map(drop)?;
                }
            }
            Ok(())
        })
        .await
    }
}
