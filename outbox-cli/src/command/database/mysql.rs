//! What a MySQL or MariaDB URL names.

mod migrate;

use std::fmt;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_outbox_relay::mysql::{Conn, Error, Opts, OptsBuilder, UrlError};
use diesel_outbox_relay::source::lacks_tls;

pub(super) use self::migrate::{migrate, run};

/// As what the URL names the server. A relay works with both in the same way, and Debezium has a connector for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavor {
    Mysql,
    Mariadb,
}

impl Flavor {
    pub(super) fn named_by(url: &str) -> Self {
        if url.starts_with("mariadb://") { Self::Mariadb } else { Self::Mysql }
    }

    /// The scheme of its URLs.
    pub(crate) fn scheme(self) -> &'static str {
        match self {
            Self::Mysql => "mysql",
            Self::Mariadb => "mariadb",
        }
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mysql => "MySQL",
            Self::Mariadb => "MariaDB",
        })
    }
}

/// The URL with the scheme that the drivers know and, if one is named, another database.
pub(super) fn url(url: &str, schema: Option<&str>) -> Result<(String, Opts), String> {
    let url = url.strip_prefix("mariadb://").map_or(url.to_owned(), |rest| format!("mysql://{rest}"));
    let (address, query) =
        url.split_once('?').map_or((&*url, None), |(address, query)| (address, Some(query)));
    let url = match (schema, query) {
        (None, _) => url.clone(),
        (Some(schema), query) => {
            let (scheme, rest) = address.split_once("://").unwrap_or(("mysql", address));
            let server = rest.rsplit_once('/').map_or(rest, |(server, _)| server);
            let query = query.map_or_else(String::new, |query| format!("?{query}"));
            format!("{scheme}://{server}/{}{query}", encoded(schema))
        }
    };
    let opts = Opts::from_url(&url).map_err(|error| refused(&error))?;
    if lacks_tls(&opts, cfg!(feature = "mysql-tls")) {
        return Err(
            "this binary was built without TLS for MySQL: build it with the feature `mysql-tls`".into()
        );
    }
    Ok((url, opts))
}

/// Host, port and name of the database.
pub(super) fn address(opts: &Opts) -> Result<String, String> {
    let name = opts.get_db_name().filter(|name| !name.is_empty());
    let name = name.ok_or("name the database in the URL: mysql://user:password@host:port/database")?;
    match opts.get_socket() {
        Some(socket) => Ok(format!("{socket}/{name}")),
        None => Ok(format!("{}:{}/{name}", opts.get_ip_or_hostname(), opts.get_tcp_port())),
    }
}

pub(super) fn connect(opts: &Opts) -> Result<Conn, String> {
    Conn::new(OptsBuilder::from_opts(opts.clone()).prefer_socket(false)).map_err(|error| error.to_string())
}

/// The driver's error as one of Diesel's.
pub(crate) fn as_diesel(error: &Error) -> DieselError {
    DieselError::DatabaseError(DatabaseErrorKind::Unknown, Box::new(error.to_string()))
}

fn encoded(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// Parameters of other clients. Only these are named in an error: what comes after a `?` can be a part of a password.
const OF_OTHERS: [&str; 16] = [
    "allowPublicKeyRetrieval",
    "charset",
    "collation",
    "connectTimeout",
    "connect_timeout",
    "serverTimezone",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl_ca",
    "ssl_mode",
    "statement-cache-capacity",
    "timezone",
    "unix_socket",
    "useSSL",
];

/// The driver's messages repeat values, and a value can be a part of a password.
fn refused(error: &UrlError) -> String {
    match error {
        UrlError::UnknownParameter(name) if OF_OTHERS.contains(&name.as_str()) => {
            format!("the MySQL driver knows no parameter `{name}`")
        }
        UrlError::UnknownParameter(_) => "the MySQL driver does not know one of the URL's parameters. In a password, write a `?` as %3F".into(),
        UrlError::FeatureRequired(_, name) => {
            format!("this binary was built without what the parameter `{name}` needs: build it with the feature `mysql-tls`")
        }
        _ => "this is not a MySQL URL, mysql://user:password@host:port/database: write a `@`, `:`, `/`, `?`, `#` or `%` in the user \
              name or the password as %40, %3A, %2F, %3F, %23 or %25"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, schema: Option<&str>) -> Result<String, String> {
        url(text, schema).and_then(|(_, opts)| address(&opts))
    }

    #[test]
    fn an_address_has_no_credentials() {
        for (url, schema, expected) in [
            ("mysql://ann:s3cret@db.example/shop", None, "db.example:3306/shop"),
            ("mariadb://ann:s3cret@db.example:3307/shop", None, "db.example:3307/shop"),
            ("mysql://ann@db.example/shop?prefer_socket=false", Some("ev/ents"), "db.example:3306/ev/ents"),
            ("mysql://ann@db.example", Some("events"), "db.example:3306/events"),
        ] {
            assert_eq!(shown(url, schema).as_deref(), Ok(expected), "{url}");
        }
    }

    #[test]
    fn a_url_that_asks_for_tls_is_refused_if_there_is_none() {
        let asks = Opts::from_url("mysql://h/d?root_cert_path=/ca.pem").expect("a URL");
        assert!(lacks_tls(&asks, false) && !lacks_tls(&asks, true));
        assert!(!lacks_tls(&Opts::from_url("mysql://h/d").expect("a URL"), false));
    }

    #[test]
    fn what_is_refused_is_not_repeated() {
        for url in ["mysql://ann:s3cr%et@/", "mysql://db.example", "mysql://h/d?s=s3cret"] {
            let problem = shown(url, None).expect_err(url);
            assert!(!problem.contains("s3c") && !problem.contains("ann"), "{problem}");
        }
    }
}
