//! Rows of every kind, always the same for the same seed.

use std::time::UNIX_EPOCH;

use diesel::mysql::{Mysql, MysqlConnection};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::sql_types::{Array, BigInt, Binary, Nullable, SmallInt, Text, Uuid as SqlUuid};
use diesel_outbox::Record;
use uuid::Uuid;

pub(crate) const AGGREGATE_TYPES: [&str; 3] = ["order", "Customer", "in-voice_2.x"];

const SEED: u64 = 2_463_534_242;
/// How many rows the transactions have, roughly in turn.
const TRANSACTIONS: [usize; 5] = [1, 7, 1_000, 40, 250];
const LARGE: usize = 900_000;

pub(crate) struct GoldenRow {
    id: Uuid,
    aggregate_type: &'static str,
    aggregate_id: String,
    event_type: String,
    payload: Option<Vec<u8>>,
    headers: Option<String>,
    created_at_ms: i64,
}

/// Pseudorandom numbers (xorshift).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 16) as u8).collect()
    }
}

pub(crate) fn generated(count: usize) -> Vec<GoldenRow> {
    let mut chance = Chance(SEED);
    // Kafka refuses timestamps in the future, and deletes old records.
    let since = UNIX_EPOCH.elapsed().unwrap().as_millis() as i64 - 3_600_000;
    (0..count)
        .map(|number| GoldenRow {
            id: Uuid::from_u128(u128::from(chance.next()) << 64 | u128::from(chance.next())),
            aggregate_type: AGGREGATE_TYPES[chance.below(10).saturating_sub(7)],
            aggregate_id: aggregate_id(&mut chance),
            event_type: ["Placed", "order paid/1", "Plåced ✓", "0"][chance.below(4)].to_owned(),
            payload: if number % 3_000 == 1_500 {
                Some(large(&mut chance, number))
            } else {
                payload(&mut chance, number)
            },
            headers: headers(&mut chance, number),
            created_at_ms: since + chance.below(3_000_000) as i64,
        })
        .collect()
}

fn aggregate_id(chance: &mut Chance) -> String {
    let number = chance.below(200);
    match number % 8 {
        0 => format!("with space {number}"),
        1 => format!("a/b/{number}?c=d&e"),
        2 => format!("ключ-{number}-🔑"),
        3 => format!("{number:0>255}"),
        4 => format!(" {number}\t\"\\"),
        5 => "0".to_owned(),
        _ => Uuid::from_u128(number as u128).to_string(),
    }
}

fn payload(chance: &mut Chance, number: usize) -> Option<Vec<u8>> {
    let text = |text: String| Some(text.into_bytes());
    match chance.below(9) {
        0 => None,
        1 => Some(Vec::new()),
        2 => text(" \n\t ".to_owned()),
        3 => text(format!(" {{ \"b\" : {number},\n\t\"a\":1.0,\"b\": null }} \r\n")),
        4 => text(format!("{{\"z\":\"ü ✓ 🙂 \\u00e9\",\"a\":[1,  2.50,-0],\"n\":{number}}}")),
        5 => text("null".to_owned()),
        6 => text(format!("\u{feff}no JSON at all, {number}")),
        _ => {
            let count = chance.below(300);
            Some(chance.bytes(count))
        }
    }
}

fn large(chance: &mut Chance, number: usize) -> Vec<u8> {
    if number % 2_000 == 500 {
        return chance.bytes(LARGE);
    }
    format!("{{ \"n\":{number}, \"text\" : \"{}\" }}", "ü".repeat(LARGE / 2)).into_bytes()
}

/// The column as other programs may write it.
fn headers(chance: &mut Chance, number: usize) -> Option<String> {
    let json = match chance.below(10) {
        0..=2 => return None,
        3 => "{}".to_owned(),
        4 => format!("{{\"trace\":\"{number}\"}}"),
        5 => "{\"ключ ✓\":\"значение 🙂\",\"\\u00e9\":\"\\ud83d\\ude42\"}".to_owned(),
        6 => "{\"empty\":\"\",\"eventVersion\":\"2\", \"ID\":\"x\"}".to_owned(),
        7 => "{ \"twice\" : \"1\",\n\"other\":\"\", \"twice\":\"2\" }".to_owned(),
        8 => "{\"null\":null,\"number\": 1.50,\"list\":[1, {\"b\":1,\"a\":2}],\"true\":true}".to_owned(),
        _ => {
            let headers: Vec<_> =
                (0..40).rev().map(|n| format!("\"header-{n}\":\"{number} \\\"q\\\" \\n\"")).collect();
            format!("{{{}}}", headers.join(","))
        }
    };
    Some(json)
}

/// Inserts the rows in transactions of different sizes.
pub(crate) fn insert(conn: &mut PgConnection, rows: &[GoldenRow]) {
    transactions(rows, |rows| insert_together(conn, rows));
}

/// Inserts the rows in transactions of different sizes on MariaDB.
pub(crate) fn insert_on_mariadb(conn: &mut MysqlConnection, rows: &[GoldenRow]) {
    transactions(rows, |rows| conn.transaction(|c| insert_in_chunks(c, rows)).unwrap());
}

fn transactions(rows: &[GoldenRow], mut insert: impl FnMut(&[GoldenRow])) {
    let (mut rest, mut sizes) = (rows, TRANSACTIONS.into_iter().cycle());
    while !rest.is_empty() {
        let size = sizes.next().unwrap().min(rest.len());
        let (rows, later) = rest.split_at(size);
        rest = later;
        insert(rows);
    }
}

fn shard(row: &GoldenRow) -> i16 {
    Record::new(row.aggregate_type, row.aggregate_id.as_str(), "any").shard()
}

fn insert_together(conn: &mut PgConnection, rows: &[GoldenRow]) {
    diesel::sql_query(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, created_at, shard) \
         SELECT id, aggregatetype, aggregateid, type, payload, headers::json, \
         timestamp '1970-01-01' + ms * interval '1 ms', shard \
         FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) WITH ORDINALITY \
         AS row (id, aggregatetype, aggregateid, type, payload, headers, ms, shard, place) ORDER BY place",
    )
    .bind::<Array<SqlUuid>, _>(rows.iter().map(|row| row.id).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(rows.iter().map(|row| row.aggregate_type).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(rows.iter().map(|row| row.aggregate_id.as_str()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(rows.iter().map(|row| row.event_type.as_str()).collect::<Vec<_>>())
    .bind::<Array<Nullable<Binary>>, _>(rows.iter().map(|row| row.payload.as_deref()).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(rows.iter().map(|row| row.headers.as_deref()).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(rows.iter().map(|row| row.created_at_ms).collect::<Vec<_>>())
    .bind::<Array<SmallInt>, _>(rows.iter().map(shard).collect::<Vec<_>>())
    .execute(conn)
    .unwrap();
}

/// So many rows are inserted by one statement.
const CHUNK: usize = 100;

fn insert_in_chunks(conn: &mut MysqlConnection, rows: &[GoldenRow]) -> QueryResult<()> {
    for rows in rows.chunks(CHUNK) {
        let values =
            vec!["(?, ?, ?, ?, ?, ?, TIMESTAMPADD(MICROSECOND, ? * 1000, '1970-01-01'), ?)"; rows.len()];
        let query = diesel::sql_query(format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, created_at, shard) VALUES {}",
            values.join(", ")
        ));
        let query = rows.iter().fold(query.into_boxed::<Mysql>(), with_row);
        query.execute(conn)?;
    }
    Ok(())
}

fn with_row<'a>(
    query: BoxedSqlQuery<'a, Mysql, SqlQuery>,
    row: &'a GoldenRow,
) -> BoxedSqlQuery<'a, Mysql, SqlQuery> {
    query
        .bind::<Text, _>(row.id.to_string())
        .bind::<Text, _>(row.aggregate_type)
        .bind::<Text, _>(row.aggregate_id.as_str())
        .bind::<Text, _>(row.event_type.as_str())
        .bind::<Nullable<Binary>, _>(row.payload.as_deref())
        .bind::<Nullable<Text>, _>(row.headers.as_deref())
        .bind::<BigInt, _>(row.created_at_ms)
        .bind::<SmallInt, _>(shard(row))
}
