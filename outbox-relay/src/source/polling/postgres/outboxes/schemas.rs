//! Which schemas are meant, and which of them have an outbox.

use std::collections::BTreeSet;
use std::sync::Arc;

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, Oid, Text};

use crate::statement::statement;

/// Names of schemas, and patterns of names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schemas {
    names: BTreeSet<String>,
    /// For the operator LIKE.
    patterns: BTreeSet<String>,
}

/// An outbox that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The table's oid.
    pub(super) table: u32,
    pub(super) schema: String,
    /// The database and the schema.
    pub(super) name: Arc<str>,
}

impl Schemas {
    /// Returns those with these names, and those that match if a `*`, which stands for any characters, is in the name.
    pub(crate) fn new(schemas: impl IntoIterator<Item = String>) -> Self {
        let (patterns, names): (Vec<String>, Vec<String>) =
            schemas.into_iter().partition(|schema| schema.contains('*'));
        let patterns = patterns.iter().map(|pattern| like(pattern)).collect();
        Self { names: names.into_iter().collect(), patterns }
    }

    /// Returns the schemas that have an outbox.
    pub(crate) fn names(&self, conn: &mut PgConnection) -> QueryResult<Vec<String>> {
        let (found, _) = self.find(conn)?;
        Ok(found.into_iter().map(|found| found.schema).collect())
    }

    /// Returns the outboxes that are there, and the named schemas that have none.
    pub(super) fn find(&self, conn: &mut PgConnection) -> QueryResult<(Vec<Found>, Vec<String>)> {
        let names = self.names.iter().cloned().collect();
        let patterns = self.patterns.iter().cloned().collect();
        let rows = Find::new(names, patterns).load::<(u32, String, String)>(conn)?;
        let found: Vec<Found> = rows
            .into_iter()
            .map(|(table, schema, name)| Found { table, schema, name: name.into() })
            .collect();
        let is_missing = |name: &&String| found.iter().all(|found| found.schema != **name);
        let missing = self.names.iter().filter(is_missing).cloned().collect();
        Ok((found, missing))
    }
}

/// Returns the pattern as LIKE has it.
fn like(pattern: &str) -> String {
    let mut like = String::with_capacity(pattern.len());
    for c in pattern.chars() {
        match c {
            '*' => like.push('%'),
            '%' | '_' | '\\' => like.extend(['\\', c]),
            c => like.push(c),
        }
    }
    like
}

statement!(
    Pg,
    /// A pattern leaves out the server's own schemas, and tables of that name that are no outboxes.
    Find { names: Vec<String> => Array<Text>, patterns: Vec<String> => Array<Text> } -> (Oid, Text, Text),
    "SELECT o.oid, n.nspname::text, current_database()::text || '.' || n.oid::regnamespace::text FROM pg_class AS o \
     JOIN pg_namespace AS n ON n.oid = o.relnamespace WHERE o.relname = 'outbox' AND o.relkind IN ('r', 'p') \
     AND (n.nspname = ANY (?) OR n.nspname LIKE ANY (?) AND n.nspname NOT LIKE 'pg\\_%') \
     AND EXISTS (SELECT FROM pg_class AS s WHERE s.relnamespace = n.oid AND s.relname = 'outbox_shard') ORDER BY n.nspname"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_asterisk_makes_a_pattern() {
        let schemas = Schemas::new(["a_b", "tenant_*", "100%\\*"].map(str::to_owned));
        assert_eq!(schemas.names, BTreeSet::from(["a_b".to_owned()]));
        assert_eq!(schemas.patterns, BTreeSet::from(["tenant\\_%".to_owned(), "100\\%\\\\%".to_owned()]));
    }
}
