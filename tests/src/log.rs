//! What the relays and consumers of this process log.

use std::io::{self, Write};
use std::sync::{Mutex, Once};

use tracing_subscriber::filter::LevelFilter;

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Keeps what the relays and consumers of this process log from now on.
pub fn start_logging() {
    static START: Once = Once::new();
    START.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| Logged).init());
}

/// The same at every level.
pub fn start_logging_everything() {
    static START: Once = Once::new();
    START.call_once(|| {
        let all = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE);
        all.with_ansi(false).with_writer(|| Logged).init();
    });
}

/// Returns all that was logged.
pub fn whole_log() -> String {
    String::from_utf8_lossy(&LOG.lock().unwrap()).into_owned()
}

struct Logged;

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the first line that contains all of these texts.
pub fn logged(texts: &[&str]) -> Option<String> {
    all_logged(texts).into_iter().next()
}

/// Returns the lines that contain all of these texts.
pub fn all_logged(texts: &[&str]) -> Vec<String> {
    let log = LOG.lock().unwrap();
    let log = String::from_utf8_lossy(&log);
    log.lines().filter(|line| texts.iter().all(|text| line.contains(text))).map(str::to_owned).collect()
}
