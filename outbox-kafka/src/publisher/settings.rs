//! Which of librdkafka's properties may not be changed, as what the relay promises rests on them.

use std::collections::BTreeMap;

use diesel_outbox_core::PublisherError;

/// What a property may be.
enum Allowed {
    /// One of these, which all mean what this crate sets.
    Only(&'static [&'static str]),
    UpTo(u32),
    /// It may not be set.
    Nothing,
}

use Allowed::{Nothing, Only, UpTo};

const TRUE: Allowed = Only(&["true", "t", "1"]);

/// Names with the same meaning, what they may be, why, and what to do instead.
const GUARDED: &[(&[&str], Allowed, &str)] = &[
    (
        &["enable.idempotence"],
        TRUE,
        "without it a retry stores a record twice or overtakes another one: leave it out",
    ),
    (
        &["enable.gapless.guarantee"],
        TRUE,
        "without it records of an aggregate overtake one that Kafka refused: leave it out",
    ),
    (
        &["acks", "request.required.acks"],
        Only(&["all", "-1"]),
        "a record would count as sent that only one broker has, and be lost with that broker: leave it out, and set \
         the topic's `min.insync.replicas` for how many must have it",
    ),
    (
        &["message.timeout.ms", "delivery.timeout.ms"],
        Only(&["0"]),
        "a record that times out in the producer leaves a gap in its aggregate's order: leave it out, and set the \
         relay's `stall_time` for how long Kafka may be silent",
    ),
    (
        &["message.send.max.retries", "retries"],
        Only(&["2147483647"]),
        "a record that the producer gives up leaves a gap in its aggregate's order: leave it out, and set the relay's \
         `stall_time` for how long Kafka may be silent",
    ),
    (
        &["max.in.flight.requests.per.connection", "max.in.flight"],
        UpTo(5),
        "Kafka recognises repeated requests among the last 5 of a producer only: use 5 or less, or leave it out",
    ),
    (
        &["partitioner"],
        Only(&["murmur2_random"]),
        "an aggregate's events would go to another partition than those before, and overtake them: leave it out, and \
         use `murmur2_random` with the other producers of the topic",
    ),
    (&["queuing.strategy"], Only(&["fifo"]), "new records would be sent before old ones: leave it out"),
    (
        &["delivery.report.only.error"],
        Only(&["false", "f", "0"]),
        "the relay would never hear that a record was stored: leave it out",
    ),
    (
        &["transactional.id"],
        Nothing,
        "the relay makes no Kafka transactions, and nothing could be sent: leave it out",
    ),
    (
        &["linger.ms", "queue.buffering.max.ms"],
        UpTo(1_000),
        "the relay gives a pass up when Kafka acknowledges nothing for its `stall_time`, and would send the same \
         records again and again: use 1000 or less",
    ),
    (
        &["test.mock.num.brokers"],
        Only(&["0"]),
        "records would go to brokers in this process's memory and count as sent: leave it out, and start a test's \
         broker by itself",
    ),
];

/// Whether the settings keep what the relay promises.
pub(super) fn check(settings: &BTreeMap<String, String>) -> Result<(), PublisherError> {
    for (name, value) in settings {
        // librdkafka takes a topic's properties under this prefix too.
        let property = name.strip_prefix("topic.").unwrap_or(name);
        let problem = match property {
            "bootstrap.servers" | "metadata.broker.list" => problem_of_brokers(value),
            _ => problem_of(property, value).map(str::to_owned),
        };
        if let Some(problem) = problem {
            return Err(PublisherError::new(format!("the Kafka property `{name}` is refused: {problem}")));
        }
    }
    Ok(())
}

fn problem_of(property: &str, value: &str) -> Option<&'static str> {
    let (_, allowed, why) = GUARDED.iter().find(|(names, ..)| names.contains(&property))?;
    let is_allowed = match allowed {
        Only(values) => values.iter().any(|allowed| allowed.eq_ignore_ascii_case(value)),
        UpTo(most) => value.parse::<u32>().is_ok_and(|value| value <= *most),
        Nothing => value.is_empty(),
    };
    (!is_allowed).then_some(why)
}

/// What is wrong with a list of brokers, and what to do.
pub(crate) fn problem_of_brokers(brokers: &str) -> Option<String> {
    let form = "write `host:port`, with commas between several and nothing else, such as `one:9092,two:9092`";
    if brokers.is_empty() {
        return Some(format!("it names no broker: {form}"));
    }
    if brokers.contains(char::is_whitespace) {
        return Some(format!(
            "`{brokers}` contains a space, which would become a part of a host's name: {form}"
        ));
    }
    let wrong = brokers.split(',').find(|broker| !is_address(broker))?;
    Some(match wrong {
        "" => format!("`{brokers}` has a comma without a broker before or after it: {form}"),
        _ => format!("`{wrong}` is no broker's address: {form}"),
    })
}

/// A host, by its name or address, perhaps with a port and the protocol.
fn is_address(broker: &str) -> bool {
    let address = broker.split_once("://").map_or(broker, |(_, address)| address);
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (address, None),
    };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None if host.contains(':') => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains(['[', ']', '/']),
    };
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_a_host_perhaps_with_a_port() {
        for right in [
            "one",
            "one:9092",
            "one:9092,two:9092,three",
            "127.0.0.1:1",
            "[::1]:9092",
            "::1",
            "SASL_SSL://one:9092",
        ] {
            assert_eq!(problem_of_brokers(right), None, "{right}");
        }
        for wrong in [
            "",
            ",",
            "one,",
            ",one",
            "one,,two",
            " ",
            "one, two",
            "one two",
            "one:",
            ":9092",
            "one:0",
            "one:65536",
            "one:kafka",
            "a:b:c",
            "[one]:9092",
            "[::1",
            "://",
            "ssl://",
            "one:9092/path",
        ] {
            assert!(problem_of_brokers(wrong).is_some(), "{wrong}");
        }
    }

    #[test]
    fn every_guarded_property_may_be_set_to_what_it_is() {
        for (names, allowed, _) in GUARDED {
            for name in *names {
                let right = match allowed {
                    Only(values) => values[0].to_owned(),
                    UpTo(most) => most.to_string(),
                    Nothing => String::new(),
                };
                let set = |name: String, value: &str| check(&BTreeMap::from([(name, value.to_owned())]));
                assert!(set((*name).to_owned(), &right).is_ok(), "{name}");
                assert!(set((*name).to_owned(), "2147483646").is_err(), "{name}");
                assert!(set(format!("topic.{name}"), "2147483646").is_err(), "{name}");
            }
        }
    }
}
