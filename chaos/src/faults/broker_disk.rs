//! The broker's disk is full.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use outbox_tests::{Folder, eventually};

use super::{Fault, NOTHING_LOST, Part, SERVED};
use crate::scene::{PATIENCE, Scene};

pub(super) const FAULTS: &[Fault] = &[Fault {
    name: "broker's disk full",
    part: Part::Broker,
    promise: NOTHING_LOST,
    on: SERVED,
    // It takes root.
    is_short: false,
    act: full,
}];

/// The broker ends when it cannot write. It starts again when there is room.
fn full(scene: &Scene<'_>) {
    let data = &scene.lane.kafka_data.path().join("records");
    scene.interrupted(2);
    scene.kafka().stop();
    let disk = Disk::below(data);
    scene.kafka().restart();
    scene.flows(100);

    scene.interrupted(2);
    let rest = data.join("rest");
    let mut file = File::create(&rest).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
    eventually("the broker to end", PATIENCE, || scene.kafka().has_ended().then_some(()));
    // As long as the file is open, its room is taken.
    drop(file);
    fs::remove_file(&rest).expect("make room");
    scene.kafka().restart();
    scene.flows(100);

    scene.interrupted(2);
    scene.kafka().stop();
    disk.remove();
    scene.kafka().restart();
}

/// A small disk that a folder lies on meanwhile.
struct Disk<'a> {
    data: &'a Path,
    small: Folder,
}

/// How much room the disk has beyond what the broker has written by then.
const ROOM: u64 = 100 << 20;

impl<'a> Disk<'a> {
    fn below(data: &'a Path) -> Self {
        let disk = Self { data, small: Folder::new("small-disk") };
        let small = disk.small.path();
        let size = format!("size={}", occupied(data) + ROOM);
        run(
            "mount",
            &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), size.as_ref(), "tmpfs".as_ref(), small],
        );
        copy(data, small);
        run("mount", &["--bind".as_ref(), small, data]);
        disk
    }

    fn remove(self) {
        run("umount", &[self.data]);
        fs::read_dir(self.data).expect("the folder").flatten().for_each(|old| {
            let path = old.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.expect("remove what is old");
        });
        copy(self.small.path(), self.data);
    }
}

/// Neither is left behind, not even if the fault panics.
impl Drop for Disk<'_> {
    fn drop(&mut self) {
        for path in [self.data, self.small.path()] {
            let _ = Command::new("umount").arg("--lazy").arg(path).output();
        }
    }
}

/// Returns how many bytes of a disk the files below a folder take.
fn occupied(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| match entry.metadata().expect("what it is") {
            of if of.is_dir() => occupied(&entry.path()),
            of => of.blocks() * 512,
        })
        .sum()
}

fn copy(from: &Path, to: &Path) {
    run("cp", &["--archive".as_ref(), &from.join("."), to]);
}

fn run(program: &str, arguments: &[&Path]) {
    let output = Command::new(program).args(arguments).output().expect("start a program");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} was refused, this fault takes root: {said}");
}
