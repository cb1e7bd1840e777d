//! What every span says of the process that made it.

use opentelemetry::KeyValue;
use opentelemetry_sdk::{Resource, resource::TelemetryResourceDetector};

use crate::telemetry::{names, trace::variables::Variables};

/// Who exports.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) cluster_id: String,
    pub(crate) node_id: u64,
    pub(crate) version: &'static str,
}

/// Ours first: what the operator says in the variables wins.
pub(crate) fn resource(service: &Service, variables: &Variables) -> Resource {
    let mut all = vec![
        KeyValue::new(names::SERVICE_NAME, "blockraft"),
        KeyValue::new(names::SERVICE_NAMESPACE, service.cluster_id.clone()),
        KeyValue::new(names::SERVICE_VERSION, service.version),
        KeyValue::new(names::SERVICE_INSTANCE, service.node_id.to_string()),
        KeyValue::new(names::CLUSTER_ID, service.cluster_id.clone()),
    ];
    if let Some(given) = variables.get("OTEL_RESOURCE_ATTRIBUTES") {
        let pairs = given.split(',').filter_map(|pair| pair.split_once('='));
        let decoded = pairs.map(|(key, value)| (decode(key.trim()), decode(value.trim())));
        all.extend(decoded.filter(|(key, _)| !key.is_empty()).map(|(key, value)| KeyValue::new(key, value)));
    }
    if let Some(name) = variables.get("OTEL_SERVICE_NAME") {
        all.push(KeyValue::new(names::SERVICE_NAME, name.to_owned()));
    }
    Resource::builder_empty().with_detector(Box::new(TelemetryResourceDetector)).with_attributes(all).build()
}

/// Percent-decoded; what does not decode stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |b: &u8| char::from(*b).to_digit(16);
                let (Some(high), Some(low)) = (digit(high), digit(low)) else { return text.to_owned() };
                bytes.push((high * 16 + low) as u8);
                rest = after;
            }
            (b'%', _) => return text.to_owned(),
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use opentelemetry::Key;

    use super::*;

    #[test]
    fn the_operator_wins_and_values_are_decoded() {
        let service = Service { cluster_id: "c".into(), node_id: 3, version: "1" };
        let said = "service.instance.id=pod%2D7,team=a%20b, =x,broken%zz=%";
        let env = [("OTEL_RESOURCE_ATTRIBUTES", said), ("OTEL_SERVICE_NAME", "mine")];
        let variables = Variables::new(env.iter().map(|(n, v)| ((*n).into(), (*v).into())));
        let resource = resource(&service, &variables);
        let get = |key: &'static str| resource.get(&Key::new(key)).map(|v| v.to_string());
        assert_eq!(get("service.instance.id").as_deref(), Some("pod-7"));
        assert_eq!(get("team").as_deref(), Some("a b"));
        assert_eq!(get("service.name").as_deref(), Some("mine"));
        assert_eq!(get("service.namespace").as_deref(), Some("c"));
        assert_eq!(get("blockraft.cluster.id").as_deref(), Some("c"));
        assert_eq!(get("broken%zz").as_deref(), Some("%"));
        assert!(get("telemetry.sdk.language").is_some());
    }
}
