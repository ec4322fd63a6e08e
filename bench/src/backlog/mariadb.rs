//! A large backlog on MariaDB.

use super::{BATCHES, Backlog, WINDOW, compare};
use crate::contenders::{Contender, take_turns};
use crate::mariadb::{Template, relay, start_mariadb};
use crate::relays::{Window, watch_relay};
use crate::report::Report;
use crate::rows::{AGGREGATES, records};
use crate::servers::{PATIENCE, warm_kafka};

impl Backlog {
    /// Compares a large backlog with a small one, as on PostgreSQL.
    pub(super) fn run_on_mariadb(&self, rounds: usize) -> Report {
        let (mariadb, kafka) = (start_mariadb(), warm_kafka());
        let databases = [mariadb.database(), mariadb.database()];
        let [small, large] =
            databases.each_ref().map(|each| Template::new(each, &records(AGGREGATES, self.bytes)));
        large.empty();
        large.append_many(self.rows);
        let mut drained = 0;
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("few waiting", || {
                    small.empty();
                    let batches = |counter: &_| {
                        let batch = |number| {
                            small.append_many(self.few);
                            Window::watch(counter, number * self.few, self.few, PATIENCE)
                        };
                        (0..BATCHES).map(batch).collect()
                    };
                    [watch_relay(&kafka, |topic| relay(small.database, &kafka, topic), batches).0]
                }),
                Contender::new("many waiting", || {
                    large.append_many(drained);
                    let window = |counter: &_| vec![Window::watch(counter, 0, self.rows, WINDOW)];
                    let speed;
                    (speed, drained) =
                        watch_relay(&kafka, |topic| relay(large.database, &kafka, topic), window);
                    [speed]
                }),
            ],
        );
        let [[few], [many]]: [_; 2] = measured.try_into().unwrap();
        let [ratio, many, few] = compare("many waiting", many, "few waiting", few);
        Report {
            benchmark: "backlog on MariaDB".into(),
            conditions: format!(
                "{} rows, {:?} of draining in a round, or {BATCHES} times {}, {} bytes of payload, 1 worker",
                self.rows, WINDOW, self.few, self.bytes
            ),
            figures: vec![ratio.at_least(0.85), many, few],
        }
    }
}
