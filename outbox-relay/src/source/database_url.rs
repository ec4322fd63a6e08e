use std::error::Error;
use std::fmt;
use std::sync::Arc;

use diesel_outbox_core::SourceError;

type Url = dyn Fn() -> Result<String, Box<dyn Error + Send + Sync>> + Send + Sync;

/// The URL of a database, or a closure that returns it.
///
/// The relay calls the closure for each new connection. Use one if the password changes, because it comes from a vault or is a
/// token of a cloud's database. If the closure fails, the relay logs the error and tries again, as if the database were away.
///
/// ```
/// use diesel_outbox_relay::source::DatabaseUrl;
///
/// let fixed = DatabaseUrl::from("postgres://localhost/shop");
/// let rotating = DatabaseUrl::from(|| {
///     let password = std::fs::read_to_string("/run/secrets/database-password")?;
///     std::io::Result::Ok(format!("postgres://relay:{}@localhost/shop", password.trim()))
/// });
/// assert_eq!(format!("{fixed:?} {rotating:?}"), "DatabaseUrl(..) DatabaseUrl(..)");
/// ```
#[derive(Clone)]
pub struct DatabaseUrl(Arc<Url>);

impl DatabaseUrl {
    pub(super) fn get(&self) -> Result<String, SourceError> {
        (self.0)().map_err(|error| {
            SourceError::new(format!("the closure that returns the database's URL failed: {error}"))
                .with_source(error)
        })
    }
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(Arc::new(move || Ok(url.clone())))
    }
}

impl From<&String> for DatabaseUrl {
    fn from(url: &String) -> Self {
        url.clone().into()
    }
}

impl From<&str> for DatabaseUrl {
    fn from(url: &str) -> Self {
        url.to_owned().into()
    }
}

impl<F, E> From<F> for DatabaseUrl
where
    F: Fn() -> Result<String, E> + Send + Sync + 'static,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    fn from(url: F) -> Self {
        Self(Arc::new(move || url().map_err(Into::into)))
    }
}

/// Shows nothing of the URL, which may have a password.
impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl(..)")
    }
}
