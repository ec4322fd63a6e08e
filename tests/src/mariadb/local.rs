//! MariaDB and MySQL from local programs.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Server;
use crate::artifacts::{self, unpacked};
use crate::host::Local;
use crate::process::Signal;
use crate::scratch::{Folder, scratch};

/// Makes the data folder and returns the server. Its socket is in the same folder.
pub(super) fn install(folder: Folder, server: Server, port: u16, settings: &[String]) -> Local {
    let data = folder.path().join("data");
    // A server that starts removes the temporary tables in the folder for them, also those of others.
    let temporary = data.with_extension("tmp");
    fs::create_dir(&temporary).expect("a folder for temporary tables");
    let mut command = match server {
        Server::Mariadb => mariadb(&data),
        Server::NewerMariadb => newer_mariadb(&data),
        Server::Mysql => mysql(&data),
    };
    command.args(["--bind-address=127.0.0.1", &format!("--port={port}")]);
    command.arg(format!("--socket={}", folder.path().join("socket").display()));
    Local::new(command_with(command, &data, settings), folder, Signal::Terminate, Signal::Kill)
}

/// These servers run as another user than root only if nothing is said.
fn command_with(mut command: Command, data: &Path, settings: &[String]) -> Command {
    command.arg(format!("--datadir={}", data.display())).args(settings);
    command.arg(format!("--tmpdir={}", data.with_extension("tmp").display()));
    command.args(scratch().is_root().then_some("--user=root"));
    command
}

/// MariaDB as it is installed.
fn mariadb(data: &Path) -> Command {
    let mut init = Command::new(program("mariadb-install-db"));
    init.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    artifacts::run(&mut command_with(init, data, &[]), "look at what it says");
    let mut server = Command::new(program("mariadbd"));
    server.arg("--no-defaults");
    server
}

/// The newest MariaDB. Its script for the first tables calls programs that are not unpacked.
fn newer_mariadb(data: &Path) -> Command {
    let root = artifacts::debian("mariadb-server-core");
    let share = root.join("usr/share/mariadb");
    let command = || {
        let mut server = unpacked(&root, "mariadbd");
        server.arg("--no-defaults").arg(format!("--lc-messages-dir={}", share.display()));
        server.arg(format!("--character-sets-dir={}", share.join("charsets").display()));
        server
    };
    fs::create_dir(data).expect("the data folder");
    let mut tables =
        "create database mysql;\nuse mysql;\nset @auth_root_socket = NULL;\nset @skip_auth_anonymous = 1;\n"
            .to_owned();
    for file in ["mariadb_system_tables", "mariadb_performance_tables", "mariadb_system_tables_data"] {
        tables +=
            &fs::read_to_string(share.join(file).with_extension("sql")).expect("MariaDB's first tables");
    }
    let file = data.with_extension("sql");
    fs::write(&file, tables).expect("write the first tables");
    let mut init = command_with(command(), data, &["--bootstrap".to_owned(), "--silent-startup".to_owned()]);
    let file = File::open(file).expect("read the first tables");
    let status = init.stdin(file).status().expect("run MariaDB");
    assert!(status.success(), "MariaDB could not make its first tables: {status}");
    command()
}

fn mysql(data: &Path) -> Command {
    let root = artifacts::debian("mysql-server-core");
    let command = || {
        let mut server = unpacked(&root, "mysqld");
        server.args(["--no-defaults", "--secure-file-priv=NULL", "--log-error-verbosity=1"]);
        server.arg(format!("--basedir={}", root.join("usr").display()));
        server.arg(format!("--lc-messages-dir={}", root.join("usr/share/mysql").display()));
        server.arg(format!("--plugin-dir={}", root.join("usr/lib/mysql/plugin").display()));
        server
    };
    let init = command_with(command(), data, &["--initialize-insecure".to_owned()]);
    artifacts::run(&mut { init }, "look at what it says");
    let mut server = command();
    server.arg("--mysqlx=OFF");
    server
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
