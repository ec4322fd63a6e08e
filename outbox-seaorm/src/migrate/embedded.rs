use diesel_outbox_core::__private::migration_version;
use sea_orm::DbBackend;

use super::MigrationError;

/// A migration as SQL.
#[derive(Debug)]
pub(super) struct Embedded {
    pub(super) name: &'static str,
    pub(super) up: &'static str,
    #[cfg_attr(not(feature = "migrator"), expect(dead_code, reason = "only a migrator goes back"))]
    pub(super) down: &'static str,
}

impl Embedded {
    /// Returns the version, which is recorded when the migration has run.
    pub(super) fn version(&self) -> String {
        migration_version(self.name)
    }
}

macro_rules! embedded {
    ($database:literal: $($name:literal),* $(,)?) => {
        &[$(Embedded {
            name: $name,
            up: include_str!(concat!("../../migrations/", $database, "/", $name, "/up.sql")),
            down: include_str!(concat!("../../migrations/", $database, "/", $name, "/down.sql")),
        }),*]
    };
}

const POSTGRES: &[Embedded] = embedded!("postgres": "2026-11-24-000000_create_outbox", "2026-11-24-000001_create_inbox", "2026-11-24-000002_create_outbox_scheduled");
const MYSQL: &[Embedded] = embedded!("mysql": "2026-11-24-000000_create_outbox", "2026-11-24-000001_create_inbox", "2026-11-24-000002_create_outbox_scheduled");
const SQLITE: &[Embedded] = embedded!("sqlite": "2026-11-24-000000_create_outbox", "2026-11-24-000001_create_inbox", "2026-11-24-000002_create_outbox_scheduled");

/// Returns the migrations of a database in their order.
pub(super) fn of(database: DbBackend) -> Result<&'static [Embedded], MigrationError> {
    match database {
        DbBackend::Postgres => Ok(POSTGRES),
        DbBackend::MySql => Ok(MYSQL),
        DbBackend::Sqlite => Ok(SQLITE),
        other => Err(MigrationError::NoOutbox { database: other.as_str() }),
    }
}

/// Returns the names of all databases' migrations in their order.
#[cfg(feature = "migrator")]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let all: std::collections::BTreeSet<_> =
        [POSTGRES, MYSQL, SQLITE].into_iter().flatten().map(|migration| migration.name).collect();
    all.into_iter()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_migration_is_embedded_in_its_order() {
        for (folder, embedded) in [("postgres", POSTGRES), ("mysql", MYSQL), ("sqlite", SQLITE)] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(folder);
            let files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name());
            let mut found: Vec<String> = files.map(|name| name.into_string().unwrap()).collect();
            found.sort();
            let names: Vec<&str> = embedded.iter().map(|migration| migration.name).collect();
            assert_eq!(names, found);
        }
        assert_eq!(POSTGRES[0].version(), "20261124000000");
    }
}
