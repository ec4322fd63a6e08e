//! The errors of an emit. `?` works in every closure in which it works for Diesel, and callers can find what went wrong.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncPgConnection};
use diesel_outbox::{AsyncEmit, Emit, EmitError, Migrations, Record, RecordError};
use error_stack::{Report, ResultExt};
use outbox_tests::{Database, Folder, Postgres};

/// A service's own error that converts only from Diesel's.
#[derive(Debug)]
struct OwnError(DieselError);

impl From<DieselError> for OwnError {
    fn from(error: DieselError) -> Self {
        Self(error)
    }
}

#[derive(Debug, thiserror::Error)]
enum ThisError {
    #[error("the database failed: {0}")]
    Database(#[from] DieselError),
}

/// An error-stack context, like the ones that services have for their storage.
#[derive(Debug, thiserror::Error)]
enum StorageError {
    #[error("the database failed")]
    Database,
    #[error("the outbox failed")]
    Outbox,
}

/// A wrapper of a report, because Diesel's transaction needs a conversion from its error, which a report does not have.
#[derive(Debug)]
struct Reported(Report<StorageError>);

impl From<DieselError> for Reported {
    fn from(error: DieselError) -> Self {
        Self(Report::new(error).change_context(StorageError::Database))
    }
}

impl From<Report<StorageError>> for Reported {
    fn from(report: Report<StorageError>) -> Self {
        Self(report)
    }
}

fn bad() -> Record {
    Record::new("order", "", "OrderPlaced")
}

fn good() -> Record {
    Record::new("order", "1", "OrderPlaced")
}

#[track_caller]
fn assert_refused(error: &DieselError) {
    let refused =
        matches!(EmitError::of(error), Some(EmitError::Record(RecordError::Empty { field: "aggregate_id" })));
    assert!(refused && error.to_string().contains("aggregate_id is empty"), "{error:?}");
}

fn postgres() -> Database<'static> {
    let database = Postgres::shared().database();
    Migrations::new().run(&mut database.connect()).unwrap();
    database
}

#[test]
fn the_question_mark_works_whatever_error_the_closure_returns() {
    let database = postgres();
    let conn = &mut database.connect();

    let error = conn.transaction::<(), DieselError, _>(|c| {
        c.emit(&bad())?;
        Ok(())
    });
    assert_refused(&error.unwrap_err());

    let error = conn.transaction::<(), OwnError, _>(|c| {
        c.batch_execute("SELECT 1")?;
        c.emit_all([good(), bad()])?;
        Ok(())
    });
    assert_refused(&error.unwrap_err().0);

    let error = conn.transaction::<(), ThisError, _>(|c| {
        c.emit(&bad())?;
        Ok(())
    });
    let ThisError::Database(error) = error.unwrap_err();
    assert_refused(&error);

    let error = conn.transaction::<(), anyhow::Error, _>(|c| {
        c.emit(&bad())?;
        Ok(())
    });
    assert_refused(error.unwrap_err().downcast_ref().unwrap());

    let error = conn.transaction::<(), Box<dyn std::error::Error + Send + Sync>, _>(|c| {
        c.emit(&bad())?;
        Ok(())
    });
    assert_refused(error.unwrap_err().downcast_ref().unwrap());

    let error = conn.transaction::<(), Reported, _>(|c| {
        c.emit(&bad()).change_context(StorageError::Outbox)?;
        Ok(())
    });
    let Reported(report) = error.unwrap_err();
    assert!(matches!(report.current_context(), StorageError::Outbox));
    assert_refused(report.downcast_ref().unwrap());
}

#[tokio::test]
async fn the_question_mark_also_works_on_an_async_connection() {
    let database = postgres();
    let conn = &mut AsyncPgConnection::establish(database.url()).await.unwrap();

    let error = conn.transaction::<(), DieselError, _>(async |c| {
        c.emit(&bad()).await?;
        Ok(())
    });
    assert_refused(&error.await.unwrap_err());

    let error = conn.transaction::<(), OwnError, _>(async |c| {
        c.emit_all([good(), bad()]).await?;
        Ok(())
    });
    assert_refused(&error.await.unwrap_err().0);

    let error = conn.transaction::<(), ThisError, _>(async |c| {
        c.emit(&bad()).await?;
        Ok(())
    });
    let ThisError::Database(error) = error.await.unwrap_err();
    assert_refused(&error);

    let error = conn.transaction::<(), anyhow::Error, _>(async |c| {
        c.emit(&bad()).await?;
        Ok(())
    });
    assert_refused(error.await.unwrap_err().downcast_ref().unwrap());

    let error = conn.transaction::<(), Reported, _>(async |c| {
        c.emit(&bad()).await.change_context(StorageError::Outbox)?;
        Ok(())
    });
    let Reported(report) = error.await.unwrap_err();
    assert!(matches!(report.current_context(), StorageError::Outbox));
    assert_refused(report.downcast_ref().unwrap());
}

#[test]
fn an_error_of_the_database_keeps_its_kind() {
    let database = postgres();
    let conn = &mut database.connect();
    conn.batch_execute("CREATE UNIQUE INDEX ON outbox (id)").unwrap();
    let event = good();
    let error = conn.transaction(|c| {
        c.emit(&event)?;
        c.emit(&event)
    });
    let error = error.unwrap_err();
    assert!(matches!(error, DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _)), "{error:?}");
    assert!(EmitError::of(&error).is_none());
}

/// Returns the hint of the database's error.
#[track_caller]
fn hint(error: &DieselError) -> String {
    let DieselError::DatabaseError(_, information) = error else { panic!("{error:?}") };
    information.hint().unwrap_or_else(|| panic!("{error:?} has no hint")).to_owned()
}

/// Diesel shows only the message of an error. Programs that also show its hint do not show the same advice twice.
#[tokio::test]
async fn the_error_about_a_missing_table_says_what_to_do() {
    let database = Postgres::shared().database();
    let explained = |error: DieselError| {
        assert!(EmitError::of(&error).is_none(), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("outbox") && text.contains("run the migrations"), "{text}");
        let hint = hint(&error);
        assert!(hint.contains("`Migrations::new().run(..)`") && hint.contains("`search_path`"), "{hint}");
        assert!(!text.contains(&hint), "{text}");
    };
    let conn = &mut database.connect();
    explained(conn.transaction(|c| c.emit(&good())).unwrap_err());
    explained(conn.transaction(|c| c.emit_all([good()])).unwrap_err());
    let conn = &mut AsyncPgConnection::establish(database.url()).await.unwrap();
    explained(conn.transaction(async |c| c.emit(&good()).await).await.unwrap_err());
    explained(conn.transaction(async |c| c.emit_all([good()]).await).await.unwrap_err());

    let folder = Folder::new("emit_errors");
    let path = folder.path().join("empty.db").display().to_string();
    let conn = &mut SqliteConnection::establish(&path).unwrap();
    explained(conn.transaction(|c| c.emit(&good())).unwrap_err());
    let conn = &mut SyncConnectionWrapper::<SqliteConnection>::establish(&path).await.unwrap();
    explained(conn.transaction(async |c| c.emit_all([good()]).await).await.unwrap_err());
}
