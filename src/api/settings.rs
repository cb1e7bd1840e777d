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
use crate::types::settings::ClusterSettings;
use crate::types::settings::keys::apply_json;

/// Wrong settings that one error tells of.
const PROBLEMS_MAX: usize = 9;
/// What a request needs beside twice the block's bytes as hex.
const ENVELOPE_BYTES: u64 = 64 << 10;

/// Changes to the settings, by key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Patch(Map<String, Value>);

impl Decode for Patch {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        let wrong = || Fault::param(name, format!("{name} is not an object of settings"));
        let Fields(fields) = serde_json::from_str(raw.get()).map_err(|_| wrong())?;
        if fields.is_empty() {
            return Err(Fault::param(name, format!("{name} names no setting")));
        }
        let mut patch = Map::new();
        for (Key(key), value) in fields {
            let value = serde_json::from_str(value.get()).map_err(|_| wrong())?;
            if patch.insert(key.into_owned(), value).is_some() {
                return Err(Fault::param(name, format!("{name} has a setting twice")));
            }
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
                "chain.max_ahead": { "type": "string" },
                "chain.first_height": { "type": ["integer", "string", "null"] },
                "chain.block_interval": { "type": "string" },
                "state.history_blocks": { "type": "integer", "minimum": 1 },
                "state.history_bytes": { "type": ["integer", "string"] }
            }
        })
    }
}

/// The most that `chain.max_block_bytes` may be on a node whose `api.max_body` that is: a block must fit into a request as hex.
pub(crate) fn block_bytes_max(body_max: u64) -> u64 {
    body_max.saturating_sub(ENVELOPE_BYTES) / 2
}

impl Patch {
    /// `body_max` is this node's `api.max_body`.
    pub(crate) fn apply(&self, settings: &mut ClusterSettings, body_max: u64) -> Result<(), Fault> {
        *settings = apply_json(settings, &self.0).map_err(|problems| {
            // All at once, as a config file is told of; an error stays short whatever was sent.
            let told = problems.iter().take(PROBLEMS_MAX).map(|p| {
                let key = &p.key[..p.key.floor_char_boundary(64)];
                format!("{key}: {}", p.rule)
            });
            Fault::param("set", told.collect::<Vec<_>>().join("; "))
        })?;
        if block_bytes_max(body_max) < settings.max_block_bytes {
            return Err(Fault::param(
                "set",
                "chain.max_block_bytes: api.max_body of this node is below twice as much and 64 KiB",
            ));
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::settings::keys::to_json;
    use crate::types::settings::{Continuity, Timestamps};

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
            let shown = serde_json::to_string(&to_json(&settings)).unwrap();
            assert_eq!(patch(&shown).unwrap(), settings, "{shown}");
        }
    }

    #[test]
    fn a_file_s_notation_is_accepted() {
        let s =
            patch(r#"{"chain.max_block_bytes":"64KiB","chain.max_ahead":"0s","chain.block_interval":"2m"}"#);
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
