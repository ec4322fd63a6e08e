//! The roles of `outbox migrate --roles`, as the statements that make them and say what each may do.

#[cfg(feature = "postgres")]
use diesel_outbox::__private::{quoted_identifier, quoted_literal};

use crate::command::args::RoleSettings;

/// The names of the roles. One that is not named gets nothing.
#[derive(Debug)]
pub(crate) struct Roles<'a> {
    named: Vec<(&'static str, &'a str)>,
    #[cfg_attr(not(any(feature = "mysql", feature = "postgres")), allow(dead_code))]
    inbox_only: bool,
}

impl<'a> Roles<'a> {
    /// An inbox alone has no emitter and no relay.
    pub(crate) fn named_by(settings: &'a RoleSettings, inbox_only: bool) -> Self {
        let all = [
            ("emitter", &settings.emitter_role),
            ("relay", &settings.relay_role),
            ("consumer", &settings.consumer_role),
            ("migrator", &settings.migrator_role),
        ];
        let is_left_out =
            |role, name: &str| name.is_empty() || (inbox_only && ["emitter", "relay"].contains(&role));
        let named = all.into_iter().map(|(role, name)| (role, name.trim()));
        let named = named.filter(|(role, name)| !is_left_out(*role, name));
        Self { named: named.collect(), inbox_only }
    }

    /// The names, for a person to read.
    pub(crate) fn list(&self) -> String {
        self.named.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
    }

    /// The statements on PostgreSQL for the tables in this schema.
    #[cfg(feature = "postgres")]
    pub(super) fn on_postgres(&self, schema: &str) -> Vec<String> {
        let make = |(_, name): &(&str, &str)| {
            let block = format!(
                "BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {}) THEN CREATE ROLE {} NOLOGIN; END IF; END",
                quoted_literal(name),
                quoted_identifier(name)
            );
            format!("DO {};", quoted_literal(&block))
        };
        let mut statements: Vec<String> = self.named.iter().map(make).collect();
        statements.extend(self.grants(include_str!("roles/postgres.sql"), schema, quoted_identifier));
        let migrator = self.named.iter().find(|(role, _)| *role == "migrator");
        statements.extend(migrator.map(|(_, name)| hand_over(schema, name)));
        statements
    }

    /// The statements on MySQL and MariaDB for the tables in this database.
    #[cfg(feature = "mysql")]
    pub(super) fn on_mysql(&self, database: &str) -> Vec<String> {
        let quoted = |name: &str| format!("`{}`", name.replace('`', "``"));
        let make = |(_, name): &(&str, &str)| format!("CREATE ROLE IF NOT EXISTS {};", quoted(name));
        let made = self.named.iter().map(make);
        made.chain(self.grants(include_str!("roles/mysql.sql"), database, quoted)).collect()
    }

    /// The statements of this text for the roles that are named, each with the comment before it.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    fn grants(&self, text: &str, schema: &str, quoted: impl Fn(&str) -> String) -> Vec<String> {
        let (mut statements, mut statement) = (Vec::new(), String::new());
        for line in text.lines().filter(|line| !line.is_empty()) {
            statement.push_str(line);
            if !line.ends_with(';') || line.starts_with("--") {
                statement.push('\n');
                continue;
            }
            let is_of_outbox = line.contains(".outbox") && !line.contains(".outbox_migration");
            if let Some(statement) = self.filled_in(&std::mem::take(&mut statement), &quoted(schema), &quoted)
                && !(self.inbox_only && is_of_outbox)
            {
                statements.push(statement);
            }
        }
        statements
    }

    /// The statement with the names, or `None` if it is about a role that is not named. A name may look like a placeholder.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    fn filled_in(&self, statement: &str, schema: &str, quoted: impl Fn(&str) -> String) -> Option<String> {
        let mut pieces = statement.split('{');
        let mut filled = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let (placeholder, rest) = piece.split_once('}')?;
            match placeholder {
                "schema" => filled.push_str(schema),
                role => filled.push_str(&quoted(self.named.iter().find(|(named, _)| *named == role)?.1)),
            }
            filled.push_str(rest);
        }
        Some(filled)
    }
}

/// Makes this role the owner of each table that is there and is another's. Those that it owns already are not locked.
#[cfg(feature = "postgres")]
fn hand_over(schema: &str, role: &str) -> String {
    let block = format!(
        "DECLARE name pg_catalog.text; BEGIN FOR name IN SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) \
         FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = {} \
         AND c.relname IN ('outbox', 'outbox_shard', 'outbox_slot', 'outbox_dead_letter', 'outbox_requeued', 'outbox_reader', 'outbox_scheduled', \
         'outbox_promotion', 'outbox_migration', 'inbox') \
         AND pg_catalog.pg_get_userbyid(c.relowner) <> {} LOOP EXECUTE pg_catalog.format('ALTER TABLE %s OWNER TO %I', name, {}); \
         END LOOP; END",
        quoted_literal(schema),
        quoted_literal(role),
        quoted_literal(role)
    );
    format!("DO {};", quoted_literal(&block))
}

#[cfg(all(test, feature = "mysql", feature = "postgres"))]
mod tests;
