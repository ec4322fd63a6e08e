//! Which of librdkafka's properties may not be changed, because what the relay promises rests on them.

use std::collections::BTreeMap;

use diesel_outbox_core::PublishError;

/// What a property may be.
enum Allowed {
    /// One of these, which all mean what this crate sets.
    Only(&'static [&'static str]),
    UpTo(u32),
    /// It must not be set.
    Nothing,
}

use Allowed::{Nothing, Only, UpTo};

const TRUE: Allowed = Only(&["true", "t", "1"]);

/// A property by its canonical name, what it may be, why, and what to do instead.
const GUARDED: &[(&str, Allowed, &str)] = &[
    (
        "enable.idempotence",
        TRUE,
        "without it a retry stores a record twice, or overtakes another one: leave it out",
    ),
    (
        "enable.gapless.guarantee",
        TRUE,
        "without it records overtake an earlier one of their aggregate that Kafka refused: leave it out",
    ),
    (
        "acks",
        Only(&["all", "-1"]),
        "a record that only one broker has would count as sent, and be lost with that broker: leave it out, and set \
         the topic's `min.insync.replicas` to how many must have it",
    ),
    (
        "message.timeout.ms",
        Only(&["0"]),
        "a record that times out in the producer leaves a gap in its aggregate's order: leave it out, and set the \
         relay's `stall_timeout` to how long Kafka may be silent",
    ),
    (
        "retries",
        Only(&["2147483647"]),
        "a record that the producer gives up leaves a gap in its aggregate's order: leave it out, and set the relay's \
         `stall_timeout` to how long Kafka may be silent",
    ),
    (
        "max.in.flight.requests.per.connection",
        UpTo(5),
        "Kafka recognises repeated requests only among the last 5 of a producer: use 5 or less, or leave it out",
    ),
    (
        "partitioner",
        Only(&["murmur2_random"]),
        "an aggregate's events would go to another partition than those before, and overtake them: leave it out, and \
         use `murmur2_random` with the other producers of the topic",
    ),
    ("queuing.strategy", Only(&["fifo"]), "new records would be sent before old ones: leave it out"),
    (
        "delivery.report.only.error",
        Only(&["false", "f", "0"]),
        "the relay would never learn that a record was stored: leave it out",
    ),
    (
        "transactional.id",
        Nothing,
        "the relay names its transactions itself if it sends exactly once, and makes none otherwise: leave it out, and set the prefix of \
         those names (`exactly_once_prefix`)",
    ),
    (
        "linger.ms",
        UpTo(500),
        "the relay gives a pass up if Kafka acknowledges nothing for its `stall_timeout` (1 s or more), and would send the \
         same records again and again: use 500 or less",
    ),
    (
        "test.mock.num.brokers",
        Only(&["0"]),
        "records would go to brokers in this process's memory and count as sent: leave it out, and let a test start \
         its broker itself",
    ),
];

/// The names of properties that have two, the canonical one first.
const ALIASES: &[[&str; 2]] = &[
    ["bootstrap.servers", "metadata.broker.list"],
    ["acks", "request.required.acks"],
    ["message.timeout.ms", "delivery.timeout.ms"],
    ["retries", "message.send.max.retries"],
    ["max.in.flight.requests.per.connection", "max.in.flight"],
    ["linger.ms", "queue.buffering.max.ms"],
    ["compression.type", "compression.codec"],
];

/// librdkafka takes a topic's properties under a prefix too.
pub(crate) fn canonical(name: &str) -> &str {
    let name = name.strip_prefix("topic.").unwrap_or(name);
    ALIASES.iter().find(|aliases| aliases.contains(&name)).map_or(name, |aliases| aliases[0])
}

/// Sets a property in place of what it was under any of its names: librdkafka would take whichever comes last.
pub(crate) fn set(settings: &mut BTreeMap<String, String>, name: String, value: String) {
    settings.retain(|known, _| canonical(known) != canonical(&name));
    settings.insert(name, value);
}

/// Returns the value of a property by its canonical name.
pub(crate) fn get<'a>(settings: &'a BTreeMap<String, String>, canonical_name: &str) -> Option<&'a String> {
    settings.iter().find(|(name, _)| canonical(name) == canonical_name).map(|(_, value)| value)
}

/// Returns those settings that say how to connect.
pub(super) fn of_connection(settings: &BTreeMap<String, String>) -> impl Iterator<Item = (&String, &String)> {
    const OF_CONNECTION: &[&str] = &[
        "bootstrap.servers",
        "client.id",
        "client.dns.lookup",
        "broker.address.",
        "security.",
        "ssl.",
        "enable.ssl.",
        "https.",
        "sasl.",
        "enable.sasl.",
        "socket.",
        "reconnect.",
        "log",
    ];
    settings.iter().filter(|(name, _)| OF_CONNECTION.iter().any(|prefix| canonical(name).starts_with(prefix)))
}

/// Checks that the settings keep what the relay promises.
pub(super) fn check(settings: &BTreeMap<String, String>) -> Result<(), PublishError> {
    for (name, value) in settings {
        let problem = match canonical(name) {
            "bootstrap.servers" => problem_of_brokers(value),
            property => problem_of(property, value).map(str::to_owned),
        };
        if let Some(problem) = problem {
            return Err(PublishError::new(format!("the Kafka property `{name}` is refused: {problem}")));
        }
    }
    Ok(())
}

fn problem_of(property: &str, value: &str) -> Option<&'static str> {
    let (_, allowed, why) = GUARDED.iter().find(|(name, ..)| *name == property)?;
    let is_allowed = match allowed {
        Only(values) => values.iter().any(|allowed| allowed.eq_ignore_ascii_case(value)),
        UpTo(most) => value.parse::<u32>().is_ok_and(|value| value <= *most),
        Nothing => value.is_empty(),
    };
    (!is_allowed).then_some(why)
}

/// Returns what is wrong with a list of brokers, and what to do.
pub(crate) fn problem_of_brokers(brokers: &str) -> Option<String> {
    let form = "write `host:port`, with commas between several and nothing else, such as `one:9092,two:9092`";
    if brokers.is_empty() {
        return Some(format!("it names no broker: {form}"));
    }
    if brokers.contains(char::is_whitespace) {
        return Some(format!(
            "`{brokers}` has a space in it, which would become a part of a host's name: {form}"
        ));
    }
    let wrong = brokers.split(',').find(|broker| !is_address(broker))?;
    Some(match wrong {
        "" => format!("`{brokers}` has a comma without a broker before or after it: {form}"),
        _ => format!("`{wrong}` is not the address of a broker: {form}"),
    })
}

/// Returns whether this is a host, by its name or address, perhaps with a port and the protocol.
fn is_address(broker: &str) -> bool {
    let (protocol, address) = broker.split_once("://").unwrap_or(("plaintext", broker));
    if !["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"].contains(&&*protocol.to_lowercase()) {
        return false;
    }
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
        for (name, allowed, _) in GUARDED {
            let right = match allowed {
                Only(values) => values[0].to_owned(),
                UpTo(most) => most.to_string(),
                Nothing => String::new(),
            };
            let aliases = ALIASES.iter().find(|aliases| aliases.contains(name));
            for name in aliases.map_or(&[*name][..], |aliases| &aliases[..]) {
                let set = |name: String, value: &str| check(&BTreeMap::from([(name, value.to_owned())]));
                assert!(set((*name).to_owned(), &right).is_ok(), "{name}");
                assert!(set((*name).to_owned(), "2147483646").is_err(), "{name}");
                assert!(set(format!("topic.{name}"), "2147483646").is_err(), "{name}");
            }
        }
    }

    #[test]
    fn a_property_has_one_value_whatever_it_is_called() {
        let mut settings = BTreeMap::new();
        for (name, value) in [("linger.ms", "1"), ("queue.buffering.max.ms", "2"), ("acks", "all")] {
            set(&mut settings, name.to_owned(), value.to_owned());
        }
        assert_eq!(get(&settings, "linger.ms").unwrap(), "2");
        assert_eq!(settings.len(), 2);
        set(&mut settings, "topic.request.required.acks".to_owned(), "-1".to_owned());
        assert_eq!(get(&settings, "acks").unwrap(), "-1");
        assert_eq!(settings.len(), 2);
    }
}
