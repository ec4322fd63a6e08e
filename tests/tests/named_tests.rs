//! The tests that the docs name must exist.

use std::fs;
use std::path::Path;

/// Returns what stands between backquotes and names a test: words with `::` between them.
fn named(page: &str) -> Vec<&str> {
    let is_word = |word: &str| word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    page.split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.contains("::") && code.split("::").all(is_word))
        .collect()
}

/// Returns whether a program has this test, or exists if only the program is named.
fn exists(root: &Path, name: &str) -> bool {
    let Some((path, test)) = name.rsplit_once("::") else { return false };
    let file = format!("tests/{}.rs", path.replace("::", "/"));
    let texts =
        ["tests", "tests-seaorm", "chaos"].map(|package| fs::read_to_string(root.join(package).join(&file)));
    texts.into_iter().flatten().any(|text| test.is_empty() || text.contains(&format!("fn {test}(")))
}

#[test]
fn each_test_that_a_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (page, at_least) in [("docs/databases.md", 31), ("docs/guarantees.md", 25)] {
        let text = fs::read_to_string(root.join(page)).unwrap();
        let named = named(&text);
        assert!(named.len() >= at_least, "{page}: {named:?}");
        let missing: Vec<&&str> = named.iter().filter(|name| !exists(&root, name)).collect();
        assert!(missing.is_empty(), "{page} names tests that do not exist: {missing:?}");
    }
}
