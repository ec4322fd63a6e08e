//! The server that a URL names, for a client that takes no URL.

use super::address::{Parts, parts};

/// Where a server is, as which role to connect, and its TLS settings. It has no password.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) port: String,
    pub(crate) user: String,
    pub(crate) database: String,
    /// The URL's parameters for TLS, by their names there.
    pub(crate) tls: Vec<(&'static str, String)>,
}

const TLS: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];

impl Server {
    /// The server that this URL names.
    pub(super) fn named_by(url: &str) -> Result<Self, String> {
        let parts = parts(url)?;
        let (host, port) = host_and_port(&parts)?;
        let user = parts.credentials.split(':').next().unwrap_or_default();
        let user = decoded(parts.parameter("user").unwrap_or(user))?;
        let name = decoded(parts.parameter("dbname").unwrap_or(parts.name))?;
        if user.is_empty() {
            return Err("name the user in the URL: Debezium needs it".into());
        }
        let tls = TLS.into_iter().filter_map(|name| Some((name, parts.parameter(name)?)));
        let tls = tls.map(|(name, value)| Ok((name, decoded(value)?))).collect::<Result<_, String>>()?;
        let database = if name.is_empty() { user.clone() } else { name };
        Ok(Self { host, port, user, database, tls })
    }
}

fn host_and_port(parts: &Parts<'_>) -> Result<(String, String), String> {
    let after_address = parts.hosts.rfind(']').map_or(0, |end| end + 1);
    let colon = parts.hosts.get(after_address..).and_then(|rest| rest.find(':'));
    let (host, port) = match colon {
        Some(colon) => (
            parts.hosts.get(..after_address + colon).unwrap_or_default(),
            parts.hosts.get(after_address + colon + 1..).unwrap_or_default(),
        ),
        None => (parts.hosts, ""),
    };
    let host = decoded(parts.parameter("host").unwrap_or(host))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() || host.starts_with(['/', '@']) {
        return Err("name the server's host in the URL: Debezium does not connect by a Unix socket".into());
    }
    if parts.hosts.contains(',') || host.contains(',') {
        return Err("name one host in the URL: Debezium takes no list of hosts".into());
    }
    let port = parts.parameter("port").unwrap_or(port);
    Ok((host, if port.is_empty() { "5432".to_owned() } else { port.to_owned() }))
}

/// Text with its percent-encoded bytes put in.
fn decoded(text: &str) -> Result<String, String> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        // `parts` has made sure that two digits follow.
        let (code, rest) = piece.split_at_checked(2).unwrap_or((piece, ""));
        bytes.extend(u8::from_str_radix(code, 16).ok());
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| "its percent-encoded text is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(url: &str) -> [String; 4] {
        let server = Server::named_by(url).expect(url);
        [server.host, server.port, server.user, server.database]
    }

    #[test]
    fn a_url_names_all_that_debezium_needs_but_the_password() {
        for (url, expected) in [
            ("postgres://ann:s3cret@db.example:5433/shop", ["db.example", "5433", "ann", "shop"]),
            ("postgres://ann@db.example", ["db.example", "5432", "ann", "ann"]),
            ("postgres://a%40n:p%3Aq@[::1]:5433/sh%20op", ["::1", "5433", "a@n", "sh op"]),
            ("postgres://[::1]/shop?user=ann&password=s3cret", ["::1", "5432", "ann", "shop"]),
            ("postgres://ann@/x?host=db&port=6000&dbname=shop", ["db", "6000", "ann", "shop"]),
        ] {
            assert_eq!(named(url), expected.map(str::to_owned), "{url}");
        }
        let server = Server::named_by("postgres://a@db/x?sslmode=verify-full&sslrootcert=%2Fca.pem");
        let tls = server.expect("a server").tls;
        assert_eq!(tls, [("sslmode", "verify-full".to_owned()), ("sslrootcert", "/ca.pem".to_owned())]);
    }

    #[test]
    fn what_debezium_cannot_reach_is_refused() {
        for url in [
            "postgres://ann@/shop",
            "postgres://ann@/shop?host=/run/postgresql",
            "postgres://ann:s3cret@one,two/shop",
            "postgres://db/shop",
        ] {
            let problem = Server::named_by(url).expect_err(url);
            assert!(!problem.contains("s3c"), "{problem}");
        }
    }
}
