//! The migrations make and remove the tables beside the user's own migrations, also if several processes run them at the same
//! time. The relay refuses tables that are not as they must be.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::migration::MigrationSource;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_migrations::{FileBasedMigrations, MigrationHarness};
use diesel_outbox::{Emit, MigrateConnection, Migrations, OutboxConnection, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::source::{PostgresSource, SourceOptions};
use outbox_tests::{Folder, Mariadb, Postgres};

const POSTGRES: &str = "../migrations/postgres";
const MYSQL: &str = "../migrations/mysql";
const SQLITE: &str = "../migrations/sqlite";

fn postgres_tables(conn: &mut PgConnection) -> Vec<String> {
    diesel::dsl::sql::<Text>(
        "SELECT table_schema || '.' || table_name FROM information_schema.tables \
         WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1",
    )
    .load(conn)
    .unwrap()
}

fn mysql_tables(conn: &mut MysqlConnection) -> Vec<String> {
    diesel::dsl::sql::<Text>(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY 1",
    )
    .load(conn)
    .unwrap()
}

fn sqlite_tables(conn: &mut SqliteConnection) -> Vec<String> {
    diesel::dsl::sql::<Text>(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY 1",
    )
    .load(conn)
    .unwrap()
}

/// Runs them from the folder as a user's diesel CLI does: up, down, up.
#[test]
fn the_folders_work_with_the_diesel_cli_both_ways() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    for _ in 0..2 {
        conn.run_pending_migrations(FileBasedMigrations::from_path(POSTGRES).unwrap()).unwrap();
        conn.transaction(|c| c.emit(&Record::new("order", "1", "Placed"))).unwrap();
        conn.revert_all_migrations(FileBasedMigrations::from_path(POSTGRES).unwrap()).unwrap();
        assert_eq!(postgres_tables(conn), ["public.__diesel_schema_migrations"]);
    }
    for server in [Mariadb::shared(), Mariadb::shared_newer(), Mariadb::shared_mysql()] {
        let database = server.database();
        let conn = &mut database.connect();
        for _ in 0..2 {
            conn.run_pending_migrations(FileBasedMigrations::from_path(MYSQL).unwrap()).unwrap();
            conn.transaction(|c| c.emit(&Record::new("order", "1", "Placed"))).unwrap();
            conn.revert_all_migrations(FileBasedMigrations::from_path(MYSQL).unwrap()).unwrap();
            assert_eq!(mysql_tables(conn), ["__diesel_schema_migrations"]);
        }
    }
    let conn = &mut SqliteConnection::establish(":memory:").unwrap();
    for _ in 0..2 {
        conn.run_pending_migrations(FileBasedMigrations::from_path(SQLITE).unwrap()).unwrap();
        conn.transaction(|c| c.emit(&Record::new("order", "1", "Placed"))).unwrap();
        conn.revert_all_migrations(FileBasedMigrations::from_path(SQLITE).unwrap()).unwrap();
        assert_eq!(sqlite_tables(conn), ["__diesel_schema_migrations"]);
    }
}

#[test]
fn the_embedded_migrations_are_those_of_the_folders() {
    fn names<DB: diesel::backend::Backend>(path: &str) -> Vec<String> {
        let found = FileBasedMigrations::from_path(path).unwrap();
        let mut names: Vec<String> =
            MigrationSource::<DB>::migrations(&found).unwrap().iter().map(|m| m.name().to_string()).collect();
        names.sort();
        names
    }
    let database = Postgres::shared().database();
    assert_eq!(Migrations::new().run(&mut database.connect()).unwrap(), names::<diesel::pg::Pg>(POSTGRES));
    for server in [Mariadb::shared(), Mariadb::shared_newer(), Mariadb::shared_mysql()] {
        let database = server.database();
        let conn = &mut database.connect();
        assert_eq!(Migrations::new().run(conn).unwrap(), names::<diesel::mysql::Mysql>(MYSQL));
        assert!(Migrations::new().run(conn).unwrap().is_empty());
    }
    let conn = &mut SqliteConnection::establish(":memory:").unwrap();
    assert_eq!(Migrations::new().run(conn).unwrap(), names::<diesel::sqlite::Sqlite>(SQLITE));
}

#[test]
fn the_users_own_migrations_are_not_touched() {
    let folder = Folder::new("own");
    let own = folder.path().join("2020-01-01-000000_own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("up.sql"), "CREATE TABLE domain (id int)").unwrap();
    std::fs::write(own.join("down.sql"), "DROP TABLE domain").unwrap();
    let own = || FileBasedMigrations::from_path(folder.path()).unwrap();
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    conn.run_pending_migrations(own()).unwrap();
    Migrations::new().run(conn).unwrap();
    assert_eq!(
        conn.applied_migrations().unwrap().len(),
        1,
        "the user's record holds the user's migration alone"
    );
    assert!(!conn.has_pending_migration(own()).unwrap());
    conn.revert_all_migrations(own()).unwrap();
    conn.transaction(|c| c.emit(&Record::new("order", "1", "Placed"))).unwrap();
}

#[test]
fn a_schema_of_their_own_holds_all_tables_and_leaves_the_search_path_alone() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    assert_eq!(Migrations::new().schema("events").run(conn).unwrap().len(), 3);
    assert!(Migrations::new().schema("events").run(conn).unwrap().is_empty());
    assert!(postgres_tables(conn).iter().all(|table| table.starts_with("events.")));
    let path = diesel::dsl::sql::<Text>("SELECT current_setting('search_path')").get_result::<String>(conn);
    assert_eq!(path.unwrap(), "\"$user\", public");
    // The tables of another service in the same database.
    assert_eq!(Migrations::new().schema("other").run(conn).unwrap().len(), 3);
}

/// A consumer needs no outbox, but its database may get one later.
#[test]
fn the_inbox_and_the_outbox_can_be_created_alone_and_in_either_order() {
    let names = |run: Vec<String>| -> Vec<String> {
        run.iter().map(|name| name.rsplit_once("_create_").unwrap().1.to_owned()).collect()
    };
    let record = "outbox_migration";
    let (inbox, outbox) = (Migrations::inbox_only(), Migrations::outbox_only());

    for schema in [None, Some("events")] {
        let database = Postgres::shared().database();
        let conn = &mut database.connect();
        let of = |migrations: &Migrations| match schema {
            Some(schema) => migrations.clone().schema(schema),
            None => migrations.clone(),
        };
        let place = schema.unwrap_or("public");
        assert_eq!(names(of(&inbox).run(conn).unwrap()), ["inbox"]);
        assert_eq!(postgres_tables(conn), [format!("{place}.inbox"), format!("{place}.{record}")]);
        assert!(of(&inbox).run(conn).unwrap().is_empty());
        assert_eq!(names(of(&Migrations::new()).run(conn).unwrap()), ["outbox", "outbox_scheduled"]);
        assert!(
            of(&outbox).run(conn).unwrap().is_empty() && of(&Migrations::new()).run(conn).unwrap().is_empty()
        );
        assert!(of(&inbox).run(conn).unwrap().is_empty());
    }
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    assert_eq!(names(outbox.run(conn).unwrap()), ["outbox", "outbox_scheduled"]);
    assert!(!postgres_tables(conn).contains(&"public.inbox".to_owned()));
    conn.transaction(|c| c.emit(&Record::new("order", "1", "Placed"))).unwrap();
    assert_eq!(names(inbox.run(conn).unwrap()), ["inbox"]);
    assert!(Migrations::new().run(conn).unwrap().is_empty());

    let conn = &mut SqliteConnection::establish(":memory:").unwrap();
    assert_eq!(names(inbox.run(conn).unwrap()), ["inbox"]);
    assert_eq!(sqlite_tables(conn), ["inbox", record]);
    assert_eq!(names(Migrations::new().run(conn).unwrap()), ["outbox", "outbox_scheduled"]);
    let conn = &mut SqliteConnection::establish(":memory:").unwrap();
    assert_eq!(names(outbox.run(conn).unwrap()), ["outbox", "outbox_scheduled"]);
    assert_eq!(sqlite_tables(conn), ["outbox", "outbox_dead_letter", record, "outbox_scheduled"]);
    assert_eq!(names(inbox.run(conn).unwrap()), ["inbox"]);
    assert!(Migrations::new().run(conn).unwrap().is_empty());
}

/// A service that has only diesel-async.
#[tokio::test]
async fn a_wrapped_async_connection_migrates_and_emits() {
    use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
    use diesel_async::{AsyncMysqlConnection, AsyncPgConnection};

    fn migrate<C: MigrateConnection + OutboxConnection>(url: &str) {
        let mut conn = C::establish(url).unwrap();
        assert_eq!(Migrations::new().run(&mut conn).unwrap().len(), 3);
        assert!(Migrations::new().run(&mut conn).unwrap().is_empty());
        conn.transaction(|c| c.emit(&Record::new("order", "1", "Placed"))).unwrap();
    }
    let migrate = || {
        migrate::<AsyncConnectionWrapper<AsyncPgConnection>>(Postgres::shared().database().url());
        for server in [Mariadb::shared(), Mariadb::shared_mysql()] {
            migrate::<AsyncConnectionWrapper<AsyncMysqlConnection>>(server.database().url());
        }
    };
    tokio::task::spawn_blocking(migrate).await.unwrap();
}

#[test]
fn several_processes_may_migrate_at_the_same_time() {
    let database = Postgres::shared().database();
    let run: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let mut conn = database.connect();
                scope.spawn(move || Migrations::new().run(&mut conn).unwrap().len())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(run, 3, "one of them ran both");
}

/// None of them has a `busy_timeout`.
#[test]
fn several_processes_may_migrate_an_sqlite_file_at_the_same_time() {
    const PROCESSES: usize = 8;
    let folder = Folder::new("migrate");
    for (round, journal) in ["DELETE", "WAL"].into_iter().cycle().take(20).enumerate() {
        let path = folder.path().join(format!("{round}.db")).display().to_string();
        SqliteConnection::establish(&path)
            .unwrap()
            .batch_execute(&format!("PRAGMA journal_mode = {journal}"))
            .unwrap();
        let barrier = Barrier::new(PROCESSES);
        let run: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..PROCESSES)
                .map(|_| {
                    let mut conn = SqliteConnection::establish(&path).unwrap();
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        Migrations::new().run(&mut conn).unwrap().len()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(run, 3, "one of them ran both");
    }
}

#[test]
fn on_sqlite_a_service_whose_tables_are_there_starts_while_another_one_writes() {
    let folder = Folder::new("migrate");
    let path = folder.path().join("outbox.db").display().to_string();
    let (conn, writer) =
        (&mut SqliteConnection::establish(&path).unwrap(), &mut SqliteConnection::establish(&path).unwrap());
    Migrations::inbox_only().run(conn).unwrap();
    writer.batch_execute("BEGIN IMMEDIATE").unwrap();
    assert!(Migrations::inbox_only().run(conn).unwrap().is_empty());
    // There is something to do, for which it waits, but not for ever. Nothing is left open then.
    let began = Instant::now();
    let refused = Migrations::new().run(conn).unwrap_err().to_string();
    assert!(refused.contains("database is locked"), "{refused}");
    assert!(began.elapsed() > Duration::from_secs(4), "it has not waited");
    writer.batch_execute("COMMIT").unwrap();
    assert_eq!(Migrations::new().run(conn).unwrap().len(), 2);
    conn.transaction(|c| c.emit(&Record::new("order", "1", "Placed"))).unwrap();
}

/// Any role that may connect can take an advisory lock. That must not keep a service from starting if its tables are there.
#[test]
fn a_stranger_who_holds_the_lock_stops_only_services_without_tables_and_is_named_to_them() {
    let postgres = Postgres::shared();
    let (database, schema) = (postgres.database(), "events");
    let (conn, stranger) = (&mut database.connect(), &mut database.connect());
    Migrations::new().schema(schema).run(conn).unwrap();
    Migrations::new().run(conn).unwrap();
    stranger.batch_execute("SELECT pg_advisory_lock(1869968482, 0)").unwrap();
    conn.batch_execute("SET lock_timeout = '1min'").unwrap();
    let began = Instant::now();
    assert!(Migrations::new().run(conn).unwrap().is_empty());
    assert!(Migrations::new().schema(schema).run(conn).unwrap().is_empty());
    assert!(began.elapsed() < Duration::from_secs(2), "it has waited for the lock");

    let pid: i64 =
        diesel::dsl::sql::<BigInt>("SELECT pg_backend_pid()::bigint").get_result(stranger).unwrap();
    let refusal = Migrations::new().schema("other").run(conn).unwrap_err().to_string();
    let advice = format!("SELECT pg_terminate_backend({pid})");
    assert!(refusal.contains(&advice), "{refusal}");
    conn.batch_execute(&advice).unwrap();
    assert_eq!(Migrations::new().schema("other").run(conn).unwrap().len(), 3);
    // The setting of the connection is unchanged.
    let timeout =
        diesel::dsl::sql::<Text>("SELECT current_setting('lock_timeout')").get_result::<String>(conn);
    assert_eq!(timeout.unwrap(), "1min");
}

#[test]
fn a_migration_that_fails_changes_nothing() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    conn.batch_execute("CREATE TABLE inbox (mine int)").unwrap();
    let error = Migrations::new().run(conn).unwrap_err().to_string();
    assert!(error.contains("create_inbox") && error.contains("inbox"), "{error}");
    assert_eq!(postgres_tables(conn), ["public.inbox"]);
    let count: i64 = diesel::dsl::sql::<BigInt>("SELECT count(*) FROM inbox").get_result(conn).unwrap();
    assert_eq!(count, 0);
}

/// A sequence with other options could give numbers that the relay has passed already. In a partitioned table a row's place in
/// the table says nothing.
#[test]
fn a_table_that_the_relay_would_misread_is_refused() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    Migrations::new().run(conn).unwrap();
    let refusal = || {
        let mut source = PostgresSource::new(database.url(), SourceOptions::default());
        source.claim().map_err(|error| error.to_string())
    };
    conn.batch_execute("ALTER SEQUENCE outbox_seq_seq CACHE 20").unwrap();
    assert!(refusal().unwrap_err().contains("ALTER SEQUENCE outbox_seq_seq CACHE 1"));
    conn.batch_execute("ALTER SEQUENCE outbox_seq_seq CACHE 1 INCREMENT -1").unwrap();
    assert!(refusal().unwrap_err().contains("ALTER SEQUENCE outbox_seq_seq INCREMENT 1 NO CYCLE"));
    conn.batch_execute("ALTER SEQUENCE outbox_seq_seq INCREMENT 1; CREATE TABLE part () INHERITS (outbox)")
        .unwrap();
    assert!(refusal().unwrap_err().contains("is partitioned"));
    conn.batch_execute("DROP TABLE part").unwrap();
    assert_eq!(refusal(), Ok(false));
    assert!(
        conn.batch_execute(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard) \
                                VALUES (gen_random_uuid(), 'order', '1', 'E', 16)"
        )
        .is_err()
    );
}
