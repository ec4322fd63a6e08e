//! A disk of its own for a server, which a test can fill.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::Command;

use crate::scratch::Folder;

/// A small disk in memory.
#[derive(Debug)]
pub struct Disk {
    ballast: PathBuf,
}

impl Disk {
    /// Mounts one that has room for so many megabytes at a new folder. It goes together with the folder.
    ///
    /// # Panics
    /// If mounting is refused.
    pub fn mounted(megabytes: usize) -> (Folder, Self) {
        let folder = Folder::new("disk");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=755"), "outbox-tests"])
            .arg(folder.path());
        let output = mount.output().expect("run mount");
        assert!(
            output.status.success(),
            "a full disk cannot be tested, because mounting a small one was refused: run this as root, where mounting is allowed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let ballast = folder.path().join("ballast");
        (folder.mounted(), Self { ballast })
    }

    /// Fills it to the last byte.
    ///
    /// # Panics
    /// If writing fails for another reason than that the disk is full.
    pub fn fill(&self) {
        let mut ballast = File::options().create(true).append(true).open(&self.ballast).expect("a file");
        for piece in [1 << 20, 1 << 12] {
            let bytes = vec![b'x'; piece];
            let failure = loop {
                if let Err(error) = ballast.write_all(&bytes) {
                    break error;
                }
            };
            assert_eq!(failure.kind(), ErrorKind::StorageFull, "fill the disk: {failure}");
        }
    }

    /// Makes room again.
    ///
    /// # Panics
    /// If the disk was not filled.
    pub fn free(&self) {
        fs::remove_file(&self.ballast).expect("remove what fills the disk");
    }
}
