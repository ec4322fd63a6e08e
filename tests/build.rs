//! Prepares the snippets of pages to be compiled as documentation tests. A page on the web cannot hide lines of a snippet, as
//! rustdoc does with a `#`. So what a snippet needs besides stands before it, in a comment `<!-- with .. -->`, and the first
//! snippet of the page is a part of all others.

use std::path::Path;
use std::{env, fs};

fn main() {
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    for (page, name) in [
        ("../README.md", "readme.md"),
        ("../docs/poolers.md", "poolers.md"),
        ("../docs/testing.md", "testing.md"),
    ] {
        println!("cargo::rerun-if-changed={page}");
        let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{page}: {error}"));
        fs::write(Path::new(&out).join(name), with_hidden_lines(&text)).expect("a page to compile");
    }
}

fn with_hidden_lines(text: &str) -> String {
    let (mut page, mut hidden, mut first) = (String::new(), String::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let is_comment = line.starts_with("<!-- with");
        let is_snippet = line.starts_with("```rust");
        if !is_comment {
            page += &format!("{line}\n");
        }
        if !is_comment && !is_snippet {
            continue;
        }
        let end = if is_comment { "-->" } else { "```" };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != end).collect();
        let as_hidden: String = body.iter().map(|line| format!("# {line}\n")).collect();
        if is_comment {
            hidden = as_hidden;
            continue;
        }
        page += &format!("{hidden}{first}{}\n```\n", body.join("\n"));
        hidden.clear();
        if first.is_empty() {
            first = as_hidden;
        }
    }
    page
}
