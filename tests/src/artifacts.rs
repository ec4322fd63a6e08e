//! Server programs that come as Maven artifacts, kept in `OUTBOX_TEST_ARTIFACTS` or else the target folder.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version of Apache Kafka.
pub const KAFKA: &str = "4.3.1";
/// The version of Debezium for PostgreSQL.
pub const DEBEZIUM: &str = "3.6.0.Final";
/// The version of Debezium for MySQL.
pub const DEBEZIUM_FOR_MYSQL: &str = "3.6.1.Final";
/// The version of Debezium for MariaDB. Maven has no later one.
pub const DEBEZIUM_FOR_MARIADB: &str = "3.5.0.Final";
/// The version of axe-core, which finds what makes a page hard to use for some.
pub const AXE: &str = "4.14.1";
const LOGGING: &str = "2.25.2";

/// The versions of PostgreSQL that Maven can fetch.
const POSTGRES: [&str; 5] = ["14.20.0", "15.15.0", "16.11.0", "17.7.0", "18.1.0"];

/// Returns the class path of Apache Kafka.
pub fn kafka() -> String {
    let jars = kept(&format!("kafka-{KAFKA}"), |folder| {
        let kafka = format!("org.apache.kafka:kafka_2.13:{KAFKA}");
        copy_dependencies(&[&kafka, &logging()], folder);
    });
    format!("{}/*", jars.display())
}

/// Returns the class path of Debezium for PostgreSQL and of the Kafka Connect that runs it.
pub fn debezium() -> String {
    connector("debezium", "postgres", DEBEZIUM)
}

/// Returns the class path of Debezium for MariaDB and of the Kafka Connect that runs it.
pub fn debezium_for_mariadb() -> String {
    connector("debezium-mariadb", "mariadb", DEBEZIUM_FOR_MARIADB)
}

/// Returns the class path of Debezium for MySQL and of the Kafka Connect that runs it.
pub fn debezium_for_mysql() -> String {
    connector("debezium-mysql", "mysql", DEBEZIUM_FOR_MYSQL)
}

/// Each connector has a folder of its own, as in Connect's plugin path.
fn connector(name: &str, database: &str, version: &str) -> String {
    let jars = kept(&format!("{name}-{version}-kafka-{KAFKA}"), |folder| {
        let connect = format!("org.apache.kafka:connect-runtime:{KAFKA}");
        let json = format!("org.apache.kafka:connect-json:{KAFKA}");
        let debezium = format!("io.debezium:debezium-connector-{database}:{version}");
        copy_dependencies(&[&connect, &json, &debezium, &logging()], folder);
    });
    format!("{}/*", jars.display())
}

fn logging() -> String {
    format!("org.apache.logging.log4j:log4j-slf4j-impl:{LOGGING}")
}

/// Returns the folder with the programs of PostgreSQL `major`, if Maven can fetch that version.
pub fn postgres(major: u32) -> Option<PathBuf> {
    let version = POSTGRES.into_iter().find(|version| version.starts_with(&format!("{major}.")))?;
    let machine = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64v8",
        _ => return None,
    };
    let folder = kept(&format!("postgres-{version}"), |folder| {
        let artifact = format!("embedded-postgres-binaries-{}-{machine}", env::consts::OS);
        copy_dependencies(&[&format!("io.zonky.test.postgres:{artifact}:{version}")], folder);
        let unpack = r#"unzip -q -p "$1"/*.jar '*.txz' | tar -x -J -C "$1" && rm "$1"/*.jar"#;
        run(Command::new("sh").args(["-c", unpack, "unpack"]).arg(folder), "install unzip, tar and xz");
    });
    Some(folder.join("bin"))
}

/// Returns the folder with a package of Debian's newest suite, and all that its programs need. They run with the loader in that folder.
pub fn debian(package: &str) -> PathBuf {
    kept(package, |folder| {
        let remedy = "this takes a machine with Debian's package manager; elsewhere run the tests with Docker, and install PgBouncer \
                      1.21 or later";
        let mut unpack = Command::new("sh");
        unpack.args(["-c", include_str!("artifacts/unpack.sh"), "unpack", package]);
        run(unpack.arg(folder), remedy);
    })
}

/// Returns the program `promtool`, which checks metrics and rules of Prometheus.
pub fn promtool() -> PathBuf {
    if Command::new("promtool").arg("--version").output().is_ok() {
        return "promtool".into();
    }
    let folder = kept("prometheus", |folder| {
        let unpack = r#"cd "$1" && apt-get -qq -o APT::Sandbox::User= download prometheus && dpkg-deb -x *.deb . && \
                        mv usr/bin/promtool . && rm -r *.deb usr etc lib var 2>/dev/null; test -x promtool"#;
        run(
            Command::new("sh").args(["-c", unpack, "unpack"]).arg(folder),
            "install Prometheus, whose promtool is needed",
        );
    });
    folder.join("promtool")
}

/// The version of OpenTelemetry's collector.
pub const COLLECTOR: &str = "0.161.0";

/// Returns OpenTelemetry's collector: a program of its modules for Go that we need, which is built here.
pub fn collector() -> PathBuf {
    let folder = kept(&format!("otelcol-{COLLECTOR}"), |folder| {
        let sources = [
            ("main.go", include_str!("artifacts/collector/main.go")),
            ("go.mod", include_str!("artifacts/collector/go.mod")),
            ("go.sum", include_str!("artifacts/collector/go.sum")),
        ];
        for (name, text) in sources {
            fs::write(folder.join(name), text).expect("write the sources of the collector");
        }
        let mut build = Command::new("go");
        build.args(["build", "-trimpath", "-ldflags=-s -w", "-o", "otelcol", "."]).current_dir(folder);
        run(
            &mut build,
            "install Go 1.21 or later, which fetches the version that it needs, or let scripts/test do it",
        );
    });
    folder.join("otelcol")
}

/// Returns the script of axe-core, which npm fetches.
pub fn axe() -> String {
    let folder = kept(&format!("axe-core-{AXE}"), |folder| {
        let unpack = format!(
            r#"cd "$1" && npm pack --silent axe-core@{AXE} && tar -xzf *.tgz --strip-components=1 package/axe.min.js && rm *.tgz"#
        );
        run(
            Command::new("sh").args(["-c", &unpack, "unpack"]).arg(folder),
            "install npm, or let scripts/test do it",
        );
    });
    fs::read_to_string(folder.join("axe.min.js")).expect("read axe-core")
}

/// Returns a command that runs a program of such a folder, with the libraries and the loader that are there.
pub(crate) fn unpacked(root: &Path, program: &str) -> Command {
    let loader = match env::consts::ARCH {
        "x86_64" => "usr/lib64/ld-linux-x86-64.so.2",
        _ => "usr/lib/ld-linux-aarch64.so.1",
    };
    let mut command = Command::new(root.join(loader));
    command.arg("--library-path").arg(root.join(format!("usr/lib/{}-linux-gnu", env::consts::ARCH)));
    command.arg(root.join("usr/sbin").join(program));
    command
}

/// Returns the folder `name`, and lets `fill` fill it if it does not exist yet. Test processes wait for each other here.
fn kept(name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    let all = env::var_os("OUTBOX_TEST_ARTIFACTS").map_or_else(default_folder, PathBuf::from);
    let folder = all.join(name);
    if !folder.exists() {
        fs::create_dir_all(&all).expect("the folder for artifacts");
        let lock = File::create(all.join("lock")).expect("the lock on the artifacts");
        lock.lock().expect("lock the artifacts");
        if !folder.exists() {
            let unfinished = all.join(format!("{name}.unfinished"));
            let _ = fs::remove_dir_all(&unfinished);
            fs::create_dir(&unfinished).expect("a folder for the artifact");
            fill(&unfinished);
            fs::rename(&unfinished, &folder).expect("keep the artifact");
        }
    }
    folder
}

fn default_folder() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    workspace.join(target).join("services")
}

/// Lets Maven copy artifacts, named as `group:artifact:version`, with everything that they depend on.
fn copy_dependencies(artifacts: &[&str], folder: &Path) {
    let dependencies: String = artifacts
        .iter()
        .map(|artifact| {
            let mut part = artifact.split(':');
            let mut next = || part.next().expect("group:artifact:version");
            format!(
                "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>",
                next(),
                next(),
                next()
            )
        })
        .collect();
    let pom = folder.join("pom.xml");
    let project = format!(
        "<project><modelVersion>4.0.0</modelVersion><groupId>outbox</groupId><artifactId>services</artifactId>\
         <version>1</version><dependencies>{dependencies}</dependencies></project>"
    );
    fs::write(&pom, project).expect("write the pom");
    let mut output = OsStr::new("-DoutputDirectory=").to_owned();
    output.push(folder);
    let mut maven = Command::new("mvn");
    maven.args(["--quiet", "--batch-mode", "--file"]).arg(&pom).arg("dependency:copy-dependencies");
    maven.args(["-DincludeScope=runtime"]).arg(output);
    run(&mut maven, "install Maven and a JDK, version 17 or later, or let scripts/test do it");
    fs::remove_file(pom).expect("remove the pom");
}

/// Runs a command that must succeed. `remedy` says what to do if it cannot be run.
pub(crate) fn run(command: &mut Command, remedy: &str) {
    let outcome = command.stdin(Stdio::null()).output();
    let name = command.get_program().to_string_lossy().into_owned();
    let output = outcome.unwrap_or_else(|error| panic!("{name} could not be run ({error}): {remedy}"));
    assert!(
        output.status.success(),
        "{name} failed with {}: {remedy}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
