//! eventsource-client: comes back by itself.

use std::time::Duration;

use eventsource_client::{Client, ClientBuilder, SSE};
use futures::TryStreamExt;
use launchdarkly_sdk_transport::HyperTransport;
use serde_json::json;

use crate::out;

pub(crate) async fn events(url: &str) -> anyhow::Result<()> {
    // how:
    let transport = HyperTransport::builder().read_timeout(Duration::from_secs(30)).build_http()?;
    let client = ClientBuilder::for_url(url)?.build_with_transport(transport);
    let mut events = client.stream();
    // end
    loop {
        match events.try_next().await {
            Ok(Some(SSE::Event(e))) => out(json!({"event": e.event_type, "id": e.id, "data": e.data})),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            // It says so, and goes on.
            Err(e) => out(json!({"error": e.to_string()})),
        }
    }
}
