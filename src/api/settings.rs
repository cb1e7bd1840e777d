//! The settings of the cluster as flat TOML keys: how `raft_settings` shows them and `raft_configure`
//! takes them back.
//!
//! Sizes are bytes and durations text in answers; both are accepted as a config file has them. What is
//! shown is accepted as it is.

use std::time::Duration;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, value::RawValue};

use crate::api::args::{Decode, Fields, Key};
use crate::api::error::Fault;
use crate::types::block::HEIGHT_MAX;
use crate::types::settings::{ClusterSettings, Continuity, Timestamps};

/// What a request needs beside twice the block's bytes as hex.
const ENVELOPE_BYTES: u64 = 64 << 10;

/// All settings of the cluster by their keys.
pub(crate) fn to_map(s: &ClusterSettings) -> Map<String, Value> {
    let continuity = match s.continuity {
        Continuity::Strict => "strict",
        Continuity::Monotonic => "monotonic",
    };
    let timestamps = match s.timestamps {
        Timestamps::Strict => "strict",
        Timestamps::Nondecreasing => "nondecreasing",
    };
    [
        ("chain.continuity", continuity.into()),
        ("chain.timestamps", timestamps.into()),
        ("chain.require_fence", s.require_fence.into()),
        ("chain.max_block_bytes", s.max_block_bytes.into()),
        ("chain.max_ahead", duration_text(s.max_ahead).into()),
        ("chain.first_height", s.first_height.into()),
        ("chain.block_interval", duration_text(s.block_interval).into()),
        ("state.history_blocks", s.history_blocks.into()),
        ("state.history_bytes", s.history_bytes.into()),
    ]
    .into_iter()
    .map(|(key, value): (_, Value)| (key.to_owned(), value))
    .collect()
}

/// Changes to the settings, by key, in the order given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Patch(Vec<(String, Value)>);

impl Decode for Patch {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        let wrong = || Fault::param(name, format!("{name} is not an object of settings"));
        let Fields(fields) = serde_json::from_str(raw.get()).map_err(|_| wrong())?;
        if fields.is_empty() {
            return Err(Fault::param(name, format!("{name} names no setting")));
        }
        let mut patch: Vec<(String, Value)> = Vec::with_capacity(fields.len());
        for (Key(key), value) in fields {
            let value = serde_json::from_str(value.get()).map_err(|_| wrong())?;
            if patch.iter().any(|(k, _)| *k == key) {
                return Err(Fault::param(name, format!("{name} has a setting twice")));
            }
            patch.push((key.into_owned(), value));
        }
        Ok(Self(patch))
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "minProperties": 1,
            "additionalProperties": false,
            "properties": {
                "chain.continuity": { "enum": ["strict", "monotonic"] },
                "chain.timestamps": { "enum": ["strict", "nondecreasing"] },
                "chain.require_fence": { "type": "boolean" },
                "chain.max_block_bytes": { "type": ["integer", "string"] },
                "chain.max_ahead": { "type": ["string", "integer"] },
                "chain.first_height": { "type": ["integer", "string", "null"] },
                "chain.block_interval": { "type": ["string", "integer"] },
                "state.history_blocks": { "type": "integer", "minimum": 1 },
                "state.history_bytes": { "type": ["integer", "string"] }
            }
        })
    }
}

impl Patch {
    /// `body_max` is this node's `api.max_body`: a block must fit into a request as hex.
    pub(crate) fn apply(&self, settings: &mut ClusterSettings, body_max: u64) -> Result<(), Fault> {
        for (key, value) in &self.0 {
            set(settings, key, value).map_err(|why| {
                Fault::param("set", format!("{}: {why}", &key[..key.floor_char_boundary(64)]))
            })?;
        }
        if body_max.saturating_sub(ENVELOPE_BYTES) / 2 < settings.max_block_bytes {
            return Err(Fault::param(
                "set",
                "chain.max_block_bytes: api.max_body of this node is below twice as much and 64 KiB",
            ));
        }
        Ok(())
    }
}

fn set(s: &mut ClusterSettings, key: &str, value: &Value) -> Result<(), &'static str> {
    match key {
        "chain.continuity" => {
            s.continuity = match value.as_str() {
                Some("strict") => Continuity::Strict,
                Some("monotonic") => Continuity::Monotonic,
                _ => return Err("is neither \"strict\" nor \"monotonic\""),
            };
        }
        "chain.timestamps" => {
            s.timestamps = match value.as_str() {
                Some("strict") => Timestamps::Strict,
                Some("nondecreasing") => Timestamps::Nondecreasing,
                _ => return Err("is neither \"strict\" nor \"nondecreasing\""),
            };
        }
        "chain.require_fence" => s.require_fence = value.as_bool().ok_or("is neither true nor false")?,
        "chain.max_block_bytes" => s.max_block_bytes = at_least_one(size(value)?)?,
        "chain.max_ahead" => s.max_ahead = duration(value)?,
        "chain.first_height" => {
            s.first_height = match value {
                Value::Null => None,
                value => {
                    Some(size(value)?).filter(|h| *h <= HEIGHT_MAX).ok_or("is above 2^53 - 1").map(Some)?
                }
            };
        }
        "chain.block_interval" => s.block_interval = duration(value)?,
        "state.history_blocks" => s.history_blocks = at_least_one(size(value)?)?,
        "state.history_bytes" => s.history_bytes = size(value)?,
        _ => return Err("no setting of the cluster has this key"),
    }
    Ok(())
}

fn at_least_one(n: u64) -> Result<u64, &'static str> {
    if n == 0 { Err("must be at least 1") } else { Ok(n) }
}

/// A number, or text with a unit: `"32MiB"`.
fn size(value: &Value) -> Result<u64, &'static str> {
    const WHAT: &str = "is not a whole number or a size such as \"32MiB\"";
    let text = match value {
        Value::Number(n) => return n.as_u64().ok_or(WHAT),
        Value::String(text) => text.trim(),
        _ => return Err(WHAT),
    };
    let (n, unit) = split_unit(text).ok_or(WHAT)?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(WHAT),
    };
    n.checked_mul(1 << shift).ok_or("is too large")
}

/// Text with a unit, `"350ms"`; or 0.
pub(crate) fn duration(value: &Value) -> Result<Duration, &'static str> {
    match value {
        Value::Number(n) if n.as_u64() == Some(0) => Ok(Duration::ZERO),
        Value::String(text) => parse_duration(text),
        _ => Err(NOT_A_DURATION),
    }
}

const NOT_A_DURATION: &str = "is not a duration such as \"350ms\" or \"15s\"";

/// A whole number of `ms`, `s`, `m` or `h`; `0` needs no unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let (n, unit) = split_unit(text.trim()).ok_or(NOT_A_DURATION)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "" if n == 0 => 0,
        _ => return Err(NOT_A_DURATION),
    };
    n.checked_mul(unit_ms).map(Duration::from_millis).ok_or("is too long")
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    Some((digits.parse().ok()?, unit.trim_start()))
}

fn duration_text(d: Duration) -> String {
    let ms = d.as_millis();
    if ms.is_multiple_of(1_000) { format!("{}s", ms / 1_000) } else { format!("{ms}ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(json: &str) -> Result<ClusterSettings, Fault> {
        let raw: Box<RawValue> = serde_json::from_str(json).unwrap();
        let mut settings = ClusterSettings::default();
        Patch::decode(&raw, "set")?.apply(&mut settings, 32 << 20)?;
        Ok(settings)
    }

    #[test]
    fn what_is_shown_is_accepted() {
        let other = ClusterSettings {
            continuity: Continuity::Monotonic,
            timestamps: Timestamps::Nondecreasing,
            require_fence: true,
            max_block_bytes: 64 << 10,
            max_ahead: Duration::from_millis(1_500),
            first_height: Some(5),
            block_interval: Duration::from_secs(2),
            history_blocks: 20,
            history_bytes: 1 << 30,
        };
        for settings in [other, ClusterSettings::default()] {
            let shown = serde_json::to_string(&to_map(&settings)).unwrap();
            assert_eq!(patch(&shown).unwrap(), settings, "{shown}");
        }
    }

    #[test]
    fn a_file_s_notation_is_accepted() {
        let s =
            patch(r#"{"chain.max_block_bytes":"64KiB","chain.max_ahead":0,"chain.block_interval":"2 min"}"#);
        let s = s.unwrap();
        assert_eq!(s.max_block_bytes, 64 << 10);
        assert_eq!(s.max_ahead, Duration::ZERO);
        assert_eq!(s.block_interval, Duration::from_secs(120));
    }

    #[test]
    fn a_wrong_value_names_its_key() {
        for (json, says) in [
            (r#"{"chain.nonsense":1}"#, "chain.nonsense"),
            (r#"{"chain.continuity":"lazy"}"#, "chain.continuity"),
            (r#"{"state.history_blocks":0}"#, "state.history_blocks"),
            (r#"{"chain.max_block_bytes":"17MiB"}"#, "chain.max_block_bytes"),
            (r#"{"chain.max_ahead":15}"#, "chain.max_ahead"),
            (r#"{"chain.first_height":9007199254740992}"#, "chain.first_height"),
            (r#"{"chain.max_block_bytes":1.5}"#, "chain.max_block_bytes"),
            (r#"{}"#, "no setting"),
            (r#"[]"#, "not an object"),
            (r#"{"chain.require_fence":true,"chain.require_fence":false}"#, "twice"),
        ] {
            let fault = patch(json).unwrap_err();
            assert_eq!(fault.data.param.as_deref(), Some("set"), "{json}");
            assert!(fault.message.contains(says), "{json}: {}", fault.message);
        }
    }
}
