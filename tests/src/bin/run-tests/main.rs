//! Runs every test of the workspace. Several test programs run side by side on servers that they share, because most tests wait
//! for servers most of the time. The output of a program is shown when it has ended, and in full if a test has failed. A
//! program that has failed runs once more by itself. If it passes then, it is reported as unstable: its test waits for less
//! time than it takes beside others.
//!
//! `scripts/test` calls it. The programs that took longest in the run before start first.

mod durations;
mod processors;
mod programs;

use std::env;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use outbox_tests::{Kafka, Mariadb, Postgres};

use self::durations::Durations;
use self::processors::Processors;

/// How many programs run at once, unless `OUTBOX_TEST_SIDE_BY_SIDE` has another number. Each runs as many tests at once as
/// there are processors.
const SIDE_BY_SIDE: usize = 3;

fn main() -> ExitCode {
    let side_by_side = match env::var("OUTBOX_TEST_SIDE_BY_SIDE") {
        Ok(number) => number.parse::<NonZeroUsize>().expect("a number in OUTBOX_TEST_SIDE_BY_SIDE").get(),
        Err(_) => SIDE_BY_SIDE,
    };
    let began = Instant::now();
    let mut programs = programs::build();
    let durations = Durations::load();
    programs.sort_by_key(|program| durations.of(&program.name));
    // The program that takes longest is the last, and is taken first.
    let (count, waiting) = (programs.len(), Mutex::new(programs));
    let servers = servers();
    let (outcomes, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let next = || waiting.lock().unwrap().pop();
    let (built, processors) = (began.elapsed().as_secs(), Processors::now());
    println!("Built in {built} s; running {count} test programs, {side_by_side} at once.");
    thread::scope(|scope| {
        for _ in 0..side_by_side {
            scope.spawn(|| {
                while let Some(mut program) = next() {
                    let outcome = program.run(&servers);
                    let mut outcomes = outcomes.lock().unwrap();
                    println!("[{}/{count}] {outcome}", outcomes.len() + 1);
                    if !outcome.passed {
                        failed.lock().unwrap().push(program);
                    }
                    outcomes.push(outcome);
                }
            });
        }
    });
    if let (Some(before), Some(after)) = (processors, Processors::now()) {
        let (seconds, busy) = (began.elapsed().as_secs() - built, after.busy_since(&before));
        println!("They ran for {seconds} s, in which the processors were busy for {busy} % of the time.");
    }
    durations.keep(&outcomes.into_inner().unwrap());
    let (mut unstable, mut failures) = (Vec::new(), Vec::new());
    for mut program in failed.into_inner().unwrap() {
        let outcome = program.run(&servers);
        println!("[by itself] {outcome}");
        if outcome.passed { &mut unstable } else { &mut failures }.push(outcome.name);
    }
    let seconds = began.elapsed().as_secs();
    if !unstable.is_empty() {
        println!("UNSTABLE: {} passed by itself only; what it printed first is above.", unstable.join(", "));
    }
    if failures.is_empty() {
        println!("All {count} test programs passed in {seconds} s.");
        ExitCode::SUCCESS
    } else {
        println!(
            "After {seconds} s {} of {count} test programs have failed: {}.",
            failures.len(),
            failures.join(", ")
        );
        ExitCode::FAILURE
    }
}

/// Starts a server, and returns its address.
type Start = fn() -> String;

/// The environment that leads the programs to the servers, which are started side by side. They run as long as this process does.
fn servers() -> Vec<(String, String)> {
    let servers: [(&str, Start); 5] = [
        ("OUTBOX_TEST_POSTGRES_URL", || Postgres::shared().url().to_owned()),
        ("OUTBOX_TEST_MYSQL_URL", || Mariadb::shared().url().to_owned()),
        ("OUTBOX_TEST_NEWEST_MARIADB_URL", || Mariadb::shared_newer().url().to_owned()),
        ("OUTBOX_TEST_NEWEST_MYSQL_URL", || Mariadb::shared_mysql().url().to_owned()),
        ("OUTBOX_TEST_KAFKA_BROKERS", || Kafka::shared().brokers().to_owned()),
    ];
    thread::scope(|scope| {
        let starting: Vec<_> = servers
            .into_iter()
            .filter(|(variable, _)| env::var_os(variable).is_none())
            .map(|(variable, start)| (variable, scope.spawn(start)))
            .collect();
        let started = |(variable, server): (&str, thread::ScopedJoinHandle<'_, String>)| {
            (variable.to_owned(), server.join().expect("a server that starts"))
        };
        starting.into_iter().map(started).collect()
    })
}
