//! Processor time.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Integer;
use outbox_tests::Database;

/// The processor time of threads, in nanoseconds. For a thread that has ended it is the last that was seen.
#[derive(Default)]
pub(crate) struct Times(BTreeMap<PathBuf, u64>);

impl Times {
    /// Looks at all threads of a process. Returns `false` if this program does not run under this number on this machine.
    pub(crate) fn look(&mut self, process: u32, program: &str) -> bool {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        if name.trim_end() != program {
            return false;
        }
        let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return false };
        for thread in threads.flatten() {
            let times = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            if let Some(time) = times.split(' ').next().and_then(|time| time.parse().ok()) {
                self.0.insert(thread.path(), time);
            }
        }
        true
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// Returns a process's processor time until now, in seconds, with its threads that have ended.
pub(crate) fn spent(process: u32) -> f64 {
    stat(process).map_or(0.0, |[own, _, _]| own)
}

/// Returns the processor time of a database's server with all its processes, those that have ended too.
pub(crate) fn server_spent(database: &Database<'_>) -> f64 {
    // The process of this connection must be there while it is looked at.
    let conn = &mut database.connect();
    let backend: i32 = diesel::select(sql::<Integer>("pg_backend_pid()")).get_result(conn).unwrap();
    let [_, _, server] = stat(backend.unsigned_abs()).expect("the server on this machine, and Linux");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let living: f64 = processes
        .filter_map(|process| stat(process.file_name().to_str()?.parse().ok()?))
        .filter(|[_, _, parent]| parent == &server)
        .map(|[own, _, _]| own)
        .sum();
    let [own, ended, _] = stat(server as u32).unwrap_or_default();
    own + ended + living
}

/// Returns a process's own seconds, those of its children that have ended, and its parent's number: see `man 5 proc`.
fn stat(process: u32) -> Option<[f64; 3]> {
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some([(field(14)? + field(15)?) / TICKS, (field(16)? + field(17)?) / TICKS, field(4)?])
}
