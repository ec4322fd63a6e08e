//! `outbox debezium setup-sql` for MySQL and MariaDB

use super::{DebeziumOutbox, quoted};
use crate::command::database::mysql::Flavor;

/// The statements that an administrator runs before Debezium starts.
pub(super) fn text(outbox: &DebeziumOutbox) -> String {
    let user = format!("{}@'%'", quoted(&outbox.user));
    let database = quoted(&outbox.database);
    let monitor = match outbox.flavor {
        Flavor::Mysql => "REPLICATION CLIENT",
        Flavor::Mariadb => "BINLOG MONITOR",
    };
    format!(
        "-- Run this as an administrator of the server, one statement after the other.

-- The user that Debezium connects as. A new one is locked until you give it a password:
-- ALTER USER {user} IDENTIFIED BY '..' ACCOUNT UNLOCK
CREATE USER IF NOT EXISTS {user} ACCOUNT LOCK;

-- To read the binlog, and to ask for its files. They hold the changes of all databases; Debezium passes over the others.
GRANT REPLICATION SLAVE, {monitor} ON *.* TO {user};

-- Debezium reads the columns' types from the table, and no row of it.
GRANT SELECT ON {database}.outbox TO {user};

-- `outbox debezium check` needs this to see how far relays have come.
GRANT SELECT ON {database}.outbox_shard TO {user};
"
    )
}

#[cfg(test)]
mod tests {
    use diesel_outbox_relay::mysql::Opts;

    use super::*;

    #[test]
    fn names_are_quoted() {
        let opts = Opts::from_url("mysql://a%60n'n@db/sh%60op").expect("a URL");
        let outbox = DebeziumOutbox::named_by(&opts, Flavor::Mariadb).expect("an outbox");
        let sql = text(&outbox);
        assert!(sql.contains("GRANT SELECT ON `sh``op`.outbox TO `a``n'n`@'%';"), "{sql}");
    }
}
