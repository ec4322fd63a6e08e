use sea_orm::{ConnectionTrait, DbBackend, DbErr, TransactionSession, TransactionTrait};
use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::{MigrationName, MigrationTrait, SchemaManager};

use super::{
    Migrations, Part, RECORD, begin, embedded, leave_schema, postgres_migration_lock, quoted_literal,
};

impl Migrations {
    /// Returns these migrations for sea-orm-migration, so that they run with your own and `sea-orm-cli` shows them. Put them first, and
    /// call this again in later versions: they may add migrations.
    ///
    /// Tables that `run`, a service on Diesel or `outbox migrate` has created are found, and not created again. Rolling back drops the
    /// tables with all that is in them, also events that nobody has sent.
    ///
    /// ```
    /// use sea_orm_migration::{MigrationTrait, MigratorTrait, async_trait::async_trait};
    /// use sea_orm_outbox::Migrations;
    ///
    /// pub struct Migrator;
    ///
    /// #[async_trait]
    /// impl MigratorTrait for Migrator {
    ///     fn migrations() -> Vec<Box<dyn MigrationTrait>> {
    ///         let mut migrations = Migrations::new().for_migrator();
    ///         // migrations.push(Box::new(m20261201_000001_create_order::Migration));
    ///         migrations
    ///     }
    /// }
    /// # assert_eq!(Migrator::migrations().len(), 3);
    /// ```
    #[must_use]
    pub fn for_migrator(&self) -> Vec<Box<dyn MigrationTrait>> {
        embedded::names()
            .filter(|name| self.part.has(name))
            .map(|name| Box::new(Step::new(self, name)) as Box<dyn MigrationTrait>)
            .collect()
    }

    /// Drops what the migration of this name has created.
    async fn revert<C>(&self, db: &C, name: &'static str) -> Result<(), DbErr>
    where
        C: ConnectionTrait + TransactionTrait,
    {
        let all = embedded::of(db.get_database_backend())?;
        let Some(migration) = all.iter().find(|migration| migration.name == name) else { return Ok(()) };
        let forget = format!("DELETE FROM {RECORD} WHERE version = {}", quoted_literal(&migration.version()));
        if db.get_database_backend() == DbBackend::MySql {
            db.execute_unprepared(migration.down).await?;
            db.execute_unprepared(&forget).await?;
            return Ok(());
        }
        let txn = begin(db).await?;
        let mut search_path = None;
        if txn.get_database_backend() == DbBackend::Postgres {
            txn.execute_unprepared(&postgres_migration_lock()).await?;
            search_path = self.enter_schema(&txn).await?;
        }
        txn.execute_unprepared(migration.down).await?;
        txn.execute_unprepared(&forget).await?;
        leave_schema(&txn, search_path).await?;
        txn.commit().await
    }
}

/// One migration of ours among the user's.
#[derive(Debug)]
struct Step {
    migrations: Migrations,
    migration: &'static str,
    /// No migration of the user's has this name.
    name: String,
}

impl Step {
    fn new(migrations: &Migrations, migration: &'static str) -> Self {
        Self {
            migrations: Migrations { schema: migrations.schema.clone(), part: Part::One(migration) },
            migration,
            name: format!("outbox_{migration}"),
        }
    }
}

impl MigrationName for Step {
    fn name(&self) -> &str {
        &self.name
    }
}

#[async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        self.migrations.run(manager.get_connection()).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        self.migrations.revert(manager.get_connection(), self.migration).await
    }
}
