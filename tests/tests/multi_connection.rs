//! An enum of connections, for services that run on the database that the operator chooses.

#![allow(missing_docs, unreachable_pub, reason = "what the derive writes for a public enum")]

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool};
use diesel::result::Error as DieselError;
use diesel_outbox::{Emit, EmitError, Inbox, Migrations, Once, Outbox, Record, multi_connection};
use outbox_tests::{Folder, Mariadb, Postgres};
use uuid::Uuid;

use self::partly::Partly;

#[derive(diesel::MultiConnection)]
enum DbConn {
    Sqlite(SqliteConnection),
    Pg(PgConnection),
    Mysql(MysqlConnection),
    #[cfg(any())]
    Another(PgConnection),
}

multi_connection!(DbConn {
    Sqlite,
    Pg,
    Mysql,
    #[cfg(any())]
    Another,
});

mod partly {
    use diesel::prelude::*;

    /// An enum whose PostgreSQL variant has no outbox.
    #[derive(diesel::MultiConnection)]
    pub enum Partly {
        Sqlite(SqliteConnection),
        Pg(PgConnection),
    }

    diesel_outbox::multi_connection!(Partly { Sqlite, .. });
}

fn placed(order: &str) -> Record {
    Record::new("order", order, "OrderPlaced").with_payload(*b"{}")
}

fn behaves<C: Emit + diesel_outbox::MigrateConnection + diesel_outbox::OutboxConnection>(conn: &mut C) {
    assert_eq!(Migrations::new().run(conn).unwrap().len(), 3);
    assert!(Migrations::new().run(conn).unwrap().is_empty());

    let refused = conn.emit(&placed("outside")).unwrap_err();
    assert!(matches!(EmitError::of(&refused), Some(EmitError::NotInTransaction)), "{refused:?}");
    let event = placed("committed");
    assert_eq!(conn.transaction(|c| c.emit(&event)).unwrap(), event.id());
    let rolled_back: Result<(), DieselError> = conn.transaction(|c| {
        c.emit(&placed("rolled back"))?;
        c.transaction(|c| c.emit_all([placed("in a savepoint"), placed("too")]))?;
        Err(DieselError::RollbackTransaction)
    });
    assert!(rolled_back.is_err());
    conn.transaction(|c| c.emit_all([placed("second"), placed("third")])).unwrap();

    let inbox = Inbox::new("billing");
    for expected in [Once::First(()), Once::Duplicate] {
        assert_eq!(inbox.once(conn, event.id(), |_| QueryResult::Ok(())).unwrap(), expected);
    }
    assert_eq!(inbox.prune(conn, Duration::from_secs(3_600)).unwrap(), 0);
}

/// Returns the aggregate ids in the outbox, in order.
macro_rules! stored {
    ($conn:expr) => {{
        let text = "SELECT aggregateid FROM outbox ORDER BY seq";
        diesel::dsl::sql::<diesel::sql_types::Text>(text).load::<String>($conn).unwrap()
    }};
}

#[test]
fn an_enum_of_connections_emits_and_has_an_inbox_on_each_of_its_databases() {
    let database = Postgres::shared().database();
    let conn = &mut DbConn::establish(database.url()).unwrap();
    assert!(matches!(conn, DbConn::Pg(_)));
    behaves(conn);
    assert_eq!(stored!(&mut database.connect()), ["committed", "second", "third"]);

    for server in [Mariadb::shared(), Mariadb::shared_mysql()] {
        let database = server.database();
        let conn = &mut DbConn::establish(database.url()).unwrap();
        assert!(matches!(conn, DbConn::Mysql(_)));
        behaves(conn);
        assert_eq!(stored!(&mut database.connect()), ["committed", "second", "third"]);
    }

    let folder = Folder::new("multi_connection");
    let path = folder.path().join("outbox.db").display().to_string();
    let conn = &mut DbConn::establish(&path).unwrap();
    assert!(matches!(conn, DbConn::Sqlite(_)));
    behaves(conn);
    assert_eq!(stored!(&mut SqliteConnection::establish(&path).unwrap()), ["committed", "second", "third"]);
    let refused = conn.transaction(|c| Outbox::new().schema("events").emit(c, &placed("1"))).unwrap_err();
    assert!(matches!(EmitError::of(&refused), Some(EmitError::NoSchemas)), "{refused:?}");

    // The same in a pool.
    let database = Postgres::shared().database();
    let pool = Pool::builder().max_size(1).build(ConnectionManager::<DbConn>::new(database.url())).unwrap();
    behaves(&mut *pool.get().unwrap());
    assert_eq!(stored!(&mut database.connect()), ["committed", "second", "third"]);
}

#[test]
fn a_variant_that_the_macro_does_not_name_refuses_to_emit_and_says_so() {
    let database = Postgres::shared().database();
    let conn = &mut Partly::establish(database.url()).unwrap();
    conn.batch_execute("SELECT 1").unwrap();
    let refused = conn.transaction(|c| c.emit(&placed("1"))).unwrap_err();
    assert!(matches!(EmitError::of(&refused), Some(EmitError::NoOutbox)), "{refused:?}");
    let refused = Migrations::new().run(conn).unwrap_err().to_string();
    assert!(refused.contains("its variant is not listed"), "{refused}");
    let refused = Inbox::new("billing").once(conn, Uuid::nil(), |_| QueryResult::Ok(())).unwrap_err();
    assert!(matches!(EmitError::of(&refused), Some(EmitError::NoOutbox)), "{refused:?}");

    let conn = &mut Partly::establish(":memory:").unwrap();
    behaves(conn);
}
