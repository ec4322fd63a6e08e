//! Who may ask for the page, and who may change something by it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, Uri};
use subtle::ConstantTimeEq;

/// The secret that allows whoever has it to requeue and drop dead letters.
#[derive(Clone)]
pub struct Token(String);

/// How short a token must not be.
const SHORTEST: usize = 16;

/// Why a text cannot be a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error(
    "the token for actions must have {SHORTEST} characters or more: make one with `openssl rand -hex 32`"
)]
pub struct TokenError;

impl Token {
    /// Returns a token. Space around it does not count, so a file may end with a new line.
    ///
    /// # Errors
    /// Returns an error if it has fewer than 16 characters.
    pub fn new(text: impl Into<String>) -> Result<Self, TokenError> {
        let text = text.into().trim().to_owned();
        if text.chars().count() < SHORTEST { Err(TokenError) } else { Ok(Self(text)) }
    }

    /// Compares in a time that does not depend on where the two differ.
    pub(crate) fn is(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.trim().as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// The host that the request is for, with its port.
fn requested<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    uri.authority().map(axum::http::uri::Authority::as_str).or_else(|| headers.get(HOST)?.to_str().ok())
}

/// Returns whether the page answers for the host that is asked for. A page of somebody else can have its name lead to our address, and
/// then ask under that name: it cannot ask under an address in numbers.
pub(crate) fn is_known_host(headers: &HeaderMap, uri: &Uri, known: &[String]) -> bool {
    let Some(host) = requested(headers, uri) else { return false };
    let name = without_port(host);
    let numbers = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name.parse::<IpAddr>().is_ok()
        || numbers.is_some_and(|numbers| numbers.parse::<Ipv6Addr>().is_ok())
        || name.eq_ignore_ascii_case("localhost")
        || known.iter().any(|known| known.eq_ignore_ascii_case(name) || known.eq_ignore_ascii_case(host))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Returns whether a request comes from a page of another site, as far as the browser says so. Other clients say nothing, and need the token.
pub(crate) fn is_cross_site(headers: &HeaderMap, uri: &Uri) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        // `none`: the user did it, by a bookmark for example.
        if site != "same-origin" && site != "none" {
            return true;
        }
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    match (origin, requested(headers, uri)) {
        (Some((_, origin)), Some(host)) => !origin.eq_ignore_ascii_case(host),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_token_is_long_and_compared_as_a_whole() {
        assert_eq!(Token::new("  short  ").err(), Some(TokenError));
        let token = Token::new("0123456789abcdef\n").unwrap();
        assert!(token.is("0123456789abcdef") && token.is(" 0123456789abcdef"));
        for wrong in ["", "0123456789abcdeg", "0123456789abcde", "0123456789abcdef0"] {
            assert!(!token.is(wrong), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "Token(secret)");
    }

    #[test]
    fn a_name_that_nobody_has_named_is_refused() {
        let known = ["ops.example.com".to_owned(), "shop:81".to_owned()];
        for (host, is_known) in [
            ("127.0.0.1:9464", true),
            ("10.1.2.3", true),
            ("[::1]:9464", true),
            ("localhost:9464", true),
            ("LOCALHOST", true),
            ("ops.example.com", true),
            ("Ops.Example.com:443", true),
            ("shop:81", true),
            ("shop:82", false),
            ("evil.example", false),
            ("evil.example:9464", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("[::1].evil.example", false),
            ("", false),
        ] {
            assert_eq!(
                is_known_host(&headers(&[("host", host)]), &Uri::default(), &known),
                is_known,
                "{host}"
            );
        }
        assert!(!is_known_host(&HeaderMap::new(), &Uri::default(), &known));
    }

    #[test]
    fn what_a_browser_says_of_another_site_counts() {
        let host = ("host", "127.0.0.1:9464");
        for (others, is_cross) in [
            (&[][..], false),
            (&[("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1:9464")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("origin", "http://127.0.0.1:9464")], false),
            (&[("origin", "https://evil.example")], true),
            (&[("origin", "http://127.0.0.1:9465")], true),
            (&[("origin", "null")], true),
        ] {
            let headers = headers(&[&[host], others].concat());
            assert_eq!(is_cross_site(&headers, &Uri::default()), is_cross, "{others:?}");
        }
    }
}
