use super::*;

const PARAMS: &[Param] = &[
    Param::required::<u64>("height", ""),
    Param::optional::<bool>("verify", ""),
    Param::optional::<Bytes>("hash", ""),
];

fn decode(raw: Option<&str>) -> Result<(u64, Option<bool>, Option<Bytes>), Fault> {
    let args = Args::new(PARAMS, raw)?;
    Ok((args.need("height")?, args.get("verify")?, args.get("hash")?))
}

fn wrong(raw: &str) -> String {
    let fault = decode(Some(raw)).unwrap_err();
    assert_eq!(fault.code.number(), -32602, "{raw}");
    fault.data.param.expect("-32602 names the parameter")
}

#[test]
fn by_name_and_by_position_are_the_same() {
    let want = (7, Some(true), Some(Bytes::from_static(&[0xab, 0xcd])));
    for raw in [
        r#"{"height":7,"verify":true,"hash":"0xabcd"}"#,
        r#" { "hash" : "0xABCD" , "height" : "7", "verify" : true } "#,
        r#"{"\u0068eight":"0x7","verify":true,"hash":"0xabcd"}"#,
        r#"[7,true,"0xabcd"]"#,
        r#"[7,true,"0xabcd",null,null]"#,
    ] {
        assert_eq!(decode(Some(raw)).unwrap(), want, "{raw}");
    }
    for raw in ["[7]", "[7,null]", "[7,null,null,null]", r#"{"height":7,"verify":null}"#] {
        assert_eq!(decode(Some(raw)).unwrap(), (7, None, None), "{raw}");
    }
}

#[test]
fn nothing_is_given_in_four_ways() {
    for raw in [None, Some("null"), Some("[]"), Some("{}"), Some(" [ null ] ")] {
        assert!(Args::new(&[], raw).is_ok(), "{raw:?}");
        let fault = decode(raw).unwrap_err();
        assert_eq!(fault.data.param.as_deref(), Some("height"), "{raw:?}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (raw, name) in [
        (r#"{"height":7,"hieght":1}"#, "hieght"),
        (r#"{"height":7,"Height":1}"#, "Height"),
        (r#"{"height":7,"more":null}"#, "more"),
        (r#"{"height":7,"height":8}"#, "height"),
        (r#"{"height":7,"height":null}"#, "height"),
        (r#"[7,true,"0x",1]"#, "[3]"),
        (r#"[7,null,null,null,0]"#, "[4]"),
        ("[null,true]", "height"),
        ("7", "params"),
        ("\"text\"", "params"),
        ("true", "params"),
        (r#"{"height":7,"verify":1}"#, "verify"),
        (r#"{"height":7,"verify":"true"}"#, "verify"),
    ] {
        assert_eq!(wrong(raw), name, "{raw}");
    }
    let fault = Args::new(&[], Some("7")).map(|_| ()).unwrap_err();
    assert_eq!(fault.data.param.as_deref(), Some("params"), "methods without parameters check too");
    assert!(Args::new(&[], Some(r#"{"x":1}"#)).is_err());
    assert!(Args::new(&[], Some("[1]")).is_err());
}

#[test]
fn a_long_name_is_cut() {
    let raw = format!(r#"{{"height":7,"{}":1}}"#, "ü".repeat(5_000));
    assert!(wrong(&raw).len() <= NAME_BYTES_MAX);
}

#[test]
fn integers_are_exact_or_refused() {
    let max = u64::MAX.to_string();
    for (text, n) in [
        ("0", 0),
        ("9007199254740991", NUMBER_MAX),
        (r#""9007199254740992""#, NUMBER_MAX + 1),
        (&format!("\"{max}\""), u64::MAX),
        (r#""0xffffffffffffffff""#, u64::MAX),
        (r#""0xFf""#, 255),
        (r#""007""#, 7),
    ] {
        assert_eq!(decode(Some(&format!("[{text}]"))).unwrap().0, n, "{text}");
    }
    for text in [
        "9007199254740992",
        "18446744073709551615",
        "-1",
        "-0",
        "1.0",
        "1.5",
        "1e3",
        "1E0",
        "true",
        "{}",
        "[7]",
        r#""""#,
        r#""0x""#,
        r#""0X7""#,
        r#""-1""#,
        r#""+1""#,
        r#"" 7""#,
        r#""7 ""#,
        r#""1.0""#,
        r#""1e3""#,
        r#""18446744073709551616""#,
        r#""0x10000000000000000""#,
        r#""ff""#,
        r#""0x+f""#,
        &format!("\"{}7\"", "0".repeat(64)),
    ] {
        assert_eq!(wrong(&format!("[{text}]")), "height", "{text}");
    }
}

#[test]
fn bytes_are_0x_hex() {
    let hash = |text: &str| decode(Some(&format!("[7,null,{text}]"))).map(|d| d.2);
    assert_eq!(hash(r#""0x""#).unwrap(), Some(Bytes::new()));
    assert_eq!(hash(r#""0x00fF""#).unwrap(), Some(Bytes::from_static(&[0, 255])));
    for text in [r#""0xf""#, r#""00""#, r#""0xzz""#, r#""0X00""#, "7", r#""0x 00""#, r#""0xüü""#, "[]"] {
        assert_eq!(wrong(&format!("[7,null,{text}]")), "hash", "{text}");
    }
}

#[test]
fn nesting_cannot_exhaust_the_stack() {
    let deep = "[".repeat(2_000_000) + &"]".repeat(2_000_000);
    assert_eq!(wrong(&format!("[{deep}]")), "height");
    assert_eq!(wrong(&format!(r#"{{"height":{deep}}}"#)), "height");
}

const BLOCK: &str =
    r#"{"height":1,"hash":"0xa1","timestamp":"1700000000000000000","header":"0x","data":"0x0203"}"#;

fn block(json: &str) -> Result<Block, Fault> {
    const PROPOSE: &[Param] = &[Param::required::<Block>("block", "")];
    Args::new(PROPOSE, Some(&format!("[{json}]")))?.need("block")
}

#[test]
fn a_block_has_defaults_for_its_da_heights_alone() {
    let got = block(BLOCK).unwrap();
    assert_eq!((got.height, got.timestamp), (1, 1_700_000_000_000_000_000));
    assert_eq!((got.last_submitted_da_header_height, got.parent_hash), (0, None));
    let full = BLOCK.replace('}', r#","parentHash":"0xbb","lastSubmittedDaDataHeight":"0x10"}"#);
    let got = block(&full).unwrap();
    assert_eq!(got.parent_hash, Some(Bytes::from_static(&[0xbb])));
    assert_eq!(got.last_submitted_da_data_height, 16);
}

#[test]
fn a_block_s_fields_are_named_with_their_path() {
    for (from, to, name) in [
        (r#""height":1,"#, "", "block.height"),
        (r#""header":"0x","#, "", "block.header"),
        (r#""0xa1""#, r#""0xa""#, "block.hash"),
        (r#""0xa1""#, r#""0x""#, "block.hash"),
        (r#""0xa1""#, &format!("\"0x{}\"", "ab".repeat(65)), "block.hash"),
        (r#""height":1"#, r#""height":"9007199254740992""#, "block.height"),
        (r#""height":1"#, r#""height":1,"height":1"#, "block.height"),
        (r#""height":1"#, r#""height":1,"number":1"#, "block.number"),
        (r#""height":1"#, r#""height":1,"parentHash":"0x""#, "block.parentHash"),
        (
            r#""height":1"#,
            r#""height":1,"lastSubmittedDaHeaderHeight":-1"#,
            "block.lastSubmittedDaHeaderHeight",
        ),
        (r#""1700000000000000000""#, "1700000000000000000", "block.timestamp"),
    ] {
        let json = BLOCK.replace(from, to);
        assert_ne!(json, BLOCK);
        let fault = block(&json).unwrap_err();
        assert_eq!(fault.data.param.as_deref(), Some(name), "{json}");
    }
    for json in ["7", "[]", "\"0x\"", "null"] {
        assert_eq!(block(json).unwrap_err().data.param.as_deref(), Some("block"), "{json}");
    }
}

#[test]
fn patience_is_bounded() {
    let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
    assert_eq!(Patience::decode(&raw("800"), "timeoutMs").unwrap().0, Duration::from_millis(800));
    for text in ["0", "30001", "-5", "\"soon\""] {
        assert!(Patience::decode(&raw(text), "timeoutMs").is_err(), "{text}");
    }
}
