//! A worker's connections, and how they are set.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use diesel_outbox_core::SourceError;
use mysql::prelude::{FromRow, Queryable};
use mysql::{Conn, Opts, OptsBuilder};

use crate::source::{DatabaseUrl, SourceOptions, database_error};

/// The server closes a session that is idle for this time, so the shards that a frozen process has claimed are free again after it.
const LONGEST_IDLE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub(super) struct MysqlDatabase {
    url: DatabaseUrl,
    pub(super) options: SourceOptions,
    /// The name of the database, once it is known.
    pub(super) outbox: Arc<OnceLock<String>>,
}

impl MysqlDatabase {
    pub(super) fn new(url: DatabaseUrl, options: SourceOptions) -> Self {
        Self { url, options, outbox: Arc::default() }
    }

    /// Returns a connection for passes: each statement sees what has been committed. It does not wait long behind somebody who waits for
    /// the whole table, and it frees what a frozen process has claimed after [`LONGEST_IDLE`].
    pub(super) fn connect(&self) -> Result<Conn, SourceError> {
        let mut conn = self.connect_with("READ-COMMITTED", Duration::from_secs(10))?;
        close_if_idle(&mut conn)?;
        if self.outbox.get().is_none()
            && let Some(Some(name)) = conn
                .first::<Option<String>>("SELECT DATABASE()")
                .map_err(|error| database_error("looking for the outbox", error))?
        {
            let _ = self.outbox.set(self.options.name_of(&name));
        }
        Ok(conn)
    }

    /// Returns a connection whose statements also see what has not been committed. It works during a pass. Somebody who waits for the
    /// whole table waits for the pass, so this connection must not wait for them.
    pub(super) fn connect_to_uncommitted(&self) -> Result<Conn, SourceError> {
        self.connect_with("READ-UNCOMMITTED", Duration::from_secs(1))
    }

    /// Returns a connection that reads in snapshots. It works during a pass too.
    pub(super) fn connect_to_snapshots(&self) -> Result<Conn, SourceError> {
        let mut conn = self.connect_with("REPEATABLE-READ", Duration::from_secs(1))?;
        close_if_idle(&mut conn)?;
        Ok(conn)
    }

    fn connect_with(&self, isolation: &str, lock_wait: Duration) -> Result<Conn, SourceError> {
        let url = self.url.get()?;
        // The driver knows only one of the two schemes.
        let url = url.strip_prefix("mariadb://").map_or(url.clone(), |rest| format!("mysql://{rest}"));
        // The driver's error repeats values, and a value can be a part of a password.
        let options = Opts::from_url(&url).map_err(|_| SourceError::misconfigured(WRONG_URL))?;
        if lacks_tls(&options, cfg!(feature = "mysql-tls")) {
            return Err(SourceError::misconfigured(NO_TLS));
        }
        let schema = self.options.schema.clone().or_else(|| options.get_db_name().map(str::to_owned));
        let options = with_timeouts(options)
            .db_name(schema)
            // Otherwise the driver asks for the server's socket. If the server is behind a tunnel, that socket is another server's here.
            .prefer_socket(false);
        let mut conn = Conn::new(options).map_err(|error| {
            SourceError::new(format!("cannot connect to the database: {error}")).with_source(error)
        })?;
        // Names and times are those of the tables, whatever the server's defaults are.
        let settings = format!(
            "SET NAMES utf8mb4 COLLATE utf8mb4_bin, time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES', autocommit = 1, \
             innodb_lock_wait_timeout = 10, lock_wait_timeout = {}",
            lock_wait.as_secs()
        );
        conn.execute(&format!("{settings}, transaction_isolation = '{isolation}'"))
            // MariaDB before 11.1 has another name for it.
            .or_else(|_| conn.execute(&format!("{settings}, tx_isolation = '{isolation}'")))
            .map_err(|error| database_error("preparing the connection", error))?;
        Ok(conn)
    }
}

/// A server that is lost without a word is noticed within half a minute, unless the URL sets other times.
fn with_timeouts(own: Opts) -> OptsBuilder {
    let options = OptsBuilder::from_opts(own.clone())
        .tcp_connect_timeout(own.get_tcp_connect_timeout().or(Some(Duration::from_secs(10))))
        .tcp_keepalive_time_ms(own.get_tcp_keepalive_time_ms().or(Some(30_000)));
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    let options = options
        .tcp_keepalive_probe_interval_secs(own.get_tcp_keepalive_probe_interval_secs().or(Some(10)))
        .tcp_keepalive_probe_count(own.get_tcp_keepalive_probe_count().or(Some(3)));
    #[cfg(target_os = "linux")]
    let options = options.tcp_user_timeout_ms(own.get_tcp_user_timeout_ms().or(Some(30_000)));
    options
}

fn close_if_idle(conn: &mut Conn) -> Result<(), SourceError> {
    conn.execute(&format!("SET wait_timeout = {}", LONGEST_IDLE.as_secs()))
        .map_err(|error| database_error("preparing the connection", error))
        .map(drop)
}

const WRONG_URL: &str = "the database's URL is not one of MySQL, mysql://user:password@host:port/database?parameter=value: write a `@`, \
                         `:`, `/`, `?`, `#` or `%` in the user name or the password as %40, %3A, %2F, %3F, %23 or %25, and look whether \
                         the driver knows the parameters (https://docs.rs/mysql); those for TLS need the feature `mysql-tls`";

const NO_TLS: &str = "the database's URL asks for TLS, and this program was built without: turn on the feature `mysql-tls` of \
                      diesel-outbox-relay";

/// Returns whether the driver would panic, because the URL asks for TLS and it has none.
pub fn lacks_tls(options: &Opts, is_built_in: bool) -> bool {
    !is_built_in && options.get_ssl_opts().is_some()
}

/// Runs statements that are texts. They hold only numbers and our own names.
pub(crate) trait Statements {
    /// Returns the number of rows that the statement changed.
    fn execute(&mut self, statement: &str) -> mysql::Result<u64>;
    fn load<T: FromRow>(&mut self, query: &str) -> mysql::Result<Vec<T>>;
    fn first<T: FromRow>(&mut self, query: &str) -> mysql::Result<Option<T>>;
}

impl<Q: Queryable> Statements for Q {
    fn execute(&mut self, statement: &str) -> mysql::Result<u64> {
        Ok(self.query_iter(statement)?.affected_rows())
    }

    fn load<T: FromRow>(&mut self, query: &str) -> mysql::Result<Vec<T>> {
        self.query_iter(query)?.map(|row| row_of(row?)).collect()
    }

    fn first<T: FromRow>(&mut self, query: &str) -> mysql::Result<Option<T>> {
        self.query_iter(query)?.next().map(|row| row_of(row?)).transpose()
    }
}

/// The driver's own conversions panic if a column has another type.
pub(crate) fn row_of<T: FromRow>(row: mysql::Row) -> mysql::Result<T> {
    T::from_row_opt(row).map_err(|error| mysql::Error::FromRowError(error.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_the_url_come_before_those_of_the_relay() {
        let times = |url| {
            let options = Opts::from(with_timeouts(Opts::from_url(url).unwrap()));
            (options.get_tcp_connect_timeout().unwrap(), options.get_tcp_keepalive_time_ms().unwrap())
        };
        assert_eq!(times("mysql://h/d"), (Duration::from_secs(10), 30_000));
        let own = times("mysql://h/d?tcp_connect_timeout_ms=2000&tcp_keepalive_time_ms=7000");
        assert_eq!(own, (Duration::from_secs(2), 7_000));
    }

    #[test]
    fn a_url_that_asks_for_tls_is_refused_if_there_is_none() {
        for parameter in ["root_cert_path=/ca.pem", "danger_accept_invalid_certs=true"] {
            let options = Opts::from_url(&format!("mysql://h/d?{parameter}")).unwrap();
            assert!(lacks_tls(&options, false) && !lacks_tls(&options, true), "{parameter}");
        }
        assert!(!lacks_tls(&Opts::from_url("mysql://h/d").unwrap(), false));
    }
}
