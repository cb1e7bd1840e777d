//! The rules of the style guide that a compiler does not check.
//!
//! The table of modules says who may import whom; everything else here is a list of what no file
//! contains. Comments and texts are taken out first, so a comment may name what it likes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file. Longer ones are named with the reason.
const LINES_MAX: usize = 500;
const LONG_FILES: &[(&str, &str)] = &[];
/// Lines of `main.rs`.
const MAIN_LINES_MAX: usize = 100;

/// What a module may import of the others.
enum May {
    Import(&'static [&'static str]),
    /// These, and from every other one its `Config`.
    ImportAndConfigs(&'static [&'static str]),
    /// All but these.
    ImportAllBut(&'static [&'static str]),
}

const MODULES: &[(&str, May)] = &[
    ("types", May::Import(&[])),
    ("telemetry", May::Import(&[])),
    ("machine", May::Import(&["types"])),
    ("raft", May::Import(&["types", "machine", "telemetry"])),
    ("instants", May::Import(&["types", "telemetry"])),
    ("store", May::Import(&["types", "machine", "raft", "instants", "telemetry"])),
    ("consensus", May::Import(&["types", "machine", "raft", "instants", "telemetry"])),
    ("peer", May::Import(&["types", "raft", "store", "consensus", "instants", "telemetry"])),
    ("feed", May::Import(&["types", "store", "instants", "telemetry"])),
    ("audit", May::Import(&["types", "store", "telemetry"])),
    // The commands it proposes and the view it judges are the machine's.
    ("leadership", May::Import(&["types", "machine", "consensus", "store", "audit", "telemetry"])),
    ("proposals", May::Import(&["types", "machine", "consensus", "leadership", "instants", "telemetry"])),
    (
        "api",
        May::Import(&[
            "types",
            "store",
            "consensus",
            "leadership",
            "proposals",
            "feed",
            "audit",
            "instants",
            "telemetry",
        ]),
    ),
    ("client", May::Import(&["types"])),
    ("config", May::ImportAndConfigs(&["types"])),
    ("node", May::ImportAllBut(&["cli"])),
    ("cli", May::ImportAllBut(&[])),
];

/// Crates that only some modules may name.
const CRATES: &[(&str, &[&str])] = &[
    ("openraft", &["raft", "store", "peer", "consensus"]),
    ("rocksdb", &["store"]),
    ("jsonrpsee", &["api", "client"]),
];

/// What stands in no file, with what to do instead. In two parts, so that this file passes.
const NOWHERE: &[(&str, &str, &str)] = &[
    ("TO", "DO", "say what goes wrong until then, or do it"),
    ("FIX", "ME", "say what goes wrong until then, or do it"),
    ("XX", "X", "say what goes wrong until then, or do it"),
];
/// As above, in code alone.
const NOWHERE_IN_CODE: &[(&str, &str, &str)] = &[
    ("#[ign", "ore", "a test that is not run shows nothing"),
    ("should_", "panic", "assert on the error"),
    ("use crate::", "{", "one line per module, so that this test and a reader see who imports whom"),
];
/// No module is called so: a function with no home shows a missing noun.
const NO_NAMES: &[&str] = &["utils", "util", "common", "helpers", "misc"];

struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
    /// Without comments, and with empty texts.
    code: String,
}

impl Source {
    /// The top-level module that a file under `src` belongs to; the roots belong to none.
    fn module(&self) -> Option<&str> {
        let inner = self.path.strip_prefix("src/")?;
        let first = inner.split('/').next()?;
        let name = first.trim_end_matches(".rs");
        (name != "lib" && name != "main").then_some(name)
    }

    /// The code without a trailing `mod tests`, which may use what it likes.
    fn product_code(&self) -> &str {
        let is_test_file = self.path.ends_with("/tests.rs") || self.path.contains("/tests/");
        match self.code.find("#[cfg(test)]\nmod tests {") {
            _ if is_test_file => "",
            Some(at) => &self.code[..at],
            None => &self.code,
        }
    }
}

fn sources(dirs: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for dir in dirs {
        collect(&root.join(dir), &mut paths);
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("readable");
        let path = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
        Source { path, code: strip(&text), text }
    };
    paths.into_iter().map(read).collect()
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|e| e == "rs") {
            paths.push(path);
        }
    }
}

/// Code without comments and with empty texts; lines stay.
fn strip(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let at = |i: usize| bytes.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < bytes.len() {
        let previous = if i == 0 { ' ' } else { at(i - 1) };
        let is_word = previous.is_alphanumeric() || previous == '_';
        if at(i) == '/' && at(i + 1) == '/' {
            while i < bytes.len() && at(i) != '\n' {
                i += 1;
            }
        } else if at(i) == '/' && at(i + 1) == '*' {
            i = skip_block_comment(&bytes, i, &mut out);
        } else if at(i) == 'r'
            && !is_word
            && matches!(at(i + 1), '"' | '#')
            && raw_hashes(&bytes, i).is_some()
        {
            i = skip_raw_text(&bytes, i, &mut out);
        } else if at(i) == '"' {
            i = skip_text(&bytes, i, &mut out);
        } else if at(i) == '\'' && at(i + 1) == '\\' {
            // An escaped character: '\'' and '\\' among them.
            i += 3;
            while i < bytes.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
            out.push_str("' '");
        } else if at(i) == '\'' && at(i + 2) == '\'' {
            i += 3;
            out.push_str("' '");
        } else {
            out.push(at(i));
            i += 1;
        }
    }
    out
}

fn skip_block_comment(text: &[char], mut i: usize, out: &mut String) -> usize {
    let mut depth = 0;
    while i < text.len() {
        match (text[i], text.get(i + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                i += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    break;
                }
            }
            (c, _) => {
                if c == '\n' {
                    out.push(c);
                }
                i += 1;
            }
        }
    }
    i
}

/// Number of `#` in front of a raw text that begins at `r`.
fn raw_hashes(text: &[char], r: usize) -> Option<usize> {
    let n = text[r + 1..].iter().take_while(|c| **c == '#').count();
    (text.get(r + 1 + n) == Some(&'"')).then_some(n)
}

fn skip_raw_text(text: &[char], r: usize, out: &mut String) -> usize {
    let n = raw_hashes(text, r).unwrap_or(0);
    let mut i = r + 2 + n;
    out.push_str("\"\"");
    while i < text.len() {
        let is_end = text[i] == '"' && text[i + 1..].iter().take(n).filter(|c| **c == '#').count() == n;
        if is_end {
            return i + 1 + n;
        }
        if text[i] == '\n' {
            out.push('\n');
        }
        i += 1;
    }
    i
}

fn skip_text(text: &[char], quote: usize, out: &mut String) -> usize {
    let mut i = quote + 1;
    out.push_str("\"\"");
    while i < text.len() && text[i] != '"' {
        if text[i] == '\n' {
            out.push('\n');
        }
        i += if text[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// Every path after `crate::`, up to where it ends, with its line.
fn crate_paths(code: &str) -> Vec<(usize, &str)> {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '{');
    let mut out = Vec::new();
    for (n, line) in code.lines().enumerate() {
        for (at, _) in line.match_indices("crate::") {
            let is_word = line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
            let rest = &line[at + "crate::".len()..];
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            if !is_word {
                out.push((n + 1, &rest[..end]));
            }
        }
    }
    out
}

/// Whether a word stands in code by itself.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[track_caller]
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn modules_import_only_what_the_table_says() {
    let table: BTreeMap<&str, &May> = MODULES.iter().map(|(name, may)| (*name, may)).collect();
    let mut problems = Vec::new();
    for source in sources(&["src"]) {
        let Some(module) = source.module() else { continue };
        let Some(may) = table.get(module) else {
            problems.push(format!("{}: module {module} is not in the table", source.path));
            continue;
        };
        for (line, path) in crate_paths(source.product_code()) {
            let other = path.split([':', '{']).next().unwrap_or_default();
            if other == module || !table.contains_key(other) {
                continue;
            }
            let is_config = path.rsplit("::").next().is_some_and(|last| last.starts_with("Config"));
            let is_allowed = match may {
                May::Import(allowed) => allowed.contains(&other),
                May::ImportAndConfigs(allowed) => allowed.contains(&other) || is_config,
                May::ImportAllBut(denied) => !denied.contains(&other),
            };
            if !is_allowed {
                problems.push(format!("{}:{line}: {module} imports crate::{path}", source.path));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn the_large_crates_are_named_only_where_they_belong() {
    let mut problems = Vec::new();
    for source in sources(&["src"]) {
        let module = source.module().unwrap_or("the root");
        for (name, modules) in CRATES.iter().filter(|(_, modules)| !modules.contains(&module)) {
            for (n, line) in source.code.lines().enumerate().filter(|(_, line)| has_word(line, name)) {
                let allowed = modules.join(", ");
                problems.push(format!(
                    "{}:{}: {name} outside {allowed}: {}",
                    source.path,
                    n + 1,
                    line.trim()
                ));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn no_file_is_too_long() {
    let mut problems = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        let lines = source.text.lines().count();
        let reason = LONG_FILES.iter().find(|(path, _)| *path == source.path);
        match reason {
            None if LINES_MAX < lines => problems.push(format!("{}: {lines} lines", source.path)),
            Some(_) if lines <= LINES_MAX => {
                problems.push(format!("{}: {lines} lines, and still excused", source.path));
            }
            _ => {}
        }
        if source.path == "src/main.rs" && MAIN_LINES_MAX < lines {
            problems.push(format!("{}: {lines} lines", source.path));
        }
    }
    assert_none(&problems);
}

#[test]
fn nothing_that_is_banned_stands_anywhere() {
    let mut problems = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        let lines = source.text.lines().zip(source.code.lines()).enumerate();
        for (n, (text, code)) in lines {
            for (a, b, instead) in NOWHERE {
                if has_word(text, &format!("{a}{b}")) {
                    problems.push(format!("{}:{}: {a}{b}: {instead}", source.path, n + 1));
                }
            }
            for (a, b, instead) in NOWHERE_IN_CODE {
                if code.contains(&format!("{a}{b}")) {
                    problems.push(format!("{}:{}: {a}{b}: {instead}", source.path, n + 1));
                }
            }
            let code = code.trim();
            if code.starts_with("pub") && code.contains("use ") && code.ends_with("::*;") {
                problems.push(format!("{}:{}: {code}: name what is public", source.path, n + 1));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn paths_start_at_the_crate_and_modules_have_names() {
    let mut problems = Vec::new();
    for source in sources(&["src"]) {
        for (n, line) in source.product_code().lines().enumerate() {
            if has_word(line, "super") && line.contains("super::") {
                problems.push(format!("{}:{}: super:: outside mod tests", source.path, n + 1));
            }
        }
        for part in source.path.trim_end_matches(".rs").split('/') {
            if NO_NAMES.contains(&part) {
                problems.push(format!("{}: {part} names nothing", source.path));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn nothing_names_the_machine_it_was_made_on() {
    // A path of somebody's own folder in the repository works for nobody else.
    let mut problems = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        for (n, line) in source.text.lines().enumerate() {
            let is_own = ["/home/", "/root/"].iter().any(|path| line.contains(&format!("\"{path}")));
            if is_own && source.path != "tests/it/tidy.rs" {
                problems.push(format!("{}:{}: {}", source.path, n + 1, line.trim()));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn the_stripper_leaves_code_and_takes_comments_and_texts() {
    let text =
        "a // crate::x\nb /* crate::y /* z */ \n*/ c \"crate::\\\" d\" e r#\"crate::\"q\"# 'x' '\\'' &'a f";
    let code = strip(text);
    assert_eq!(code, "a \nb \n c \"\" e \"\" ' ' ' ' &'a f");
    assert_eq!(code.lines().count(), text.lines().count());
    let paths: Vec<_> =
        crate_paths("use crate::a::b;\nuse mycrate::c; x(crate::d::{e, f})").into_iter().collect();
    assert_eq!(paths, [(1, "a::b"), (2, "d::{e")]);
    let modules: BTreeSet<_> = MODULES.iter().map(|(name, _)| *name).collect();
    assert_eq!(modules.len(), MODULES.len(), "each module once");
}
