use super::*;

fn settings(names: [&str; 4]) -> RoleSettings {
    let [emitter_role, relay_role, consumer_role, migrator_role] = names.map(str::to_owned);
    RoleSettings { roles: true, print: true, emitter_role, relay_role, consumer_role, migrator_role }
}

fn statements(names: [&str; 4], schema: &str, inbox_only: bool) -> [String; 2] {
    let settings = settings(names);
    let roles = Roles::named_by(&settings, inbox_only);
    [roles.on_postgres(schema).join("\n"), roles.on_mysql(schema).join("\n")]
}

#[test]
fn every_name_is_quoted_and_a_name_that_looks_like_a_placeholder_is_a_name() {
    let [postgres, mysql] = statements(["e\"m`it", "{consumer}", "o'ne", "m"], "s\"ch`em", false);
    for expected in [
        " ON \"s\"\"ch`em\".outbox TO \"e\"\"m`it\";",
        "GRANT UPDATE ON \"s\"\"ch`em\".outbox_reader TO \"{consumer}\";",
        "rolname = ''o''''ne'') THEN CREATE ROLE \"o''ne\" NOLOGIN",
    ] {
        assert!(postgres.contains(expected), "{expected} is not in {postgres}");
    }
    for expected in
        [" ON `s\"ch``em`.outbox TO `e\"m``it`;", "CREATE ROLE IF NOT EXISTS `o'ne`;", "TO `{consumer}`;"]
    {
        assert!(mysql.contains(expected), "{expected} is not in {mysql}");
    }
}

#[test]
fn a_role_without_a_name_gets_nothing() {
    for text in statements(["emit", "", " ", ""], "s", false) {
        assert!(text.contains("GRANT INSERT") && !text.contains('{'), "{text}");
        let of_others = ["inbox", "outbox_shard", "CREATE ON"];
        assert!(of_others.iter().all(|other| !text.contains(other)), "{text}");
    }
}

#[test]
fn an_inbox_alone_needs_a_consumer_and_a_migrator() {
    for text in statements(["emit", "relay", "consume", "migrate"], "s", true) {
        assert!(text.contains("consume") && text.contains("migrate") && text.contains("inbox"), "{text}");
        let has_others = ["emit\"", "emit`", "relay\"", "relay`", "outbox TO", "outbox_shard TO"];
        assert!(has_others.iter().all(|other| !text.contains(other)), "{text}");
    }
}

/// The page shows what the command prints.
#[test]
fn the_pages_show_the_statements_for_the_default_names() {
    let page = |name: &str| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/");
        std::fs::read_to_string(format!("{folder}{name}")).expect("a page")
    };
    let settings = settings(["outbox_emitter", "outbox_relay", "outbox_consumer", "outbox_migrator"]);
    let roles = Roles::named_by(&settings, false);
    for (page, statements) in
        [(page("roles.md"), roles.on_postgres("public")), (page("mysql.md"), roles.on_mysql("shop"))]
    {
        let grants: Vec<String> = statements
            .iter()
            .filter_map(|statement| statement.lines().find(|line| line.starts_with("GRANT ")))
            .map(|line| line.replace(['"', '`'], ""))
            .collect();
        assert!(grants.len() > 10, "{grants:?}");
        for grant in grants {
            assert!(page.contains(&grant), "the page does not have {grant}");
        }
    }
}
