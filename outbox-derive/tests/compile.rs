//! The compiler's errors for mistakes. Each fixture in `tests/fail` is named after the rule that it breaks, and gets exactly one
//! error.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn mistakes_are_explained() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/lints.rs");
    cases.compile_fail("tests/fail/*.rs");
}

#[test]
fn each_mistake_gets_exactly_one_error() {
    let files = |extension: &str| -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fail");
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    };
    let messages = files("stderr");
    assert_eq!(messages.len(), files("rs").len());
    for path in messages {
        let message = fs::read_to_string(&path).unwrap();
        let errors = message.lines().filter(|line| line.starts_with("error")).count();
        let warnings = message.lines().filter(|line| line.starts_with("warning")).count();
        assert_eq!((errors, warnings), (1, 0), "in {}", path.display());
    }
}
