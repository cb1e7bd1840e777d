//! Answers for people.
//!
//! Reads JSON by name and shows `-` for what is absent: a node may be older or newer than this program.

pub(crate) mod block;
pub(crate) mod members;
pub(crate) mod records;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod why;

use serde_json::Value;

use crate::cli::{
    exit,
    table::{Cell, Table, Tone},
    units,
};

/// What is printed, and the exit code the answer means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) text: String,
    pub(crate) code: u8,
}

impl From<String> for Shown {
    fn from(text: String) -> Self {
        Self { text, code: exit::DONE }
    }
}

/// From an answer to what is printed; the flag is for colours.
pub(crate) type Render = fn(&Value, bool) -> Shown;

/// One line a field, for answers that need no words of their own.
pub(crate) fn generic(answer: &Value, is_colored: bool) -> Shown {
    let mut table = Table::pairs();
    match answer {
        Value::Object(map) => {
            for (name, value) in map {
                table.pair(name, text(value));
            }
        }
        other => table.row([text(other).into()]),
    }
    table.render(is_colored).into()
}

/// A value in one line.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(s) if s.is_empty() => "-".into(),
        Value::String(s) => s.clone(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn is_true(value: &Value) -> bool {
    value.as_bool().unwrap_or(false)
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// Unix milliseconds as a time; `-` when there is none.
fn time(value: &Value) -> String {
    value.as_u64().map_or("-".into(), units::time_ms)
}

/// Milliseconds as a duration; `-` when there is none.
pub(crate) fn span(value: &Value) -> String {
    value.as_u64().map_or("-".into(), units::duration_ms)
}

fn size(value: &Value) -> String {
    value.as_u64().map_or("-".into(), units::size)
}

/// Bytes that a `0x` text stands for.
fn hex_bytes(value: &Value) -> u64 {
    value.as_str().map_or(0, |s| (s.len() as u64).saturating_sub(2) / 2)
}

/// The first bytes of a hash: enough to tell two apart on a screen.
fn short_hash(value: &Value) -> String {
    // By eye: eight bytes.
    const CHARS: usize = 2 + 2 * 8;
    match value.as_str() {
        Some(hash) if CHARS + 1 < hash.len() && hash.is_ascii() => format!("{}…", &hash[..CHARS]),
        Some(hash) => hash.into(),
        None => "-".into(),
    }
}

/// `2 (node-2)`; the number alone when there is no name.
fn node_name(node_id: &Value, name: &Value) -> String {
    match name.as_str() {
        Some(name) if !name.is_empty() => format!("{} ({name})", text(node_id)),
        Some(_) | None => text(node_id),
    }
}

fn yes_no(value: &Value, good: bool) -> Cell {
    let is = is_true(value);
    Cell::new(if is { "yes" } else { "no" }, if is == good { Tone::Good } else { Tone::Warn })
}

/// The page goes on from this id; those of several nodes each from its own.
fn more(answer: &Value) -> String {
    let of_nodes = list(answer, "more").iter().map(|m| {
        let node_id = text(&m["nodeId"]);
        format!("more of node {node_id} from --node {node_id} --from-id {}\n", text(&m["nextId"]))
    });
    match &answer["nextId"] {
        Value::Null => of_nodes.collect(),
        id => format!("more from --from-id {}\n", text(id)),
    }
}
