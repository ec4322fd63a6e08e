//! The parts of a PostgreSQL URL. A URL that libpq would not understand is refused here already: libpq's messages repeat what
//! it does not understand, and that can be a part of a password.

/// A URL's parts as they are written there.
pub(super) struct Parts<'a> {
    /// User and password. Nobody is shown them.
    pub(super) credentials: &'a str,
    /// Hosts with their ports.
    pub(super) hosts: &'a str,
    pub(super) name: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Parts<'a> {
    pub(super) fn parameter(&self, wanted: &str) -> Option<&'a str> {
        self.parameters.iter().rev().find(|(name, _)| *name == wanted).map(|&(_, value)| value)
    }
}

/// Hosts, ports and database name.
pub(super) fn without_credentials(url: &str) -> Result<String, String> {
    let parts = parts(url)?;
    let host = if parts.hosts.is_empty() { "the default host" } else { parts.hosts };
    let host = parts.parameter("host").unwrap_or(host);
    let port = parts.parameter("port").map_or_else(String::new, |port| format!(":{port}"));
    let name = parts.parameter("dbname").unwrap_or(parts.name);
    Ok(if name.is_empty() { format!("{host}{port}") } else { format!("{host}{port}/{name}") })
}

pub(super) fn parts(url: &str) -> Result<Parts<'_>, String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    if !percent_encoded(rest) {
        return refused("write a `%` as %25");
    }
    // As libpq does it: credentials end at the first `@` that stands before any `/`.
    let end = rest.find(['@', '/']).filter(|&end| rest.as_bytes().get(end) == Some(&b'@'));
    let split = end.and_then(|end| Some((rest.get(..end)?, rest.get(end + 1..)?)));
    let (credentials, rest) = split.unwrap_or(("", rest));
    let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
    if location.contains('@') {
        return refused("write an `@` or `/` in the user name or the password as %40 or %2F");
    }
    let (hosts, name) = location.split_once('/').unwrap_or((location, ""));
    if !hosts.split(',').all(port_is_number) {
        return refused("a port is not a number; write a `:` or `/` in a password as %3A or %2F");
    }
    Ok(Parts { credentials, hosts, name, parameters: parameters(query)? })
}

fn refused<T>(rule: &str) -> Result<T, String> {
    Err(format!("this is not a PostgreSQL URL, postgres://user:password@host:port/database: {rule}"))
}

fn percent_encoded(text: &str) -> bool {
    text.split('%').skip(1).all(|after| {
        after.get(..2).is_some_and(|code| code != "00" && code.bytes().all(|c| c.is_ascii_hexdigit()))
    })
}

fn port_is_number(host: &str) -> bool {
    let after_address = host.rsplit_once(']').map_or(host, |(_, after)| after);
    after_address.split_once(':').is_none_or(|(_, port)| port.bytes().all(|c| c.is_ascii_digit()))
}

fn parameters(query: &str) -> Result<Vec<(&str, &str)>, String> {
    query
        .split('&')
        .filter(|_| !query.is_empty())
        .map(|parameter| match parameter.split_once('=') {
            Some((name, value)) if !value.contains('=') => Ok((name, value)),
            _ => refused(
                "after the `?` come name=value&..; write a `&`, `=` or `?` in a value or a password as %26, %3D or \
                 %3F",
            ),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_no_credentials() {
        for (url, address) in [
            ("postgres://db.example/shop", "db.example/shop"),
            ("postgresql://ann:s3cret@db.example:5432/shop", "db.example:5432/shop"),
            ("postgres://ann:p%40ss%2Fw%25rd@one:1,two:2/shop", "one:1,two:2/shop"),
            ("postgres://ann:s?cret@db.example", "db.example"),
            ("postgres://ann@[::1]:5432/shop?sslmode=require", "[::1]:5432/shop"),
            ("postgres://ann@/shop?host=/var/run&port=5433&password=s3cret", "/var/run:5433/shop"),
            ("postgres:///shop", "the default host/shop"),
            ("postgres://", "the default host"),
            ("postgres://db.example?dbname=shop", "db.example/shop"),
        ] {
            assert_eq!(without_credentials(url).as_deref(), Ok(address), "{url}");
        }
    }

    #[test]
    fn what_libpq_would_repeat_is_refused_without_repeating_it() {
        for url in [
            "postgres://ann:s3cr%et@host/shop",
            "postgres://ann:s3cr%00et@host/shop",
            "postgres://ann:a@s3cret@host/shop",
            "postgres://ann:1/s3cret@host/shop",
            "postgres://ann:s3cret",
            "postgres://ann:s3cret/more?x@host/shop",
            "postgres://ann:1?s3cret/2@host/shop",
            "postgres://host/shop?password=a&s3cret",
            "postgres://host/shop?password=a=s3cret",
        ] {
            let problem = without_credentials(url).expect_err(url);
            assert!(!problem.contains("s3c") && !problem.contains("ann"), "{problem}");
        }
    }
}
