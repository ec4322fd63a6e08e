//! One temporary folder for each test process, and the leash that removes it.
//!
//! Statics are never dropped, and a killed process drops nothing. So a small shell holds the other end of a pipe. When the pipe
//! closes, the test process is gone, and the shell ends what it left running and removes the folder.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The script of the shell, whose argument is the folder. `cat` ends when the pipe closes. `running/` has a file for each
/// process, named by its id, that holds the signal that ends it. `containers/` has a file for each container.
const LEASH: &str = r#"
cat
signal() { # SIGNAL, or "" for each one's own; answers whether any was there to take it
    taken=1
    for file in running/*; do
        [ -e "$file" ] && kill -s "${1:-$(cat "$file")}" -- "-${file#running/}" && taken=0
    done
    return $taken
}
cd "$1" || exit
signal ""
signal CONT
tries=0
while signal 0 && [ $((tries += 1)) -lt 100 ]; do sleep 0.05; done
signal KILL
for file in containers/*; do
    [ -e "$file" ] && docker rm --force --volumes "${file#containers/}"
done
for folder in folders/*; do
    mountpoint -q "$folder" && umount "$folder"
done
cd /
tries=0
until rm -rf "$1" || [ $((tries += 1)) -ge 40 ]; do sleep 0.05; done
"#;

/// The temporary folder of this test process.
pub(crate) struct Scratch {
    path: PathBuf,
    /// Never read. The leash waits as long as its standard input is open.
    _leash: Child,
}

/// Returns the folder of this process, which is made on first use.
pub(crate) fn scratch() -> &'static Scratch {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    SCRATCH.get_or_init(|| Scratch::new().expect("a temporary folder"))
}

impl Scratch {
    fn new() -> io::Result<Self> {
        let path = (0..)
            .map(|n| std::env::temp_dir().join(format!("outbox-tests-{}-{n}", process::id())))
            .find_map(|path| match DirBuilder::new().mode(0o755).create(&path) {
                Ok(()) => Some(Ok(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                Err(error) => Some(Err(error)),
            })
            .expect("one of endlessly many names")?;
        let leash = Command::new("sh")
            .args(["-c", LEASH, "outbox-tests-leash"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // so that an interrupt from the keyboard does not reach it
            .spawn()?;
        for name in ["running", "containers", "folders"] {
            fs::create_dir(path.join(name))?;
        }
        Ok(Self { path, _leash: leash })
    }

    /// Returns the folder in which each process that must end with this one leaves its id.
    pub(crate) fn running(&self) -> PathBuf {
        self.path.join("running")
    }

    /// Makes the leash remove a container.
    pub(crate) fn hold_container(&self, id: &str) {
        fs::write(self.path.join("containers").join(id), "").expect("note the container");
    }

    /// Whether servers must run as another user, because they refuse to run as root.
    pub(crate) fn is_root(&self) -> bool {
        fs::metadata(&self.path).expect("the temporary folder").uid() == 0
    }
}

/// A new temporary folder. It is removed when this is dropped, or else with the test process.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    is_mounted: bool,
}

impl Folder {
    /// Makes a folder whose name starts with `name`.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let path = scratch().path.join("folders").join(name);
        fs::create_dir(&path).expect("a new temporary folder");
        Self { path, is_mounted: false }
    }

    /// Notes that a disk was mounted there.
    pub(crate) fn mounted(mut self) -> Self {
        self.is_mounted = true;
        self
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg(&self.path).status();
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}
