//! The plain HTTP routes: one row each. Dispatch, metric labels and the OpenAPI document follow from them.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{Method, Request, Response, StatusCode},
};
use futures::future::BoxFuture;
use hyper::body::Incoming;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::api::cluster::ClusterJson;
use crate::api::feed::ItemJson;
use crate::api::http::{Front, json, plain_fault};
use crate::api::socket::Connection;
use crate::api::status::StatusJson;
use crate::api::wire::{Acknowledged, BlockAt, Leader};
use crate::api::{blocks, body, cluster, handlers, page, probes, snapshots, sse, status, stream};

/// One request on its way to a route.
pub(crate) struct Asked {
    pub(crate) front: Arc<Front>,
    pub(crate) request: Request<Incoming>,
    pub(crate) connection: Arc<Connection>,
    /// What stands for the route's `{…}`.
    pub(crate) tail: String,
}

impl Asked {
    /// For a route that wants no body.
    fn without_body(self) -> (Arc<Front>, axum::http::request::Parts, String) {
        let (head, incoming) = self.request.into_parts();
        body::discard(&head.headers, incoming);
        (self.front, head, self.tail)
    }
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Whatever the Host, on extra connections too, and beyond the rate limit.
    Anyone,
    /// On extra connections too, and beyond the rate limit.
    Scrapers,
    Clients,
}

/// Something a route is told beside its body.
pub(crate) struct HttpParam {
    pub(crate) name: &'static str,
    /// `path`, `query` or `header`.
    pub(crate) place: &'static str,
    pub(crate) says: &'static str,
}

/// One of the answers of a route.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) says: &'static str,
    pub(crate) media: &'static str,
    pub(crate) schema: Option<fn(&mut SchemaGenerator) -> Schema>,
}

pub(crate) struct Route {
    /// `METHOD path`; a path may end with one `{…}`.
    pub(crate) label: &'static str,
    pub(crate) says: &'static str,
    pub(crate) open: Access,
    pub(crate) params: &'static [HttpParam],
    /// Media type of the request's body.
    pub(crate) takes: Option<&'static str>,
    pub(crate) replies: &'static [Reply],
    /// Statuses of `{"error":{code,message,data}}`.
    pub(crate) errors: &'static [u16],
    pub(crate) run: fn(Asked) -> BoxFuture<'static, Response<Body>>,
}

impl Route {
    pub(crate) fn method(&self) -> &'static str {
        self.label.split(' ').next().expect("a label begins with a method")
    }

    pub(crate) fn path(&self) -> &'static str {
        self.label.split(' ').nth(1).expect("a label ends with a path")
    }

    /// Whether blocks come by it, each of which has a trace.
    pub(crate) fn proposes(&self) -> bool {
        self.takes.is_some()
    }

    /// Blocks are not answered by a node whose state differs from the others'.
    pub(crate) async fn answer(&self, asked: Asked) -> Response<Body> {
        let serves_blocks = self.path().starts_with("/v1/blocks");
        if let Some(fault) = asked.front.api.stopped_serving().filter(|_| serves_blocks) {
            body::refuse(asked.request);
            return plain_fault(&fault);
        }
        (self.run)(asked).await
    }

    /// What stands for `{…}`, an empty string where there is none; `None`: another path.
    fn matches<'a>(&self, path: &'a str) -> Option<&'a str> {
        match self.path().split_once('{') {
            None => (self.path() == path).then_some(""),
            Some((before, _)) => path.strip_prefix(before).filter(|t| !t.is_empty() && !t.contains('/')),
        }
    }
}

/// What a method and a path lead to.
pub(crate) enum Found<'a> {
    Route(&'static Route, &'a str),
    /// The path exists; what it can be asked with.
    OtherMethod(Vec<&'static str>),
    Nothing,
}

pub(crate) fn find<'a>(method: &Method, path: &'a str) -> Found<'a> {
    let asked = if *method == Method::HEAD { "GET" } else { method.as_str() };
    let mut others = Vec::new();
    for route in ROUTES {
        let Some(tail) = route.matches(path) else { continue };
        if route.method() == asked {
            return Found::Route(route, tail);
        }
        others.push(route.method());
        if route.method() == "GET" {
            others.push("HEAD");
        }
    }
    if others.is_empty() { Found::Nothing } else { Found::OtherMethod(others) }
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Label and path of the route that proposes one block.
pub(crate) const PROPOSE: (&str, &str) = ("POST /v1/blocks", "/v1/blocks");

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";
const OPEN_METRICS: &str = "application/openmetrics-text";
const PROTOBUF: &str = "application/x-protobuf";

const FENCE: HttpParam = HttpParam {
    name: "Blockraft-Fence",
    place: "header",
    says: "Refuse in any other term. Without one: the fence held on arrival.",
};
const TIMEOUT: HttpParam = HttpParam {
    name: "Blockraft-Timeout",
    place: "header",
    says: "How long to wait, as 800ms or 2s, up to 30s; default api.propose_timeout.",
};
const TRACEPARENT: HttpParam =
    HttpParam { name: "traceparent", place: "header", says: "W3C trace context of the caller." };

/// Statuses of every proposal.
const PROPOSAL_ERRORS: &[u16] = &[400, 409, 413, 415, 421, 429, 500, 503, 504, 507];

const fn ok(says: &'static str, media: &'static str) -> Reply {
    Reply { status: 200, says, media, schema: None }
}

pub(crate) const ROUTES: &[Route] = &[
    Route {
        label: PROPOSE.0,
        says: "Proposes a block given as protobuf: the fast path for one block at a time.",
        open: Access::Clients,
        params: &[FENCE, TIMEOUT, TRACEPARENT],
        takes: Some(PROTOBUF),
        replies: &[Reply {
            status: 200,
            says: "Committed, and applied on this node.",
            media: JSON,
            schema: Some(schema::<Acknowledged>),
        }],
        errors: PROPOSAL_ERRORS,
        run: |asked| Box::pin(blocks::propose(asked.front, asked.request)),
    },
    Route {
        label: "POST /v1/blocks/stream",
        says: "Proposes blocks in order without waiting for each: every block after its length as a varint. Answered \
               by one line each, in the same order; ends after the first refusal.",
        open: Access::Clients,
        params: &[FENCE, TIMEOUT, TRACEPARENT],
        takes: Some(PROTOBUF),
        replies: &[Reply {
            status: 200,
            says: "One result or {\"error\":…} a line.",
            media: "application/x-ndjson",
            schema: Some(schema::<Acknowledged>),
        }],
        errors: &[400, 415],
        run: |asked| Box::pin(async { stream::serve(asked.front, asked.request) }),
    },
    Route {
        label: "GET /v1/blocks/{height}",
        says: "The block at a height.",
        open: Access::Clients,
        params: &[
            HttpParam { name: "height", place: "path", says: "Decimal, or hex after 0x." },
            HttpParam { name: "Accept", place: "header", says: "JSON, or application/x-protobuf." },
        ],
        takes: None,
        replies: &[
            Reply { status: 200, says: "The block.", media: JSON, schema: Some(schema::<BlockAt>) },
            ok("The block, with Blockraft-Term and Blockraft-Index.", PROTOBUF),
        ],
        errors: &[400, 404, 410],
        run: |asked| {
            Box::pin(async {
                let (front, head, height) = asked.without_body();
                blocks::get(&front, &head.headers, &height).await
            })
        },
    },
    Route {
        label: "GET /v1/applied",
        says: "Applied blocks as server-sent events: block, gap, caughtUp, end. The id of an event is the reader's \
               position. A stream that is refused for now says why in its one event.",
        open: Access::Clients,
        params: &[
            HttpParam {
                name: "fromHeight",
                place: "query",
                says: "Begin with the first block at or above it.",
            },
            HttpParam {
                name: "fromIndex",
                place: "query",
                says: "Begin with the first block at or behind it. Excludes fromHeight.",
            },
            HttpParam {
                name: "maxItemBytes",
                place: "query",
                says: "An event that is larger comes without header and data; 0: every one is whole. Default 393216.",
            },
            HttpParam { name: "buffer", place: "query", says: "Blocks that may wait; default feed.buffer." },
            HttpParam { name: "onFull", place: "query", says: "drop (default) or close." },
            HttpParam { name: "name", place: "query", says: "One of feed.watched gets metrics of its own." },
            HttpParam {
                name: "Last-Event-ID",
                place: "header",
                says: "Go on behind this event; beats the query.",
            },
        ],
        takes: None,
        replies: &[Reply {
            status: 200,
            says: "Events, each with such an item as its data.",
            media: "text/event-stream",
            schema: Some(schema::<ItemJson>),
        }],
        errors: &[400, 410],
        run: |asked| {
            Box::pin(async {
                // Readers that are slow are told so, not cut off.
                asked.connection.be_patient();
                let connection = asked.connection.clone();
                let (front, head, _) = asked.without_body();
                sse::applied(&front.api, connection, &head).await
            })
        },
    },
    Route {
        label: "GET /v1/snapshots/{id}",
        says: "A snapshot as a tar archive, which blockraft snapshot restore takes.",
        open: Access::Clients,
        params: &[HttpParam { name: "id", place: "path", says: "As snapshot_list names it." }],
        takes: None,
        replies: &[ok("The archive; its length is announced.", "application/x-tar")],
        errors: &[404, 429, 507],
        run: |asked| {
            Box::pin(async {
                let (front, _, id) = asked.without_body();
                snapshots::export(&front, &id).await
            })
        },
    },
    Route {
        label: "GET /",
        says: "The status page, for a browser: only where Accept names text/html.",
        open: Access::Clients,
        params: &[HttpParam { name: "Accept", place: "header", says: "text/html by name." }],
        takes: None,
        replies: &[ok("One self-contained page.", "text/html")],
        errors: &[],
        run: |asked| {
            Box::pin(async {
                let _ = asked.without_body();
                page::answer()
            })
        },
    },
    Route {
        label: "GET /status",
        says: "raft_status.",
        open: Access::Clients,
        params: &[],
        takes: None,
        replies: &[Reply {
            status: 200,
            says: "The status.",
            media: JSON,
            schema: Some(schema::<StatusJson>),
        }],
        errors: &[],
        run: |asked| {
            Box::pin(async {
                let (front, ..) = asked.without_body();
                json(StatusCode::OK, handlers::to_raw(&status::of(&front.api.parts)).get().to_owned())
            })
        },
    },
    Route {
        label: "GET /cluster",
        says: "raft_cluster.",
        open: Access::Clients,
        params: &[],
        takes: None,
        replies: &[Reply {
            status: 200,
            says: "All nodes.",
            media: JSON,
            schema: Some(schema::<ClusterJson>),
        }],
        errors: &[],
        run: |asked| {
            Box::pin(async {
                let (front, ..) = asked.without_body();
                let view = cluster::view(&front.api).await;
                json(StatusCode::OK, handlers::to_raw(&view).get().to_owned())
            })
        },
    },
    Route {
        label: "GET /leader",
        says: "raft_leader; 200 on a ready leader alone, for load balancers.",
        open: Access::Clients,
        params: &[],
        takes: None,
        replies: &[
            Reply {
                status: 200,
                says: "This node leads and is ready.",
                media: JSON,
                schema: Some(schema::<Leader>),
            },
            Reply { status: 503, says: "It does not.", media: JSON, schema: Some(schema::<Leader>) },
        ],
        errors: &[],
        run: |asked| {
            Box::pin(async {
                let (front, ..) = asked.without_body();
                probes::leader(&front.api.parts)
            })
        },
    },
    Route {
        label: "GET /livez",
        says: "Whether the process answers.",
        open: Access::Anyone,
        params: &[],
        takes: None,
        replies: &[ok("It does.", TEXT)],
        errors: &[],
        run: |asked| {
            Box::pin(async {
                let _ = asked.without_body();
                probes::livez()
            })
        },
    },
    Route {
        label: "GET /readyz",
        says: "Whether clients can be sent here. Paused nodes, followers and learners are ready.",
        open: Access::Anyone,
        params: &[HttpParam { name: "verbose", place: "query", says: "Each check as JSON." }],
        takes: None,
        replies: &[
            ok("Ready.", TEXT),
            Reply {
                status: 200,
                says: "With verbose.",
                media: JSON,
                schema: Some(schema::<probes::Readiness>),
            },
            Reply {
                status: 503,
                says: "Starting, without a leader, catching up, stopping, or stopped from serving.",
                media: TEXT,
                schema: None,
            },
            Reply {
                status: 503,
                says: "With verbose.",
                media: JSON,
                schema: Some(schema::<probes::Readiness>),
            },
        ],
        errors: &[],
        run: |asked| {
            Box::pin(async {
                let (front, head, _) = asked.without_body();
                probes::readyz(&front.api.parts, head.uri.query())
            })
        },
    },
    Route {
        label: "GET /metrics",
        says: "Prometheus text, or OpenMetrics by Accept.",
        open: Access::Scrapers,
        params: &[],
        takes: None,
        replies: &[ok("Every family.", TEXT), ok("The same, with exemplars.", OPEN_METRICS)],
        errors: &[],
        run: |asked| {
            Box::pin(async {
                let (front, head, _) = asked.without_body();
                probes::metrics(front.api.parts.clone(), &head.headers).await
            })
        },
    },
    Route {
        label: "GET /openrpc.json",
        says: "The OpenRPC document: every JSON-RPC method.",
        open: Access::Clients,
        params: &[],
        takes: None,
        replies: &[ok("The document.", JSON)],
        errors: &[],
        run: |asked| {
            Box::pin(async {
                let (front, ..) = asked.without_body();
                json(StatusCode::OK, front.api.documents.openrpc.get().to_owned())
            })
        },
    },
    Route {
        label: "GET /openapi.json",
        says: "The OpenAPI document: these routes.",
        open: Access::Clients,
        params: &[],
        takes: None,
        replies: &[ok("The document.", JSON)],
        errors: &[],
        run: |asked| {
            Box::pin(async {
                let (front, ..) = asked.without_body();
                json(StatusCode::OK, front.api.documents.openapi.get().to_owned())
            })
        },
    },
];
