//! The least that sending single records to Kafka costs a process: librdkafka through rdkafka, and a thread that waits for
//! deliveries.

use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use diesel_outbox::Record;
use outbox_tests::Kafka;
use rdkafka::producer::{DefaultProducerContext, Producer};

use crate::cpu::Times;
use crate::producer::{IN_FLIGHT, bare_producer, send};
use crate::topics::new_topic;

/// Sends records at a steady pace, and prints the percentage of a core that this process spends on it.
#[derive(Args)]
pub(crate) struct Paced {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic: String,
    /// Records a second.
    #[arg(long)]
    rate: u32,
    #[arg(long)]
    seconds: u32,
    /// Bytes of payload in each record.
    #[arg(long)]
    bytes: usize,
}

impl Paced {
    pub(crate) fn run(&self) -> f64 {
        let producer = Arc::new(bare_producer(&self.brokers, DefaultProducerContext, IN_FLIGHT));
        let polled = producer.clone();
        // A little more than whole milliseconds, for which rdkafka does not spin.
        thread::spawn(move || {
            loop {
                polled.poll(Duration::from_micros(250_030));
            }
        });
        let record = |number: u32| {
            let aggregate = number as usize % crate::rows::AGGREGATES;
            Record::new("order", aggregate.to_string(), "OrderPlaced").with_payload("x".repeat(self.bytes))
        };
        send(&producer, &self.topic, &record(0));
        producer.flush(Duration::from_secs(60)).unwrap();
        let mut times = Times::default();
        let mut nanoseconds = || {
            assert!(times.look(std::process::id(), "bench"), "this program must be `bench`, and on Linux");
            times.total()
        };
        let (began, spent_before) = (Instant::now(), nanoseconds());
        for number in 0..self.rate * self.seconds {
            let due = began + Duration::from_secs(1) / self.rate * number;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            send(&producer, &self.topic, &record(number));
        }
        (nanoseconds() - spent_before) as f64 / 1e9 / began.elapsed().as_secs_f64() * 100.0
    }
}

/// Returns the CPU of such a process in percent of a core.
pub(crate) fn spent_at(kafka: &Kafka, rate: u32, seconds: u64, bytes: usize) -> f64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["paced", "--brokers", kafka.brokers(), "--topic", &new_topic(kafka)]);
    for (option, value) in [("--rate", rate.into()), ("--seconds", seconds), ("--bytes", bytes as u64)] {
        command.args([option, &value.to_string()]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}
