//! The layers that give values: a TOML file, over it the environment, over it flags.
//!
//! What no key knows is a problem here; whether a value is right is not asked.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use crate::config::{Complaint, keys};
use crate::types::setting::{Given, Key, Kind, nearest};

const ENV_PREFIX: &str = "BLOCKRAFT_";

/// What a node or a tool is given to read its settings from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) file: Option<PathBuf>,
    /// TOML text instead of a file.
    pub(crate) text: Option<String>,
    pub(crate) env: Vec<(OsString, OsString)>,
    /// `table.key=value` each.
    pub(crate) set: Vec<String>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Default,
    File { path: PathBuf, line: usize },
    Env(String),
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(text) => write!(f, "--set {text}"),
        }
    }
}

/// The topmost value given for each key.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    pub(crate) given: BTreeMap<&'static str, (Given, Source)>,
    pub(crate) complaints: Vec<Complaint>,
}

pub(crate) fn read(sources: &Sources) -> Layers {
    let mut layers = Layers::default();
    if let Some(path) = &sources.file {
        layers.read_file(path);
    }
    if let Some(text) = &sources.text {
        layers.read_text(Path::new("the given text"), text);
    }
    layers.read_env(&sources.env);
    for text in &sources.set {
        layers.read_flag(text);
    }
    layers
}

impl Layers {
    fn read_file(&mut self, path: &Path) {
        let name = path.display().to_string();
        let text = match std::fs::read(path) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(error) => {
                    let what = format!("the file is not UTF-8 at byte {}", error.utf8_error().valid_up_to());
                    self.complaints.push(Complaint::of(name, what));
                    return;
                }
            },
            Err(error) => {
                self.complaints.push(Complaint::of(name, format!("cannot be read: {error}")));
                return;
            }
        };
        self.read_text(path, &text);
    }

    fn read_text(&mut self, path: &Path, text: &str) {
        let name = path.display();
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map_or(1, |span| line_of(text, span.start));
            self.complaints.push(Complaint::of(format!("{name}:{at}"), format!("TOML: {}", error.message())));
        }
        let mut found = Vec::new();
        walk(text, table.get_ref(), "", &mut found);
        for (key, at, given) in found {
            let source = Source::File { path: path.to_owned(), line: line_of(text, at) };
            self.put(&key, given, source);
        }
    }

    fn read_env(&mut self, env: &[(OsString, OsString)]) {
        let mut env: Vec<_> =
            env.iter().filter(|(n, _)| n.as_bytes().starts_with(ENV_PREFIX.as_bytes())).collect();
        // One order of the messages, whatever the order of the environment.
        env.sort();
        for (name, value) in env {
            let Some(name) = name.to_str() else { continue };
            let rest = &name[ENV_PREFIX.len()..];
            if !rest.contains("__") {
                self.look_for_single_underscores(name, rest);
                continue;
            }
            let key = rest.replace("__", ".").to_ascii_lowercase();
            let source = Source::Env(name.to_owned());
            match value.to_str() {
                Some(text) => self.put_text(&key, text, source),
                None => self.complaints.push(Complaint::at(&key, None, "must be UTF-8", source)),
            }
        }
    }

    /// `BLOCKRAFT_PORT` comes from an orchestrator, `BLOCKRAFT_RAFT_ELECTION_TIMEOUT` from a mistake.
    fn look_for_single_underscores(&mut self, name: &str, rest: &str) {
        let rest = rest.to_ascii_lowercase();
        if let Some(key) = keys::all().find(|key| key.name.replace('.', "_") == rest) {
            let rule = format!("a setting is named with two underscores: {}", key.env_name());
            self.complaints.push(Complaint::at(key.name, None, rule, Source::Env(name.to_owned())));
        }
    }

    fn read_flag(&mut self, text: &str) {
        let source = Source::Flag(text.to_owned());
        match text.split_once('=') {
            Some((key, value)) => self.put_text(key.trim(), value.trim(), source),
            None => self.complaints.push(Complaint::at(text, None, "must be table.key=value", source)),
        }
    }

    /// A value outside of a file: TOML, or a plain text.
    fn put_text(&mut self, key: &str, text: &str, source: Source) {
        let parsed = DeValue::parse(text).ok().map(|value| from_toml(value.get_ref()));
        let given = match (keys::find(key).map(|k| k.kind), parsed) {
            (
                Some(Kind::Text(_) | Kind::Choice(_) | Kind::Duration { .. } | Kind::Size { .. }),
                Some(parsed),
            ) if !matches!(parsed, Given::Text(_)) => Given::Text(text.to_owned()),
            (_, Some(parsed)) => parsed,
            (_, None) => Given::Text(text.to_owned()),
        };
        self.put(key, given, source);
    }

    fn put(&mut self, name: &str, given: Given, source: Source) {
        match keys::find(name) {
            Some(key) => {
                self.given.insert(key.name, (given, source));
            }
            None => self.complaints.push(unknown(name, &given, source)),
        }
    }
}

fn unknown(name: &str, given: &Given, source: Source) -> Complaint {
    let is_table = |key: &Key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    let rule = if keys::all().any(is_table) {
        format!("{name} is a table of settings")
    } else {
        let known = nearest(name, keys::all().map(|k| k.name));
        format!("there is no such key; the nearest is {known}")
    };
    Complaint::at(name, Some(given.to_toml()), rule, source)
}

/// Collects all keys of a file, with the place where each stands. A table that holds known keys is
/// entered, an unknown one too, so that each of its keys is named.
fn walk(text: &str, table: &DeTable<'_>, prefix: &str, found: &mut Vec<(String, usize, Given)>) {
    let mut rows: Vec<_> = table.iter().collect();
    rows.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in rows {
        let name =
            if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        match value.get_ref() {
            DeValue::Table(inner) if keys::find(&name).is_none() && !inner.is_empty() => {
                walk(text, inner, &name, found);
            }
            // An empty table of settings sets nothing.
            DeValue::Table(_) if keys::all().any(|k| k.name.starts_with(&format!("{name}."))) => {}
            value => found.push((name, key.span().start, from_toml(value))),
        }
    }
}

fn from_toml(value: &DeValue<'_>) -> Given {
    match value {
        DeValue::String(text) => Given::Text(text.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or(Given::Other("an integer out of range"), Given::Integer),
        DeValue::Float(number) => number.as_str().parse().map_or(Given::Other("a float"), Given::Float),
        DeValue::Boolean(value) => Given::Bool(*value),
        DeValue::Datetime(_) => Given::Other("a date"),
        DeValue::Array(items) => Given::List(items.iter().map(|item| from_toml(item.get_ref())).collect()),
        DeValue::Table(table) => Given::Table(
            table
                .iter()
                .map(|(key, value)| (key.get_ref().to_string(), from_toml(value.get_ref())))
                .collect(),
        ),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count()
}

/// A default of the table of keys.
///
/// # Panics
/// When it is no TOML.
pub(crate) fn parse(toml: &str) -> Given {
    from_toml(DeValue::parse(toml).expect("defaults are TOML").get_ref())
}
