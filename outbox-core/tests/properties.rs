//! What holds for any input.

use std::time::{Duration, UNIX_EPOCH};

use diesel_outbox_core::__private::{from_unix_ms, one_line, quoted_identifier, quoted_literal, unix_ms};
use diesel_outbox_core::wire::{TopicNaming, decode_headers, encode_headers};
use diesel_outbox_core::{EncodedEvent, SHARDS, shard_of};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn is_a_topic_of_kafka(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=249).contains(&name.len()) && name.chars().all(is_allowed) && name != "." && name != ".."
}

proptest! {
    #[test]
    fn headers_come_back_as_they_were(headers in vec((any::<String>(), any::<String>()), 0..8)) {
        match encode_headers(&headers) {
            Some(json) => prop_assert_eq!(decode_headers(&json).unwrap(), headers),
            None => prop_assert!(headers.is_empty()),
        }
    }

    #[test]
    fn headers_that_were_decoded_come_back(json in r#"\{("[a-z]{0,3}":("\PC{0,4}"|-?[0-9]{1,3}|null|true|\[1, ?2\]),?){0,4}\}"#) {
        if let Ok(headers) = decode_headers(&json)
            && let Some(again) = encode_headers(&headers)
        {
            prop_assert_eq!(decode_headers(&again).unwrap(), headers);
        }
    }

    #[test]
    fn a_topic_is_one_that_kafka_accepts(pattern in r"[a-z.]{0,6}(\{aggregatetype\})?[a-z._-]{0,6}", aggregate_type in "\\PC{0,260}") {
        if let Ok(naming) = pattern.parse::<TopicNaming>()
            && let Ok(topic) = naming.topic(&aggregate_type)
        {
            prop_assert!(is_a_topic_of_kafka(&topic), "{}", topic);
            prop_assert_eq!(&topic, &pattern.replace("{aggregatetype}", &aggregate_type));
            prop_assert!(naming.clone().allow([topic.clone()]).topic(&aggregate_type).is_ok());
            let other = topic.clone() + "x";
            prop_assert!(naming.allow([other]).topic(&aggregate_type).is_err());
        }
    }

    #[test]
    fn a_shard_is_one_of_those_that_there_are(aggregate_type in any::<String>(), aggregate_id in any::<String>()) {
        let shard = shard_of(&aggregate_type, &aggregate_id);
        prop_assert!((0..SHARDS).contains(&shard));
        prop_assert_eq!(shard, shard_of(&aggregate_type, &aggregate_id));
    }

    #[test]
    fn a_time_comes_back_to_the_millisecond(ms in -1_000_000_000_000_000i64..1_000_000_000_000_000, nanos in 0u64..1_000_000) {
        prop_assert_eq!(unix_ms(from_unix_ms(ms)), ms);
        prop_assert_eq!(unix_ms(from_unix_ms(ms) + Duration::from_nanos(nanos)), ms);
    }

    #[test]
    fn any_time_can_be_converted(ms in any::<i64>()) {
        let time = from_unix_ms(ms);
        prop_assert!(time == UNIX_EPOCH || unix_ms(time) == ms);
    }

    #[test]
    fn what_is_quoted_ends_where_it_should(text in any::<String>()) {
        for (quote, quoted) in [('"', quoted_identifier(&text)), ('\'', quoted_literal(&text))] {
            let inner = quoted.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)).unwrap();
            prop_assert_eq!(inner.replace(&format!("{quote}{quote}"), &quote.to_string()), text.clone());
        }
    }

    #[test]
    fn one_line_has_one_line(text in any::<String>()) {
        let line = one_line(&text);
        prop_assert!(!line.contains(['\n', '\r']) && line.trim() == line);
        prop_assert_eq!(one_line(&line), line);
    }

    #[test]
    fn a_record_is_received_with_what_it_has(id in any::<u128>(), event_type in any::<String>(), version in option::of(any::<u32>()), key in any::<String>()) {
        let (id, text) = (uuid::Uuid::from_u128(id), version.map(|version| version.to_string()));
        let id_text = id.to_string();
        let mut headers = vec![("other", None), ("eventType", Some(event_type.as_bytes())), ("id", Some(id_text.as_bytes()))];
        headers.extend(text.as_ref().map(|text| ("eventVersion", Some(text.as_bytes()))));
        let (received, event) = EncodedEvent::received(Some(key.as_bytes()), None, headers).unwrap();
        prop_assert_eq!(received, id);
        prop_assert_eq!((event.event_type(), event.version(), event.aggregate_id()), (&*event_type, version, Some(&*key)));
    }
}
