//! The HTTP client of the exporter, on the node's runtime.
//!
//! The SDK's batch thread has no runtime, and hyper's timers need one: so each request is a task of the
//! runtime that the batch thread waits for.

use std::{fmt::Debug, future::Future, pin::Pin, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connect, HttpConnector},
    },
    rt::TokioExecutor,
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use tokio::runtime::Handle;

/// A collector answers with a few bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Client<C> {
    client: legacy::Client<C, Full<Bytes>>,
    runtime: Handle,
    timeout: Duration,
}

impl Client<HttpConnector> {
    pub(super) fn plain(timeout: Duration) -> Self {
        Self::new(HttpConnector::new(), timeout)
    }
}

impl Client<HttpsConnector<HttpConnector>> {
    /// Trusts the system's roots; an error where it has none.
    pub(super) fn with_tls(timeout: Duration) -> std::io::Result<Self> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_native_roots()?
            .https_only()
            .enable_http1()
            .build();
        Ok(Self::new(connector, timeout))
    }
}

impl<C: Connect + Clone + Send + Sync + 'static> Client<C> {
    /// Called on the runtime that its requests run on.
    fn new(connector: C, timeout: Duration) -> Self {
        let client = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Self { client, runtime: Handle::current(), timeout }
    }
}

type Sent<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl<C> HttpClient for Client<C>
where
    C: Connect + Clone + Debug + Send + Sync + 'static,
{
    fn send_bytes<'a, 'f>(&'a self, request: Request<Bytes>) -> Sent<'f>
    where
        'a: 'f,
        Self: 'f,
    {
        let request = self.client.request(request.map(Full::new));
        let exchange = async move {
            let (head, body) = request.await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        let timeout = self.timeout;
        // Begun on the runtime too: the thread that exports has no timer.
        let task = self.runtime.spawn(async move { tokio::time::timeout(timeout, exchange).await });
        Box::pin(async move { task.await?? })
    }
}
