use sea_orm::{DatabaseConnection, DbErr};
use sea_orm_outbox::{Emit, Record};

async fn place(db: &DatabaseConnection) -> Result<(), DbErr> {
    db.emit(&Record::new("order", "7", "OrderPlaced")).await?;
    Ok(())
}

fn main() {}
