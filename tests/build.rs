//! Prepares the snippets of the README and of all pages in `docs` to be compiled as documentation tests. A page on the web cannot hide lines of a snippet, as
//! rustdoc does with a `#`. So what a snippet needs besides stands before it, in a comment `<!-- with .. -->`, and the first
//! snippet of the page is a part of all others.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=../docs");
    println!("cargo::rerun-if-changed=../README.md");
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    let out = Path::new(&out);
    let guide = fs::read_dir("../docs").expect("the guide").map(|entry| entry.expect("a page").path());
    let mut pages: Vec<PathBuf> =
        guide.filter(|path| path.extension().is_some_and(|is| is == "md")).collect();
    pages.push("../README.md".into());
    pages.sort();
    let mut tests = String::new();
    for (number, page) in pages.iter().enumerate() {
        let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        if text.contains("\n```rust") {
            // Rustdoc names its tests after the type.
            let name = page.file_stem().expect("a name").to_string_lossy().replace('-', "_");
            let file = out.join(format!("{number}.md"));
            fs::write(&file, with_hidden_lines(&text)).expect("a page to compile");
            tests +=
                &format!("#[doc = include_str!({file:?})]\n#[allow(non_camel_case_types)]\nstruct {name};\n");
        }
    }
    fs::write(out.join("pages.rs"), tests).expect("the pages to compile");
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
