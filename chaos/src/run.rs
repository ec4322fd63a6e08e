//! One run: load, faults, and the verdict.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::faults::{Fault, Part};
use crate::lanes::{Lane, Source};
use crate::ledger::Ledger;
use crate::reader::{self, Arrived};
use crate::scene::{Program, Scene, WRITERS, last};
use crate::servers::DatabaseServers;
use crate::verdict::{Allowed, Repetitions, Verdict};

/// What a run found.
pub struct Outcome {
    /// The source.
    pub source: Source,
    /// The faults in order, and when each began and ended, counted from the start.
    pub faults: Vec<(&'static str, Duration, Duration)>,
    /// How many times relays were interrupted.
    pub interruptions: usize,
    /// How long it took until records came again after the last fault.
    pub flowed_after: Duration,
    /// What was found.
    pub verdict: Verdict,
    /// Whether each relay ended as it was asked to.
    pub ended_well: bool,
    /// Where a failing run has left its files.
    pub files: Option<PathBuf>,
}

impl Outcome {
    /// Whether everything that is promised was kept.
    pub fn is_good(&self) -> bool {
        self.verdict.is_good() && self.ended_well
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, faults, interruptions, flowed_after, verdict, .. } = self;
        write!(f, "{} on {}:", if self.is_good() { "good" } else { "FAILED" }, source.name())?;
        for (name, began, ended) in faults {
            write!(f, " {name} ({:.1} to {:.1} s),", began.as_secs_f64(), ended.as_secs_f64())?;
        }
        write!(f, " {interruptions} interruptions, flowed again after {:.1} s", flowed_after.as_secs_f64())?;
        write!(f, "\n    {verdict}")?;
        if !self.ended_well {
            write!(f, "\n    a relay did not end as it was asked to")?;
        }
        self.files.as_ref().map_or(Ok(()), |files| write!(f, "\n    files: {}", files.display()))
    }
}

/// A group of faults that act at the same time.
pub type Together<'f> = Vec<&'f Fault>;

/// Lets writers write and two relays relay. Lets the groups of faults act one after the other, and compares the ledger with Kafka in the
/// end.
pub fn run(lane: &Lane, program: &Program, seed: u64, faults: &[Together<'_>]) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    let own = faults.iter().flatten().find_map(|fault| match fault.part {
        Part::Servers(own) => Some(DatabaseServers::start_own(lane.source, own)),
        _ => None,
    });
    let servers = own.as_ref().unwrap_or(&lane.servers);
    let site = lane.site(servers);
    let needs_cluster = faults.iter().flatten().any(|fault| fault.part == Part::Cluster);
    let cluster = needs_cluster.then(|| lane.cluster());
    let scene = Scene::new(lane, servers, &*site, cluster, program.clone(), rng.fork());
    let writers: Vec<Rng> = (0..WRITERS).map(|_| rng.fork()).collect();
    scene.start_relays();
    let began = Instant::now();
    let mut acted = Vec::new();
    let mut flowed_after = Duration::ZERO;
    let mut repetitions = vec![Repetitions::default()];
    thread::scope(|scope| {
        for (name, rng) in writers.into_iter().enumerate() {
            let (site, orders) = (&site, &scene.orders);
            scope.spawn(move || site.write(name, rng, orders));
        }
        // The writers end even if a fault panics.
        let _end = End(&scene);
        scene.flows(300);
        for together in faults {
            let (from, before, gone) =
                (scene.ends(), scene.interruptions(), scene.gone.lock().unwrap().len());
            thread::scope(|scope| {
                let acting: Vec<_> = together
                    .iter()
                    .map(|fault| {
                        let scene = &scene;
                        scope.spawn(move || {
                            let from = began.elapsed();
                            (fault.act)(scene);
                            (fault.name, from, began.elapsed())
                        })
                    })
                    .collect();
                acted.extend(
                    acting
                        .into_iter()
                        .map(|fault| fault.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
                );
            });
            flowed_after = scene.flows(1);
            let allowed = (scene.interruptions() - before) * scene.window();
            if scene.gone.lock().unwrap().len() > gone {
                // The topic may have begun anew, and its offsets with it.
                let earlier = repetitions.drain(..).map(|part| part.allowed).sum::<usize>();
                repetitions.push(Repetitions { allowed: earlier + allowed, ..Repetitions::default() });
            } else {
                repetitions.push(Repetitions { from, allowed });
            }
            last(Duration::from_millis(300));
        }
    });
    if matches!(lane.source, Source::Postgres | Source::Wal) {
        let left = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
        for gid in site.texts(left) {
            let _ = site.execute(&format!("COMMIT PREPARED '{gid}'"));
        }
    }
    let received = everything(&scene);
    let ended_well = scene.stop_relays();
    let ledger = Ledger::read(&*site);
    let allowed = Allowed {
        repetitions,
        gone: scene.gone.lock().unwrap().clone(),
        undone: scene.undone.lock().unwrap().clone(),
        has_new_partitions: scene.has_new_partitions.load(Ordering::Relaxed),
    };
    let received =
        received.or_else(|_| reader::read(scene.kafka().brokers(), &scene.topic)).unwrap_or_default();
    let verdict = Verdict::of(&ledger, &received, &allowed);
    let interruptions = scene.interruptions();
    let mut outcome = Outcome {
        source: lane.source,
        faults: acted,
        interruptions,
        flowed_after,
        verdict,
        ended_well,
        files: None,
    };
    if !outcome.is_good() {
        outcome.files = keep(&scene, &ledger, &received, seed).ok();
    }
    outcome
}

struct End<'a, 'b>(&'a Scene<'b>);

impl Drop for End<'_, '_> {
    fn drop(&mut self) {
        self.0.orders.end.store(true, Ordering::Relaxed);
    }
}

/// Waits until nothing is unsent and every committed event has come, but not for ever: the verdict says what has not. Returns what has
/// come.
pub(crate) fn everything(scene: &Scene<'_>) -> Result<Vec<Arrived>, String> {
    let began = Instant::now();
    loop {
        let ledger = Ledger::read(scene.site);
        if ledger.unsent == 0 {
            let received = reader::read(scene.kafka().brokers(), &scene.topic);
            let come: BTreeSet<&str> =
                received.iter().flatten().filter_map(|received| received.content.header("id")).collect();
            let gone = scene.gone.lock().unwrap();
            let has_come = |id: &String| {
                come.contains(id.as_str()) || gone.contains(id) || ledger.dead_letters.contains(id)
            };
            if ledger.entries.keys().all(has_come) {
                return received;
            }
        }
        // A relay that has lost events will not find them in a minute either.
        if began.elapsed() > scene.program.patience {
            return Err("not everything has come".to_owned());
        }
        last(Duration::from_millis(100));
    }
}

/// Leaves what a failing run has seen.
fn keep(scene: &Scene<'_>, ledger: &Ledger, received: &[Arrived], seed: u64) -> std::io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().find(|path| path.ends_with("target")).unwrap_or(&program);
    let folder = target.join("chaos").join(format!("{seed}-{}", scene.site.name()));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("ledger"), format!("{ledger:#?}"))?;
    let lines: Vec<String> = received.iter().map(|received| format!("{received:?}\n")).collect();
    fs::write(folder.join("received"), lines.concat())?;
    for (number, printed) in scene.printed().into_iter().enumerate() {
        fs::write(folder.join(format!("relay-{number}")), printed)?;
    }
    Ok(folder)
}
