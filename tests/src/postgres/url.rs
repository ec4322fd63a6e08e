//! The little that tests need to know of a connection URL.

/// Names another database in a URL.
pub(super) fn with_database(url: &str, name: &str) -> String {
    let (address, options) = url.split_once('?').map_or((url, ""), |(address, options)| (address, options));
    let authority = address.find("://").map_or(0, |at| at + 3);
    let end = address[authority..].find('/').map_or(address.len(), |at| authority + at);
    let question = if options.is_empty() { "" } else { "?" };
    format!("{}/{name}{question}{options}", &address[..end])
}

/// The port in a URL that names one.
pub(super) fn port(url: &str) -> Option<u16> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    authority.rsplit_once(':')?.1.parse().ok()
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
}
