//! Fetches the server programs that the tests take from Maven and from Debian's newest suite, so that the first test does not wait for them.

use outbox_tests::{PgBouncer, artifacts};

fn main() {
    println!("Apache Kafka {}: {}", artifacts::KAFKA, artifacts::kafka());
    println!("Debezium {}: {}", artifacts::DEBEZIUM, artifacts::debezium());
    println!("Debezium for MySQL {}: {}", artifacts::DEBEZIUM_FOR_MYSQL, artifacts::debezium_for_mysql());
    println!(
        "Debezium for MariaDB {}: {}",
        artifacts::DEBEZIUM_FOR_MARIADB,
        artifacts::debezium_for_mariadb()
    );
    println!("The collector of OpenTelemetry {}: {}", artifacts::COLLECTOR, artifacts::collector().display());
    println!("axe-core {}: {} bytes", artifacts::AXE, artifacts::axe().len());
    println!("promtool: {}", artifacts::promtool().display());
    println!("MySQL: {}", artifacts::debian("mysql-server-core").display());
    println!("MariaDB, the newest: {}", artifacts::debian("mariadb-server-core").display());
    if let Some(folder) = PgBouncer::fetch_newer() {
        println!("PgBouncer, the newest: {}", folder.display());
    }
    for major in std::env::args().skip(1) {
        let major = major.parse().expect("major versions of PostgreSQL as arguments");
        match artifacts::postgres(major) {
            Some(folder) => println!("PostgreSQL {major}: {}", folder.display()),
            None => panic!("PostgreSQL {major} cannot be fetched for this machine"),
        }
    }
}
