//! The keys under `chain` and `state`, and the settings of the cluster as a flat object of them.

use std::time::Duration;

use serde_json::{Map, Value as Json};

use crate::types::{
    block::{BLOCK_BYTES_MAX, HEIGHT_MAX},
    quantity::{format_duration, format_size},
    setting::{Fallback, Given, Key, Kind, Problem, Value, nearest},
    settings::{ClusterSettings, Continuity, Timestamps},
};

const MILLISECONDS: &str = "in whole milliseconds; 0s: none";

pub(crate) const KEYS: [Key; 9] = [
    Key {
        name: "chain.continuity",
        kind: Kind::Choice(&["strict", "monotonic"]),
        fallback: Fallback::Value(r#""strict""#),
        rule: "",
        doc: "Whether each height is the head's plus one, or gaps are allowed. Of the cluster: the value in the log holds.",
    },
    Key {
        name: "chain.timestamps",
        kind: Kind::Choice(&["strict", "nondecreasing"]),
        fallback: Fallback::Value(r#""strict""#),
        rule: "",
        doc: "Whether a block's timestamp is above its predecessor's, or may equal it. Of the cluster.",
    },
    Key {
        name: "chain.require_fence",
        kind: Kind::Bool,
        fallback: Fallback::Value("false"),
        rule: "",
        doc: "Whether a proposal without a fence is refused. Of the cluster.",
    },
    Key {
        name: "chain.max_block_bytes",
        kind: Kind::Size { min: 1 },
        fallback: Fallback::Value(r#""15MiB""#),
        rule: "",
        doc: "Greatest block (header and data), at most 32MiB, checked before it is appended. Of the cluster.",
    },
    Key {
        name: "chain.max_ahead",
        kind: Kind::duration_from(Duration::ZERO),
        fallback: Fallback::Value(r#""15s""#),
        rule: MILLISECONDS,
        doc: "How far ahead of the leader's clock a block's timestamp may be. Of the cluster.",
    },
    Key {
        name: "chain.first_height",
        kind: Kind::Integer { min: 0, max: HEIGHT_MAX },
        fallback: Fallback::Absent { shown: "any", example: "1" },
        rule: "",
        doc: "The only height that the first block may have. Of the cluster.",
    },
    Key {
        name: "chain.block_interval",
        kind: Kind::duration_from(Duration::ZERO),
        fallback: Fallback::Value(r#""0s""#),
        rule: MILLISECONDS,
        doc: "Expected time between blocks, for alerts; 0s: a lazy chain. Of the cluster.",
    },
    Key {
        name: "state.history_blocks",
        kind: Kind::integer_from(1),
        fallback: Fallback::Value("10000"),
        rule: "",
        doc: "How many of the last blocks are kept. Of the cluster.",
    },
    Key {
        name: "state.history_bytes",
        kind: Kind::Size { min: 1 },
        fallback: Fallback::Value(r#""8GiB""#),
        rule: "",
        doc: "How many bytes of the last blocks are kept, the head always. Of the cluster.",
    },
];

impl ClusterSettings {
    /// The value of one key; `None` for one without a value.
    ///
    /// # Panics
    /// When `key` is none of [`KEYS`].
    pub(crate) fn value(&self, key: &str) -> Option<Value> {
        let word = |text: &str| Value::Text(text.to_owned());
        Some(match key {
            "chain.continuity" => word(match self.continuity {
                Continuity::Strict => "strict",
                Continuity::Monotonic => "monotonic",
            }),
            "chain.timestamps" => word(match self.timestamps {
                Timestamps::Strict => "strict",
                Timestamps::Nondecreasing => "nondecreasing",
            }),
            "chain.require_fence" => Value::Bool(self.require_fence),
            "chain.max_block_bytes" => Value::Size(self.max_block_bytes),
            "chain.max_ahead" => Value::Duration(self.max_ahead),
            "chain.first_height" => Value::Integer(self.first_height?),
            "chain.block_interval" => Value::Duration(self.block_interval),
            "state.history_blocks" => Value::Integer(self.history_blocks),
            "state.history_bytes" => Value::Size(self.history_bytes),
            _ => panic!("{key} is no key of the cluster's settings"),
        })
    }

    /// Sets one key to a value that [`Key::read`] gave for it. An error is the rule that it breaks.
    ///
    /// # Panics
    /// When `key` is none of [`KEYS`], or the value is of another kind.
    pub(crate) fn set(&mut self, key: &str, value: Value) -> Result<(), String> {
        match (key, value) {
            ("chain.continuity", Value::Text(word)) => {
                self.continuity = if word == "strict" { Continuity::Strict } else { Continuity::Monotonic };
            }
            ("chain.timestamps", Value::Text(word)) => {
                self.timestamps =
                    if word == "strict" { Timestamps::Strict } else { Timestamps::Nondecreasing };
            }
            ("chain.require_fence", Value::Bool(value)) => self.require_fence = value,
            ("chain.max_block_bytes", Value::Size(value)) => {
                if BLOCK_BYTES_MAX < value {
                    return Err(format!(
                        "at most {}: a block goes between nodes in one piece",
                        format_size(BLOCK_BYTES_MAX)
                    ));
                }
                self.max_block_bytes = value;
            }
            ("chain.max_ahead", Value::Duration(value)) => self.max_ahead = whole_ms(value)?,
            ("chain.first_height", Value::Integer(value)) => self.first_height = Some(value),
            ("chain.block_interval", Value::Duration(value)) => self.block_interval = whole_ms(value)?,
            ("state.history_blocks", Value::Integer(value)) => self.history_blocks = value,
            ("state.history_bytes", Value::Size(value)) => self.history_bytes = value,
            (key, value) => panic!("{key} is no key of the cluster's settings, or {value:?} is not for it"),
        }
        Ok(())
    }

    /// The keys whose values differ, in the order of [`KEYS`].
    pub(crate) fn differing(&self, other: &Self) -> Vec<&'static str> {
        KEYS.iter().map(|k| k.name).filter(|k| self.value(k) != other.value(k)).collect()
    }
}

/// The log keeps these two in milliseconds.
fn whole_ms(value: Duration) -> Result<Duration, String> {
    if value.subsec_nanos().is_multiple_of(1_000_000) { Ok(value) } else { Err(MILLISECONDS.into()) }
}

/// All keys, sizes in bytes and durations as text; `null` for one without a value. [`apply_json`] takes it as it is.
pub(crate) fn to_json(settings: &ClusterSettings) -> Map<String, Json> {
    let one = |key: &Key| {
        let value = match settings.value(key.name) {
            None => Json::Null,
            Some(Value::Duration(value)) => format_duration(value).into(),
            // In bytes, for tools; text with a unit is taken back as well.
            Some(Value::Size(value) | Value::Integer(value)) => value.into(),
            Some(Value::Bool(value)) => value.into(),
            Some(Value::Text(value)) => value.into(),
            Some(value @ (Value::Ratio(_) | Value::List(_) | Value::Members(_))) => {
                unreachable!("no key of the cluster has {value:?}")
            }
        };
        (key.name.to_owned(), value)
    };
    KEYS.iter().map(one).collect()
}

/// `settings` with the keys of `set` changed; all problems at once. `null` takes a value away where
/// the key may have none.
pub(crate) fn apply_json(
    settings: &ClusterSettings,
    set: &Map<String, Json>,
) -> Result<ClusterSettings, Vec<Problem>> {
    let mut changed = settings.clone();
    let mut problems = Vec::new();
    for (name, json) in set {
        let Some(key) = KEYS.iter().find(|k| k.name == name) else {
            let known = nearest(name, KEYS.iter().map(|k| k.name));
            let rule = format!("no setting of the cluster; the nearest is {known}");
            problems.push(Problem::new(name, Some(json.to_string()), rule));
            continue;
        };
        if json.is_null() && matches!(key.fallback, Fallback::Absent { .. }) {
            // The one key without a value.
            changed.first_height = None;
            continue;
        }
        let done = key.read(&from_json(json)).and_then(|value| changed.set(key.name, value));
        if let Err(rule) = done {
            problems.push(Problem::new(name, Some(json.to_string()), rule));
        }
    }
    if problems.is_empty() { Ok(changed) } else { Err(problems) }
}

fn from_json(json: &Json) -> Given {
    match json {
        Json::Null => Given::Other("null"),
        Json::Bool(value) => Given::Bool(*value),
        Json::String(text) => Given::Text(text.clone()),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => Given::Integer(value.into()),
            (None, Some(value)) => Given::Integer(value.into()),
            (None, None) => Given::Other("a number with a fraction"),
        },
        Json::Array(items) => Given::List(items.iter().map(from_json).collect()),
        Json::Object(fields) => {
            Given::Table(fields.iter().map(|(name, value)| (name.clone(), from_json(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(json: Json) -> Map<String, Json> {
        json.as_object().expect("the tests give objects").clone()
    }

    #[test]
    fn json_and_back() {
        let mut settings = ClusterSettings::default();
        settings.first_height = Some(7);
        settings.continuity = Continuity::Monotonic;
        settings.block_interval = Duration::from_millis(100);
        let json = to_json(&settings);
        assert_eq!(json["chain.continuity"], "monotonic");
        assert_eq!(json["chain.max_block_bytes"], 15 << 20);
        assert_eq!(json["chain.block_interval"], "100ms");
        assert_eq!(json["state.history_blocks"], 10_000);
        assert_eq!(apply_json(&ClusterSettings::default(), &json), Ok(settings));
        let plain = to_json(&ClusterSettings::default());
        assert!(plain["chain.first_height"].is_null());
        assert_eq!(apply_json(&ClusterSettings::default(), &plain), Ok(ClusterSettings::default()));
    }

    #[test]
    fn every_default_is_what_the_table_says() {
        let settings = ClusterSettings::default();
        for key in &KEYS {
            let shown = settings.value(key.name).map(|v| v.to_toml());
            match key.fallback {
                Fallback::Value(text) => assert_eq!(shown.as_deref(), Some(text), "{}", key.name),
                Fallback::Absent { .. } => assert_eq!(shown, None, "{}", key.name),
                Fallback::Required { .. } | Fallback::Derived { .. } => panic!("{}", key.name),
            }
        }
    }

    #[test]
    fn all_problems_at_once() {
        let set = object(json!({
            "chain.continuity": "loose", "chain.max_ahead": "1500us", "state.history_blocks": 0,
            "chain.requirefence": true, "state.history_bytes": 4096, "chain.first_height": "0x10",
        }));
        let problems = apply_json(&ClusterSettings::default(), &set).expect_err("four are wrong");
        let keys: Vec<_> = problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(
            keys,
            ["chain.continuity", "chain.max_ahead", "chain.requirefence", "state.history_blocks"]
        );
        assert!(problems[2].rule.contains("chain.require_fence"), "{}", problems[2].rule);

        let set = object(json!({ "state.history_bytes": 4096, "chain.first_height": "0x10" }));
        let settings = apply_json(&ClusterSettings::default(), &set).expect("both are right");
        assert_eq!((settings.history_bytes, settings.first_height), (4096, Some(16)));
        assert_eq!(
            ClusterSettings::default().differing(&settings),
            ["chain.first_height", "state.history_bytes"]
        );
        let set = object(json!({ "chain.max_block_bytes": "33MiB" }));
        let problems = apply_json(&settings, &set).expect_err("it fits into no frame");
        assert!(problems[0].rule.contains("at most 32MiB"), "{}", problems[0].rule);
        let set = object(json!({ "chain.first_height": null }));
        assert_eq!(apply_json(&settings, &set).map(|s| s.first_height), Ok(None));
    }
}
