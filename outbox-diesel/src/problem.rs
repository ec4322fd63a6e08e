use diesel::ConnectionError;
use diesel_outbox_core::__private::one_line;

/// Returns the part of a connection error that is safe to log, in one line.
///
/// Messages about a server or a file are kept. Messages about a malformed URL or an unknown host may repeat parts of the URL, and
/// thus a password, so a message without them takes their place.
///
/// ```
/// use diesel::ConnectionError::BadConnection;
/// use diesel_outbox::connection_problem;
///
/// let refused = BadConnection("connection to server at \"127.0.0.1\" failed:\n\tConnection refused".into());
/// assert_eq!(connection_problem(&refused), "connection to server at \"127.0.0.1\" failed: Connection refused");
/// let malformed = BadConnection("invalid integer value \"s3cret\" for connection option \"port\"".into());
/// assert!(!connection_problem(&malformed).contains("s3cret"));
/// // From `postgres://user:s3@cret@host/name`, in which the first @ should be %40.
/// let split = BadConnection("could not translate host name \"cret@host\" to address: Unknown host".into());
/// assert!(!connection_problem(&split).contains("cret"));
/// ```
pub fn connection_problem(error: &ConnectionError) -> String {
    let message = one_line(&error.to_string());
    if message.starts_with("could not translate host name") {
        return format!("the host in the database URL was not found: check the URL ({ESCAPES})");
    }
    if is_malformed_url(error) {
        format!(
            "the database URL cannot be parsed: check it ({ESCAPES}; the parameters are libpq's, which are not those of sqlx or JDBC)"
        )
    } else {
        message
    }
}

/// Returns whether the URL could not be parsed. Anything else may pass.
pub fn is_malformed_url(error: &ConnectionError) -> bool {
    let message = error.to_string().to_lowercase();
    let of_the_server = [
        "connection to server",
        "could not connect",
        "could not translate host name",
        "unable to open database",
    ];
    !of_the_server.iter().any(|beginning| message.starts_with(beginning))
}

const ESCAPES: &str = "postgres://user:password@host:5432/name; \
                       in a password, write % @ : / ? # as %25 %40 %3A %2F %3F %23";
