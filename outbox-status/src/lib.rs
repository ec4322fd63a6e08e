//! A status page for [diesel-outbox](https://docs.rs/diesel-outbox): how far the relay is behind, what it did in the last hour, relays,
//! shards and their owners, the replication slot, and dead letters by cause, to be requeued or dropped by whoever has the token.
//!
//! The binary `outbox` serves it with `outbox relay --listen 127.0.0.1:9464`. This crate is for a service that embeds the relay: it has the
//! page as a [router](StatusPage::router) for axum.
//!
//! ```toml
//! [dependencies]
//! diesel-outbox-status = { version = "0.1", features = ["postgres"] } # or "mysql" or "sqlite"
//! ```
//!
//! ```no_run
//! # #[cfg(feature = "postgres")]
//! # fn f(database_url: String, relay: diesel_outbox_relay::RelayHandle) -> axum::Router {
//! use diesel::{Connection, PgConnection};
//! use diesel_outbox_status::{Outbox, StatusPage};
//!
//! let shop = Outbox::new("shop", move || PgConnection::establish(&database_url)).relay(&relay);
//! let page = StatusPage::new().outbox(shop);
//! axum::Router::new().nest("/outbox", page.router())
//! # }
//! ```
//!
//! The page is plain HTML with one small script and one stylesheet, which this crate brings along. It needs nothing from elsewhere, and works
//! without the script too. It asks the database only while somebody looks, once a second at most, and in at most a twentieth of the time.
//!
//! # Who may see it
//!
//! The router asks nobody to log in: put it behind what protects your other internal pages. It shows the aggregates' types and ids, and the
//! reasons of dead letters. It shows payloads only if you [say so](StatusPage::show_payloads), and changes something only with a
//! [token](StatusPage::actions). Requests whose `Host` is neither an address nor `localhost` are refused unless you [name it](StatusPage::host),
//! so that no foreign page can read this one by a name of its own (DNS rebinding).

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]

mod act;
mod guard;
mod look;
mod page;
mod router;
mod text;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use diesel_outbox_relay::operate::Observe;
use diesel_outbox_relay::{Health, History, RelayHandle};

pub use self::guard::{Token, TokenError};

/// What this crate's pages and `outbox status` have in common.
#[doc(hidden)]
pub mod __private {
    pub use crate::text::{age, bytes, in_one_line, number, rate, sparkline};
}

type BoxError = Box<dyn Error + Send + Sync>;
/// A connection on which the page looks at an outbox.
pub type Connection = Box<dyn Observe + Send>;
type Connect = Arc<dyn Fn() -> Result<Connection, BoxError> + Send + Sync>;
/// Returns the outboxes that are there at the moment, by their names.
type Discover = Arc<dyn Fn() -> Result<Vec<(String, Connect)>, BoxError> + Send + Sync>;

/// An outbox that the page shows, or several that one relay has.
#[derive(Clone)]
#[must_use = "give it to `StatusPage::outbox`"]
pub struct Outbox {
    name: String,
    discover: Discover,
    history: Option<History>,
    health: Option<Health>,
}

impl Outbox {
    /// Returns an outbox with a name for people. The closure connects to its database: with `PgConnection`, `SqliteConnection`, or `Conn` of the
    /// crate `mysql`, as the role that the relay has. The page keeps the connection while somebody looks, and
    /// [limits its waits](Observe::limit_waits): so it must not go through a pooler that shares sessions.
    pub fn new<C, E>(
        name: impl Into<String>,
        connect: impl Fn() -> Result<C, E> + Send + Sync + 'static,
    ) -> Self
    where
        C: Observe + Send + 'static,
        E: Into<BoxError>,
    {
        let name = name.into();
        let connect: Connect =
            Arc::new(move || connect().map(|conn| Box::new(conn) as Connection).map_err(Into::into));
        let only = vec![(name.clone(), connect)];
        Self { name, discover: Arc::new(move || Ok(only.clone())), history: None, health: None }
    }

    /// Returns the outboxes of one relay that may come and go. The first closure lists them by name, and the second one connects to the one
    /// of this name.
    pub fn several(
        name: impl Into<String>,
        list: impl Fn() -> Result<Vec<String>, BoxError> + Send + Sync + 'static,
        connect: impl Fn(&str) -> Result<Connection, BoxError> + Send + Sync + 'static,
    ) -> Self {
        let connect = Arc::new(connect);
        let discover: Discover = Arc::new(move || {
            let of = |name: String| {
                let (connect, own) = (connect.clone(), name.clone());
                (name, Arc::new(move || connect(&own)) as Connect)
            };
            Ok(list()?.into_iter().map(of).collect())
        });
        Self { name: name.into(), discover, history: None, health: None }
    }

    /// Shows what this relay did in the last hour, and whether it makes progress.
    pub fn relay(self, relay: &RelayHandle) -> Self {
        Self { history: Some(relay.history()), health: Some(relay.health()), ..self }
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Builds the page.
#[derive(Debug, Clone)]
#[must_use = "the page is served by its `router`"]
pub struct StatusPage {
    outboxes: Vec<Outbox>,
    token: Option<Token>,
    payloads: bool,
    hosts: Vec<String>,
    patience: Duration,
}

impl Default for StatusPage {
    fn default() -> Self {
        Self {
            outboxes: Vec::new(),
            token: None,
            payloads: false,
            hosts: Vec::new(),
            patience: Duration::from_secs(60),
        }
    }
}

impl StatusPage {
    /// Returns a page without outboxes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an outbox.
    pub fn outbox(mut self, outbox: Outbox) -> Self {
        self.outboxes.push(outbox);
        self
    }

    /// Lets whoever has this token requeue and drop dead letters. Default: nobody can.
    ///
    /// The connection's role must be allowed to: on PostgreSQL the role of a relay is not. `docs/status-page.md` in the repository has the grants.
    pub fn actions(self, token: Token) -> Self {
        Self { token: Some(token), ..self }
    }

    /// Shows the payloads and headers of dead letters. Default: no, because they may be private.
    pub fn show_payloads(self, show: bool) -> Self {
        Self { payloads: show, ..self }
    }

    /// Answers requests for this host too, such as `ops.example.com`. Default: only `localhost` and addresses in numbers.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.hosts.push(host.into());
        self
    }

    /// Sets for how long a relay may make no progress while something waits before the page says so: see [`Health::problem`]. Default: a
    /// minute.
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Returns the router. It can be merged, or nested below a path. It needs tokio with its timer.
    pub fn router(self) -> axum::Router {
        router::router(self)
    }
}
