//! What is served, and under which conditions.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Form, OriginalUri, Query, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use maud::{Markup, PreEscaped};
use tracing::{info, warn};

use crate::act::{Asked, Done, MOST, Which, act};
use crate::guard::{is_cross_site, is_known_host};
use crate::look::{LISTED, SHOWN, Watch, Watched};
use crate::page::{self, Group, Listed, Shown};
use crate::{Health, History, StatusPage};

/// How long a wrong token is answered with nothing.
const WRONG_TOKEN: Duration = Duration::from_millis(500);
/// How large a form is at most.
const FORM: usize = 16 << 10;
/// How many outboxes are listed at most.
const MOST_LISTED: usize = 24;

/// Everything comes from here, nothing runs that is not in the script, and no other page may frame this one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

struct Served {
    page: StatusPage,
    relays: Vec<RelayWatch>,
}

struct RelayWatch {
    name: String,
    watch: Arc<Watch>,
    history: Option<History>,
    health: Option<Health>,
}

pub(crate) fn router(page: StatusPage) -> Router {
    let relay = |outbox: &crate::Outbox| RelayWatch {
        name: outbox.name.clone(),
        watch: Arc::new(Watch::new(outbox.discover.clone())),
        history: outbox.history.clone(),
        health: outbox.health.clone(),
    };
    let relays = page.outboxes.iter().map(relay).collect();
    let served = Arc::new(Served { page, relays });
    let asset = |content_type: &'static str, text: &'static str| {
        get(move || async move { ([(CONTENT_TYPE, content_type)], text) })
    };
    Router::new()
        .route("/", get(overview))
        .route("/dead-letter", get(dead_letter))
        .route("/dead-letters", post(change))
        .route("/status.css", asset("text/css; charset=utf-8", include_str!("../assets/status.css")))
        .route("/status.js", asset("text/javascript; charset=utf-8", include_str!("../assets/status.js")))
        .route("/status.svg", asset("image/svg+xml", include_str!("../assets/status.svg")))
        .layer(DefaultBodyLimit::max(FORM))
        .layer(from_fn_with_state(served.clone(), guarded))
        .with_state(served)
}

/// Refuses unknown hosts, and adds the headers that each answer has.
async fn guarded(State(served): State<Arc<Served>>, request: Request, next: Next) -> Response {
    let is_known = is_known_host(request.headers(), request.uri(), &served.page.hosts);
    let mut response = if is_known {
        next.run(request).await
    } else {
        let text = "This name is not one under which the status page is served. Name it by the setting status_hosts, or in Rust by \
                    StatusPage::host, or ask for localhost or an address in numbers.\n";
        (StatusCode::MISDIRECTED_REQUEST, text).into_response()
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        // Without a referrer, a form that is sent without the script would not say from where it comes.
        (REFERRER_POLICY, "same-origin"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

type Fields = Vec<(String, String)>;

fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
}

/// The path before the router's own.
fn prefix(original: &Uri, own: &Uri) -> String {
    let path = original.path();
    path.strip_suffix(own.path()).unwrap_or(path).trim_end_matches('/').to_owned()
}

impl Served {
    /// Returns the outboxes of all relays, each with the number of its relay, and why some may be missing.
    async fn outboxes(&self) -> (Vec<(usize, Arc<Watched>)>, Vec<String>) {
        let (mut all, mut problems) = (Vec::new(), Vec::new());
        // All at once, so that a database that does not answer holds the others up no longer than it must.
        let list = |relay: &RelayWatch| {
            let watch = relay.watch.clone();
            tokio::spawn(async move { watch.outboxes().await })
        };
        let lists: Vec<_> = self.relays.iter().map(list).collect();
        for (number, (relay, list)) in self.relays.iter().zip(lists).enumerate() {
            let Ok((outboxes, problem)) = list.await else { continue };
            all.extend(outboxes.into_iter().map(|outbox| (number, outbox)));
            problems.extend(problem.map(|problem| format!("{}: {problem}", relay.name)));
        }
        (all, problems)
    }

    /// Returns the outbox of this name, or the first one.
    async fn chosen(&self, name: Option<&str>) -> Option<(usize, Arc<Watched>)> {
        let (all, _) = self.outboxes().await;
        match name {
            Some(name) => all.into_iter().find(|(_, outbox)| outbox.name == name),
            None => all.into_iter().next(),
        }
    }
}

async fn overview(
    State(served): State<Arc<Served>>,
    OriginalUri(original): OriginalUri,
    uri: Uri,
    Query(fields): Query<Fields>,
) -> Response {
    let (all, problems) = served.outboxes().await;
    let name = field(&fields, "outbox");
    let chosen = all.iter().position(|(_, outbox)| name.is_none_or(|name| outbox.name == name));
    let is_listed = all.len() > 1;
    let looks: Vec<_> = all
        .iter()
        .enumerate()
        .take(if is_listed { MOST_LISTED } else { 0 })
        .map(|(place, (_, outbox))| {
            let (outbox, is_shown) = (outbox.clone(), chosen == Some(place));
            tokio::spawn(async move {
                let look = outbox.look(if is_shown { SHOWN } else { LISTED }).await;
                Listed { name: outbox.name.clone(), is_shown, look }
            })
        })
        .collect();
    let shown = match chosen {
        None => None,
        Some(at) => {
            let (number, outbox) = &all[at];
            let relay = &served.relays[*number];
            Some(Shown {
                name: outbox.name.clone(),
                look: outbox.look(SHOWN).await,
                history: relay.history.as_ref().map(History::points),
                problem: relay.health.as_ref().map(|health| health.problem(served.page.patience)),
            })
        }
    };
    let mut listed = Vec::new();
    for look in looks {
        listed.extend(look.await.ok());
    }
    let group = Group {
        prefix: prefix(&original, &uri),
        listed,
        unlisted: all.len().saturating_sub(MOST_LISTED),
        problems,
        has_actions: served.page.token.is_some(),
    };
    let status = if name.is_some() && shown.is_none() { StatusCode::NOT_FOUND } else { StatusCode::OK };
    html(status, page::overview(&group, shown.as_ref()))
}

async fn dead_letter(
    State(served): State<Arc<Served>>,
    OriginalUri(original): OriginalUri,
    uri: Uri,
    headers: HeaderMap,
    Query(fields): Query<Fields>,
) -> Response {
    let prefix = prefix(&original, &uri);
    if is_cross_site(&headers, &original) {
        let text =
            "Refused: the request comes from another site. Open the dead letter from the page of its outbox.";
        return html(StatusCode::FORBIDDEN, page::answer(&prefix, None, text, false));
    }
    let named = field(&fields, "seq").and_then(|seq| seq.parse::<i64>().ok()).zip(field(&fields, "id"));
    let gone = |text: &str| {
        html(StatusCode::NOT_FOUND, page::answer(&prefix, field(&fields, "outbox"), text, false))
    };
    let (Some((seq, id)), Some((_, outbox))) = (named, served.chosen(field(&fields, "outbox")).await) else {
        return gone("There is no such outbox, or the address is not complete.");
    };
    let (id, payloads) = (id.to_owned(), served.page.payloads);
    let found = outbox.in_turn(move |outbox| {
        outbox.with(false, |conn| {
            let letter = conn.dead_letter(seq, &id)?;
            let content = if payloads { conn.content(seq, &id)? } else { None };
            Ok((letter, content))
        })
    });
    match found.await {
        Some(Ok((Some(letter), content))) => html(
            StatusCode::OK,
            page::dead_letter(&prefix, &outbox.name, &letter, payloads, content.as_ref()),
        ),
        Some(Ok((None, _))) => {
            gone("This dead letter is not there any more: somebody has requeued or dropped it.")
        }
        Some(Err(error)) => {
            let text = format!("The database failed: {}", crate::text::in_one_line(&*error));
            html(StatusCode::BAD_GATEWAY, page::answer(&prefix, Some(&outbox.name), &text, false))
        }
        None => busy(&prefix, &outbox.name),
    }
}

async fn change(
    State(served): State<Arc<Served>>,
    OriginalUri(original): OriginalUri,
    uri: Uri,
    headers: HeaderMap,
    Form(fields): Form<Fields>,
) -> Response {
    let prefix = prefix(&original, &uri);
    let name = field(&fields, "outbox");
    let answer = |status: StatusCode, text: &str| {
        html(status, page::answer(&prefix, name, text, status == StatusCode::OK))
    };
    // Before anything is looked at, so that another site learns nothing.
    if is_cross_site(&headers, &original) {
        warn!("the status page has refused a request that came from another site");
        return answer(StatusCode::FORBIDDEN, "Refused: the request comes from another site.");
    }
    let Some(token) = &served.page.token else {
        let text = "Nothing can be changed here: no token for it is set.";
        return answer(StatusCode::FORBIDDEN, text);
    };
    if !token.is(field(&fields, "token").unwrap_or_default()) {
        warn!("somebody gave a wrong token on the status page");
        tokio::time::sleep(WRONG_TOKEN).await;
        return answer(StatusCode::FORBIDDEN, "The token is wrong. Nothing was changed.");
    }
    let action = match Asked(&fields).action() {
        Ok(action) => action,
        Err(problem) => return answer(StatusCode::BAD_REQUEST, problem),
    };
    let Some((_, outbox)) = served.chosen(name).await else {
        return answer(StatusCode::NOT_FOUND, "There is no such outbox.");
    };
    let done = if action.is_drop { "dropped" } else { "requeued" };
    let asked = action.clone();
    let Some(ended) = outbox.in_turn(move |outbox| act(outbox, &asked)).await else {
        return busy(&prefix, &outbox.name);
    };
    match ended {
        Ok(Done { count: 0, .. }) => {
            answer(StatusCode::NOT_FOUND, "No such dead letter is there any more. Nothing was changed.")
        }
        Ok(Done { count, may_be_more }) => {
            let which = match &action.which {
                Which::Cause(key) => key.as_str(),
                Which::One(_, id) => id.as_str(),
            };
            info!(outbox = outbox.name, count, which, "dead letters were {done} on the status page");
            let dead_letters = if count == 1 { "dead letter" } else { "dead letters" };
            let mut text = format!("{} {dead_letters} {done}.", crate::text::number(count as u64));
            if may_be_more {
                let among = crate::text::number(MOST as u64);
                text.push_str(&format!(
                    " Only the oldest {among} dead letters were looked at: there may be more of this cause."
                ));
            }
            answer(StatusCode::OK, &text)
        }
        Err(error) => {
            let grant = if error.contains("denied") {
                " The page's role must be granted this: docs/status-page.md has the statements."
            } else {
                ""
            };
            answer(StatusCode::BAD_GATEWAY, &format!("Nothing was changed: {error}.{grant}"))
        }
    }
}

/// Nothing was done, because another request has the connection.
fn busy(prefix: &str, outbox: &str) -> Response {
    let text = "The outbox is busy with another request, or its database does not answer. Nothing was done: try again.";
    let answer = html(StatusCode::SERVICE_UNAVAILABLE, page::answer(prefix, Some(outbox), text, false));
    ([(RETRY_AFTER, "5")], answer).into_response()
}

fn html(status: StatusCode, page: Markup) -> Response {
    let PreEscaped(text) = page;
    (status, [(CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_begin_with_the_path_below_which_the_page_is_nested() {
        for (original, own, expected) in [
            ("/", "/", ""),
            ("/outbox", "/", "/outbox"),
            ("/outbox/", "/", "/outbox"),
            ("/ops/outbox/dead-letters", "/dead-letters", "/ops/outbox"),
            ("/dead-letter?seq=1", "/dead-letter?seq=1", ""),
        ] {
            let (original, own) = (original.parse().unwrap(), own.parse().unwrap());
            assert_eq!(prefix(&original, &own), expected, "{original}");
        }
    }
}
