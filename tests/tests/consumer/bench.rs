//! A topic, a database with a table of effects, and a consumer between them.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use diesel_outbox_kafka::consumer::{AsyncHandler, Consumer, HandlerError, Received};
use futures_executor::block_on;
use outbox_tests::{Database, Kafka, Postgres, RawRecord, eventually, eventually_ok};
use rdkafka::Offset;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::TopicPartitionList;
use uuid::Uuid;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Bench<'a> {
    pub(crate) kafka: &'a Kafka,
    pub(crate) database: Database<'a>,
    pub(crate) topic: String,
    pub(crate) name: String,
    partitions: i32,
}

/// An event to send, of type `Counted` unless said otherwise.
pub(crate) struct Sent {
    pub(crate) id: Uuid,
    pub(crate) body: String,
    pub(crate) headers: Vec<(&'static str, String)>,
}

impl Sent {
    pub(crate) fn new(body: &str) -> Self {
        let id = Uuid::now_v7();
        let headers = vec![("id", id.to_string()), ("eventType", "Counted".to_owned())];
        Self { id, body: body.to_owned(), headers }
    }

    pub(crate) fn with_type(mut self, event_type: &str) -> Self {
        event_type.clone_into(&mut self.headers[1].1);
        self
    }
}

/// The event with its body as key and payload.
pub(crate) fn raw(event: &Sent) -> RawRecord {
    let header =
        |(name, value): &(&str, String)| (name.as_bytes().to_vec(), Some(value.clone().into_bytes()));
    RawRecord {
        key: Some(event.body.clone().into_bytes()),
        payload: Some(event.body.clone().into_bytes()),
        headers: event.headers.iter().map(header).collect(),
        timestamp: 1_700_000_000_000,
    }
}

/// What a handler did to the database. No constraint keeps an id from being there twice.
#[derive(QueryableByName)]
pub(crate) struct Effect {
    #[diesel(sql_type = SqlUuid)]
    pub(crate) id: Uuid,
    #[diesel(sql_type = Text)]
    pub(crate) body: String,
    #[diesel(sql_type = Text)]
    pub(crate) consumer: String,
}

pub(crate) fn effects(conn: &mut PgConnection) -> QueryResult<Vec<Effect>> {
    diesel::sql_query("select id, body, consumer from effect order by n").load(conn)
}

pub(crate) fn insert_effect(conn: &mut PgConnection, received: &Received) -> Result<(), HandlerError> {
    insert(conn, received, "insert into effect (id, body, consumer) values ($1, $2, $3)", "")
}

/// Inserts slowly enough for something else to happen in the middle.
pub(crate) fn insert_effect_slowly(
    conn: &mut PgConnection,
    received: &Received,
    consumer: &str,
) -> Result<(), HandlerError> {
    let sql = "insert into effect (id, body, consumer) select $1, $2, $3 from pg_sleep(0.003)";
    insert(conn, received, sql, consumer)
}

fn insert(
    conn: &mut PgConnection,
    received: &Received,
    sql: &str,
    consumer: &str,
) -> Result<(), HandlerError> {
    let body = str::from_utf8(received.payload().unwrap_or_default())?;
    diesel::sql_query(sql)
        .bind::<SqlUuid, _>(received.id())
        .bind::<Text, _>(body)
        .bind::<Text, _>(consumer)
        .execute(conn)?;
    Ok(())
}

pub(crate) async fn insert_effect_async(
    conn: &mut AsyncPgConnection,
    received: &Received,
) -> Result<(), HandlerError> {
    let insert = diesel::sql_query("insert into effect (id, body, consumer) values ($1, $2, '')");
    let insert = insert.bind::<SqlUuid, _>(received.id());
    let body = str::from_utf8(received.payload().unwrap_or_default())?;
    diesel_async::RunQueryDsl::execute(insert.bind::<Text, _>(body), conn).await?;
    Ok(())
}

pub(crate) fn consumer(brokers: &str, name: &str, topic: &str) -> Consumer<PgConnection> {
    quick(Consumer::new(brokers, name)).topics([topic])
}

/// The same consumer with settings that make it notice changes quickly.
fn quick<C, H>(consumer: Consumer<C, H>) -> Consumer<C, H> {
    consumer
        .backoff(Duration::from_millis(10), Duration::from_millis(200))
        .set("heartbeat.interval.ms", "100")
        .set("session.timeout.ms", "6000")
        .set("fetch.wait.max.ms", "50")
        .set("reconnect.backoff.ms", "10")
}

impl Bench<'static> {
    pub(crate) fn new(partitions: i32) -> Self {
        Self::with(Kafka::shared(), Postgres::shared(), partitions)
    }
}

impl<'a> Bench<'a> {
    pub(crate) fn with(kafka: &'a Kafka, postgres: &'a Postgres, partitions: i32) -> Self {
        let topic = kafka.unique("counter");
        kafka.create_topic(&topic, partitions);
        Self::of(kafka, postgres, topic, partitions)
    }

    /// A bench with an existing topic.
    pub(crate) fn of(kafka: &'a Kafka, postgres: &'a Postgres, topic: String, partitions: i32) -> Self {
        let database = postgres.database();
        let mut conn = database.connect();
        database.migrate();
        // The handlers' own table. The consumers work as a role that may do nothing else.
        conn.batch_execute(
            "create table effect (n serial, id uuid, body text, consumer text);
             grant select, insert on effect to public; grant usage on effect_n_seq to public",
        )
        .unwrap();
        Self { kafka, database, topic, name: kafka.unique("billing"), partitions }
    }

    /// Sends the events to their partitions, with the body as the key too.
    pub(crate) fn send<'e>(&self, events: impl IntoIterator<Item = (i32, &'e Sent)>) {
        let producer: BaseProducer = self.kafka.client().create().unwrap();
        for (partition, event) in events {
            let headers = event.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value) })
            });
            let record = BaseRecord::to(&self.topic).partition(partition).headers(headers);
            producer.send(record.key(&event.body).payload(&event.body)).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    }

    pub(crate) fn consumer(&self) -> Consumer<PgConnection> {
        consumer(self.kafka.brokers(), &self.name, &self.topic).database_url(self.database.consumer_url())
    }

    pub(crate) fn async_consumer(&self) -> Consumer<AsyncPgConnection, AsyncHandler<AsyncPgConnection>> {
        let consumer =
            Consumer::new_async(self.kafka.brokers(), &self.name).database_url(self.database.consumer_url());
        quick(consumer).topics([&self.topic])
    }

    pub(crate) fn connect_async(
        &self,
    ) -> impl AsyncFnMut() -> ConnectionResult<AsyncPgConnection> + Send + use<> {
        let url = self.database.consumer_url();
        async move || AsyncPgConnection::establish(&url).await
    }

    pub(crate) fn connect(&self) -> impl FnMut() -> ConnectionResult<PgConnection> + Send + use<> {
        let url = self.database.consumer_url();
        move || PgConnection::establish(&url)
    }

    pub(crate) fn effects(&self) -> Vec<Effect> {
        effects(&mut self.database.connect()).unwrap()
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        self.effects().into_iter().map(|effect| effect.body).collect()
    }

    #[track_caller]
    pub(crate) fn wait_for_effects(&self, count: usize) {
        eventually(&format!("{count} effects"), PATIENCE, || (self.effects().len() >= count).then_some(()));
    }

    pub(crate) fn marks(&self) -> i64 {
        diesel::select(diesel::dsl::sql::<BigInt>("(select count(*) from inbox)"))
            .get_result(&mut self.database.connect())
            .unwrap()
    }

    pub(crate) fn dead_letter_topic(&self) -> String {
        format!("{}.dead-letter", self.topic)
    }

    /// The dead letters in the order of their offsets in the topic that they came from.
    pub(crate) fn dead_letters(&self) -> Vec<outbox_tests::ReadRecord> {
        let mut dead = self.kafka.read_all(&self.dead_letter_topic());
        dead.sort_by_key(|dead| dead.header("outbox-offset").unwrap().parse::<i64>().unwrap());
        dead
    }

    pub(crate) fn kafka_takes_dead_letters_again(&self) {
        let admin: AdminClient<DefaultClientContext> = self.kafka.client().create().unwrap();
        let topic = self.dead_letter_topic();
        let config = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("max.message.bytes", "1000000");
        let altered = block_on(admin.alter_configs([&config], &AdminOptions::new())).unwrap();
        assert!(altered[0].is_ok(), "{altered:?}");
    }

    /// The consumer's committed offset in each partition, or -1001 if there is none.
    pub(crate) fn committed(&self) -> Vec<i64> {
        let consumer: BaseConsumer = self.kafka.client().set("group.id", &self.name).create().unwrap();
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(&self.topic, 0, self.partitions - 1);
        let committed = consumer.committed_offsets(partitions, PATIENCE).unwrap();
        let offset = |offset: Offset| offset.to_raw().unwrap_or(i64::MIN);
        committed.elements().iter().map(|element| offset(element.offset())).collect()
    }

    /// The offset after the last record of each partition.
    pub(crate) fn ends(&self) -> Vec<i64> {
        let consumer: BaseConsumer = self.kafka.client().create().unwrap();
        let end = |partition| consumer.fetch_watermarks(&self.topic, partition, PATIENCE).unwrap().1;
        (0..self.partitions).map(end).collect()
    }

    #[track_caller]
    pub(crate) fn wait_until_all_is_committed(&self) {
        let ends = self.ends();
        eventually_ok("all offsets to be committed", PATIENCE, || {
            let committed = self.committed();
            if committed == ends { Ok(()) } else { Err(format!("{committed:?} of {ends:?}")) }
        });
    }
}
