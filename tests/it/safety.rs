//! The safety table of `ARCHITECTURE.md`: every rule has a row, and every row names tests that are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Rules of the safety contract.
const RULES: std::ops::RangeInclusive<u32> = 1..=34;
/// Promises that the table names beside them.
const COLUMNS: usize = 4;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The rows, each as its columns.
fn table() -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("readable");
    let (_, behind) = text.split_once("\n## Safety table\n").expect("there is one");
    let (table, _) = behind.split_once("\n## ").expect("it is not the last part");
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    let columns = |row: &str| row.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect();
    rows.map(columns).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Every test by the module it stands in: `cluster` for `tests/it/cluster.rs`, `peer::tests::wire` for
/// `src/peer/tests/wire.rs`; a `mod tests` inside a file, or `foo/tests.rs`, belongs to `foo`, and is named `foo::tests`
/// too.
fn tests() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for dir in ["src", "tests/it"] {
        let mut files = Vec::new();
        collect(&root().join(dir), &mut files);
        for file in files {
            let text = fs::read_to_string(&file).expect("readable");
            let names = text.split("fn ").skip(1).zip(text.split("fn "));
            let is_test = |before: &str| {
                let tail = before.rsplit("\n\n").next().unwrap_or_default();
                tail.contains("#[test]") || tail.contains("#[tokio::test")
            };
            let names: BTreeSet<String> = names
                .filter(|(_, before)| is_test(before))
                .filter_map(|(behind, _)| behind.split_once('(').map(|(name, _)| name.to_owned()))
                .collect();
            let path = file.strip_prefix(root().join(dir)).expect("below it").with_extension("");
            let module = path.to_string_lossy().replace('/', "::");
            for module in [module.trim_end_matches("::tests"), &module] {
                found.entry(module.to_owned()).or_default().extend(names.iter().cloned());
            }
        }
    }
    found
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        match path.is_dir() {
            true => collect(&path, files),
            false if path.extension().is_some_and(|e| e == "rs") => files.push(path),
            false => {}
        }
    }
}

/// The numbers of a row's rules: of "(rules 8, 21b)" 8 and 21.
fn rules(row: &str) -> BTreeSet<u32> {
    let Some((_, list)) = row.rsplit_once("(rule") else { return BTreeSet::new() };
    let list = list.trim_start_matches('s').trim_end_matches(')');
    let number = |word: &str| word.trim().trim_end_matches(char::is_alphabetic).parse().ok();
    list.split(',').filter_map(number).collect()
}

#[test]
fn every_rule_has_a_row_and_every_row_a_test_that_is_there() {
    let (rows, tests) = (table(), tests());
    let mut problems = Vec::new();
    for row in &rows {
        let [what, .., attacked] = &row[..] else { panic!("an empty row") };
        if row.len() != COLUMNS || row.iter().any(String::is_empty) {
            problems.push(format!("{what}: {} columns, or an empty one", row.len()));
        }
        if quoted(attacked).next().is_none() {
            problems.push(format!("{what}: no test is named"));
        }
        for name in quoted(attacked) {
            let is_there = match name.rsplit_once("::") {
                Some((module, test)) => tests.get(module).is_some_and(|of| of.contains(test)),
                None => root().join("tests").join(name).is_file(),
            };
            if !is_there {
                problems.push(format!("{what}: {name} is no test"));
            }
        }
    }
    let covered: BTreeSet<u32> = rows.iter().flat_map(|row| rules(&row[0])).collect();
    problems
        .extend(RULES.filter(|rule| !covered.contains(rule)).map(|rule| format!("rule {rule} has no row")));
    assert!(problems.is_empty(), "{problems:#?}");
}

/// Safety rule 34: its alphas change layout and behaviour between each other.
#[test]
fn openraft_is_pinned() {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("readable");
    let manifest: toml::Table = toml::from_str(&text).expect("TOML");
    for name in ["openraft", "openraft-macros", "openraft-rt", "openraft-rt-tokio"] {
        let dependency = &manifest["dependencies"][name];
        let version = dependency.get("version").unwrap_or(dependency).as_str().expect("a version");
        assert!(version.starts_with('='), "{name} is {version}");
    }
    assert!(root().join("Cargo.lock").is_file());
}
