//! Holds the code against the layer table in src/lib.rs, which is read from
//! there, so that the table people see is the table that is enforced; and holds
//! the few rules of the house that a reader would otherwise have to remember.

use crate::tree::{self, Source};
use std::collections::{BTreeMap, BTreeSet};

/// A row of the table.
#[derive(Debug)]
struct Layer {
    row: u32,
    /// None: everything.
    may_import: Option<BTreeSet<String>>,
}

/// The names between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The table in the header of src/lib.rs, by module.
fn table() -> BTreeMap<String, Layer> {
    let lib = tree::read("src/lib.rs").text;
    let rows: Vec<(u32, Vec<String>, String)> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("//! |")?.strip_suffix('|'))
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [row, modules, may] = cells[..] else { panic!("not three cells: {line}") };
            Some((row.parse().ok()?, quoted(modules), may.to_owned()))
        })
        .collect();
    assert!(rows.len() >= 5, "the layer table in src/lib.rs has lost its rows");
    let at_most = |row: u32| rows.iter().filter(move |(r, ..)| *r <= row).flat_map(|(_, modules, _)| modules.clone());
    let mut out = BTreeMap::new();
    for (row, modules, may) in &rows {
        let mut allowed: BTreeSet<String> = quoted(may).into_iter().collect();
        // "row 0" and "rows 0–1" both end in the highest row that may be seen.
        if let Some(text) = may.strip_prefix("row") {
            let digits = text.chars().skip_while(|c| !c.is_ascii_digit());
            let span: String = digits.take_while(|c| c.is_ascii_digit() || *c == '–').collect();
            let highest = span.rsplit('–').next().unwrap().parse().unwrap();
            allowed.extend(at_most(highest));
        }
        for module in modules {
            let may_import = (may != "everything").then(|| allowed.clone());
            out.insert(module.clone(), Layer { row: *row, may_import });
        }
    }
    out
}

/// The first names after each `crate::`, groups included.
fn imports(code: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for (at, marker) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + marker.len()..];
        match rest.strip_prefix('{') {
            None => out.extend([first_name(rest)]),
            Some(group) => out.extend(group_heads(group)),
        }
    }
    out
}

fn first_name(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The heads of `a::b, c::{d, e}}…`, up to the brace that closes the group.
fn group_heads(text: &str) -> Vec<String> {
    let (mut depth, mut heads, mut fresh) = (0, Vec::new(), true);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && (c.is_alphanumeric() || c == '_') => {
                heads.push(first_name(&text[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    heads
}

/// `src/raft/log_store.rs` belongs to `raft`.
fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    if inside.starts_with("core/") {
        return None;
    }
    Some(inside.split(['/', '.']).next().unwrap())
}

fn crate_files() -> Vec<Source> {
    let mut files = tree::sources(&["src"], &["rs"]);
    files.retain(|f| module_of(&f.path).is_some());
    files
}

#[test]
fn every_import_follows_the_layer_table() {
    let table = table();
    let mut wrong = Vec::new();
    for file in crate_files() {
        let module = module_of(&file.path).unwrap();
        if module == "lib" {
            continue;
        }
        let Some(layer) = table.get(module) else {
            wrong.push(format!("{}: module `{module}` is in no row of the table in src/lib.rs", file.path));
            continue;
        };
        let Some(may_import) = &layer.may_import else { continue };
        for import in imports(&tree::code(&file.text)) {
            let fine = import == module || !table.contains_key(&import) || may_import.contains(&import);
            if !fine {
                wrong.push(format!("{}: row {} must not import `{import}`", file.path, layer.row));
            }
        }
    }
    assert!(wrong.is_empty(), "layers (see src/lib.rs and docs/architecture.md):\n{}", wrong.join("\n"));
}

#[test]
fn openraft_and_rocksdb_stay_in_their_rooms() {
    let rooms = [("openraft", &["raft"][..]), ("rocksdb", &["storage"][..])];
    let mut wrong = Vec::new();
    for file in crate_files() {
        let code = tree::code(&file.text);
        for (name, homes) in rooms {
            let names_it = code.contains(&format!("{name}::")) || code.contains(&format!("use {name}"));
            if names_it && !homes.contains(&module_of(&file.path).unwrap()) {
                wrong.push(format!("{}: names {name}, which only {homes:?} may", file.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_core_depends_on_next_to_nothing() {
    let manifest = tree::read("src/core/Cargo.toml").text;
    let own = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let names = own.lines().filter_map(|l| l.split(['.', '=', ' ']).next()).filter(|n| !n.is_empty());
    let allowed = ["imbl", "postcard", "serde", "sha2", "thiserror"];
    let strangers: Vec<_> = names.filter(|n| !allowed.contains(n) && !n.starts_with('#')).collect();
    assert!(strangers.is_empty(), "nf-core decides and does nothing else; what does it need {strangers:?} for?");
}

#[test]
fn every_file_says_what_it_is_for_and_stays_readable() {
    let mut wrong = Vec::new();
    for file in tree::sources(&["src", "proto", "chaos", "tests"], &["rs"]) {
        let header: String = file.text.lines().take_while(|l| l.starts_with("//!")).collect();
        if header.len() < 24 {
            wrong.push(format!("{}: open with a `//!` paragraph: what it is for, what it does not know", file.path));
        }
        let lines = file.text.lines().count();
        if lines > 600 {
            wrong.push(format!("{}: {lines} lines; split it by noun or command (600 at most)", file.path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_imports_sees_groups_and_paths() {
    let code =
        "use crate::raft::Replica;\nuse crate::{\n  api::{self, rest},\n  exchange,\n};\nlet x = crate::cli::run();";
    let expected = ["api", "cli", "exchange", "raft"].map(str::to_owned);
    assert_eq!(imports(code), expected.into());
    assert_eq!(imports("nf_crate::api"), BTreeSet::new());
}
