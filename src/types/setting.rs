//! What a setting is: a key, its kind, its rule, and the values it may have.
//!
//! One [`Key`] is all that reading, showing and documenting a setting needs. Knows nothing of files,
//! the environment or JSON: those hand over a [`Given`].

use std::time::Duration;

use crate::types::{
    NodeId,
    member::Member,
    quantity::{DURATION_MAX, format_duration, format_size, parse_duration, parse_size},
};

/// Greatest integer taken: the greatest that every JSON reader keeps exact.
pub(crate) const INTEGER_MAX: u64 = (1 << 53) - 1;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    /// `table.key`.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) fallback: Fallback,
    /// What holds beyond the kind; empty: nothing.
    pub(crate) rule: &'static str,
    /// What it is for, in one line.
    pub(crate) doc: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Duration {
        min: Duration,
        max: Duration,
    },
    Size {
        min: u64,
    },
    Integer {
        min: u64,
        max: u64,
    },
    /// 0 to 1.
    Ratio,
    Bool,
    Choice(&'static [&'static str]),
    Text(fn(&str) -> bool),
    /// Each once.
    List(fn(&str) -> bool),
    /// `{id, peer, api, name?}`.
    Members,
    /// The name is fixed, what it would do is not built.
    Reserved,
}

impl Kind {
    pub(crate) const fn duration_from(min: Duration) -> Self {
        Self::Duration { min, max: DURATION_MAX }
    }

    pub(crate) const fn integer_from(min: u64) -> Self {
        Self::Integer { min, max: INTEGER_MAX }
    }
}

/// What holds when nobody gives a value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fallback {
    /// There is none; the example is in TOML.
    Required { example: &'static str },
    /// No value; the example is in TOML.
    Absent { shown: &'static str, example: &'static str },
    /// In TOML.
    Value(&'static str),
    /// Follows from other settings; in words, and in TOML where nothing else is set.
    Derived { from: &'static str, example: &'static str },
}

/// A value as somebody gave it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Given {
    Text(String),
    Integer(i128),
    Float(f64),
    Bool(bool),
    List(Vec<Given>),
    Table(Vec<(String, Given)>),
    /// Of a kind that no setting has, by its name.
    Other(&'static str),
}

/// A value that obeys its key's kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Duration(Duration),
    Size(u64),
    Integer(u64),
    Ratio(f64),
    Bool(bool),
    Text(String),
    List(Vec<String>),
    Members(Vec<Member>),
}

/// What is wrong with a setting: the key, the value, and the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) key: String,
    /// In TOML; `None`: there is none.
    pub(crate) value: Option<String>,
    pub(crate) rule: String,
}

impl Problem {
    pub(crate) fn new(key: impl Into<String>, value: Option<String>, rule: impl Into<String>) -> Self {
        Self { key: key.into(), value, rule: rule.into() }
    }
}

impl Key {
    /// Reads a value. An error is the rule that it breaks.
    pub(crate) fn read(&self, given: &Given) -> Result<Value, String> {
        match (self.kind, given) {
            (Kind::Duration { min, max }, Given::Text(text)) => {
                let value = parse_duration(text)?;
                self.within(min <= value && value <= max, Value::Duration(value))
            }
            (Kind::Size { min }, Given::Text(text)) => {
                let value = parse_size(text)?;
                self.within(min <= value, Value::Size(value))
            }
            (Kind::Size { min }, Given::Integer(value)) => {
                let value = u64::try_from(*value).map_err(|_| self.rule())?;
                self.within(min <= value, Value::Size(value))
            }
            (Kind::Integer { .. }, Given::Text(text)) => {
                self.read(&Given::Integer(parse_integer(text).ok_or_else(|| self.rule())?))
            }
            (Kind::Integer { min, max }, Given::Integer(value)) => {
                if i128::from(max) < *value {
                    return Err(format!("an integer, at most {max}"));
                }
                let value = u64::try_from(*value).map_err(|_| self.rule())?;
                self.within(min <= value, Value::Integer(value))
            }
            (Kind::Ratio, Given::Float(value)) => {
                self.within((0.0..=1.0).contains(value), Value::Ratio(*value))
            }
            (Kind::Ratio, Given::Integer(value @ 0..=1)) => Ok(Value::Ratio(f64::from(*value == 1))),
            (Kind::Bool, Given::Bool(value)) => Ok(Value::Bool(*value)),
            (Kind::Choice(words), Given::Text(text)) => {
                self.within(words.contains(&text.as_str()), Value::Text(text.clone()))
            }
            (Kind::Text(is_valid), Given::Text(text)) => {
                self.within(is_valid(text), Value::Text(text.clone()))
            }
            (Kind::List(is_valid), Given::List(items)) => self.read_list(is_valid, items),
            (Kind::Members, Given::List(items)) => read_members(items).map(Value::Members),
            (Kind::Reserved, _) => Err("not available in this version".into()),
            _ => Err(self.rule()),
        }
    }

    fn within(&self, holds: bool, value: Value) -> Result<Value, String> {
        if holds { Ok(value) } else { Err(self.rule()) }
    }

    fn read_list(&self, is_valid: fn(&str) -> bool, items: &[Given]) -> Result<Value, String> {
        let mut list: Vec<String> = Vec::with_capacity(items.len());
        for item in items {
            let Given::Text(text) = item else { return Err(self.rule()) };
            if !is_valid(text) {
                return Err(self.rule());
            }
            if list.contains(text) {
                return Err(format!("each once: {text:?} stands there twice"));
            }
            list.push(text.clone());
        }
        Ok(Value::List(list))
    }

    /// The kind's bounds and the rule beyond them, in words.
    pub(crate) fn rule(&self) -> String {
        let kind = match self.kind {
            Kind::Duration { min, max } => match (min.is_zero(), max == DURATION_MAX) {
                (true, true) => r#"a duration such as "350ms""#.to_owned(),
                (true, false) => format!("a duration, at most {}", format_duration(max)),
                (false, true) => format!(r#"a duration such as "350ms", at least {}"#, format_duration(min)),
                (false, false) => format!("a duration, {} to {}", format_duration(min), format_duration(max)),
            },
            Kind::Size { min: 0 } => r#"a size such as "32MiB""#.to_owned(),
            Kind::Size { min } => format!(r#"a size such as "32MiB", at least {}"#, format_size(min)),
            Kind::Integer { min, max: INTEGER_MAX } => format!("an integer, at least {min}"),
            Kind::Integer { min, max } => format!("an integer, {min} to {max}"),
            Kind::Ratio => "a number from 0 to 1".to_owned(),
            Kind::Bool => "true or false".to_owned(),
            Kind::Choice(words) => words.iter().map(|w| format!("{w:?}")).collect::<Vec<_>>().join(" or "),
            Kind::Text(_) => String::new(),
            Kind::List(_) => "a list of texts, each once".to_owned(),
            Kind::Members => "a list of {id, peer, api, name?}".to_owned(),
            Kind::Reserved => "not available in this version".to_owned(),
        };
        match (kind.is_empty(), self.rule.is_empty()) {
            (false, false) => format!("{kind}; {}", self.rule),
            (_, true) => kind,
            (true, false) => self.rule.to_owned(),
        }
    }

    /// `raft.election_timeout` as `BLOCKRAFT_RAFT__ELECTION_TIMEOUT`.
    pub(crate) fn env_name(&self) -> String {
        format!("BLOCKRAFT_{}", self.name.replace('.', "__").to_ascii_uppercase())
    }
}

fn parse_integer(text: &str) -> Option<i128> {
    match text.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with(['+', '-'])),
        None => text.parse().ok().filter(|_| !text.starts_with('+')),
    }
}

fn read_members(items: &[Given]) -> Result<Vec<Member>, String> {
    items
        .iter()
        .enumerate()
        .map(|(i, item)| read_member(item).map_err(|e| format!("entry {}: {e}", i + 1)))
        .collect()
}

fn read_member(item: &Given) -> Result<Member, String> {
    const FIELDS: [&str; 4] = ["id", "peer", "api", "name"];
    let Given::Table(fields) = item else {
        return Err(r#"a table such as {id=1, peer="n1:7500", api="n1:7400"}"#.into());
    };
    let (mut id, mut peer, mut api, mut name) = (None, None, None, None);
    for (field, given) in fields {
        match (field.as_str(), given) {
            ("id", Given::Integer(value)) => {
                let value = u64::try_from(*value).ok().filter(|v| is_node_id(*v));
                id = Some(value.ok_or_else(|| format!("id is from 1 to {INTEGER_MAX}"))?);
            }
            ("peer", Given::Text(text)) => peer = Some(text.clone()),
            ("api", Given::Text(text)) => api = Some(text.clone()),
            ("name", Given::Text(text)) => name = Some(text.clone()),
            ("id", _) => return Err("id is an integer".into()),
            ("peer" | "api" | "name", _) => return Err(format!("{field} is a text")),
            _ => return Err(format!("unknown field {field:?}; the nearest is {:?}", nearest(field, FIELDS))),
        }
    }
    let node_id = id.ok_or("id is missing")?;
    Ok(Member {
        node_id,
        name: name.unwrap_or_else(|| default_name(node_id)),
        peer_addr: peer.ok_or("peer is missing")?,
        api_addr: api.ok_or("api is missing")?,
    })
}

pub(crate) fn is_node_id(id: NodeId) -> bool {
    (1..=INTEGER_MAX).contains(&id)
}

/// A node that is given no name.
pub(crate) fn default_name(id: NodeId) -> String {
    format!("node-{id}")
}

/// `name`'s nearest by edit distance; the first of equals.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> &'a str {
    known.into_iter().min_by_key(|k| strsim::osa_distance(name, k)).expect("there is always something known")
}

impl Value {
    /// As it stands in a TOML file.
    pub(crate) fn to_toml(&self) -> String {
        let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
        match self {
            Self::Duration(value) => text(&format_duration(*value)),
            Self::Size(value) => text(&format_size(*value)),
            Self::Integer(value) => value.to_string(),
            // Debug keeps the fraction: `1.0` and not `1`, which TOML reads as an integer.
            Self::Ratio(value) => format!("{value:?}"),
            Self::Bool(value) => value.to_string(),
            Self::Text(value) => text(value),
            Self::List(list) => {
                format!("[{}]", list.iter().map(|item| text(item)).collect::<Vec<_>>().join(", "))
            }
            Self::Members(list) => {
                let one = |m: &Member| {
                    let (peer, api) = (text(&m.peer_addr), text(&m.api_addr));
                    let name = if m.name == default_name(m.node_id) {
                        String::new()
                    } else {
                        format!(", name = {}", text(&m.name))
                    };
                    format!("{{ id = {}, peer = {peer}, api = {api}{name} }}", m.node_id)
                };
                format!("[{}]", list.iter().map(one).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

impl Given {
    /// As it stands in a TOML file, for messages.
    pub(crate) fn to_toml(&self) -> String {
        match self {
            Self::Text(text) => toml::Value::String(text.clone()).to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => format!("{value:?}"),
            Self::Bool(value) => value.to_string(),
            Self::List(list) => {
                format!("[{}]", list.iter().map(Self::to_toml).collect::<Vec<_>>().join(", "))
            }
            Self::Table(fields) => {
                let one = |(name, given): &(String, Given)| format!("{name} = {}", given.to_toml());
                format!("{{ {} }}", fields.iter().map(one).collect::<Vec<_>>().join(", "))
            }
            Self::Other(what) => (*what).to_owned(),
        }
    }
}
