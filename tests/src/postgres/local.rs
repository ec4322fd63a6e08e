//! PostgreSQL from local programs: those of the system, or else those of Maven artifacts.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::artifacts;
use crate::host::Local;
use crate::process::Signal;
use crate::scratch::{Folder, scratch};

/// Makes the data folder and returns the server. Its socket is in the same folder.
pub(super) fn install(folder: Folder, major: u32, port: u16, settings: &[String]) -> Local {
    let user = scratch().is_root().then(unprivileged_user);
    if let Some(user) = &user {
        artifacts::run(
            Command::new("chown").arg(&user.name).arg(folder.path()),
            "run the tests as another user",
        );
    }
    let programs = programs(major, user.as_ref());
    let data = folder.path().join("data");

    let mut init = as_user(user.as_ref(), &programs.join("initdb"));
    init.args([
        "--auth=trust",
        "--username=postgres",
        "--encoding=UTF8",
        "--no-locale",
        "--no-sync",
        "--pgdata",
    ]);
    artifacts::run(init.arg(&data), "look at what it says");

    serve(folder, &programs, user.as_ref(), port, settings)
}

/// Puts a certificate and its key where the settings name them.
pub(super) fn give_certificate(server: &Local, files: &[PathBuf; 2]) {
    copy_certificate(server.folder(), files);
}

/// The server takes only a key that nobody but its user can read.
pub(super) fn copy_certificate(folder: &Path, [certificate, key]: &[PathBuf; 2]) {
    let data = folder.join("data");
    for (from, name) in [(certificate, "tls.pem"), (key, "tls.key")] {
        let mut copy = Command::new("install");
        copy.args(["-m", "600"]).arg(from).arg(data.join(name));
        artifacts::run(&mut copy, "make room in the temporary folder");
        let mut give = Command::new("chown");
        give.arg(format!("--reference={}", data.display())).arg(data.join(name));
        artifacts::run(&mut give, "run the tests as root or as the servers' user");
    }
}

/// Returns a standby with a copy of the data of a server that has never run.
pub(super) fn install_copy(of: &Local, major: u32, port: u16, settings: &[String]) -> Local {
    let folder = Folder::new("postgres");
    let user = scratch().is_root().then(unprivileged_user);
    let (from, data) = (of.folder().join("data"), folder.path().join("data"));
    artifacts::run(Command::new("cp").arg("-Rp").arg(from).arg(&data), "make room in the temporary folder");
    fs::write(data.join("standby.signal"), "").expect("mark the copy as a standby");
    if let Some(user) = &user {
        artifacts::run(
            Command::new("chown").arg("-R").arg(&user.name).arg(folder.path()),
            "run the tests as another user",
        );
    }
    serve(folder, &programs(major, user.as_ref()), user.as_ref(), port, settings)
}

/// Takes a base backup of the server at this URL.
pub(super) fn back_up(url: &str, major: u32) -> Folder {
    let folder = Folder::new("postgres");
    let user = scratch().is_root().then(unprivileged_user);
    if let Some(user) = &user {
        artifacts::run(
            Command::new("chown").arg(&user.name).arg(folder.path()),
            "run the tests as another user",
        );
    }
    let mut backup = as_user(user.as_ref(), &programs(major, user.as_ref()).join("pg_basebackup"));
    backup.args(["--checkpoint=fast", "--no-sync", "--dbname", url, "--pgdata"]);
    artifacts::run(backup.arg(folder.path().join("data")), "install PostgreSQL with all its programs");
    folder
}

/// Returns a server that recovers from a backup.
pub(super) fn recover(backup: Folder, major: u32, port: u16, settings: &[String]) -> Local {
    fs::write(backup.path().join("data/recovery.signal"), "").expect("mark the copy as a backup");
    let user = scratch().is_root().then(unprivileged_user);
    serve(backup, &programs(major, user.as_ref()), user.as_ref(), port, settings)
}

/// Copies one database into another, which is empty.
pub(super) fn dump(from: &str, to: &str) {
    let copy = r#"set -e; pg_dump --no-owner --no-privileges "$1" | psql --quiet --no-psqlrc -v ON_ERROR_STOP=1 "$2""#;
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", copy, "dump", from, to]);
    artifacts::run(&mut command, "install PostgreSQL's client programs");
}

/// Returns the server of a data folder, with its socket beside the data.
fn serve(folder: Folder, programs: &Path, user: Option<&User>, port: u16, settings: &[String]) -> Local {
    let data = folder.path().join("data");
    let mut server = as_user(user, &programs.join("postgres"));
    server.arg("-D").arg(&data).arg("-k").arg(folder.path()).args([
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
    ]);
    // In the data folder, so that a crash leaves nothing in the system's shared memory.
    server.args(["-c", "dynamic_shared_memory_type=mmap"]);
    for setting in settings {
        server.args(["-c", setting]);
    }
    Local::new(server, folder, Signal::Interrupt, Signal::Quit)
}

/// Returns the newest major version that is installed.
pub(super) fn newest_installed() -> Option<u32> {
    installed().into_iter().map(|(major, _)| major).max()
}

/// Returns the programs of one major version, from the system or else from an artifact.
fn programs(major: u32, user: Option<&User>) -> PathBuf {
    if let Some((_, folder)) = installed().into_iter().find(|(found, _)| *found == major) {
        return folder;
    }
    let folder = artifacts::postgres(major).unwrap_or_else(|| {
        panic!("PostgreSQL {major} was not found: install it, or set OUTBOX_TEST_POSTGRES_URL for tests on any version")
    });
    match user {
        Some(user) if !user.can_read(&folder) => {
            copy_for(user, folder.parent().expect("the version's folder"))
        }
        _ => folder,
    }
}

/// Copies programs out of a folder to which the server's user has no access.
fn copy_for(user: &User, programs: &Path) -> PathBuf {
    let copy = Folder::new("programs");
    let path = copy.path().to_owned();
    std::mem::forget(copy); // it goes with the test process
    let from = programs.join(".");
    artifacts::run(Command::new("cp").arg("-R").arg(from).arg(&path), "make room in the temporary folder");
    artifacts::run(
        Command::new("chown").arg("-R").arg(&user.name).arg(&path),
        "run the tests as another user",
    );
    path.join("bin")
}

/// Returns the installed versions with the folders of their programs.
fn installed() -> Vec<(u32, PathBuf)> {
    let packaged = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let packaged = packaged.map(|version| version.path().join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    packaged.chain(env::split_paths(&path)).filter_map(|folder| Some((major(&folder)?, folder))).collect()
}

fn major(folder: &Path) -> Option<u32> {
    if !folder.join("initdb").exists() {
        return None;
    }
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?; // postgres (PostgreSQL) 18.1
    version.split_whitespace().nth(2)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The user as which a server runs if the tests run as root.
struct User {
    name: String,
    group: String,
}

fn unprivileged_user() -> User {
    let group = |name: &str| {
        let output = Command::new("id").args(["-g", name]).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let found = ["postgres", "nobody"].into_iter().find_map(|name| Some((name, group(name)?)));
    let (name, group) = found.expect("a user postgres or nobody, as PostgreSQL refuses to run as root");
    User { name: name.to_owned(), group }
}

impl User {
    fn can_read(&self, folder: &Path) -> bool {
        let mut test = as_user(Some(self), Path::new("test"));
        test.arg("-x").arg(folder.join("postgres")).status().is_ok_and(|status| status.success())
    }
}

fn as_user(user: Option<&User>, program: &Path) -> Command {
    let Some(user) = user else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user.name, "--regid", &user.group, "--clear-groups"]).arg(program);
    command.current_dir("/");
    command
}
