//! The status page of a relay's process.

use std::sync::Arc;

use diesel_outbox_relay::RelayHandle;
use diesel_outbox_status::{Outbox, StatusPage, Token};
use tokio::net::TcpListener;

use crate::command::database::OutboxDatabase;
use crate::command::failure::Failure;
use crate::command::origin::{ConfigError, Layer, Origins};
use crate::command::settings::{ProbeSettings, StatusSettings, items};

/// The page as the settings want it, without outboxes.
pub(super) fn page(
    settings: &ProbeSettings,
    origins: &Origins,
    listener: &TcpListener,
) -> Result<Option<StatusPage>, Failure> {
    let ProbeSettings { status, ready_timeout, .. } = settings;
    let token = token(status, origins)?;
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    if !status.status_page.unwrap_or(is_local) {
        return Ok(None);
    }
    let mut page = StatusPage::new().show_payloads(status.status_payloads).patience(ready_timeout.0);
    for host in items(&status.status_hosts) {
        page = page.host(host);
    }
    Ok(Some(match token {
        Some(token) => page.actions(token),
        None => page,
    }))
}

/// The token that the settings have or lead to.
fn token(settings: &StatusSettings, origins: &Origins) -> Result<Option<Token>, ConfigError> {
    let (token, file) = (origins.of("status_token"), origins.of("status_token_file"));
    let made = match (&settings.status_token, &settings.status_token_file) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(ConfigError::Conflict { origin: token, other: file }),
        (Some(_), None) if token.layer == Layer::CommandLine => {
            let text = "every user of the machine could see it there: put it into the variable OUTBOX_STATUS_TOKEN or a file";
            return Err(token.wrong(text));
        }
        (Some(text), None) => Token::new(text.reveal()).map_err(|error| token.wrong(error.to_string())),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| file.wrong(format!("{} cannot be read: {error}", path.display())))?;
            Token::new(text).map_err(|error| file.wrong(error.to_string()))
        }
    };
    made.map(Some)
}

/// The page with the outboxes of these databases, each with its relay.
pub(super) fn of(page: StatusPage, databases: &[OutboxDatabase], relays: &[RelayHandle]) -> StatusPage {
    databases
        .iter()
        .zip(relays)
        .fold(page, |page, (database, relay)| page.outbox(outbox(database).relay(relay)))
}

fn outbox(database: &OutboxDatabase) -> Outbox {
    let name = database.to_string();
    let database = Arc::new(database.clone());
    let all = database.clone();
    let list = move || {
        let outboxes = OutboxDatabase::clone(&all).outboxes()?;
        Ok(outboxes.iter().map(ToString::to_string).collect())
    };
    Outbox::several(name, list, move |name| {
        let outboxes = OutboxDatabase::clone(&database).outboxes()?;
        let named = outboxes.iter().find(|outbox| outbox.to_string() == name);
        Ok(named.ok_or("the schema is gone")?.observed()?)
    })
}
