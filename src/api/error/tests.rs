use bytes::Bytes;
use serde_json::Value;

use super::*;
use crate::store;
use crate::types::block::{BlockRef, Malformed};

fn head() -> Option<BlockRef> {
    Some(BlockRef { height: 9, hash: Bytes::from_static(&[0xab]), timestamp: 1 << 60 })
}

fn refused(refusal: Refusal, oldest_height: Option<u64>) -> ProposeError {
    ProposeError::Refused { refusal, head: head(), oldest_height }
}

/// Every way a proposal can fail: code, HTTP status, kind, reason, and what else is in `data`.
fn table()
-> Vec<(ProposeError, i32, u16, Option<&'static str>, Option<&'static str>, &'static [&'static str])> {
    let hash = Bytes::from_static(&[0xab]);
    let (no, yes) = (Some("refused"), Some("unknown"));
    vec![
        (ProposeError::Malformed(Malformed::Hash(0)), -32602, 400, None, None, &["param"]),
        (ProposeError::FenceRequired, -32602, 400, None, None, &["param"]),
        (ProposeError::TooLarge { bytes: 2, max: 1 }, -32602, 413, None, Some("tooLarge"), &["param"]),
        (
            ProposeError::NotLeader { leader_id: 1, leader_api: None },
            -32030,
            421,
            no,
            Some("notLeader"),
            &["leaderId", "leaderApi"],
        ),
        (ProposeError::NoLeader { retry_after_ms: 1 }, -32031, 503, no, Some("noLeader"), &["retryAfterMs"]),
        (
            ProposeError::Fenced { fence: None, term: 1, head: None },
            -32032,
            409,
            no,
            Some("fenced"),
            &["fence", "term", "head"],
        ),
        (refused(Refusal::Conflict, None), -32033, 409, no, Some("conflict"), &["head"]),
        (refused(Refusal::Stale, None), -32033, 409, no, Some("stale"), &["head"]),
        (refused(Refusal::Stale, Some(5)), -32033, 409, yes, Some("stale"), &["head", "oldestHeight"]),
        (refused(Refusal::Gap, None), -32033, 409, no, Some("gap"), &["head"]),
        (refused(Refusal::BadParent, None), -32033, 409, no, Some("badParent"), &["head"]),
        (refused(Refusal::BadTimestamp, None), -32033, 409, no, Some("badTimestamp"), &["head"]),
        (
            ProposeError::Overloaded { retry_after_ms: 1 },
            -32034,
            429,
            no,
            Some("overloaded"),
            &["retryAfterMs"],
        ),
        (
            ProposeError::Timeout { height: 1, hash: hash.clone(), term: Some(1), index: Some(2) },
            -32035,
            504,
            yes,
            Some("timeout"),
            &["height", "hash", "term", "index"],
        ),
        (
            ProposeError::LeadershipLost { height: 1, hash, term: None, index: None },
            -32035,
            504,
            yes,
            Some("leadershipLost"),
            &["height", "hash"],
        ),
        (ProposeError::Storage, -32038, 507, no, Some("storage"), &[]),
        (ProposeError::ShuttingDown, -32040, 503, no, Some("shuttingDown"), &[]),
        (ProposeError::Paused, -32040, 503, no, Some("paused"), &[]),
        (ProposeError::NotReady, -32040, 503, no, Some("notReady"), &[]),
    ]
}

#[test]
fn every_failed_proposal_has_its_code_status_kind_and_data() {
    for (error, code, status, kind, reason, also) in table() {
        let what = format!("{error:?}");
        let fault = Fault::from(error);
        assert_eq!(fault.status().as_u16(), status, "{what}");
        let json: Value = serde_json::from_str(&fault.to_plain()).unwrap();
        let (json, data) = (&json["error"], &json["error"]["data"]);
        assert_eq!(json["code"], code, "{what}");
        assert!(!json["message"].as_str().unwrap().is_empty(), "{what}");
        assert_eq!(data["kind"].as_str(), kind, "{what}");
        assert_eq!(data["reason"].as_str(), reason, "{what}");
        let mut fields: Vec<&str> = data.as_object().unwrap().keys().map(String::as_str).collect();
        fields.retain(|f| !["kind", "reason"].contains(f));
        fields.sort_unstable();
        let mut also = also.to_vec();
        also.sort_unstable();
        assert_eq!(fields, also, "{what}");
    }
}

#[test]
fn a_head_is_a_block_ref_or_null() {
    let json =
        |fault: Fault| serde_json::from_str::<Value>(&fault.to_plain()).unwrap()["error"]["data"].clone();
    let data = json(refused(Refusal::Gap, None).into());
    assert_eq!(
        data["head"],
        serde_json::json!({"height":9,"hash":"0xab","timestamp":(1u64 << 60).to_string()})
    );
    let data = json(ProposeError::Fenced { fence: Some(3), term: 4, head: None }.into());
    assert_eq!((&data["head"], &data["fence"], &data["term"]), (&Value::Null, &3.into(), &4.into()));
}

#[test]
fn headers_tell_where_the_leader_is_and_when_to_come_back() {
    let leader_api = Some("10.0.0.1:7400".to_owned());
    let fault = Fault::from(ProposeError::NotLeader { leader_id: 2, leader_api });
    assert_eq!((fault.leader(), fault.retry_after_secs()), (Some("10.0.0.1:7400"), None));
    for (error, secs) in [
        (ProposeError::NoLeader { retry_after_ms: 1_001 }, Some(2)),
        (ProposeError::Overloaded { retry_after_ms: 0 }, Some(1)),
        (ProposeError::ShuttingDown, Some(1)),
        (ProposeError::Storage, None),
    ] {
        assert_eq!(Fault::from(error).retry_after_secs(), secs);
    }
}

#[test]
fn reads_and_changes_of_settings_have_theirs() {
    let data = |fault: &Fault| serde_json::to_value(&*fault.data).unwrap();
    let fault = Fault::from(store::ReadError::NotFound { oldest: None });
    assert_eq!((fault.code.number(), fault.status().as_u16()), (-32037, 404));
    assert_eq!(data(&fault), serde_json::json!({"kind":"refused","reason":"notFound","oldestHeight":null}));
    let fault = Fault::from(store::ReadError::Pruned { oldest: Some(7) });
    assert_eq!((fault.code.number(), fault.status().as_u16()), (-32037, 410));
    assert_eq!(data(&fault)["oldestHeight"], 7);
    for error in
        [handle::ReadError::NoLeader, handle::ReadError::NoQuorum("x".into()), handle::ReadError::TimedOut]
    {
        let fault = Fault::from(error);
        assert_eq!(fault.code.number(), -32031);
        assert_eq!(data(&fault)["reason"], "noLeader");
        assert!(data(&fault)["retryAfterMs"].is_u64());
    }
    let fault = Fault::from(handle::ConfigureError::VersionMismatch { version: 4 });
    assert_eq!(fault.code.number(), -32036);
    assert_eq!(data(&fault), serde_json::json!({"kind":"refused","reason":"versionMismatch","version":4}));
    let fault = Fault::from(handle::ConfigureError::Unknown);
    assert_eq!((fault.code.number(), data(&fault)["kind"].as_str()), (-32035, Some("unknown")));
}

#[test]
fn an_answer_over_json_rpc_repeats_the_id() {
    let text = Fault::new(Code::InvalidRequest, "x").to_response("\"a\"");
    assert_eq!(text, r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32600,"message":"x"}}"#);
    let object = ErrorObjectOwned::from(Fault::param("height", "x"));
    assert_eq!(object.data().unwrap().get(), r#"{"param":"height"}"#);
}

use jsonrpsee::types::ErrorObjectOwned;
