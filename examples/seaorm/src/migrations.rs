use sea_orm_migration::prelude::*;
use sea_orm_outbox::Migrations;

pub(crate) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        let mut migrations = Migrations::outbox_only().for_migrator();
        migrations.push(Box::new(CreateOrders));
        migrations
    }
}

struct CreateOrders;

impl MigrationName for CreateOrders {
    fn name(&self) -> &str {
        "m20261128_000001_create_orders"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for CreateOrders {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table("orders")
                    .col(ColumnDef::new("id").uuid().not_null().primary_key())
                    .col(ColumnDef::new("customer").text().not_null())
                    .col(ColumnDef::new("total_cents").big_integer().not_null())
                    .check(Expr::col("total_cents").gt(0))
                    .to_owned(),
            )
            .await
    }
}
