//! OTLP over HTTP: the batch thread has no runtime, and the shipped client needs one.

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use hyper::http::{Request, Response};
use opentelemetry_http::{HttpClient, HttpError, hyper::HyperClient};
use tokio::runtime::Handle;

/// Runs each request on the node's runtime.
#[derive(Debug)]
pub(crate) struct Client {
    client: std::sync::Arc<HyperClient>,
    runtime: Handle,
}

impl Client {
    pub(crate) fn new(timeout: Duration, runtime: &Handle) -> Self {
        let client = HyperClient::with_default_connector(timeout, None);
        Self { client: client.into(), runtime: runtime.clone() }
    }
}

impl HttpClient for Client {
    fn send_bytes<'c, 'f>(
        &'c self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        'c: 'f,
        Self: 'f,
    {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move { client.send_bytes(request).await });
        // A runtime that ends takes the request with it: an error as any other.
        Box::pin(async move { sent.await? })
    }
}
