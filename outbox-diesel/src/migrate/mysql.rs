//! The migrations of MySQL and MariaDB as text, for the binary `outbox`, whose driver is not Diesel's.

use diesel_outbox_core::__private::migration_version;

use super::Migrations;

/// One of these migrations.
#[derive(Debug)]
pub struct MysqlMigration {
    /// Its name.
    pub name: &'static str,
    /// Its version, which is recorded when it has run.
    pub version: String,
    /// The statements that run it.
    pub up: &'static str,
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../migrations/mysql/", $name, "/up.sql")))),*]
    };
}

const ALL: [(&str, &str); 3] = embedded![
    "2026-11-24-000000_create_outbox",
    "2026-11-24-000001_create_inbox",
    "2026-11-24-000002_create_outbox_scheduled",
];

impl Migrations {
    /// Returns what these are on MySQL and MariaDB, in their order.
    #[doc(hidden)]
    pub fn on_mysql(&self) -> Vec<MysqlMigration> {
        let wanted = ALL.into_iter().filter(|(name, _)| self.tables.has(name));
        wanted.map(|(name, up)| MysqlMigration { name, version: migration_version(name), up }).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_texts_are_those_that_diesel_runs() {
        let diesel = Migrations::new().embedded::<diesel::mysql::Mysql>().unwrap();
        let texts = Migrations::new().on_mysql();
        let of_diesel: Vec<(String, String)> = diesel
            .iter()
            .map(|migration| (migration.name().to_string(), migration.name().version().to_string()))
            .collect();
        let of_texts: Vec<(String, String)> =
            texts.iter().map(|migration| (migration.name.to_owned(), migration.version.clone())).collect();
        assert_eq!(of_texts, of_diesel);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/mysql");
        for migration in texts {
            let file = folder.join(migration.name).join("up.sql");
            assert_eq!(migration.up, std::fs::read_to_string(file).unwrap());
        }
    }
}
