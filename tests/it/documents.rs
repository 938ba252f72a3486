//! Holds the documents to what is there: each command in them is run by a test
//! that is named here, each link leads to a page and a section that are there, no
//! line is too wide to read, and no path or address of anybody's own machine has
//! slipped in. It does not run the commands.

use crate::tree::{self, Source};
use std::collections::BTreeSet;

/// (how the command begins, the file that runs it, what to find in that file)
const RUN_BY: &[(&str, &str, &str)] = &[
    ("make run", "tests/integration/test_make.py", "[\"make\", \"run\""),
    ("make test", ".ci/run", "make test"),
    ("make e2e", ".ci/run", "make e2e"),
    ("make e2e-llm", "tests/budgets.toml", "[\"e2e-llm\"]"),
    ("make sim", "tests/budgets.toml", "[\"sim\"]"),
    ("make soak", "tests/budgets.toml", "[\"soak\"]"),
    // By hand: minutes for each target. The same targets run in tests/it/parsers.rs.
    ("make fuzz", "Makefile", "tests/fuzz/run"),
    ("make bench", "tests/budgets.toml", "[\"bench\"]"),
    ("make release", "Makefile", "release:"),
    ("export PATH", "Makefile", "path:"),
    // Everything else in the README and the pages for operators is run as it stands there.
    ("nf ", "tests/integration/test_readme.py", "README.md"),
    ("curl ", "tests/integration/test_readme.py", "docs/services.md"),
    ("cat ", "tests/integration/test_readme.py", "README.md"),
    ("tests/run ", "Makefile", "tests/run test"),
    ("nf-chaos ", "tests/budgets.toml", "nf-chaos failover"),
];

fn documents() -> Vec<Source> {
    let mut out = tree::sources(&["docs", "chaos", "tests"], &["md"]);
    // Examples are walked by tests/e2e, in its own words.
    out.retain(|d| !d.path.starts_with("docs/examples/"));
    out.extend([tree::read("README.md"), tree::read("CHANGELOG.md")]);
    out
}

/// Commands in ```sh fences: one a line, continuations joined, comments dropped.
fn commands(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let (mut inside, mut open) = (false, false);
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            inside = !inside && language.trim() == "sh";
            continue;
        }
        let code = line.split(" # ").next().unwrap_or("").trim();
        if !inside || code.is_empty() || code.starts_with('#') {
            continue;
        }
        let part = code.strip_suffix('\\').unwrap_or(code).trim();
        match (open, out.last_mut()) {
            (true, Some(last)) => *last = format!("{last} {part}"),
            _ => out.push(part.to_owned()),
        }
        open = code.ends_with('\\');
    }
    out
}

#[test]
fn every_documented_command_is_run_by_a_test() {
    let (mut wrong, mut used) = (Vec::new(), BTreeSet::new());
    for document in documents() {
        for command in commands(&document.text) {
            let matching = RUN_BY.iter().filter(|(start, ..)| command.starts_with(start));
            match matching.max_by_key(|(start, ..)| start.len()) {
                Some((start, ..)) => drop(used.insert(*start)),
                None => wrong.push(format!("{}: nobody runs `{command}`; add it to RUN_BY", document.path)),
            }
        }
    }
    for (start, file, needle) in RUN_BY {
        let there = std::fs::read_to_string(tree::root().join(file)).is_ok_and(|text| text.contains(needle));
        if !there {
            wrong.push(format!("`{start}` is said to be run by {file}, which does not contain {needle:?}"));
        }
        if !used.contains(start) {
            wrong.push(format!("`{start}` is in RUN_BY and in no document"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Lines outside of fences, each with its number.
fn unfenced(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// A heading's anchor, as forges make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

fn has_section(text: &str, wanted: &str) -> bool {
    let headings = unfenced(text).filter(|(_, line)| line.starts_with('#'));
    headings.map(|(_, line)| anchor(line.trim_start_matches('#').trim())).any(|found| found == wanted)
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    for document in documents() {
        let here = tree::root().join(&document.path);
        for (at, _) in document.text.match_indices("](") {
            let target = document.text[at + 2..].split([')', ' ']).next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (file, section) = target.split_once('#').unwrap_or((target, ""));
            let page = if file.is_empty() { here.clone() } else { here.parent().unwrap().join(file) };
            let there = std::fs::read_to_string(&page).is_ok_and(|text| has_section(&text, section));
            if !page.exists() || !section.is_empty() && !there {
                wrong.push(format!("{}: {target} is not there", document.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A line as it is read: of a link, its text alone.
fn as_read(line: &str) -> String {
    let mut parts = line.split("](");
    let first = parts.next().unwrap_or("").to_owned();
    parts.fold(first, |read, part| read + part.split_once(')').map_or(part, |(_target, rest)| rest))
}

#[test]
fn prose_is_no_wider_than_code() {
    let widest = 120; // rustfmt.toml: max_width
    let mut pages = tree::sources(&["docs"], &["md"]);
    pages.push(tree::read("README.md"));
    let mut wrong = Vec::new();
    for page in &pages {
        // A row of a table is one line, however long.
        for (number, line) in unfenced(&page.text).filter(|(_, line)| !line.starts_with('|')) {
            let width = as_read(line).chars().count();
            if width > widest {
                wrong.push(format!("{}:{number}: {width} columns, {widest} at most: wrap it", page.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_tests_that_are_said_to_hold_a_rule_exist() {
    let page = tree::read("docs/security-tests.md").text;
    let code = tree::sources(&["src", "tests"], &["rs", "py"]);
    let is_test = |name: &&str| name.len() > 9 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let named: BTreeSet<&str> = page.split('`').skip(1).step_by(2).filter(is_test).collect();
    let there = |name: &str| {
        let found = ["fn ", "def "].map(|word| format!("{word}{name}("));
        code.iter().any(|file| found.iter().any(|found| file.text.contains(found.as_str())))
    };
    let missing: Vec<_> = named.iter().filter(|name| !there(name)).collect();
    assert!(named.len() > 40 && missing.is_empty(), "{} names, not there: {missing:?}", named.len());
    for row in page.lines().filter(|row| row.starts_with("| ")) {
        assert!(row.contains('`') || row.contains("*none") || row.contains(" test |"), "no test and no word: {row}");
    }
}

#[test]
fn every_test_target_is_in_a_suite() {
    let suites = tree::read("tests/budgets.toml").text;
    let manifests = ["Cargo.toml", "src/core/Cargo.toml", "proto/Cargo.toml", "chaos/Cargo.toml"].map(tree::read);
    let mut forgotten = Vec::new();
    for manifest in &manifests {
        for section in manifest.text.split("[[test]]").skip(1) {
            let name = section.lines().find_map(|l| l.strip_prefix("name = ")).unwrap_or("\"?\"").trim_matches('"');
            if !suites.contains(&format!("--test {name}")) {
                forgotten.push(format!("{}: test `{name}` is in no suite of tests/budgets.toml", manifest.path));
            }
        }
    }
    assert!(forgotten.is_empty(), "{}", forgotten.join("\n"));
}

#[test]
fn nothing_names_a_machine_of_ours() {
    // In two parts, so that this file does not find itself.
    let banned = [concat!("/wo", "rk/"), concat!("/ro", "ot/."), concat!("/home", "/"), concat!("BEGIN PRIV", "ATE")];
    let kinds = ["rs", "md", "toml", "py", "proto", "sh", "json", "yml", "yaml"];
    let mut files = tree::sources(&["src", "proto", "chaos", "tests", "docs", "cluster"], &kinds);
    files.extend(["README.md", "CHANGELOG.md", "Makefile", "Cargo.toml"].map(tree::read));
    let found = files.iter().flat_map(|f| banned.iter().filter(|b| f.text.contains(**b)).map(|b| (&f.path, *b)));
    let found: Vec<_> = found.collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn commands_are_found_in_fences_only() {
    let text = "`make x`\n```sh\n# a comment\nmake test   # why\ncurl -X POST \\\n  http://h\n```\n```\noutput\n```\n";
    assert_eq!(commands(text), ["make test", "curl -X POST http://h"]);
}

#[test]
fn headings_and_links_are_read_as_people_see_them() {
    assert_eq!(anchor("What a replica's program gets"), "what-a-replicas-program-gets");
    assert_eq!(anchor("Exit codes of `nf`"), "exit-codes-of-nf");
    assert!(has_section("# One\n```\n# two\n```\n## Three\n", "three"));
    assert!(!has_section("# One\n```\n# two\n```\n", "two"), "a comment in a fence is no heading");
    assert_eq!(as_read("a [b c](d/e.md#f), and [g](h)."), "a [b c, and [g.");
}
