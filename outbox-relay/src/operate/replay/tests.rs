use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use diesel_outbox_core::{Acknowledgement, Publisher, Record, Refusal};

use super::*;
use crate::operate::kept::KeptRow;
use crate::pipeline::rehearsal::Quick;

/// Rows 1 to `0`, of which each tenth is refused.
struct Table(i64);

impl Kept for Table {
    fn count(&mut self, _: &Window) -> QueryResult<u64> {
        Ok(self.0 as u64)
    }

    fn rows(&mut self, _: &Window, _: i64, _: i64) -> QueryResult<Vec<KeptRow>> {
        Ok(Vec::new())
    }

    fn find(&mut self, _: &[Uuid]) -> QueryResult<Vec<KeptRow>> {
        Ok(Vec::new())
    }

    fn count_sent(&mut self, _: &Selection) -> QueryResult<u64> {
        Ok(self.0 as u64)
    }

    fn sent(&mut self, _: &Selection, after: i64, limit: i64) -> QueryResult<Vec<KeptRecord>> {
        let record = |seq: i64| {
            let event_type = if seq % 10 == 0 { "Refused" } else { "Placed" };
            KeptRecord { seq, record: Ok(Record::new("order", seq.to_string(), event_type)) }
        };
        Ok((after.max(0) + 1..=self.0).take(limit as usize).map(record).collect())
    }
}

fn replay() -> Replay {
    Replay::new(SystemTime::UNIX_EPOCH, SystemTime::now())
}

fn quick() -> Result<Box<dyn Publisher>, PublishError> {
    Ok(Box::new(Quick::default()))
}

#[test]
fn every_row_is_sent_once_and_what_is_refused_is_counted() {
    let replayed = replay().run(&mut Table(1_777), &quick, &TopicNaming::default(), &mut |_| true).unwrap();
    assert_eq!((replayed.sent, replayed.refused, replayed.through), (1_600, 177, Some(1_777)));
    assert_eq!(replayed.reason.as_deref(), Some("refused"));
}

#[test]
fn a_replay_goes_on_behind_the_last_row_of_an_earlier_one() {
    let through =
        replay().run(&mut Table(500), &quick, &TopicNaming::default(), &mut |_| true).unwrap().through;
    let later = replay().after(through.unwrap());
    let replayed = later.run(&mut Table(520), &quick, &TopicNaming::default(), &mut |_| true).unwrap();
    assert_eq!((replayed.sent, replayed.refused, replayed.through), (18, 2, Some(520)));
}

#[test]
fn a_rate_is_kept() {
    let began = Instant::now();
    let rate = NonZeroU32::new(1_000).unwrap();
    replay().rate(rate).run(&mut Table(300), &quick, &TopicNaming::default(), &mut |_| true).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(299), "{:?}", began.elapsed());
}

/// Fails each second time that it is asked for acknowledgements, and notes what it was given.
struct Failing {
    inner: Quick,
    asked: usize,
    given: Arc<Mutex<Vec<String>>>,
}

impl Publisher for Failing {
    fn publish(&mut self, ticket: u64, topic: &str, record: &Record) -> Result<(), Refusal> {
        self.given.lock().unwrap().push(record.aggregate_id().to_owned());
        self.inner.publish(ticket, topic, record)
    }

    fn acknowledgements(
        &mut self,
        wait: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        self.asked += 1;
        if self.asked.is_multiple_of(2) {
            return Err(PublishError::new("away for a moment"));
        }
        self.inner.acknowledgements(wait, acknowledgements)
    }

    fn abandon(&mut self) {
        self.inner.abandon();
    }

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }
}

#[test]
fn what_was_in_flight_at_a_failure_is_sent_again_and_nothing_is_left_out() {
    let given = Arc::new(Mutex::new(Vec::new()));
    let broker = {
        let given = given.clone();
        move || -> Result<Box<dyn Publisher>, PublishError> {
            Ok(Box::new(Failing { inner: Quick::default(), asked: 0, given: given.clone() }))
        }
    };
    let replayed = replay().run(&mut Table(1_200), &broker, &TopicNaming::default(), &mut |_| true).unwrap();
    assert_eq!((replayed.sent, replayed.refused, replayed.through), (1_080, 120, Some(1_200)));
    let given: BTreeSet<i64> = given.lock().unwrap().iter().map(|id| id.parse().unwrap()).collect();
    assert_eq!(given.len(), 1_200);
}

#[test]
fn a_broker_that_stays_away_ends_the_replay_and_says_how_far_it_came() {
    struct Away;
    impl Publisher for Away {
        fn publish(&mut self, _: u64, _: &str, _: &Record) -> Result<(), Refusal> {
            Err(Refusal::Retry { reason: "away".to_owned() })
        }

        fn acknowledgements(
            &mut self,
            _: Duration,
            _: &mut Vec<Acknowledgement>,
        ) -> Result<(), PublishError> {
            Err(PublishError::new("away"))
        }

        fn abandon(&mut self) {}

        fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
            Ok(())
        }
    }
    let broker = || -> Result<Box<dyn Publisher>, PublishError> { Ok(Box::new(Away)) };
    let error = replay().run(&mut Table(10), &broker, &TopicNaming::default(), &mut |_| true).unwrap_err();
    assert!(error.to_string().contains("away"), "{error}");
    assert_eq!((error.replayed.sent, error.replayed.through), (0, None));
}

#[test]
fn a_replay_ends_early_if_it_is_told_to() {
    let publisher = Quick::default();
    let taken = publisher.taken.clone();
    let publisher = Mutex::new(Some(publisher));
    let broker = || -> Result<Box<dyn Publisher>, PublishError> {
        Ok(Box::new(publisher.lock().unwrap().take().unwrap()))
    };
    let rate = NonZeroU32::new(2_000).unwrap();
    let replayed = replay()
        .rate(rate)
        .run(&mut Table(1_000_000), &broker, &TopicNaming::default(), &mut |_| false)
        .unwrap();
    assert_eq!(replayed.sent, taken.load(Ordering::Relaxed) as u64);
    assert!(replayed.sent < 100_000 && replayed.through.is_some());
}
