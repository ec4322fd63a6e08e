//! The parts of a connection URL that tests need.

/// Returns the URL with another database.
pub(super) fn with_database(url: &str, name: &str) -> String {
    let (address, options) = url.split_once('?').map_or((url, ""), |(address, options)| (address, options));
    let authority = address.find("://").map_or(0, |at| at + 3);
    let end = address[authority..].find('/').map_or(address.len(), |at| authority + at);
    let question = if options.is_empty() { "" } else { "?" };
    format!("{}/{name}{question}{options}", &address[..end])
}

/// Returns the port in a URL that has one.
pub(super) fn port(url: &str) -> Option<u16> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    authority.rsplit_once(':')?.1.parse().ok()
}

/// What a URL says about a server and its user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Address {
    /// Returns these for a server that is reached by TCP. What the URL leaves out is as in the servers that the tests start.
    pub(super) fn of(url: &str) -> Self {
        let (_, rest) = url.split_once("://").expect("an address with a scheme");
        let authority = rest.split(['/', '?']).next().expect("one part at least");
        let (user, server) = authority.rsplit_once('@').unwrap_or(("postgres", authority));
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        let port = port(url);
        let host = if port.is_some() { server.rsplit_once(':').expect("a port").0 } else { server };
        Self {
            host: if host.is_empty() { "localhost".to_owned() } else { decoded(host) },
            port: port.unwrap_or(5432),
            user: decoded(user),
            password: decoded(password),
        }
    }
}

/// Returns the text with its percent-encoded bytes decoded.
fn decoded(text: &str) -> String {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let byte = piece.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.expect("two hexadecimal digits after a percent sign"));
        bytes.extend(&piece.as_bytes()[2..]);
    }
    String::from_utf8(bytes).expect("UTF-8 in an address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_database_is_replaced() {
        for (url, expected) in [
            ("postgres://u:p@h:5432/a?sslmode=disable", "postgres://u:p@h:5432/b?sslmode=disable"),
            ("postgres://h/a", "postgres://h/b"),
            ("postgresql://h:1", "postgresql://h:1/b"),
            ("postgres:///a?host=/run/x&user=me", "postgres:///b?host=/run/x&user=me"),
        ] {
            assert_eq!(with_database(url, "b"), expected);
        }
    }

    #[test]
    fn a_port_is_found_where_one_is_named() {
        assert_eq!(port("postgres://u:p@127.0.0.1:5433/a?x=1:2"), Some(5433));
        assert_eq!(port("postgres://localhost/a"), None);
    }

    #[test]
    fn an_address_has_all_its_parts() {
        let address = |host: &str, port, user: &str, password: &str| Address {
            host: host.to_owned(),
            port,
            user: user.to_owned(),
            password: password.to_owned(),
        };
        let given = "postgres://u%40x:p%3Aq@db.example:6000/a?sslmode=disable";
        assert_eq!(Address::of(given), address("db.example", 6000, "u@x", "p:q"));
        assert_eq!(Address::of("postgres:///a"), address("localhost", 5432, "postgres", ""));
    }
}
