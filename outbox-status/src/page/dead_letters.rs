//! Dead letters by cause, and one of them on a page of its own.

use diesel_outbox_relay::operate::{Cause, Content, DeadLetter};
use maud::{Markup, html};

use super::{Group, encoded, frame, link};
use crate::act::Which;
use crate::look::{DEAD_LETTERS, Seen};
use crate::text::{bytes, number};

/// How many of one cause are listed.
const LISTED: usize = 20;

pub(super) fn section(group: &Group, outbox: &str, seen: &Seen) -> Markup {
    let all = seen.status.lag.dead_letters;
    html! {
        section aria-labelledby="dead-letters-title" {
            h2 id="dead-letters-title" { "Dead letters " span.of { "that Kafka will never take as they are" } }
            form id="dead-letters" method="post" action={ (group.prefix) "/dead-letters" } autocomplete="off" {
                input type="hidden" name="outbox" value=(outbox);
                @if group.has_actions {
                    // A button that no key presses by accident: Enter in the field of the token would press the first one.
                    button.hidden type="submit" disabled aria-hidden="true" {}
                    p.token {
                        label for="token" { "Token" }
                        input id="token" name="token" type="password" required autocomplete="off" spellcheck="false" aria-describedby="token-note";
                        span.note id="token-note" { "It is needed to requeue or drop. The browser forgets it with this tab." }
                    }
                }
                p id="answer" role="status" {}
                div id="causes" data-live {
                    @if seen.causes.is_empty() {
                        p.empty { "There are none." }
                    }
                    @for (cause, letters) in &seen.causes { (of_cause(group, outbox, cause, letters)) }
                    @if all > DEAD_LETTERS.unsigned_abs() {
                        p.note { "These are the oldest " (number(DEAD_LETTERS.unsigned_abs())) " of " (number(all)) "." }
                    }
                }
            }
            @if !group.has_actions {
                p.note { "To requeue or drop them here, set a token for it. The command " code { "outbox requeue" } " does so too." }
            }
        }
    }
}

fn of_cause(group: &Group, outbox: &str, cause: &Cause, letters: &[DeadLetter]) -> Markup {
    let Cause { key, event_type, reason, dead_letters, first_failed_at, last_failed_at, .. } = cause;
    html! {
        details id={ "cause-" (key) } {
            summary {
                span.count { (number(*dead_letters as u64)) }
                span.what { strong { (event_type) } " " span { (reason) } }
                span.when {
                    @if moment(*first_failed_at) == moment(*last_failed_at) { (moment(*last_failed_at)) }
                    @else { (moment(*first_failed_at)) " to " (moment(*last_failed_at)) }
                }
            }
            @if group.has_actions {
                (buttons(&Which::Cause(key.clone()), key, &match dead_letters { 1 => "this one".to_owned(), many => format!("all {}", number(*many as u64)) }))
            }
            div.wide { table {
                caption.hidden { "Dead letters with this cause" }
                thead { tr {
                    th scope="col" { "Event" }
                    th scope="col" { "Aggregate" }
                    th scope="col" { "Emitted, UTC" }
                    th scope="col" { "Reason" }
                } }
                tbody { @for letter in letters.iter().take(LISTED) {
                    tr {
                        th scope="row" { a href=(address(&group.prefix, outbox, letter)) { code { (letter.id) } } }
                        td { (letter.aggregate_type) " " strong { (letter.aggregate_id) } }
                        td.nowrap { (moment(letter.created_at)) }
                        td { (letter.reason) }
                    }
                } }
            } }
            @if letters.len() > LISTED { p.note { "And " (number((letters.len() - LISTED) as u64)) " more." } }
        }
    }
}

/// Requeue, and drop behind a box that must be ticked.
fn buttons(which: &Which, key: &str, whom: &str) -> Markup {
    let value = which.value();
    html! {
        div.actions {
            button id={ "requeue-" (key) } type="submit" name="requeue" value=(value) { "Requeue " (whom) }
            span.drop {
                label {
                    input id={ "confirm-" (key) } type="checkbox" name="confirm" value=(value);
                    " The events may be lost"
                }
                button.danger id={ "drop-" (key) } type="submit" name="drop" value=(value) { "Drop " (whom) }
            }
        }
    }
}

fn address(prefix: &str, outbox: &str, letter: &DeadLetter) -> String {
    format!("{prefix}/dead-letter?outbox={}&seq={}&id={}", encoded(outbox), letter.seq, encoded(&letter.id))
}

fn moment(moment: std::time::SystemTime) -> String {
    // The format takes years of four digits.
    let year_10_000 = std::time::Duration::from_secs(253_402_300_800);
    match moment.duration_since(std::time::UNIX_EPOCH) {
        Ok(time) if time < year_10_000 => {
            humantime::format_rfc3339_seconds(moment).to_string().replace('T', " ").replace('Z', "")
        }
        _ => format!("{moment:?}"),
    }
}

/// A dead letter on a page of its own.
pub(crate) fn page(
    prefix: &str,
    outbox: &str,
    letter: &DeadLetter,
    payloads: bool,
    content: Option<&Content>,
) -> Markup {
    let row = |name: &str, value: &str| html! { tr { th scope="row" { (name) } td { (value) } } };
    let body = html! {
        main.narrow id="main" {
            p { a href=(link(prefix, Some(outbox))) { "Back to the outbox" } }
            h1 { "Dead letter " span.of { (letter.event_type) } }
            p.notice.warn { (letter.reason) }
            div.wide { table {
                caption.hidden { "The record" }
                tbody {
                    (row("Id", &letter.id))
                    (row("Aggregate", &format!("{} {}", letter.aggregate_type, letter.aggregate_id)))
                    (row("Event type", &letter.event_type))
                    (row("Number", &letter.seq.to_string()))
                    (row("Emitted, UTC", &moment(letter.created_at)))
                    (row("Failed, UTC", &moment(letter.failed_at)))
                    (row("Cause", &letter.cause()))
                }
            } }
            h2 { "Headers and payload" }
            @match content {
                Some(content) => {
                    @if let Some(headers) = &content.headers { pre id="headers" tabindex="0" { (headers) } }
                    @else { p.empty { "It has no headers of its own." } }
                    (payload(content.payload.as_deref(), content.payload_bytes))
                },
                None if payloads => p.empty { "They cannot be read." },
                None => p.empty { "They are not shown here, because they may be private: see the setting " code { "status_payloads" } "." },
            }
        }
    };
    frame(prefix, "Dead letter – outbox", &body)
}

/// The beginning of a payload that has so many bytes.
fn payload(payload: Option<&[u8]>, of: u64) -> Markup {
    let Some(payload) = payload else {
        return html! { p.empty { "It has no payload: it is a tombstone." } };
    };
    let is_cut = of > payload.len() as u64;
    html! {
        pre id="payload" tabindex="0" { (readable(payload, is_cut)) }
        @if is_cut {
            p.note { "The first " (number(payload.len() as u64)) " bytes of " (bytes(of)) "." }
        }
    }
}

/// Text as it is, and anything else in hexadecimal digits.
fn readable(payload: &[u8], is_cut: bool) -> String {
    let is_text = |text: &str| !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    match std::str::from_utf8(payload) {
        Ok(text) if is_text(text) => return text.to_owned(),
        // The cut may have gone through a character.
        Err(error) if is_cut && error.error_len().is_none() => {
            let text = std::str::from_utf8(&payload[..error.valid_up_to()]).unwrap_or_default();
            if is_text(text) {
                return text.to_owned();
            }
        }
        _ => {}
    }
    let line = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    payload.chunks(16).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_as_text_and_anything_else_in_digits() {
        assert_eq!(readable(b"{\"a\":\n1}", false), "{\"a\":\n1}");
        assert_eq!(readable(b"\x00\xff", false), "00 ff");
        assert_eq!(readable(b"\x1b[31m", false), "1b 5b 33 31 6d");
        assert_eq!(readable("Gr\u{fc}".as_bytes().split_last().unwrap().1, true), "Gr");
        assert_eq!(readable("Gr\u{fc}".as_bytes().split_last().unwrap().1, false), "47 72 c3");
        assert_eq!(readable(&[0xab; 17], false).lines().count(), 2);
    }

    #[test]
    fn nothing_of_a_payload_is_markup() {
        let page = payload(Some(b"</pre><script>alert(1)</script>"), 31).into_string();
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"), "{page}");
    }
}
