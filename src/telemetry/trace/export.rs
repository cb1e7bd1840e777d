//! Where spans go, and how: what settings and variables say, made into a [`Tracer`].

use std::time::Duration;

use opentelemetry_otlp::{
    RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SpanExporter as _};

use crate::telemetry::trace::{
    Config, Counts, Protocol, Tracer,
    counted::{Counted, Rejected},
    http, resource,
    variables::Variables,
};

pub(crate) type Service = resource::Service;

/// Spans that wait for their export: some seconds of a busy node, by eye.
const QUEUE_MAX: u64 = 32_768;
/// Of the specification.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("the exporter of traces cannot be built: {0}")]
    Build(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("the system's root certificates cannot be read: {0}")]
    Roots(#[from] std::io::Error),
}

/// What is exported, and where to.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    protocol: Protocol,
    /// Given to the builder; `None`: the exporter reads its variables.
    endpoint: Option<String>,
    /// For the log, and to tell whether TLS is wanted.
    shown: String,
    queue_max: usize,
    timeout: Duration,
}

impl Choice {
    fn is_tls(&self) -> bool {
        self.shown.starts_with("https://")
    }
}

/// `None`: nothing is exported.
fn choose(config: &Config, variables: &Variables) -> Option<Choice> {
    let is_disabled =
        variables.is("OTEL_SDK_DISABLED", "true") || variables.is("OTEL_TRACES_EXPORTER", "none");
    let given = variables.exporter("ENDPOINT");
    let is_wanted =
        given.is_some() || config.endpoint.is_some() || variables.is("OTEL_TRACES_EXPORTER", "otlp");
    if is_disabled || !is_wanted {
        return None;
    }
    let protocol = match variables.exporter("PROTOCOL") {
        Some("grpc") => Protocol::Grpc,
        Some("http/protobuf") => Protocol::Http,
        _ => config.protocol,
    };
    let endpoint = match (given, &config.endpoint, protocol) {
        (Some(_), ..) | (None, None, _) => None,
        (None, Some(endpoint), Protocol::Grpc) => Some(endpoint.clone()),
        // The builder takes it as it is, where a variable would get the path appended.
        (None, Some(endpoint), Protocol::Http) => {
            Some(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        }
    };
    let shown = given.map(str::to_owned).or_else(|| endpoint.clone()).unwrap_or_else(|| "localhost".into());
    let queue_max = variables.count("OTEL_BSP_MAX_QUEUE_SIZE").unwrap_or(QUEUE_MAX);
    let timeout = variables.exporter("TIMEOUT").and_then(|ms| ms.parse().ok()).filter(|ms| 0 < *ms);
    Some(Choice {
        protocol,
        endpoint,
        shown,
        queue_max: usize::try_from(queue_max).unwrap_or(usize::MAX),
        timeout: timeout.map_or(TIMEOUT, Duration::from_millis),
    })
}

/// Starts exporting, if anything says so. Called on the runtime that the exporter lives on, which
/// needs a worker beside the one that waits for a flush.
pub(crate) fn start(
    config: &Config,
    service: &Service,
    variables: &Variables,
    counts: Counts,
    rejected: Rejected,
) -> Result<Tracer, StartError> {
    let Some(choice) = choose(config, variables) else { return Ok(Tracer::off()) };
    let mut exporter = match choice.protocol {
        Protocol::Grpc => grpc(&choice)?,
        Protocol::Http => over_http(&choice)?,
    };
    exporter.set_resource(&resource::resource(service, variables));
    tracing::info!(endpoint = choice.shown, protocol = ?choice.protocol, "traces are exported");
    let counted = Counted::new(exporter, counts.clone(), rejected, choice.shown);
    let shared = counted.shared();
    let batches = BatchConfigBuilder::default().with_max_queue_size(choice.queue_max).build();
    let processor = BatchSpanProcessor::builder(counted).with_batch_config(batches).build();
    Ok(Tracer::new(processor, choice.queue_max, counts, shared))
}

/// A retry sleeps on the thread that exports, and what is queued meanwhile is bounded: one is enough to
/// ride out a connection that was closed.
fn retries() -> RetryPolicy {
    RetryPolicy::recommended().with_max_retries(1)
}

fn grpc(choice: &Choice) -> Result<SpanExporter, StartError> {
    let mut builder =
        SpanExporter::builder().with_tonic().with_timeout(choice.timeout).with_retry_policy(retries());
    if let Some(endpoint) = &choice.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if choice.is_tls() {
        builder = builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
    }
    Ok(builder.build()?)
}

fn over_http(choice: &Choice) -> Result<SpanExporter, StartError> {
    let builder = SpanExporter::builder()
        .with_http()
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_timeout(choice.timeout)
        .with_retry_policy(retries());
    // A machine without root certificates may still export in the clear.
    let mut builder = if choice.is_tls() {
        builder.with_http_client(http::Client::with_tls(choice.timeout)?)
    } else {
        builder.with_http_client(http::Client::plain(choice.timeout))
    };
    if let Some(endpoint) = &choice.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    Ok(builder.build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(endpoint: Option<&str>, protocol: Protocol, env: &[(&str, &str)]) -> Option<Choice> {
        let config =
            Config { endpoint: endpoint.map(str::to_owned), protocol, sample_ratio: 1.0, per_second: 9 };
        choose(&config, &Variables::new(env.iter().map(|(n, v)| ((*n).into(), (*v).into()))))
    }

    #[test]
    fn nothing_is_exported_unless_somebody_says_where() {
        assert_eq!(chosen(None, Protocol::Grpc, &[]), None);
        assert!(chosen(Some("http://c:4317"), Protocol::Grpc, &[]).is_some());
        assert!(chosen(None, Protocol::Grpc, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")]).is_some());
        assert!(chosen(None, Protocol::Grpc, &[("OTEL_TRACES_EXPORTER", "otlp")]).is_some());
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(chosen(Some("http://c:4317"), Protocol::Grpc, &[off]), None, "{off:?}");
        }
    }

    #[test]
    fn a_variable_wins_and_is_left_to_the_exporter() {
        let by_env = chosen(
            Some("http://ours:4317"),
            Protocol::Grpc,
            &[
                ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://theirs:4318/v1/traces"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
                ("OTEL_BSP_MAX_QUEUE_SIZE", "9"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ],
        )
        .expect("it is exported");
        assert_eq!((by_env.protocol, by_env.endpoint, by_env.queue_max), (Protocol::Http, None, 9));
        assert_eq!(by_env.timeout, Duration::from_millis(250));
    }

    #[test]
    fn over_http_the_setting_gets_the_path() {
        let http = chosen(Some("http://c:4318/"), Protocol::Http, &[]).expect("it is exported");
        assert_eq!(http.endpoint.as_deref(), Some("http://c:4318/v1/traces"));
        assert_eq!(http.queue_max, 32_768);
    }
}
