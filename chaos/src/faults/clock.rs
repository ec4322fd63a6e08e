//! The clock of the relays' machine is set.

use std::env::consts::ARCH;
use std::fs;
use std::path::Path;
use std::time::Duration;

use outbox_tests::Folder;

use super::{EXACT, Fault, Part, SERVED};
use crate::scene::{Scene, last};

pub(super) const FAULTS: &[Fault] = &[Fault {
    name: "clock moved by an hour, forwards and back",
    part: Part::Relay,
    promise: EXACT,
    on: SERVED,
    is_short: false,
    act: moved,
}];

/// libfaketime reads the file whenever a relay asks for the time. The clock that only counts on is not moved, as on a real machine.
fn moved(scene: &Scene<'_>) {
    let library = format!("/usr/lib/{ARCH}-linux-gnu/faketime/libfaketimeMT.so.1");
    assert!(Path::new(&library).exists(), "there is no {library}: install libfaketime");
    let folder = Folder::new("clock");
    let (file, new) = (folder.path().join("time"), folder.path().join("new"));
    let set = |time: &str| {
        fs::write(&new, time).and_then(|()| fs::rename(&new, &file)).expect("set the clock");
    };
    set("+0");
    scene.replace_relays(&[
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]);
    for time in ["+0", "+1h", "+0", "-1h", "+0"] {
        set(time);
        scene.flows(200);
    }
    // Relays that have nothing to do end in time too.
    scene.pause_writers();
    last(Duration::from_secs(1));
    set("-1h");
    last(Duration::from_secs(1));
    scene.replace_relays(&[]);
    scene.resume_writers();
}
