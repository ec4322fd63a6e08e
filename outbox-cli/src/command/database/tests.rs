use super::*;
use crate::command::args::Action;
use crate::command::invocation::Invocation;

fn chosen(arguments: &[&str]) -> Result<OutboxDatabase, String> {
    all_chosen(arguments).map(|mut databases| databases.remove(0))
}

fn all_chosen(arguments: &[&str]) -> Result<Vec<OutboxDatabase>, String> {
    let arguments = ["outbox", "migrate"].iter().chain(arguments);
    let Invocation { action, origins } =
        Invocation::read(arguments, std::iter::empty()).expect("good arguments");
    let Action::Migrate { common, .. } = action else { panic!("{action:?}") };
    OutboxDatabase::chosen(&common.database, &origins).map_err(|error| error.to_string())
}

fn problem(arguments: &[&str]) -> String {
    chosen(arguments).expect_err("a database that is refused")
}

#[cfg(feature = "postgres")]
#[test]
fn a_database_is_shown_without_its_credentials() {
    let database = chosen(&["--database-url", "postgres://ann:s3cret@db:5432/shop", "--schema", "events"]);
    let shown = database.map(|database| database.to_string());
    assert_eq!(shown.as_deref(), Ok("PostgreSQL at db:5432/shop, schema events"));
}

#[cfg(feature = "sqlite")]
#[test]
fn a_path_is_an_sqlite_database() {
    let shown = |url| chosen(&["--database-url", url]).map(|database| database.to_string());
    assert_eq!(shown("shop.db").as_deref(), Ok("SQLite at shop.db"));
    assert_eq!(shown("sqlite:///srv/shop.db").as_deref(), Ok("SQLite at /srv/shop.db"));
    assert!(
        problem(&["--database-url", "shop.db", "--schema", "events"]).starts_with("--schema: SQLite has no")
    );
}

#[test]
fn what_is_no_database_of_ours_is_refused_without_repeating_it() {
    for url in
        ["oracle://ann:s3cret@db/shop", "postgres://ann:s3cret/1@db", "password=s3cret", "POSTGRES://s3cret"]
    {
        let problem = problem(&["--database-url", url]);
        assert!(problem.starts_with("--database-url: ") && !problem.contains("s3cret"), "{problem}");
    }
    assert!(problem(&[]).starts_with("no database is named: set --database-url, "));
}
