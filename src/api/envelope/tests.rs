use super::*;

fn look(body: &[u8]) -> Checked {
    check(Bytes::copy_from_slice(body), 3)
}

fn answered(body: &[u8]) -> (u16, i32) {
    match look(body) {
        Checked::Answer { status, code, body } => {
            let json: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(json["jsonrpc"], "2.0");
            assert_eq!(json["error"]["code"], code.number());
            assert!(json.get("result").is_none());
            (status.as_u16(), code.number())
        }
        other => panic!("{:?} is {other:?}", String::from_utf8_lossy(body)),
    }
}

fn passed(body: &[u8]) -> (String, usize) {
    match look(body) {
        Checked::Calls { body, calls } => (String::from_utf8(body.to_vec()).unwrap(), calls),
        other => panic!("{:?} is {other:?}", String::from_utf8_lossy(body)),
    }
}

const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"raft_status"}"#;

#[test]
fn calls_pass_as_they_are_but_for_the_blanks_around() {
    let padded = format!(" \r\n\t{CALL}\n ");
    assert_eq!(passed(padded.as_bytes()), (CALL.to_owned(), 1));
    let batch = format!("[{CALL}, {CALL}]");
    assert_eq!(passed(batch.as_bytes()), (batch.clone(), 2));
}

#[test]
fn every_kind_of_id_is_judged() {
    for id in ["0", "1", "18446744073709551615", "null", "\"x\"", "\"\"", r#""\u00fc""#, "\"9\""] {
        let call = CALL.replace(":1,", &format!(":{id},"));
        assert_eq!(passed(call.as_bytes()).1, 1, "{id}");
    }
    for id in [
        "-1",
        "1.5",
        "1.0",
        "1e2",
        "-0",
        "18446744073709551616",
        "true",
        "false",
        "{}",
        "[]",
        "[1]",
        r#""\ud800""#,
    ] {
        let call = CALL.replace(":1,", &format!(":{id},"));
        assert_eq!(answered(call.as_bytes()), (200, -32600), "{id}");
        let batch = format!("[{call},{CALL}]");
        assert_eq!(passed(batch.as_bytes()), (format!(r#"[{{"id":null}},{CALL}]"#), 1), "{id} in a batch");
    }
}

#[test]
fn a_member_given_twice_is_no_request() {
    for call in [
        r#"{"jsonrpc":"2.0","id":1,"id":1,"method":"m"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"m","method":"m"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"m","params":[],"params":[]}"#,
        r#"{"jsonrpc":"2.0","jsonrpc":"2.0","id":1,"method":"m"}"#,
        r#"{"jsonrpc":"2.0","id":1,"\u0069d":2,"method":"m"}"#,
    ] {
        assert_eq!(answered(call.as_bytes()), (200, -32600), "{call}");
    }
}

#[test]
fn json_that_is_no_request_is_told_so_with_its_id() {
    for body in [
        "{}",
        "[]",
        r#"{"id":7}"#,
        r#"{"method":"m"}"#,
        r#"{"jsonrpc":"2.0","id":7,"method":7}"#,
        r#"{"jsonrpc":"2.0","id":7}"#,
        r#"{"jsonrpc":"1.0","id":7,"method":"m"}"#,
        r#"{"jsonrpc":2.0,"id":7,"method":"m"}"#,
        r#"{"id":7,"method":"m"}"#,
    ] {
        assert_eq!(answered(body.as_bytes()), (200, -32600), "{body}");
    }
    let Checked::Answer { body, .. } = look(br#"{"jsonrpc":"2.0","id":"a b","method":7}"#) else { panic!() };
    assert!(body.contains(r#""id":"a b""#), "{body}");
    assert_eq!(passed(br#"[1,"x",null]"#).0, r#"[{"id":null},{"id":null},{"id":null}]"#);
    let batch = br#"[{"jsonrpc":"2.0","id":7,"method":7},{}]"#;
    assert_eq!(passed(batch), (r#"[{"id":7},{"id":null}]"#.to_owned(), 0));
}

#[test]
fn what_is_no_json_is_400_only_where_it_cannot_begin() {
    for body in ["", "  ", "7", "null", "\"x\"", "jsonrpc", "\u{feff}{}"] {
        assert_eq!(answered(body.as_bytes()), (400, -32700), "{body:?}");
    }
    for body in ["{", "[", "{]", r#"{"jsonrpc""#, "[1,", "{}x", "[] []", r#"{"a":01}"#] {
        assert_eq!(answered(body.as_bytes()), (200, -32700), "{body:?}");
    }
}

#[test]
fn without_an_id_nothing_is_passed() {
    let call = br#"{"jsonrpc":"2.0","method":"block_propose","params":[]}"#;
    assert_eq!(look(call), Checked::WithoutId(1));
    let batch = br#"[{"jsonrpc":"2.0","method":"m"},{"jsonrpc":"2.0","method":"m"}]"#;
    assert_eq!(look(batch), Checked::WithoutId(2));
    let mixed = format!(r#"[{{"jsonrpc":"2.0","method":"m"}},{CALL}]"#);
    assert_eq!(passed(mixed.as_bytes()), (mixed.clone(), 1));
    assert_eq!(passed(br#"[{"jsonrpc":"2.0","method":"m"},7]"#).1, 0, "the second is answered");
}

#[test]
fn a_batch_is_bounded() {
    let four = format!("[{CALL},{CALL},{CALL},{CALL}]");
    assert_eq!(answered(four.as_bytes()), (200, -32010));
}

#[test]
fn an_id_that_is_not_utf_8_is_no_id() {
    let bad_id = b"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\",\"method\":\"m\"}";
    assert_eq!(answered(bad_id), (200, -32600));
    let bad_params = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":[\"\xff\"]}";
    assert_eq!(answered(bad_params), (200, -32700));
    let mut batch = b"[".to_vec();
    batch.extend_from_slice(bad_id);
    batch.extend_from_slice(b",");
    batch.extend_from_slice(bad_params);
    batch.extend_from_slice(format!(",{CALL}]").as_bytes());
    assert_eq!(passed(&batch), (format!(r#"[{{"id":null}},{{"id":null}},{CALL}]"#), 1));
}

#[test]
fn nesting_cannot_exhaust_the_stack() {
    let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    let params = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{deep}}}"#);
    assert_eq!(passed(params.as_bytes()).1, 1);
    let id = format!(r#"{{"jsonrpc":"2.0","id":{deep},"method":"m"}}"#);
    assert_eq!(answered(id.as_bytes()), (200, -32600));
    let method = format!(r#"{{"jsonrpc":"2.0","id":1,"method":{deep}}}"#);
    assert_eq!(answered(method.as_bytes()), (200, -32600));
    assert_eq!(passed(deep.as_bytes()).0, r#"[{"id":null}]"#);
    assert_eq!(answered("[".repeat(1_000_000).as_bytes()), (200, -32700));
}
