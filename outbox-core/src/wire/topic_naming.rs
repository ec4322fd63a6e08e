use std::str::FromStr;

/// The rule that names a record's topic, and the list of topics that are allowed.
///
/// Parse it from a pattern in which `{aggregatetype}` stands for the record's aggregate type. A pattern without this placeholder
/// sends everything to one topic. The default is `outbox.event.{aggregatetype}`, with every topic allowed.
///
/// ```
/// use diesel_outbox_core::wire::TopicNaming;
///
/// assert_eq!(TopicNaming::default().topic("order")?, "outbox.event.order");
///
/// let naming: TopicNaming = "shop.{aggregatetype}.v1".parse()?;
/// let naming = naming.allow(["shop.order.*", "shop.customer.v1"]);
/// assert_eq!(naming.topic("order")?, "shop.order.v1");
/// assert!(naming.topic("invoice").is_err());
/// # Ok::<(), diesel_outbox_core::wire::TopicError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicNaming {
    before: String,
    // The text behind the aggregate type, or `None` if the pattern has no placeholder.
    after: Option<String>,
    allowed: Option<Vec<String>>,
}

const PLACEHOLDER: &str = "{aggregatetype}";
const NAME_LIMIT: usize = 249;

impl Default for TopicNaming {
    /// Returns the rule `outbox.event.{aggregatetype}`, with every topic allowed.
    fn default() -> Self {
        Self { before: "outbox.event.".into(), after: Some(String::new()), allowed: None }
    }
}

impl TopicNaming {
    /// Allows only these topics. A record for any other topic becomes a dead letter. A name that ends in `*` allows every topic
    /// that begins with the part before it. Default: every topic is allowed.
    #[must_use]
    pub fn allow<I: IntoIterator<Item: Into<String>>>(mut self, names: I) -> Self {
        self.allowed = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Returns the topic of a record with this aggregate type.
    ///
    /// # Errors
    /// [`TopicError::Name`] if Kafka does not accept the name, and [`TopicError::NotAllowed`] if the allow-list does not contain
    /// it.
    pub fn topic(&self, aggregate_type: &str) -> Result<String, TopicError> {
        let topic = match &self.after {
            Some(after) => [&self.before, aggregate_type, after].concat(),
            None => self.before.clone(),
        };
        let well_formed = !topic.is_empty()
            && topic.len() <= NAME_LIMIT
            && topic != "."
            && topic != ".."
            && topic.chars().all(is_topic_character);
        if !well_formed {
            return Err(TopicError::Name { topic });
        }
        match &self.allowed {
            Some(allowed) if !allowed.iter().any(|pattern| matches(pattern, &topic)) => {
                Err(TopicError::NotAllowed { topic })
            }
            _ => Ok(topic),
        }
    }
}

impl FromStr for TopicNaming {
    type Err = TopicError;

    /// Parses a pattern such as `shop.{aggregatetype}.v1`.
    ///
    /// # Errors
    /// [`TopicError::Pattern`] if the pattern has another placeholder, or a character that a topic's name cannot contain.
    fn from_str(pattern: &str) -> Result<Self, TopicError> {
        let (before, after) = match pattern.split_once(PLACEHOLDER) {
            Some((before, after)) => (before, Some(after)),
            None => (pattern, None),
        };
        let literal = [before, after.unwrap_or_default()].concat();
        if pattern.is_empty() || !literal.chars().all(is_topic_character) {
            return Err(TopicError::Pattern { pattern: pattern.to_owned() });
        }
        Ok(Self { before: before.to_owned(), after: after.map(str::to_owned), allowed: None })
    }
}

fn is_topic_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
}

fn matches(pattern: &str, topic: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => topic.starts_with(prefix),
        None => pattern == topic,
    }
}

/// The reason why a record has no topic, or why a pattern is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// The naming pattern is wrong.
    #[error(
        "`{pattern}` is not a pattern for topics: use letters, digits, `.`, `_`, `-`, and `{{aggregatetype}}` at most once"
    )]
    Pattern {
        /// The pattern that was given.
        pattern: String,
    },
    /// Kafka does not accept the name.
    #[error(
        "`{topic}` is not a name for a topic: Kafka accepts 1 to 249 letters, digits, `.`, `_` and `-`; change the aggregate type or \
         the relay's topic pattern"
    )]
    Name {
        /// The name that the pattern produced.
        topic: String,
    },
    /// The topic is not in the allow-list.
    #[error("the topic `{topic}` is not in the relay's allow-list: add it there, then requeue the record")]
    NotAllowed {
        /// The topic.
        topic: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kafka_cannot_have_are_refused() {
        let topics = TopicNaming::default();
        for bad in ["an order", "ordér", &"x".repeat(250)] {
            assert!(matches!(topics.topic(bad), Err(TopicError::Name { .. })), "{bad}");
        }
    }

    #[test]
    fn a_pattern_without_placeholder_sends_everything_to_one_topic() {
        assert_eq!("events".parse::<TopicNaming>().unwrap().topic("order").unwrap(), "events");
    }

    #[test]
    fn bad_patterns_are_refused() {
        for bad in ["", "a{b}", "a b", "{aggregatetype}{aggregatetype}"] {
            assert!(bad.parse::<TopicNaming>().is_err(), "{bad}");
        }
    }
}
