use diesel_outbox_kafka::{__examined as examined, Kafka};

use super::{Finding, Verdict};

/// Looks whether Kafka answers, and at these topics. Kafka does not say whether the relay may write to a topic before it does.
pub fn examine_kafka(kafka: &Kafka, topics: &[String]) -> Vec<Finding> {
    let cluster = match examined::look(kafka, topics) {
        Ok(cluster) => cluster,
        Err(error) => {
            let text =
                format!("Kafka does not answer: {error}. Check `brokers`, TLS and SASL, and the network");
            return vec![Finding::fail("brokers", text)];
        }
    };
    let brokers = cluster.brokers;
    let mut findings = vec![Finding::ok("brokers", format!("{brokers} answer"))];
    if topics.is_empty() {
        findings.push(Finding::ok("topics", "no event names one yet"));
    }
    for topic in cluster.topics {
        findings.extend(of_topic(&topic, brokers, cluster.makes_topics));
    }
    findings
}

fn of_topic(topic: &examined::Topic, brokers: usize, makes_topics: bool) -> Vec<Finding> {
    let examined::Topic { name, problem, partitions, replicas, in_sync, min_in_sync, .. } = topic;
    if let Some(problem) = problem {
        return vec![Finding::fail("topics", problem.clone())];
    }
    if !topic.is_there {
        return vec![if makes_topics {
            let text = format!(
                "{name} does not exist yet: Kafka makes it with the first event, with its defaults. Make it yourself to choose the number \
                 of partitions and replicas"
            );
            Finding::warn("topics", text)
        } else {
            let text = format!(
                "{name} does not exist, or the relay may not see it: make it, or allow the relay to Describe and Write. Until then its \
                 events become dead letters"
            );
            Finding::fail("topics", text)
        }];
    }
    let mut findings = vec![Finding::ok("topics", format!("{name} has {partitions} partitions"))];
    let needed = min_in_sync.unwrap_or(1);
    let problem = if *in_sync < needed {
        let text = format!(
            "a partition of {name} has {in_sync} replicas in sync, and min.insync.replicas is {needed}: Kafka takes no record for it. Bring \
             the missing brokers back"
        );
        Some((Verdict::Fail, text))
    } else if in_sync < replicas {
        let text = format!(
            "a partition of {name} has {in_sync} of {replicas} replicas in sync: find out which broker is away or slow"
        );
        Some((Verdict::Warn, text))
    } else if *replicas < 2 && brokers > 1 {
        let text = format!(
            "{name} has one replica: if its broker is lost, so are the records. Reassign its partitions to three"
        );
        Some((Verdict::Warn, text))
    } else if needed < 2 && *replicas > 1 {
        let text = format!(
            "min.insync.replicas of {name} is {needed}: a record counts as sent when a single broker has it. Set it to 2 if there are three \
             replicas"
        );
        Some((Verdict::Warn, text))
    } else if *replicas > 1 && needed >= *replicas {
        let text = format!(
            "min.insync.replicas of {name} is {needed}, and it has {replicas} replicas: while one broker restarts, nothing is sent. Add a \
             replica, or lower it"
        );
        Some((Verdict::Warn, text))
    } else {
        None
    };
    let fine = format!("{name} has {replicas} replicas, all in sync, and needs {needed} of them");
    findings.push(Finding::of("replicas", problem, fine));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(replicas: usize, in_sync: usize, min_in_sync: usize, brokers: usize) -> Verdict {
        let topic = examined::Topic::new("orders", 3, replicas, in_sync, Some(min_in_sync));
        of_topic(&topic, brokers, false)[1].verdict
    }

    #[test]
    fn replicas_are_judged_by_what_happens_if_a_broker_is_away() {
        assert_eq!(verdict(3, 3, 2, 3), Verdict::Ok);
        assert_eq!(verdict(1, 1, 1, 1), Verdict::Ok);
        for (replicas, in_sync, min_in_sync) in [(3, 2, 2), (1, 1, 1), (3, 3, 1), (3, 3, 3)] {
            assert_eq!(
                verdict(replicas, in_sync, min_in_sync, 3),
                Verdict::Warn,
                "{replicas} {in_sync} {min_in_sync}"
            );
        }
        assert_eq!(verdict(3, 1, 2, 3), Verdict::Fail);
    }
}
