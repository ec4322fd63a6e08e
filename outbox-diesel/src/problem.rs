use diesel::ConnectionError;
use diesel_outbox_core::__private::one_line;

/// What may be logged of a connection that failed, in one line.
///
/// It is what was said of a server or a file. What is said of a URL that is not understood, or of a host that is not found, may
/// repeat parts of the URL, and so a password: of that only the fact is told.
///
/// ```
/// use diesel::ConnectionError::BadConnection;
/// use diesel_outbox::connection_problem;
///
/// let refused = BadConnection("connection to server at \"127.0.0.1\" failed:\n\tConnection refused".into());
/// assert_eq!(connection_problem(&refused), "connection to server at \"127.0.0.1\" failed: Connection refused");
/// let malformed = BadConnection("invalid integer value \"s3cret\" for connection option \"port\"".into());
/// assert!(!connection_problem(&malformed).contains("s3cret"));
/// // Of `postgres://user:s3@cret@host/name`, where %40 is missing.
/// let split = BadConnection("could not translate host name \"cret@host\" to address: Unknown host".into());
/// assert!(!connection_problem(&split).contains("cret"));
/// ```
pub fn connection_problem(error: &ConnectionError) -> String {
    let message = one_line(&error.to_string());
    if message.starts_with("could not translate host name") {
        return format!("the database's host is not found ({ESCAPES})");
    }
    let beginnings = ["connection to server", "could not connect", "unable to open database"];
    if beginnings.iter().any(|beginning| message.to_lowercase().starts_with(beginning)) {
        message
    } else {
        format!("the database URL is not understood ({ESCAPES})")
    }
}

const ESCAPES: &str = "postgres://user:password@host:5432/name, \
                       with % @ : / ? # in a password written as %25 %40 %3A %2F %3F %23";
