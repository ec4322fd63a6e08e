use super::*;
use crate::source::SourceOptions;

#[test]
fn all_outboxes_that_workers_report_are_taken_back_before_the_database_is_asked_for_anything() {
    let database = PostgresDatabase::new("postgres://localhost/shop".into(), SourceOptions::default());
    let mut watch = Watch::new(database, Schemas::default(), Arc::default(), Stop::default());
    let outboxes: Vec<Arc<Outbox>> = (0..3)
        .map(|table| {
            let found = Found { table, schema: format!("tenant_{table}"), name: "shop".into() };
            let watched = watch.outboxes.entry(table).or_insert(Watched::new(&watch.database, found));
            watched.hand_out(&watch.queue);
            watched.outbox.clone()
        })
        .collect();
    let news = [News::HasWork, News::FoundNothing { after_work: true }, News::PutOff(Duration::from_secs(1))];
    let awake = watch.take_back(outboxes.into_iter().zip(news).collect(), &mut None);
    assert_eq!(awake, [0, 1]);
    let places: Vec<Place> = watch.outboxes.values().map(|watched| watched.place).collect();
    assert!(
        matches!(places[..], [Place::HandedOut, Place::Waits(_), Place::PutOff(_)]),
        "the next session has them: {places:?}"
    );
}
