//! HTTP/1.1 to one node over kept connections.
//!
//! Says of every failure whether the request may have reached the node.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use crate::client::endpoint::Endpoint;
use crate::types::error::Certainty;

/// Largest answer that is read: two blocks of the largest `chain.max_block_bytes` in hex, and what stands around them.
const BODY_BYTES_MAX: usize = 128 << 20;
/// A connection that is not there by then is taken for refused: a SYN is sent again after one second.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(2);
/// Below the idle time after which servers and their proxies close a connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why there is no HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("{endpoint}: {why}")]
    NotSent { endpoint: Endpoint, why: String },
    #[error("{endpoint}: no answer within {after:?}")]
    TimedOut { endpoint: Endpoint, after: Duration },
    #[error("{endpoint}: the connection broke before the answer: {why}")]
    Broken { endpoint: Endpoint, why: String },
    #[error("{endpoint}: the answer has more than {max} bytes")]
    TooLarge { endpoint: Endpoint, max: usize },
}

impl HttpError {
    pub(crate) fn certainty(&self) -> Certainty {
        match self {
            Self::NotSent { .. } => Certainty::Refused,
            Self::TimedOut { .. } | Self::Broken { .. } | Self::TooLarge { .. } => Certainty::Unknown,
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// A request's method, path, headers and body.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
}

impl<'a> Ask<'a> {
    pub(crate) fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, headers: Vec::new(), body: Bytes::new() }
    }

    pub(crate) fn post(path: &'a str, media_type: &'static str, body: Bytes) -> Self {
        let headers = vec![(CONTENT_TYPE, HeaderValue::from_static(media_type))];
        Self { method: Method::POST, path, headers, body }
    }
}

/// Connections to any number of nodes, kept open between calls. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    /// `Bearer …` for `Authorization`.
    token: Option<HeaderValue>,
}

impl Http {
    /// `timeout` is that of a whole call: connecting may take at most half of it.
    pub(crate) fn new(timeout: Duration, token: Option<HeaderValue>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT_MAX.min(timeout / 2)));
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Self { client, token }
    }

    pub(crate) fn token(&self) -> Option<&HeaderValue> {
        self.token.as_ref()
    }

    /// Asks and reads the whole answer.
    pub(crate) async fn ask(
        &self,
        endpoint: &Endpoint,
        ask: Ask<'_>,
        within: Duration,
    ) -> Result<Answer, HttpError> {
        let whole = async {
            let response = self.open(endpoint, ask).await?;
            let (head, body) = response.into_parts();
            let body = read(endpoint, body).await?;
            Ok(Answer { status: head.status, body })
        };
        match tokio::time::timeout(within, whole).await {
            Ok(answer) => answer,
            // In whole milliseconds: it is told to people.
            Err(_) => Err(HttpError::TimedOut {
                endpoint: endpoint.clone(),
                after: Duration::from_millis(within.as_micros().div_ceil(1_000) as u64),
            }),
        }
    }

    /// Asks and returns once the head of the answer is there; the caller reads the body.
    pub(crate) async fn open(
        &self,
        endpoint: &Endpoint,
        ask: Ask<'_>,
    ) -> Result<Response<Incoming>, HttpError> {
        let mut request = Request::builder().method(ask.method).uri(endpoint.url(ask.path));
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let not_sent = |why: String| HttpError::NotSent { endpoint: endpoint.clone(), why };
        let request = request.body(Full::new(ask.body)).map_err(|e| not_sent(e.to_string()))?;
        self.client.request(request).await.map_err(|e| {
            if e.is_connect() {
                not_sent(root_cause(&e))
            } else {
                HttpError::Broken { endpoint: endpoint.clone(), why: root_cause(&e) }
            }
        })
    }
}

async fn read(endpoint: &Endpoint, mut body: Incoming) -> Result<Bytes, HttpError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|e| HttpError::Broken { endpoint: endpoint.clone(), why: root_cause(&e) })?;
        if let Ok(data) = frame.into_data() {
            if BODY_BYTES_MAX < whole.len() + data.len() {
                return Err(HttpError::TooLarge { endpoint: endpoint.clone(), max: BODY_BYTES_MAX });
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.freeze())
}

/// The innermost error: the outer ones only say that a request failed.
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    // The number is of no use to a person.
    let text = cause.to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_lowercase(),
        None => text,
    }
}
