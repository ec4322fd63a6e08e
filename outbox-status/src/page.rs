//! The page as HTML. maud escapes whatever comes from outside.

mod chart;
mod dead_letters;

use std::sync::Arc;
use std::time::Duration;

use diesel_outbox_relay::Point;
use diesel_outbox_relay::operate::{RelaySession, Slot, Status};
use maud::{DOCTYPE, Markup, html};

use self::chart::{Chart, Series};
pub(crate) use self::dead_letters::page as dead_letter;
use crate::look::{Look, Seen};
use crate::text::{age, bytes, number, rate};

/// What the page says of all outboxes.
pub(crate) struct Group {
    /// The path below which the page is served.
    pub(crate) prefix: String,
    /// The outboxes, if there are several.
    pub(crate) listed: Vec<Listed>,
    /// How many more there are.
    pub(crate) unlisted: usize,
    pub(crate) problems: Vec<String>,
    pub(crate) has_actions: bool,
}

pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) is_shown: bool,
    pub(crate) look: Arc<Look>,
}

/// The outbox that is shown.
pub(crate) struct Shown {
    pub(crate) name: String,
    pub(crate) look: Arc<Look>,
    /// What the relay of this process did, if there is one.
    pub(crate) history: Option<Vec<Point>>,
    /// Why that relay makes no progress, if it makes none.
    pub(crate) problem: Option<Option<String>>,
}

/// How the outbox is, in a word, with a sign so that no colour alone says it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    Waits,
    Bad,
}

impl State {
    fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Waits => "warn",
            Self::Bad => "bad",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Waits => "!",
            Self::Bad => "✕",
        }
    }
}

/// So long an event may wait before the page says that it does.
const LONG: Duration = Duration::from_secs(60);

fn state(look: &Look, problem: Option<&Option<String>>) -> (State, &'static str) {
    let Ok(Seen { status, .. }) = look else { return (State::Bad, "No answer from the database") };
    if problem.is_some_and(Option::is_some) {
        return (State::Bad, "The relay makes no progress");
    }
    if status.lag.wal.as_ref().is_some_and(|wal| wal.status == "lost") {
        return (State::Bad, "The slot is lost");
    }
    if status.lag.oldest >= LONG {
        return (State::Bad, "Events wait");
    }
    if status.lag.dead_letters > 0 {
        return (State::Waits, "Dead letters");
    }
    if status.lag.unsent > 0 { (State::Good, "Sending") } else { (State::Good, "Up to date") }
}

fn frame(prefix: &str, title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) }
                link rel="icon" href={ (prefix) "/status.svg" } type="image/svg+xml";
                link rel="stylesheet" href={ (prefix) "/status.css" };
                script src={ (prefix) "/status.js" } defer {}
            }
            body { (body) }
        }
    }
}

pub(crate) fn overview(group: &Group, shown: Option<&Shown>) -> Markup {
    let (state, word) = match shown {
        Some(shown) => state(&shown.look, shown.problem.as_ref()),
        None => (State::Bad, "No outbox"),
    };
    let name = shown.map_or("outbox", |shown| shown.name.as_str());
    let body = html! {
        a.skip href="#main" { "Skip to the content" }
        header {
            div.bar {
                img src={ (group.prefix) "/status.svg" } alt="" width="28" height="28";
                h1 { "Outbox" span.of { (name) } }
                p.state.(state.class()) id="state" data-live { span aria-hidden="true" { (state.sign()) } " " (word) }
                p.updated {
                    span id="updated" data-live { "As of " time { (moment_of_day(shown)) } " UTC" }
                    span id="connection" role="status" {}
                }
            }
        }
        main id="main" tabindex="-1" {
            @if !group.problems.is_empty() {
                div.notice.bad id="problems" data-live {
                    @for problem in &group.problems { p { "Some outboxes are not known. " (problem) } }
                }
            }
            @if !group.listed.is_empty() { (outboxes(group)) }
            @match shown {
                None => div.notice.bad { p { "There is no such outbox here." } },
                Some(shown) => {
                    (health(shown))
                    @match &*shown.look {
                        Err(error) => div.notice.bad id="notice" data-live {
                            p { strong { "The outbox cannot be looked at. " } (error) }
                        },
                        Ok(seen) => { (now(seen)) },
                    }
                    (last_hour(shown.history.as_deref()))
                    @if let Ok(seen) = &*shown.look {
                        (dead_letters::section(group, &shown.name, seen))
                        div.columns { (waiting(&seen.status)) (slot_or_shards(&seen.status)) }
                        (relays(&seen.status))
                    }
                },
            }
        }
        footer {
            p { "diesel-outbox " (env!("CARGO_PKG_VERSION")) ". The page looks at the database while somebody looks at the page." }
        }
    };
    frame(&group.prefix, &format!("{} {name} – outbox", state.sign()), &body)
}

/// A page that says what came of a request.
pub(crate) fn answer(prefix: &str, outbox: Option<&str>, text: &str, is_good: bool) -> Markup {
    let body = html! {
        main.narrow id="main" {
            h1 { @if is_good { "Done" } @else { "Not done" } }
            p id="answer" { (text) }
            p { a href=(link(prefix, outbox)) { "Back to the outbox" } }
        }
    };
    frame(prefix, "outbox", &body)
}

/// The address of the page for an outbox.
fn link(prefix: &str, outbox: Option<&str>) -> String {
    let query = outbox.map(|outbox| format!("?outbox={}", encoded(outbox)));
    // A router that is nested has no slash at its end.
    let path = if prefix.is_empty() { "/" } else { prefix };
    format!("{path}{}", query.unwrap_or_default())
}

/// The text as part of a query.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            all.push(byte.into());
        } else {
            all.push_str(&format!("%{byte:02X}"));
        }
        all
    })
}

fn moment_of_day(shown: Option<&Shown>) -> String {
    let at = shown.and_then(|shown| shown.look.as_ref().as_ref().ok().map(|seen| seen.status.at));
    let at = humantime::format_rfc3339_seconds(at.unwrap_or_else(std::time::SystemTime::now)).to_string();
    at.get(11..19).unwrap_or_default().to_owned()
}

fn outboxes(group: &Group) -> Markup {
    html! {
        section id="outboxes" data-live aria-labelledby="outboxes-title" {
            h2 id="outboxes-title" { "Outboxes" }
            div.wide {
                table {
                    caption.hidden { "The outboxes of this process" }
                    thead { tr {
                        th scope="col" { "Outbox" }
                        th scope="col" { "State" }
                        th.number scope="col" { "Waiting" }
                        th.number scope="col" { "Oldest" }
                        th.number scope="col" { "Dead letters" }
                    } }
                    tbody {
                        @for Listed { name, is_shown, look } in &group.listed {
                            @let (state, word) = state(look, None);
                            tr {
                                th scope="row" {
                                    a href=(link(&group.prefix, Some(name))) aria-current=[is_shown.then_some("page")] { (name) }
                                }
                                td { span.state.(state.class()) { span aria-hidden="true" { (state.sign()) } " " (word) } }
                                @match &**look {
                                    Ok(seen) => {
                                        td.number { (number(seen.status.lag.unsent)) }
                                        td.number { (oldest(&seen.status)) }
                                        td.number { (number(seen.status.lag.dead_letters)) }
                                    },
                                    Err(error) => td colspan="3" { (error) },
                                }
                            }
                        }
                    }
                }
            }
            @if group.unlisted > 0 { p.note { "And " (group.unlisted) " more, which are not listed." } }
        }
    }
}

fn oldest(status: &Status) -> String {
    if status.lag.unsent == 0 { "–".to_owned() } else { age(status.lag.oldest) }
}

fn health(shown: &Shown) -> Markup {
    html! {
        div id="health" data-live {
            @if let Some(Some(problem)) = &shown.problem {
                div.notice.bad { p { strong { "The relay of this process makes no progress. " } (problem) } }
            }
        }
    }
}

fn now(seen: &Seen) -> Markup {
    let status = &seen.status;
    let lag = &status.lag;
    let tile = |label: &str, value: String, note: String, state: State| {
        html! {
            div.tile.(state.class()) {
                dt { (label) }
                dd { span.value { (value) } @if !note.is_empty() { span.note { (note) } } }
            }
        }
    };
    let is_late = if lag.oldest >= LONG { State::Bad } else { State::Good };
    let has_dead = if lag.dead_letters > 0 { State::Waits } else { State::Good };
    let blocked = match lag.blocked_aggregates {
        0 => "nothing is held back".to_owned(),
        1 => "1 aggregate is held back".to_owned(),
        many => format!("{} aggregates are held back", number(many)),
    };
    let unsent_note = if lag.wal.is_some() { "to be polled" } else { "events to be sent" };
    let per_second = |value: Option<f64>| value.map_or("–".to_owned(), rate);
    let sent = seen.rates.and_then(|rates| rates.sent);
    html! {
        section id="now" data-live aria-labelledby="now-title" {
            h2.hidden id="now-title" { "Now" }
            dl.tiles {
                (tile("Waiting", number(lag.unsent), unsent_note.to_owned(), State::Good))
                (tile("Oldest", oldest(status), if is_late == State::Bad { "longer than a minute".into() } else { "since it was emitted".into() }, is_late))
                (tile("Emitted", per_second(seen.rates.map(|rates| rates.emitted)), "events a second".to_owned(), State::Good))
                @if let Some(wal) = &lag.wal {
                    (tile("WAL to read", bytes(wal.bytes), "changes of all tables".to_owned(), State::Good))
                } @else {
                    (tile("Sent", per_second(sent), "events a second".to_owned(), State::Good))
                }
                (tile("Dead letters", number(lag.dead_letters), blocked, has_dead))
                @if let Some(schedule) = &status.schedule {
                    @let next = schedule.next.map_or("none is scheduled".to_owned(), |next| format!("the next in {}", age(next)));
                    (tile("Scheduled", number(schedule.scheduled), next, State::Good))
                }
            }
        }
    }
}

fn last_hour(history: Option<&[Point]>) -> Markup {
    let Some(points) = history else {
        return html! {};
    };
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    let of = |value: fn(&Point) -> Option<f64>| points.iter().map(value).collect::<Vec<_>>();
    let (oldest, rates) =
        (of(|point| point.oldest.map(|oldest| oldest.as_secs_f64())), of(|point| Some(point.rate)));
    let p50 = points.iter().map(|point| seconds(point.p50)).collect();
    let p99 = points.iter().map(|point| seconds(point.p99)).collect();
    let time = |value: f64| age(Duration::try_from_secs_f64(value).unwrap_or_default());
    let charts = [
        Chart {
            id: "lag",
            title: "Lag",
            unit: "age of the oldest event that waits",
            shown: &time,
            series: vec![Series::area("oldest", oldest)],
        },
        Chart {
            id: "rate",
            title: "Rate",
            unit: "events sent a second",
            shown: &|value| rate(value),
            series: vec![Series::area("sent", rates)],
        },
        Chart {
            id: "latency",
            title: "Latency",
            unit: "from emit to Kafka's acknowledgement",
            shown: &time,
            series: vec![Series::line("p99", p99, true), Series::line("p50", p50, false)],
        },
    ];
    html! {
        section id="hour" data-live aria-labelledby="hour-title" {
            h2 id="hour-title" { "The last hour " span.of { "as this process sent and measured it" } }
            div.charts { @for chart in &charts { (chart.markup()) } }
        }
    }
}

fn waiting(status: &Status) -> Markup {
    let mut types: Vec<(&str, u64, Duration)> = Vec::new();
    for unsent in &status.unsent {
        match types.iter_mut().find(|(name, ..)| *name == unsent.aggregate_type) {
            Some((_, count, oldest)) => {
                *count += unsent.count;
                *oldest = (*oldest).max(unsent.oldest);
            }
            None => types.push((&unsent.aggregate_type, unsent.count, unsent.oldest)),
        }
    }
    types.sort_by_key(|(_, _, oldest)| std::cmp::Reverse(*oldest));
    html! {
        section id="waiting" data-live aria-labelledby="waiting-title" {
            h2 id="waiting-title" { "Waiting" }
            @if types.is_empty() {
                p.empty { "No event waits to be sent." }
            } @else {
                div.wide { table {
                    caption.hidden { "What waits, by aggregate type" }
                    thead { tr {
                        th scope="col" { "Aggregate type" }
                        th.number scope="col" { "Events" }
                        th.number scope="col" { "Oldest" }
                    } }
                    tbody { @for (name, count, oldest) in types.iter().take(12) {
                        tr { th scope="row" { (name) } td.number { (number(*count)) } td.number { (age(*oldest)) } }
                    } }
                } }
                @if types.len() > 12 { p.note { "And " (types.len() - 12) " more types." } }
            }
            @if let (Some(slot), Some(wal)) = (&status.slot, &status.lag.wal) { (slot_table(slot, wal)) }
        }
    }
}

fn slot_table(slot: &Slot, wal: &diesel_outbox_relay::WalLag) -> Markup {
    html! {
        h2.next { "Replication slot" }
        div.wide { table {
            caption.hidden { "The replication slot" }
            tbody {
                tr { th scope="row" { "Name" } td.number { code { (slot.name) } } }
                tr { th scope="row" { "Status" } td.number { (wal.status) ", " @if slot.is_active { "read now" } @else { "nobody reads it" } } }
                tr { th scope="row" { "WAL to be read" } td.number { (bytes(wal.bytes)) } }
                tr { th scope="row" { "WAL that the server keeps" } td.number { (bytes(wal.retained_bytes)) } }
                tr { th scope="row" { "Until the server gives it up" } td.number {
                    @match slot.safe_bytes { Some(safe) => (bytes(safe)), None => "no limit" }
                } }
            }
        } }
    }
}

fn slot_or_shards(status: &Status) -> Markup {
    let owner = |shard: i16| {
        let claims = status.relays.claims.as_deref().unwrap_or_default();
        claims.iter().find(|claim| claim.shard == shard).map(|claim| claim.session)
    };
    let most = (0..16).map(|shard| status.waits_in(shard).0).max().unwrap_or_default();
    html! {
        section id="shards" data-live aria-labelledby="shards-title" {
            h2 id="shards-title" { "Shards" }
            ol.shards {
                @for shard in 0..16 {
                    @let (count, _) = status.waits_in(shard);
                    @let fill = (count * 8).checked_div(most).unwrap_or_default();
                    li.{ "fill-" (fill) } {
                        span.shard { span.hidden { "Shard " } (shard) }
                        span.count { (number(count)) span.hidden { " wait" } }
                        span.owner {
                            @match (owner(shard), &status.relays.claims) {
                                (Some(session), _) => { span aria-hidden="true" { "● " } span.hidden { "claimed by session " } (session) },
                                (None, Some(_)) => span.free { "free" },
                                (None, None) => span.free { "–" },
                            }
                        }
                    }
                }
            }
            p.note {
                @match status.relays.hidden {
                    Some(hidden) if status.relays.sessions.is_some() => (hidden),
                    Some(_) => "How many events wait in each.",
                    None => "How many events wait in each, and which session has claimed it. A claim lasts for a pass, half a second at most.",
                }
            }
        }
    }
}

fn relays(status: &Status) -> Markup {
    html! {
        section id="relays" data-live aria-labelledby="relays-title" {
            h2 id="relays-title" { "Relays" }
            @match &status.relays.sessions {
                None => p.empty { (status.relays.hidden.unwrap_or("The database does not show its sessions.")) },
                Some(sessions) if sessions.is_empty() => p.empty.bad-text { "No relay has a session in this database. Nothing is sent until one runs." },
                Some(sessions) => {
                    div.wide { table {
                        caption.hidden { "The sessions of relays in this database" }
                        thead { tr {
                            th scope="col" { "Session" }
                            th scope="col" { "From" }
                            th.number scope="col" { "Open for" }
                            th scope="col" { "Does" }
                            th.number scope="col" { "Shards" }
                        } }
                        tbody { @for session in sessions.iter().take(50) { (relay(session, status)) } }
                    } }
                    p.note { "A relay has a session for each worker, and some more." }
                },
            }
        }
    }
}

fn relay(session: &RelaySession, status: &Status) -> Markup {
    let shards = status
        .relays
        .claims
        .as_ref()
        .map(|claims| claims.iter().filter(|claim| claim.session == session.id).count());
    let does = match (session.leads, session.works) {
        (true, true) => "leads and works",
        (true, false) => "leads",
        (false, true) => "works",
        (false, false) => "stands by",
    };
    html! {
        tr {
            th scope="row" { (session.id) }
            td { (session.client.as_deref().unwrap_or("–")) }
            td.number { (session.age.map_or("–".to_owned(), age)) }
            td { (does) }
            td.number { (shards.map_or("–".to_owned(), |shards| shards.to_string())) }
        }
    }
}
