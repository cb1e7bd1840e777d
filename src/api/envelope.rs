//! What a body posted to `/` is, before the JSON-RPC library sees it.
//!
//! The library drops, or takes for a notification, what the contract answers with -32600: an id of a wrong
//! kind, an id given twice, a value that is no request. So every body is looked through here first; what
//! is passed on is understood by the library in the same way. Pure; knows nothing of sockets.

use std::borrow::Cow;

use axum::http::StatusCode;
use bytes::Bytes;
use serde_json::value::RawValue;

use crate::api::args::{Fields, Key};
use crate::api::error::{Code, Fault};

/// What is to be done with a body.
#[derive(Debug, PartialEq)]
pub(crate) enum Checked {
    /// Answered at once, with this body.
    Answer { status: StatusCode, body: String, code: Code },
    /// Nothing in it has an id: not executed, not answered. How many there were.
    WithoutId(usize),
    /// For the library. How many calls there are in it.
    Calls { body: Bytes, calls: usize },
}

/// A request that stands for itself, or in a batch.
enum Entry<'a> {
    Call,
    WithoutId,
    /// -32600, with the id where that at least is one.
    Bad {
        id: &'a str,
        why: &'static str,
    },
}

/// Looks a body through. `batch_max` is `api.max_batch`.
pub(crate) fn check(body: Bytes, batch_max: usize) -> Checked {
    let body = trim(body);
    if !matches!(body.first(), Some(b'{' | b'[')) {
        let why =
            if body.is_empty() { "the body is empty" } else { "the body is neither an object nor an array" };
        return answer(StatusCode::BAD_REQUEST, Fault::new(Code::Parse, why), "null");
    }
    match std::str::from_utf8(&body) {
        Ok(text) if text.starts_with('{') => check_single(text, false, &body),
        Ok(text) => check_batch(text, false, batch_max, &body),
        // Rare, so a copy does no harm. A replaced byte outside of strings breaks the JSON anyway.
        Err(_) => {
            let text = String::from_utf8_lossy(&body);
            match text.starts_with('{') {
                true => check_single(&text, true, &body),
                false => check_batch(&text, true, batch_max, &body),
            }
        }
    }
}

/// Without the white space around it: the library answers 400 to a valid call behind a blank.
fn trim(mut body: Bytes) -> Bytes {
    let is_blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
    let end = body.iter().rposition(|b| !is_blank(b)).map_or(0, |i| i + 1);
    body.truncate(end);
    let start = body.iter().position(|b| !is_blank(b)).unwrap_or(body.len());
    body.split_off(start)
}

fn answer(status: StatusCode, fault: Fault, id: &str) -> Checked {
    Checked::Answer { status, body: fault.to_response(id), code: fault.code }
}

fn parse_error(why: String) -> Checked {
    answer(StatusCode::OK, Fault::new(Code::Parse, why), "null")
}

fn check_single(text: &str, was_repaired: bool, body: &Bytes) -> Checked {
    let fields = match serde_json::from_str::<Fields<'_>>(text) {
        Ok(Fields(fields)) => fields,
        Err(e) => return parse_error(e.to_string()),
    };
    match entry(&fields, was_repaired) {
        Entry::Bad { id, why } => answer(StatusCode::OK, Fault::new(Code::InvalidRequest, why), id),
        _ if was_repaired => parse_error("the body is not UTF-8".into()),
        Entry::WithoutId => Checked::WithoutId(1),
        Entry::Call => Checked::Calls { body: body.clone(), calls: 1 },
    }
}

fn check_batch(text: &str, was_repaired: bool, batch_max: usize, body: &Bytes) -> Checked {
    let members: Vec<&RawValue> = match serde_json::from_str(text) {
        Ok(members) => members,
        Err(e) => return parse_error(e.to_string()),
    };
    if members.is_empty() {
        return answer(StatusCode::OK, Fault::new(Code::InvalidRequest, "the batch is empty"), "null");
    }
    if batch_max < members.len() {
        let why = format!("{} calls in a batch, api.max_batch is {batch_max}", members.len());
        return answer(StatusCode::OK, Fault::new(Code::BatchTooLarge, why), "null");
    }
    let (mut calls, mut without_id, mut bad) = (0, 0, 0);
    let mut passed: Vec<Cow<'_, str>> = Vec::with_capacity(members.len());
    for member in &members {
        let fields = match serde_json::from_str::<Fields<'_>>(member.get()) {
            Ok(Fields(fields)) => fields,
            Err(_) => Vec::new(),
        };
        match entry(&fields, was_repaired) {
            Entry::Call if !(was_repaired && member.get().contains(char::REPLACEMENT_CHARACTER)) => {
                calls += 1;
                passed.push(member.get().into());
            }
            Entry::WithoutId => {
                without_id += 1;
                passed.push(member.get().into());
            }
            // The library answers such a member with -32600 and this id.
            Entry::Call => {
                bad += 1;
                passed.push(r#"{"id":null}"#.into());
            }
            Entry::Bad { id, .. } => {
                bad += 1;
                passed.push(format!(r#"{{"id":{id}}}"#).into());
            }
        }
    }
    if calls + bad == 0 {
        return Checked::WithoutId(without_id);
    }
    if bad == 0 && !was_repaired {
        return Checked::Calls { body: body.clone(), calls };
    }
    Checked::Calls { body: format!("[{}]", passed.join(",")).into(), calls }
}

/// What one object is. Its fields are empty where it is no object.
fn entry<'a>(fields: &[(Key<'a>, &'a RawValue)], was_repaired: bool) -> Entry<'a> {
    let (mut id, mut method, mut version, mut params) = (None, None, None, None);
    let (mut is_id_doubled, mut is_doubled) = (false, false);
    for (Key(key), value) in fields {
        let value = value.get();
        match key.as_ref() {
            "id" => is_id_doubled |= id.replace(value).is_some(),
            "method" => is_doubled |= method.replace(value).is_some(),
            "jsonrpc" => is_doubled |= version.replace(value).is_some(),
            "params" => is_doubled |= params.replace(value).is_some(),
            _ => {}
        }
    }
    let is_id_bad =
        id.is_some_and(|id| !is_id(id) || was_repaired && id.contains(char::REPLACEMENT_CHARACTER));
    if is_id_bad || is_id_doubled {
        let why = "the id is not one string, integer from 0 to 2^64 - 1, or null";
        return Entry::Bad { id: "null", why };
    }
    let bad = |why| Entry::Bad { id: id.unwrap_or("null"), why };
    if is_doubled {
        return bad("a member of the request is given twice");
    }
    if version.is_none_or(|v| string(v).as_deref() != Some("2.0")) {
        return bad("jsonrpc is not \"2.0\"");
    }
    if method.and_then(string).is_none() {
        return bad("method is not a string");
    }
    if id.is_some() { Entry::Call } else { Entry::WithoutId }
}

fn string(raw: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Key<'_>>(raw).ok().map(|Key(text)| text)
}

/// A string, an integer from 0 to 2^64 − 1, or null.
fn is_id(raw: &str) -> bool {
    match raw.as_bytes() {
        [b'"', ..] => string(raw).is_some(),
        b"null" => true,
        digits => digits.iter().all(u8::is_ascii_digit) && raw.parse::<u64>().is_ok(),
    }
}

#[cfg(test)]
mod tests;
