//! Many dead letters: what they cost when they come, what they cost while they lie there, and how they go.

use std::time::Instant;

use diesel_outbox::Record;
use outbox_tests::{Database, Kafka, Postgres};

use super::{Overload, PEAK, count, megabytes, once, wait_until_all_is_sent};
use crate::contenders::{Contender, take_turns};
use crate::relays::{outbox, relay_process, stop};
use crate::report::Figure;
use crate::rows::{Template, records};

impl Overload {
    pub(super) fn dead_letters(&self, postgres: &Postgres, kafka: &Kafka, rounds: usize) -> Vec<Figure> {
        let prefix = kafka.unique("dead");
        let (allowed, refused) = (format!("{prefix}.order"), format!("{prefix}.refused"));
        for topic in [&allowed, &refused] {
            kafka.create_topic(topic, 6);
        }
        let topic = format!("{prefix}.{{aggregatetype}}");
        let (clean, burdened) = (postgres.database(), postgres.database());
        // Each dead letter is of another aggregate, so that as many are held back.
        let letter = |n: usize| Record::new("refused", n.to_string(), "OrderPlaced").with_payload("x");
        let letters: Vec<Record> = (0..self.dead_letters).map(letter).collect();
        let incoming = Template::new(&burdened, &letters);
        let began = Instant::now();
        let relay = relay_process(
            incoming.database.url(),
            kafka,
            &topic,
            &["--allow-topics", &allowed, "--dead-letter-policy", "block"],
        );
        wait_until_all_is_sent(&burdened, &relay);
        let speed = self.dead_letters as f64 / began.elapsed().as_secs_f64();
        let peak = megabytes(relay.peak_resident_kb());
        stop(&relay);
        let came = count(&mut burdened.connect(), "outbox_dead_letter") as f64;

        use_template(&burdened);
        let rows = records(self.rows.min(200_000), self.bytes);
        let (clean, laden) = (Template::new(&clean, &rows), Template::new(&burdened, &rows));
        let drain = |template: &Template<'_>, policy: &str| {
            template.refill();
            let began = Instant::now();
            let relay =
                relay_process(template.database.url(), kafka, &topic, &["--dead-letter-policy", policy]);
            wait_until_all_is_sent(template.database, &relay);
            let speed = rows.len() as f64 / began.elapsed().as_secs_f64();
            stop(&relay);
            [speed]
        };
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("continue, none", || drain(&clean, "continue")),
                Contender::new("continue", || drain(&laden, "continue")),
                Contender::new("block, none", || drain(&clean, "block")),
                Contender::new("block", || drain(&laden, "block")),
            ],
        );
        let names = [
            "no dead letters, policy `continue`",
            "dead letters, policy `continue`",
            "no dead letters, policy `block`",
            "dead letters, policy `block`",
        ];
        let speeds = Figure::speeds(measured, names);

        let began = Instant::now();
        outbox(burdened.url(), &["requeue", "--all"]);
        let requeued = began.elapsed().as_secs_f64();
        let relay = relay_process(burdened.url(), kafka, &topic, &[]);
        wait_until_all_is_sent(&burdened, &relay);
        let sent = began.elapsed().as_secs_f64();
        stop(&relay);
        let lost = self.dead_letters as f64 - kafka.counter(&refused).count() as f64;
        let mut figures = vec![
            once("dead letters: came", "events/s", speed),
            once("dead letters: missing in the table", "events", self.dead_letters as f64 - came)
                .at_most(0.0),
            once("dead letters: peak of the relay while they came", "MB", peak).below(PEAK),
            Figure::ratio("with / without dead letters, policy `continue`", &speeds[1], &speeds[0])
                .at_least(0.9),
            Figure::ratio("with / without dead letters, policy `block`", &speeds[3], &speeds[2])
                .at_least(0.9),
            once("dead letters: requeued within", "s", requeued),
            once("dead letters: requeued and sent within", "s", sent),
            once("dead letters: not sent after the requeue", "events", lost).at_most(0.0),
        ];
        figures.extend(speeds);
        figures
    }
}

/// Makes room for another template.
fn use_template(database: &Database<'_>) {
    use diesel::connection::SimpleConnection;
    database.connect().batch_execute("DROP TABLE template; TRUNCATE outbox").unwrap();
}
