use std::{collections::BTreeSet, fs, path::Path};

use super::*;

/// Compares a committed file with what the code says.
fn check_file(name: &str, document: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("api").join(name);
    let text = format!("{}\n", serde_json::to_string_pretty(document).unwrap());
    if std::env::var_os("UPDATE_SPEC").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap();
    assert!(there == text, "api/{name} is not what the code says: rewrite it with UPDATE_SPEC=1");
}

#[test]
fn the_files_are_what_the_code_says() {
    check_file("openrpc.json", &openrpc_document());
    check_file("openapi.json", &openapi_document());
}

#[test]
fn every_name_is_documented_once() {
    let document = openrpc_document();
    let documented: Vec<&str> =
        document["methods"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    let once: BTreeSet<&str> = documented.iter().copied().collect();
    assert_eq!(once.len(), documented.len());
    assert_eq!(once.into_iter().collect::<Vec<_>>(), table::names());
}

#[test]
fn names_of_others_are_kept_free() {
    for free in ["conductor_", "health_", "rpc_modules", "optimism_", "admin_", "eth_", "miner_"] {
        assert!(!table::names().iter().any(|n| n.starts_with(free)), "{free}");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    for document in [openrpc_document(), openapi_document()] {
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(!references.is_empty());
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}

fn collect<'a>(value: &'a Value, references: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                references.push(reference);
            }
            map.values().for_each(|v| collect(v, references));
        }
        Value::Array(values) => values.iter().for_each(|v| collect(v, references)),
        _ => {}
    }
}

#[test]
fn examples_are_decoded_and_fit_their_schemas() {
    let document = openrpc_document();
    for method in document["methods"].as_array().unwrap() {
        let name = method["name"].as_str().unwrap();
        let row = table::find(name).unwrap();
        let by_name = row.example.0;
        assert!(Args::new(row.params, Some(by_name)).is_ok(), "{name} by name");
        let example = &method["examples"][0];
        let given = example["params"].as_array().unwrap();
        let by_position =
            serde_json::to_string(&given.iter().map(|p| &p["value"]).collect::<Vec<_>>()).unwrap();
        assert!(Args::new(row.params, Some(&by_position)).is_ok(), "{name} by position");
        for (param, given) in method["params"].as_array().unwrap().iter().zip(given) {
            fits(&document, &param["schema"], &given["value"]).unwrap_or_else(|why| panic!("{name}: {why}"));
        }
        fits(&document, &method["result"]["schema"], &example["result"]["value"])
            .unwrap_or_else(|why| panic!("{name}: {why}"));
    }
}

#[test]
fn the_schemas_bite() {
    let document = openrpc_document();
    let of = |name: &str| {
        let methods = document["methods"].as_array().unwrap();
        methods.iter().find(|m| m["name"] == name).unwrap()
    };
    let block = &of("block_propose")["params"][0]["schema"];
    let good: Value = serde_json::from_str(table::find("block_propose").unwrap().example.0).unwrap();
    assert_eq!(fits(&document, block, &good["block"]), Ok(()));
    for (field, wrong) in [
        ("height", json!(-1)),
        ("height", json!(1.5)),
        ("height", json!(1u64 << 53)),
        ("hash", json!(7)),
        ("nonsense", json!(1)),
    ] {
        let mut bad = good["block"].clone();
        bad[field] = wrong;
        assert!(fits(&document, block, &bad).is_err(), "{field}");
    }
    let mut lacking = good["block"].clone();
    lacking.as_object_mut().unwrap().remove("hash");
    assert!(fits(&document, block, &lacking).is_err());
    let status = &of("raft_status")["result"]["schema"];
    let mut lacking: Value = serde_json::from_str(table::find("raft_status").unwrap().example.1).unwrap();
    lacking.as_object_mut().unwrap().remove("fence");
    assert!(fits(&document, status, &lacking).is_err());
}

/// The part of JSON Schema that the document uses, but for patterns.
fn fits(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return fits(document, document.pointer(&reference[1..]).unwrap(), value);
    }
    let wrong = |what: &str| Err(format!("{value} {what} {schema}"));
    for choice in ["anyOf", "oneOf"] {
        if let Some(schemas) = schema[choice].as_array()
            && !schemas.iter().any(|s| fits(document, s, value).is_ok())
        {
            return wrong("is none of");
        }
    }
    if let Some(all) = schema["allOf"].as_array() {
        all.iter().try_for_each(|s| fits(document, s, value))?;
    }
    if let Some(values) = schema["enum"].as_array()
        && !values.contains(value)
    {
        return wrong("is not one of");
    }
    if schema.get("const").is_some_and(|c| c != value) {
        return wrong("is not");
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().map(|t| t.as_str().unwrap()).collect(),
        _ => vec![],
    };
    if !types.is_empty() && !types.iter().any(|t| is_of(t, value)) {
        return wrong("has not the type of");
    }
    if schema["minimum"].as_f64().is_some_and(|min| value.as_f64().is_some_and(|v| v < min))
        || schema["maximum"].as_f64().is_some_and(|max| value.as_f64().is_some_and(|v| max < v))
    {
        return wrong("is out of the bounds of");
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        values.iter().try_for_each(|v| fits(document, items, v))?;
    }
    let Some(fields) = value.as_object() else { return Ok(()) };
    if schema["required"]
        .as_array()
        .is_some_and(|r| r.iter().any(|f| !fields.contains_key(f.as_str().unwrap())))
    {
        // An example of a document need not be a whole one.
        return if schema["required"][0] == "openrpc" { Ok(()) } else { wrong("lacks a field of") };
    }
    for (name, field) in fields {
        match schema["properties"].get(name) {
            Some(of_field) => fits(document, of_field, field)?,
            None if schema["additionalProperties"] == false => return wrong("has a field that is not in"),
            None => {}
        }
    }
    Ok(())
}

fn is_of(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown type {other}"),
    }
}
