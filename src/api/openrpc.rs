//! The written contract, generated from the two tables: `api/openrpc.json` and `api/openapi.json`.
//!
//! A test compares the committed files with what the code says, and rewrites them with `UPDATE_SPEC=1`.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value, json, value::RawValue};

use crate::api::args::Args;
use crate::api::error::{Code, Data};
use crate::api::handlers::{Answer, Call};
use crate::api::routes::{Access, Route};
use crate::api::table::Method;
use crate::api::wire::MethodNames;
use crate::api::{handlers, routes, rpc, table};

/// Both documents as they are served, made once.
pub(crate) struct Documents {
    pub(crate) openrpc: Box<RawValue>,
    pub(crate) openapi: Box<RawValue>,
}

impl Documents {
    pub(crate) fn new() -> Self {
        Self {
            openrpc: handlers::to_raw(&openrpc_document()),
            openapi: handlers::to_raw(&openapi_document()),
        }
    }
}

pub(crate) fn discover<'a>(call: &'a Call, _: Args<'a>) -> Answer<'a> {
    Box::pin(async { Ok(call.api.documents.openrpc.clone()) })
}

pub(crate) fn methods<'a>(_: &'a Call, _: Args<'a>) -> Answer<'a> {
    Box::pin(async { Ok(handlers::to_raw(&MethodNames { methods: table::names() })) })
}

/// An error on a plain route.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct PlainError {
    error: ErrorObject,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct ErrorObject {
    code: i32,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data>,
}

fn generator(settings: SchemaSettings) -> SchemaGenerator {
    settings.for_serialize().with(|s| s.definitions_path = "/components/schemas".into()).into_generator()
}

pub(crate) fn document_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "required": ["openrpc", "info", "methods"] })
}

/// What `api/openrpc.json` must be.
pub(crate) fn openrpc_document() -> Value {
    let mut generator = generator(SchemaSettings::draft07());
    let methods: Vec<Value> = table::methods()
        .flat_map(|m| m.names().map(move |name| (m, name)))
        .map(|(m, name)| method(m, name, &mut generator))
        .collect();
    generator.subschema_for::<Data>();
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "blockraft",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Raft agreement on blocks. JSON-RPC 2.0 over HTTP POST / and WebSocket /. Params by name or by \
                            position; absent, null, [] and {} are the same. Bytes are 0x hex; 64-bit integers are numbers up \
                            to 2^53 - 1, or decimal or 0x strings. An id is a string, an integer from 0 to 2^64 - 1, or \
                            null. A request without an id is not executed, nor answered over WebSocket or in a batch; another \
                            kind of id is an error over HTTP and none over WebSocket. The data of an error is \
                            #/components/schemas/Data.",
            "license": { "name": "Apache-2.0" }
        },
        "methods": methods,
        "components": { "schemas": generator.take_definitions(true) }
    })
}

fn method(m: &Method, name: &str, generator: &mut SchemaGenerator) -> Value {
    let params: Vec<Value> = m
        .params
        .iter()
        .map(|p| {
            json!({
                "name": p.name,
                "summary": p.says,
                "required": p.is_required,
                "schema": (p.schema)(generator)
            })
        })
        .collect();
    let errors: Vec<Value> = rpc::STANDARD
        .iter()
        .chain(m.errors)
        .map(|code: &Code| json!({ "code": code.number(), "message": code.meaning() }))
        .collect();
    json!({
        "name": name,
        "summary": m.says,
        // One that is given by name alone has no position: whoever gives all of them gives them by name.
        "paramStructure": if m.params.iter().any(|p| p.is_named) { "by-name" } else { "either" },
        "params": params,
        "result": { "name": "result", "schema": (m.result)(generator) },
        "errors": errors,
        "examples": [example(m)],
        "x-leader-only": m.is_leader_only,
        "x-audited": m.audited
    })
}

fn example(m: &Method) -> Value {
    let params: Map<String, Value> = serde_json::from_str(m.example.0).expect("an example's params are JSON");
    // In the order of the row, so that the same values serve by position.
    let params: Vec<Value> = m
        .params
        .iter()
        .filter_map(|p| params.get(p.name).map(|value| json!({ "name": p.name, "value": value })))
        .collect();
    let result = match m.example.1 {
        "" => json!({ "methods": table::names() }),
        text => serde_json::from_str(text).expect("an example's result is JSON"),
    };
    json!({
        "name": m.name,
        "params": params,
        "result": { "name": "result", "value": result }
    })
}

/// What `api/openapi.json` must be.
pub(crate) fn openapi_document() -> Value {
    let mut generator = generator(SchemaSettings::draft2020_12());
    let error = generator.subschema_for::<PlainError>();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in routes::ROUTES {
        let operation = operation(route, &error, &mut generator);
        let path = paths.entry(route.path()).or_default();
        if route.method() == "GET" {
            path.insert(
                "head".into(),
                json!({ "summary": "As GET, without the body.", "responses": operation["responses"] }),
            );
        }
        path.insert(route.method().to_ascii_lowercase(), operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "blockraft, plain HTTP",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The routes beside JSON-RPC, which is POST / and WebSocket /: see /openrpc.json.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" }
        },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) }
    })
}

fn operation(route: &Route, error: &Schema, generator: &mut SchemaGenerator) -> Value {
    let params: Vec<Value> = route
        .params
        .iter()
        .map(|p| {
            json!({
                "name": p.name,
                "in": p.place,
                "description": p.says,
                "required": p.place == "path",
                "schema": { "type": "string" }
            })
        })
        .collect();
    let mut responses: BTreeMap<String, Value> = BTreeMap::new();
    for reply in route.replies {
        let schema =
            reply.schema.map_or_else(|| json_schema!({ "type": "string" }), |schema| schema(generator));
        let response = responses
            .entry(reply.status.to_string())
            .or_insert_with(|| json!({ "description": reply.says, "content": {} }));
        response["content"][reply.media] = json!({ "schema": schema });
    }
    for status in route.errors.iter().chain(refused_before(route)) {
        let content = json!({ "application/json": { "schema": error } });
        responses
            .entry(status.to_string())
            .or_insert_with(|| json!({ "description": says(*status), "content": content }));
    }
    let mut operation = json!({ "summary": route.says, "parameters": params, "responses": responses });
    if let Some(media) = route.takes {
        operation["requestBody"] = json!({ "required": true, "content": { media: { "schema": { "type": "string", "format": "binary" } } } });
    }
    operation
}

/// What a request may be answered before its route is asked.
fn refused_before(route: &Route) -> &'static [u16] {
    match (route.open, route.takes) {
        (Access::Anyone, _) => &[400],
        (Access::Scrapers, _) => &[400, 403],
        (Access::Clients, None) => &[400, 403, 429, 503],
        (Access::Clients, Some(_)) => &[400, 403, 408, 429, 503],
    }
}

fn says(status: u16) -> &'static str {
    match status {
        400 => "Malformed: -32602, data.param names what.",
        403 => "forbidden: the Host or the Origin is not one of api.allowed_hosts.",
        404 => "notFound: -32037.",
        408 => "The body did not arrive in time.",
        409 => "fenced, conflict, stale, gap, badParent, badTimestamp: -32032, -32033.",
        410 => "pruned: -32037.",
        413 => "tooLarge: -32602.",
        415 => "Another media type is wanted.",
        421 => "notLeader: -32030; Blockraft-Leader says where.",
        429 => "overloaded: -32034, with Retry-After.",
        500 => "internal: -32603.",
        503 => "noLeader, shuttingDown, paused, notReady: -32031, -32040, with Retry-After.",
        504 => "timeout, leadershipLost: -32035, may have happened.",
        507 => "storage: -32038.",
        _ => "An error.",
    }
}

#[cfg(test)]
mod tests;
