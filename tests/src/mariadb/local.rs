//! MariaDB from local programs.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::artifacts;
use crate::host::Local;
use crate::process::Signal;
use crate::scratch::{Folder, scratch};

/// Makes the data folder and returns the server. Its socket is in the same folder.
pub(super) fn install(port: u16, settings: &[String]) -> Local {
    let folder = Folder::new("mariadb");
    let data = format!("--datadir={}", folder.path().join("data").display());
    // It runs as another user than root only if nothing is said.
    let user = scratch().is_root().then_some("--user=root");

    let mut init = Command::new(program("mariadb-install-db"));
    init.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    artifacts::run(init.arg(&data).args(user), "look at what it says");

    let mut server = Command::new(program("mariadbd"));
    server.args(["--no-defaults", &data, "--bind-address=127.0.0.1", &format!("--port={port}")]);
    server.arg(format!("--socket={}", folder.path().join("socket").display())).args(user).args(settings);
    Local::new(server, folder, Signal::Terminate, Signal::Kill)
}

fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/usr/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.exists()).unwrap_or_else(|| {
        panic!(
            "`{name}` was not found: install MariaDB (Debian's packages mariadb-server-core and mariadb-client-core), or set OUTBOX_TEST_MYSQL_URL to a server's \
             address, such as mysql://root:secret@localhost:3306"
        )
    })
}
