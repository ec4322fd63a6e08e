//! The database under test, whatever kind it is.

use std::any::Any;
use std::sync::OnceLock;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel_outbox::{Emit, OutboxConnection};
use diesel_outbox_relay::operate::Requeue;
use fastrand::Rng;
use outbox_tests::{Server, Tables};

use crate::ledger::{note, record};
use crate::servers::Servers;
use crate::writers::{Dialect, Orders, write};

/// A database with the outbox and the ledger, on a server that may be stopped.
pub trait Site: Sync {
    /// Returns its URL.
    fn url(&self) -> &str;
    /// Returns its URL for a relay, as a role that may do no more than a relay needs.
    fn relay_url(&self) -> String;
    /// Lets the relays' role do what it needs, if a server does not know it.
    fn grant(&self);
    /// Returns its name.
    fn name(&self) -> &str;
    /// Runs statements in a session of their own.
    ///
    /// # Errors
    /// What the database says.
    fn execute(&self, sql: &str) -> Result<(), String>;
    /// Returns the number that a query selects.
    fn number(&self, query: &str) -> i64;
    /// Returns the texts that a query selects.
    fn texts(&self, query: &str) -> Vec<String>;
    /// Runs statements in a session that stays open as long as what this returns.
    fn hold(&self, sql: &str) -> Box<dyn Any + Send>;
    /// Emits events of these aggregates in one transaction, with payloads of so many bytes if that is given, which Kafka may refuse.
    fn emit(&self, aggregates: &[u32], poison: Option<usize>);
    /// Emits an event in a transaction that stays open until the closure is called.
    fn emit_and_wait(&self, aggregate: u32) -> Box<dyn FnOnce() + Send>;
    /// Writes until the order to end.
    fn write(&self, name: usize, rng: Rng, orders: &Orders);
    /// Ends the relays' sessions, and on MariaDB all others too.
    fn end_sessions(&self);
    /// Takes every connection that the server still gives, and returns how many. They stay open as long as what is returned.
    fn take_connections(&self) -> (usize, Box<dyn Any + Send>);
    /// Moves to the same database of the server that takes over.
    fn move_over(&self);
    /// Returns how many events are unsent, as far as the table says.
    fn unsent(&self) -> usize;
    /// Puts all dead letters back into the outbox.
    fn requeue(&self);
    /// Shuts the server down.
    fn stop(&self);
    /// Kills the server.
    fn crash(&self);
    /// Starts the server again.
    fn restart(&self);
}

/// A database of the crate `outbox-tests`.
pub struct On<'a, S: Server + 'a> {
    servers: &'a Servers<S>,
    first: S::Tables<'a>,
    second: OnceLock<S::Tables<'a>>,
    dialect: Dialect,
    marks_sent: bool,
}

impl<'a, S: Server> On<'a, S> {
    /// Begins on the first server. `dialect` says how to speak to it, and `marks_sent` whether its rows say what was sent.
    pub fn new(servers: &'a Servers<S>, first: S::Tables<'a>, dialect: Dialect, marks_sent: bool) -> Self {
        Self { servers, first, second: OnceLock::new(), dialect, marks_sent }
    }

    fn tables(&self) -> &S::Tables<'a> {
        self.second.get().unwrap_or(&self.first)
    }

    fn server(&self) -> &'a S {
        self.second.get().and(self.servers.second.get()).unwrap_or(&self.servers.first)
    }
}

type Conn<'a, S> = <<S as Server>::Tables<'a> as Tables>::Conn;

impl<'a, S: Server + Send + Sync> Site for On<'a, S>
where
    S::Tables<'a>: Send,
    Conn<'a, S>: 'static,
{
    fn url(&self) -> &str {
        self.tables().url()
    }

    fn relay_url(&self) -> String {
        self.tables().relay_url()
    }

    fn grant(&self) {
        self.tables().migrate();
    }

    fn name(&self) -> &str {
        self.tables().name()
    }

    fn execute(&self, sql: &str) -> Result<(), String> {
        let mut conn = Conn::<'a, S>::establish(self.url()).map_err(|error| error.to_string())?;
        conn.batch_execute(sql).map_err(|error| error.to_string())
    }

    fn number(&self, query: &str) -> i64 {
        self.tables().number(query)
    }

    fn texts(&self, query: &str) -> Vec<String> {
        self.tables().texts(query)
    }

    fn hold(&self, sql: &str) -> Box<dyn Any + Send> {
        let mut conn = self.tables().connect();
        conn.batch_execute(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
        Box::new(conn)
    }

    fn emit(&self, aggregates: &[u32], poison: Option<usize>) {
        emit(&mut self.tables().connect(), aggregates, poison);
    }

    fn emit_and_wait(&self, aggregate: u32) -> Box<dyn FnOnce() + Send> {
        emit_and_wait(self.tables().connect(), aggregate)
    }

    fn write(&self, name: usize, rng: Rng, orders: &Orders) {
        write::<Conn<'a, S>>(&|| self.url(), name, rng, self.dialect, orders);
    }

    fn end_sessions(&self) {
        self.tables().end_sessions();
    }

    fn take_connections(&self) -> (usize, Box<dyn Any + Send>) {
        let mut taken = Vec::new();
        while let Ok(conn) = Conn::<'a, S>::establish(self.url()) {
            taken.push(conn);
        }
        (taken.len(), Box::new(taken))
    }

    fn move_over(&self) {
        let server = self.servers.second.get().expect("a server that takes over");
        assert!(self.second.set(server.existing(self.name())).is_ok(), "it has moved already");
    }

    fn unsent(&self) -> usize {
        if self.marks_sent { self.tables().unsent() } else { 0 }
    }

    fn requeue(&self) {
        self.tables().operate().requeue(&Requeue::All).expect("requeue the dead letters");
    }

    fn stop(&self) {
        self.server().stop();
    }

    fn crash(&self) {
        self.server().crash();
    }

    fn restart(&self) {
        self.server().restart();
    }
}

/// Emits events of these aggregates in one transaction, as [`Site::emit`] says.
pub(crate) fn emit<C: OutboxConnection + SimpleConnection>(
    conn: &mut C,
    aggregates: &[u32],
    poison: Option<usize>,
) {
    let record = |aggregate: &u32| match poison {
        None => record(*aggregate),
        Some(bytes) => record(*aggregate).with_payload(vec![b'p'; bytes]),
    };
    let records: Vec<_> = aggregates.iter().map(record).collect();
    let emitted: QueryResult<()> = conn.transaction(|conn| {
        note(conn, &records, poison.is_some())?;
        conn.emit_all(&records)?;
        Ok(())
    });
    emitted.expect("emit events");
}

/// Emits an event in a transaction that stays open until the closure is called.
pub(crate) fn emit_and_wait<C>(mut conn: C, aggregate: u32) -> Box<dyn FnOnce() + Send>
where
    C: OutboxConnection<TransactionManager = AnsiTransactionManager> + SimpleConnection + Send + 'static,
{
    let records = [record(aggregate)];
    AnsiTransactionManager::begin_transaction(&mut conn).expect("begin a transaction");
    note(&mut conn, &records, false).expect("note an event");
    conn.emit_all(&records).expect("emit an event");
    Box::new(move || {
        // It may be gone together with its session: the ledger knows.
        let _ = AnsiTransactionManager::commit_transaction(&mut conn);
    })
}
