use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use diesel::prelude::*;
use diesel_outbox::Emit;
use outbox_tests::Database;

use super::super::tables::{Order, Row, orders, outbox};
use super::{Clients, Clock, How, WARM_UP};
use crate::rows::{record, records};

impl Clients {
    /// Transactions per second of clients on threads.
    pub(in super::super) fn on_threads(self, database: &Database<'_>, how: How) -> f64 {
        self.run(&|| database.connect(), |conn: &mut PgConnection, n| {
            conn.transaction(|c| {
                diesel::insert_into(orders::table).values(Order::new(n)).execute(c)?;
                let event = record(n, self.bytes);
                match how {
                    How::Emit => c.emit(&event).map(drop)?,
                    How::Insert => {
                        diesel::insert_into(outbox::table).values(Row::from(&event)).execute(c).map(drop)?;
                    }
                }
                Ok(())
            })
        })
    }

    /// Events per second of clients on threads that write nothing but so many events in each transaction.
    pub(in super::super) fn in_batches(self, database: &Database<'_>, how: How, size: usize) -> f64 {
        let events = records(size, self.bytes);
        let transactions = self.run(&|| database.connect(), |conn: &mut PgConnection, _| {
            conn.transaction(|c| {
                match how {
                    How::Emit => c.emit_all(&events).map(drop)?,
                    How::Insert => {
                        let rows: Vec<Row<'_>> = events.iter().map(Row::from).collect();
                        diesel::insert_into(outbox::table).values(&rows).execute(c).map(drop)?;
                    }
                }
                Ok(())
            })
        });
        transactions * size as f64
    }

    /// Returns the transactions per second of such clients.
    pub(in super::super) fn run<C>(
        self,
        connect: &(dyn Fn() -> C + Sync),
        transact: impl Fn(&mut C, usize) -> QueryResult<()> + Sync,
    ) -> f64 {
        let ready = Barrier::new(self.count);
        let client = |number| {
            let conn = &mut connect();
            let mut orders = (number..).step_by(self.count);
            orders.by_ref().take(WARM_UP).for_each(|n| transact(conn, n).unwrap());
            ready.wait();
            let mut clock = Clock::start(self.time);
            for n in orders {
                if clock.is_over() {
                    break;
                }
                thread::sleep(self.pause);
                let began = Instant::now();
                transact(conn, n).unwrap();
                clock.count(began);
            }
            clock.speed()
        };
        thread::scope(|scope| {
            let client = &client;
            let threads: Vec<_> = (0..self.count).map(|number| scope.spawn(move || client(number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        })
    }
}
