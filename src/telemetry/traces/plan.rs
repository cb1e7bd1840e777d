//! What is exported, where to and how: the settings, and the standard variables that win over them.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    ExporterBuildError, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::{
    Resource,
    resource::TelemetryResourceDetector,
    trace::{BatchConfig, BatchConfigBuilder},
};

use crate::telemetry::traces::{Config, Protocol, Who, http};

/// Spans waiting when no variable says otherwise: 16 s of 2 000 a second, about 32 MiB.
const QUEUE: usize = 32_768;
/// The SDK's own default, read here because a client of our own needs it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Two more tries within a second: a collector that restarts, not one that is gone.
const RETRIES: usize = 2;

/// Which blocks are traced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sampling {
    /// 0 to 1.
    pub(crate) ratio: f64,
    /// Whether a caller's context decides instead, where there is one.
    pub(crate) follows_caller: bool,
    /// Whether `OTEL_TRACES_SAMPLER` says so, and not the settings.
    pub(crate) is_from_environment: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub(crate) is_on: bool,
    /// `None`: the SDK reads it from the environment.
    endpoint: Option<String>,
    protocol: Protocol,
    pub(crate) sampling: Sampling,
    /// Spans waiting at most.
    pub(crate) queue: usize,
    timeout: Duration,
    service_name: Option<String>,
    /// Percent-decoded, which the SDK does not do.
    attributes: Vec<(String, String)>,
}

impl Plan {
    /// `lookup` reads the environment; an empty variable is an unset one.
    pub(crate) fn new(config: &Config, lookup: &dyn Fn(&str) -> Option<String>) -> Self {
        let read = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let of_exporter = |name: &str| {
            read(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
                .or_else(|| read(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let is_disabled = read("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"))
            || read("OTEL_TRACES_EXPORTER").is_some_and(|v| v == "none");
        let protocol = match of_exporter("PROTOCOL").as_deref() {
            Some("grpc") => Protocol::Grpc,
            Some("http/protobuf") => Protocol::Http,
            _ => config.protocol,
        };
        let is_in_environment = of_exporter("ENDPOINT").is_some();
        let endpoint = match (&config.endpoint, protocol) {
            _ if is_in_environment => None,
            (None, _) => None,
            (Some(url), Protocol::Grpc) => Some(url.clone()),
            // Used as it is by the SDK.
            (Some(url), Protocol::Http) => Some(format!("{}/v1/traces", url.trim_end_matches('/'))),
        };
        Self {
            is_on: !is_disabled && (is_in_environment || endpoint.is_some()),
            endpoint,
            protocol,
            sampling: sampling(config, &read),
            queue: read("OTEL_BSP_MAX_QUEUE_SIZE")
                .and_then(|v| v.parse().ok())
                .filter(|n| 0 < *n)
                .unwrap_or(QUEUE),
            timeout: of_exporter("TIMEOUT")
                .and_then(|v| v.parse().ok())
                .filter(|ms| 0 < *ms)
                .map_or(TIMEOUT, Duration::from_millis),
            service_name: read("OTEL_SERVICE_NAME"),
            attributes: read("OTEL_RESOURCE_ATTRIBUTES").map(|text| pairs(&text)).unwrap_or_default(),
        }
    }

    pub(crate) fn exporter(
        &self,
        runtime: &tokio::runtime::Handle,
    ) -> Result<SpanExporter, ExporterBuildError> {
        let retries = RetryPolicy::recommended()
            .with_max_retries(RETRIES)
            .with_initial_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_millis(500));
        match self.protocol {
            Protocol::Grpc => {
                let mut builder = SpanExporter::builder().with_tonic().with_retry_policy(retries);
                // What is given to the builder beats the environment, so it is given only where that is silent.
                if let Some(endpoint) = &self.endpoint {
                    builder = builder.with_endpoint(endpoint);
                }
                builder.with_timeout(self.timeout).build()
            }
            Protocol::Http => {
                let mut builder = SpanExporter::builder()
                    .with_http()
                    .with_http_client(http::Client::new(self.timeout, runtime))
                    .with_retry_policy(retries);
                if let Some(endpoint) = &self.endpoint {
                    builder = builder.with_endpoint(endpoint);
                }
                builder.with_timeout(self.timeout).build()
            }
        }
    }

    pub(crate) fn batch_config(&self) -> BatchConfig {
        // The other values come from the environment by themselves.
        BatchConfigBuilder::default().with_max_queue_size(self.queue).build()
    }

    /// Ours first: what stands later wins, and the operator's word does.
    pub(crate) fn resource(&self, who: &Who) -> Resource {
        let given = self.attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "blockraft"),
                KeyValue::new("service.namespace", who.cluster_id.clone()),
                KeyValue::new("service.version", who.version),
                KeyValue::new("service.instance.id", who.node_id.to_string()),
                KeyValue::new("blockraft.cluster.id", who.cluster_id.clone()),
            ])
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_attributes(given);
        match &self.service_name {
            Some(name) => resource.with_service_name(name.clone()).build(),
            None => resource.build(),
        }
    }
}

/// A sampler that nobody knows is none; `check` and the start say so.
fn sampling(config: &Config, read: &dyn Fn(&str) -> Option<String>) -> Sampling {
    let own = Sampling { ratio: config.sample_ratio, follows_caller: false, is_from_environment: false };
    let Some(sampler) = read("OTEL_TRACES_SAMPLER") else { return own };
    let ratio = || {
        read("OTEL_TRACES_SAMPLER_ARG")
            .and_then(|arg| arg.parse().ok())
            .filter(|ratio| (0.0..=1.0).contains(ratio))
            .unwrap_or(1.0)
    };
    let (root, follows_caller) = match sampler.strip_prefix("parentbased_") {
        Some(root) => (root, true),
        None => (sampler.as_str(), false),
    };
    let ratio = match root {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => ratio(),
        _ => return own,
    };
    Sampling { ratio, follows_caller, is_from_environment: true }
}

/// `key=value` pairs, separated by commas, percent-encoded.
fn pairs(text: &str) -> Vec<(String, String)> {
    text.split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (decode(key.trim()), decode(value.trim())))
        .filter(|(key, _)| !key.is_empty())
        .collect()
}

/// A `%` that begins no pair of hex digits stands for itself.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(endpoint: Option<&str>, env: &[(&str, &str)]) -> Plan {
        let config = Config {
            endpoint: endpoint.map(str::to_owned),
            protocol: Protocol::Grpc,
            sample_ratio: 0.5,
            per_second: 500,
        };
        Plan::new(&config, &|name| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn the_environment_wins() {
        assert!(!plan(None, &[]).is_on);
        assert!(plan(Some("http://c:4317"), &[]).is_on);
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert!(!plan(Some("http://c:4317"), &[off]).is_on);
        }
        let p = plan(Some("http://c:4317"), &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://d:4318")]);
        assert_eq!((p.is_on, &p.endpoint, p.protocol), (true, &None, Protocol::Grpc));
        let p = plan(Some("http://c:4318/"), &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]);
        assert_eq!((p.endpoint.as_deref(), p.protocol), (Some("http://c:4318/v1/traces"), Protocol::Http));
        let p = plan(None, &[("OTEL_BSP_MAX_QUEUE_SIZE", "7"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "2s")]);
        assert_eq!((p.queue, p.timeout), (7, TIMEOUT));
        assert_eq!(
            plan(None, &[("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2000")]).timeout,
            Duration::from_secs(2)
        );
    }

    #[test]
    fn samplers() {
        let of = |env: &[(&str, &str)]| {
            let s = plan(None, env).sampling;
            (s.ratio, s.follows_caller, s.is_from_environment)
        };
        assert_eq!(of(&[]), (0.5, false, false));
        assert_eq!(of(&[("OTEL_TRACES_SAMPLER", "always_off")]), (0.0, false, true));
        let arg = ("OTEL_TRACES_SAMPLER_ARG", "0.25");
        assert_eq!(of(&[("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), arg]), (0.25, true, true));
        assert_eq!(of(&[("OTEL_TRACES_SAMPLER", "Always_On")]), (0.5, false, false));
    }

    #[test]
    fn the_operators_word_on_who_this_is_wins() {
        let who = Who { cluster_id: "c".into(), node_id: 3, version: "0.1.0" };
        let p = plan(
            None,
            &[
                ("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=mine,team=a%20b%2Cc,broken, x=%zz"),
                ("OTEL_SERVICE_NAME", "raft"),
            ],
        );
        let resource = p.resource(&who);
        let get = |key: &'static str| resource.get(&key.into()).map(|v| v.to_string());
        assert_eq!(get("service.name").as_deref(), Some("raft"));
        assert_eq!(get("service.instance.id").as_deref(), Some("mine"));
        assert_eq!(get("service.namespace").as_deref(), Some("c"));
        assert_eq!(get("team").as_deref(), Some("a b,c"));
        assert_eq!(get("x").as_deref(), Some("%zz"));
        assert_eq!(
            plan(None, &[]).resource(&who).get(&"service.name".into()).map(|v| v.to_string()),
            Some("blockraft".into())
        );
    }
}
