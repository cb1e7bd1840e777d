//! The settings as text: what is in force and why, and what there is to set.

use std::fmt::Write;

use crate::config::layers::Source;
use crate::config::{Loaded, keys};
use crate::types::setting::{Fallback, Key, Kind};

/// Width of a comment in the commented TOML, by eye.
const COLUMNS: usize = 100;

impl Loaded {
    /// Every setting as a line of TOML, and where it comes from behind it.
    pub(crate) fn show(&self) -> String {
        let rows: Vec<(String, String)> = keys::all().filter_map(|key| self.show_one(key)).collect();
        let width =
            rows.iter().map(|(left, _)| left.chars().count()).filter(|n| *n < COLUMNS / 2).max().unwrap_or(0);
        let mut text = String::new();
        for (left, right) in rows {
            let _ = writeln!(text, "{left:width$}  # {right}");
        }
        text
    }

    fn show_one(&self, key: &Key) -> Option<(String, String)> {
        Some(match (self.values.entry(key.name), key.fallback) {
            (Some(entry), fallback) => {
                let from = match (&entry.source, fallback) {
                    (Source::Default, Fallback::Derived { from, .. }) => format!("default: {from}"),
                    (Source::Default, _) => "default".to_owned(),
                    (source, _) => source.to_string(),
                };
                (format!("{} = {}", key.name, entry.value.to_toml()), from)
            }
            (None, _) if matches!(key.kind, Kind::Reserved) => return None,
            (None, Fallback::Absent { shown, .. }) => {
                (format!("# {}", key.name), format!("default: {shown}"))
            }
            (None, _) => unreachable!("{} has a value when there is no complaint", key.name),
        })
    }
}

/// All settings with default, rule and purpose, as a TOML file in which everything is commented out.
pub(crate) fn commented_toml() -> String {
    let mut text = String::from(
        "# Every setting of a blockraft node, with its default. A setting is taken from this file, then\n\
         # from the environment (BLOCKRAFT_RAFT__ELECTION_TIMEOUT=2s), then from flags\n\
         # (--set raft.election_timeout=2s). `blockraft check --config FILE` tells all problems at once.\n",
    );
    let mut table = "";
    for key in keys::all() {
        let (of, name) = key.name.split_once('.').expect("a key has a table");
        if of != table {
            table = of;
            let _ = write!(text, "\n[{table}]\n");
        }
        text.push('\n');
        comment(&mut text, key.doc);
        let rule = key.rule();
        if !matches!(key.kind, Kind::Bool | Kind::Reserved) && !rule.is_empty() {
            comment(&mut text, &format!("Rule: {rule}."));
        }
        let _ = match key.fallback {
            _ if matches!(key.kind, Kind::Reserved) => {
                writeln!(text, "# Not available in this version.\n# {name} =")
            }
            Fallback::Required { example } => writeln!(text, "# Required.\n#{name} = {example}"),
            Fallback::Absent { shown, example } => writeln!(text, "# Default: {shown}.\n#{name} = {example}"),
            Fallback::Value(value) => writeln!(text, "#{name} = {value}"),
            Fallback::Derived { from, example } => writeln!(text, "# Default: {from}.\n#{name} = {example}"),
        };
    }
    text
}

/// Breaks a comment into lines.
fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split(' ') {
        if COLUMNS < line.chars().count() + 1 + word.chars().count() {
            let _ = writeln!(text, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}
