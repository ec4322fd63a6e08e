use sea_orm::{DatabaseConnection, DbErr};
use sea_orm_outbox::{Outbox, Record};

async fn place(db: &DatabaseConnection) -> Result<(), DbErr> {
    Outbox::new().emit(db, &Record::new("order", "7", "OrderPlaced")).await?;
    Ok(())
}

fn main() {}
