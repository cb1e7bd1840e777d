//! Decoding parameters, by name and by position alike, and naming the one that is wrong.
//!
//! One decoder for every method: it is driven by the method's row in the table. `params` absent, `null`,
//! `[]` and `{}` are the same, a `null` value is an absent one. Works on raw JSON text, so nothing is
//! built for values that are not looked at and no depth of nesting can exhaust the stack.

use std::{borrow::Cow, fmt, time::Duration};

use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::api::error::Fault;
use crate::api::wire::Hex;
use crate::types::block::Block;

/// Greatest integer that every JSON reader keeps exact; above it only text is accepted.
pub(crate) const NUMBER_MAX: u64 = (1 << 53) - 1;
/// Digits of an integer as text, leading zeros included: what 64 bits are written with, in base 2 as well.
const DIGITS_MAX: usize = 64;
/// Longest name that an error repeats: `data` stays far below 4 KiB whatever was sent.
const NAME_BYTES_MAX: usize = 128;

/// A parameter of a method.
pub(crate) struct Param {
    pub(crate) name: &'static str,
    pub(crate) says: &'static str,
    pub(crate) is_required: bool,
    /// Has no position.
    pub(crate) is_named: bool,
    pub(crate) schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Param {
    pub(crate) const fn required<T: Decode>(name: &'static str, says: &'static str) -> Self {
        Self { name, says, is_required: true, is_named: false, schema: T::schema }
    }

    pub(crate) const fn optional<T: Decode>(name: &'static str, says: &'static str) -> Self {
        Self { name, says, is_required: false, is_named: false, schema: T::schema }
    }

    /// Optional, and given by name alone. Stands behind those that have a position.
    pub(crate) const fn named<T: Decode>(name: &'static str, says: &'static str) -> Self {
        Self { name, says, is_required: false, is_named: true, schema: T::schema }
    }
}

/// A type that a parameter can have.
pub(crate) trait Decode: Sized {
    /// `name` is what an error names, with its path.
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault>;
    fn schema(generator: &mut SchemaGenerator) -> Schema;
}

/// The parameters of one call, in the order of the method's row.
pub(crate) struct Args<'a> {
    params: &'static [Param],
    values: Vec<Option<&'a RawValue>>,
}

impl<'a> Args<'a> {
    /// Fails with -32602 for an unknown name, a name given twice, a surplus value, a required one that is
    /// missing, and anything that is neither an array nor an object.
    pub(crate) fn new(params: &'static [Param], raw: Option<&'a str>) -> Result<Self, Fault> {
        let mut values = vec![None; params.len()];
        let raw = raw.map_or("null", str::trim);
        match raw.as_bytes().first() {
            Some(b'{') => {
                let Fields(fields) =
                    serde_json::from_str(raw).map_err(|e| Fault::param("params", short(&e.to_string())))?;
                fill(params, &mut values, fields)?;
            }
            Some(b'[') => {
                let given: Vec<&RawValue> =
                    serde_json::from_str(raw).map_err(|e| Fault::param("params", short(&e.to_string())))?;
                let most = params.iter().take_while(|p| !p.is_named).count();
                for (i, value) in given.into_iter().enumerate() {
                    match values[..most].get_mut(i) {
                        Some(slot) => *slot = present(value),
                        None if present(value).is_none() => {}
                        None => {
                            return Err(Fault::param(
                                format!("[{i}]"),
                                format!("a value at position {i}, and the method takes {most}"),
                            ));
                        }
                    }
                }
            }
            _ if raw == "null" => {}
            _ => return Err(Fault::param("params", "params is neither an array nor an object")),
        }
        for (param, value) in params.iter().zip(&values) {
            if param.is_required && value.is_none() {
                return Err(Fault::param(param.name, format!("{} is required", param.name)));
            }
        }
        Ok(Self { params, values })
    }

    /// An optional parameter of the method's row.
    pub(crate) fn get<T: Decode>(&self, name: &'static str) -> Result<Option<T>, Fault> {
        let at = self.params.iter().position(|p| p.name == name);
        let at = at.expect("a handler asks for the parameters of its own row");
        self.values[at].map(|raw| T::decode(raw, name)).transpose()
    }

    /// What was given, by name, but for one; as JSON text in the order of the row.
    pub(crate) fn to_object(&self, without: &str) -> Box<RawValue> {
        let given = self.params.iter().zip(&self.values).filter(|(p, _)| p.name != without);
        let fields = given.filter_map(|(p, value)| Some(format!(r#""{}":{}"#, p.name, (*value)?.get())));
        let object = format!("{{{}}}", fields.collect::<Vec<_>>().join(","));
        RawValue::from_string(object).expect("names of parameters are plain, and the values were JSON")
    }

    /// A required parameter of the method's row.
    pub(crate) fn need<T: Decode>(&self, name: &'static str) -> Result<T, Fault> {
        let value = self.get(name)?;
        Ok(value.expect("a row names what it requires, and its presence was checked"))
    }
}

fn fill<'a>(
    params: &'static [Param],
    values: &mut [Option<&'a RawValue>],
    fields: Vec<(Key<'a>, &'a RawValue)>,
) -> Result<(), Fault> {
    let mut seen = vec![false; params.len()];
    for (Key(key), value) in fields {
        let Some(at) = params.iter().position(|p| p.name == key) else {
            return Err(Fault::param(short(&key), "unknown parameter"));
        };
        if std::mem::replace(&mut seen[at], true) {
            return Err(Fault::param(params[at].name, format!("{} is given twice", params[at].name)));
        }
        values[at] = present(value);
    }
    Ok(())
}

fn present(raw: &RawValue) -> Option<&RawValue> {
    (raw.get() != "null").then_some(raw)
}

/// At most [`NAME_BYTES_MAX`] bytes of it.
pub(crate) fn short(text: &str) -> String {
    text[..text.floor_char_boundary(NAME_BYTES_MAX)].to_owned()
}

/// The key of an object: borrowed where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Key<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// The fields of an object in the order given, doubled ones included.
pub(crate) struct Fields<'a>(pub(crate) Vec<(Key<'a>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Seen)
    }
}

/// The text of a JSON string; `None` for any other value.
fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Key<'_>>(raw.get()).ok().map(|Key(text)| text)
}

/// Reads a whole number from text: decimal, or hex after `0x`. `None` for anything else.
pub(crate) fn integer(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    // `from_str_radix` would take a sign, and zeros without end.
    if DIGITS_MAX < digits.len() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

impl Decode for u64 {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        let wrong = |what: &str| Fault::param(name, format!("{name} {what}"));
        if let Some(text) = text(raw) {
            return integer(&text).ok_or_else(|| wrong("is not a decimal or 0x integer below 2^64"));
        }
        let number = raw.get();
        match number.as_bytes() {
            [b'0'..=b'9', ..] if number.bytes().all(|b| b.is_ascii_digit()) => match number.parse() {
                Ok(n) if n <= NUMBER_MAX => Ok(n),
                _ => Err(wrong("is above 2^53 - 1: give it as a string")),
            },
            [b'-', ..] => Err(wrong("is negative")),
            [b'0'..=b'9', ..] => Err(wrong("is not written as a whole number")),
            _ => Err(wrong("is not an integer")),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Integer>()
    }
}

/// The schema of an integer parameter.
struct Integer;

impl JsonSchema for Integer {
    fn schema_name() -> Cow<'static, str> {
        "Integer".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number up to 2^53 - 1, or a decimal or 0x string up to 2^64 - 1.",
            "anyOf": [
                { "type": "integer", "minimum": 0, "maximum": NUMBER_MAX },
                { "type": "string", "pattern": "^([0-9]+|0x[0-9a-fA-F]+)$" }
            ]
        })
    }
}

impl Decode for bool {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        match raw.get() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(Fault::param(name, format!("{name} is neither true nor false"))),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<bool>()
    }
}

impl Decode for String {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        text(raw).map(Cow::into_owned).ok_or_else(|| Fault::param(name, format!("{name} is not a string")))
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Self>()
    }
}

/// An object that is decoded later.
impl Decode for Box<RawValue> {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        match raw.get().as_bytes() {
            [b'{', ..] => Ok(raw.to_owned()),
            _ => Err(Fault::param(name, format!("{name} is not an object"))),
        }
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object" })
    }
}

impl Decode for Bytes {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        let wrong = |what: &str| Fault::param(name, format!("{name} {what}"));
        let text = text(raw).ok_or_else(|| wrong("is not a string"))?;
        let digits = text.strip_prefix("0x").ok_or_else(|| wrong("does not begin with 0x"))?;
        if digits.len() % 2 != 0 {
            return Err(wrong("has an odd number of hex digits"));
        }
        let bytes = hex_simd::decode_to_vec(digits).map_err(|_| wrong("has a digit that is not hex"))?;
        Ok(bytes.into())
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Hex>()
    }
}

/// From one millisecond to 30 seconds: what a call may ask to wait for its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience(pub(crate) Duration);

impl Patience {
    pub(crate) const MS_MAX: u64 = 30_000;

    pub(crate) fn from_ms(ms: u64, name: &str) -> Result<Self, Fault> {
        if !(1..=Self::MS_MAX).contains(&ms) {
            return Err(Fault::param(name, format!("{name} is not from 1 to 30000 milliseconds")));
        }
        Ok(Self(Duration::from_millis(ms)))
    }
}

impl Decode for Patience {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        Self::from_ms(u64::decode(raw, name)?, name)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        u64::schema(generator)
    }
}

/// Where `block_head` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Consistency {
    /// This node's own state.
    Local,
    /// A quorum confirms the leader, and this node has applied all it had committed by then.
    Linearizable,
}

impl Decode for Consistency {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        match text(raw).as_deref() {
            Some("local") => Ok(Self::Local),
            Some("linearizable") => Ok(Self::Linearizable),
            _ => Err(Fault::param(name, format!("{name} is neither \"local\" nor \"linearizable\""))),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Self>()
    }
}

/// The schema of a block as a parameter.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "BlockParam")]
#[expect(
    dead_code,
    reason = "only its schema is used: the fields are decoded by hand, to name what is wrong"
)]
struct BlockParam {
    /// At most 2^53 - 1.
    height: Integer,
    /// 1 to 64 bytes.
    hash: Hex,
    /// Nanoseconds since the epoch.
    timestamp: Integer,
    /// May be empty; never decoded.
    header: Hex,
    /// May be empty; never decoded.
    data: Hex,
    /// When given, it must be the hash of the block before.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_hash: Option<Hex>,
    /// 0 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_submitted_da_header_height: Option<Integer>,
    /// 0 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_submitted_da_data_height: Option<Integer>,
}

const BLOCK_FIELDS: [&str; 8] = [
    "height",
    "hash",
    "timestamp",
    "header",
    "data",
    "parentHash",
    "lastSubmittedDaHeaderHeight",
    "lastSubmittedDaDataHeight",
];

impl Decode for Block {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        if !raw.get().starts_with('{') {
            return Err(Fault::param(name, format!("{name} is not an object")));
        }
        let Fields(fields) =
            serde_json::from_str(raw.get()).map_err(|e| Fault::param(name, short(&e.to_string())))?;
        let mut values = [None; BLOCK_FIELDS.len()];
        let mut seen = [false; BLOCK_FIELDS.len()];
        for (Key(key), value) in fields {
            let Some(at) = BLOCK_FIELDS.iter().position(|f| *f == key) else {
                return Err(Fault::param(format!("{name}.{}", short(&key)), "unknown field"));
            };
            if std::mem::replace(&mut seen[at], true) {
                return Err(Fault::param(format!("{name}.{key}"), format!("{name}.{key} is given twice")));
            }
            values[at] = present(value);
        }
        let path = |at: usize| format!("{name}.{}", BLOCK_FIELDS[at]);
        let need =
            |at: usize| values[at].ok_or_else(|| Fault::param(path(at), format!("{} is required", path(at))));
        let block = Block {
            height: u64::decode(need(0)?, &path(0))?,
            hash: Bytes::decode(need(1)?, &path(1))?,
            timestamp: u64::decode(need(2)?, &path(2))?,
            header: Bytes::decode(need(3)?, &path(3))?,
            data: Bytes::decode(need(4)?, &path(4))?,
            parent_hash: values[5].map(|v| Bytes::decode(v, &path(5))).transpose()?,
            last_submitted_da_header_height: values[6].map_or(Ok(0), |v| u64::decode(v, &path(6)))?,
            last_submitted_da_data_height: values[7].map_or(Ok(0), |v| u64::decode(v, &path(7)))?,
        };
        block.check_well_formed().map_err(|e| Fault::param(e.field(), e.to_string()))?;
        Ok(block)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<BlockParam>()
    }
}

#[cfg(test)]
mod tests;
