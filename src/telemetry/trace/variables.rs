//! The standard `OTEL_*` variables: read once, and what is wrong with them.
//!
//! They win over the settings. The SDK takes wrong values in silence, so they are told by name here, at
//! start and by `check`.

use std::{collections::BTreeMap, ffi::OsString};

/// Samplers of the specification that are known here.
pub(crate) const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// Those that are set, and not empty.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Out of an environment; what is not UTF-8 is as if it were not set.
    pub(crate) fn new(env: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let text =
            |pair: (OsString, OsString)| Some((pair.0.into_string().ok()?, pair.1.into_string().ok()?));
        let ours = |(name, value): &(String, String)| name.starts_with("OTEL_") && !value.is_empty();
        Self(env.filter_map(text).filter(ours).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn is(&self, name: &str, value: &str) -> bool {
        self.get(name).is_some_and(|v| v.eq_ignore_ascii_case(value))
    }

    /// The exporter's variable of this ending: that for traces, else that for all signals.
    pub(crate) fn exporter(&self, ending: &str) -> Option<&str> {
        self.get(&format!("OTEL_EXPORTER_OTLP_TRACES_{ending}"))
            .or_else(|| self.get(&format!("OTEL_EXPORTER_OTLP_{ending}")))
    }

    /// A whole number above 0.
    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok().filter(|n| 0 < *n)
    }
}

/// What is wrong with the variables of an environment, a sentence each, sorted.
pub(crate) fn complaints(env: &[(OsString, OsString)]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|n| n.starts_with("OTEL_")) else { continue };
        match value.to_str() {
            None => found.push(format!("{name} is not UTF-8, and ignored")),
            // An empty variable is an unset one.
            Some("") => {}
            Some(value) => {
                if let Some(rule) = broken_rule(name, value) {
                    found.push(format!("{name}={value:?} is wrong, and would be ignored in silence: {rule}"));
                }
            }
        }
    }
    found.sort();
    found
}

/// The rule that a value breaks.
fn broken_rule(name: &str, value: &str) -> Option<&'static str> {
    let is_count = value.parse::<u64>().is_ok_and(|n| 0 < n);
    let of_exporter =
        name.strip_prefix("OTEL_EXPORTER_OTLP_TRACES_").or_else(|| name.strip_prefix("OTEL_EXPORTER_OTLP_"));
    match (name, of_exporter) {
        ("OTEL_TRACES_SAMPLER", _) if !SAMPLERS.contains(&value) => {
            Some("always_on, always_off, traceidratio, or one of them with parentbased_ before it")
        }
        ("OTEL_TRACES_SAMPLER_ARG", _) if !value.parse().is_ok_and(|r: f64| (0.0..=1.0).contains(&r)) => {
            Some("a number from 0 to 1")
        }
        ("OTEL_TRACES_EXPORTER", _) if !["otlp", "none"].contains(&value) => Some("otlp or none"),
        ("OTEL_SDK_DISABLED", _) if !["true", "false"].contains(&value.to_ascii_lowercase().as_str()) => {
            Some("true or false")
        }
        ("OTEL_BSP_SCHEDULE_DELAY" | "OTEL_BSP_MAX_QUEUE_SIZE" | "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _)
            if !is_count =>
        {
            Some("a whole number above 0")
        }
        (_, Some("TIMEOUT")) if !is_count => Some("milliseconds, a whole number above 0 without a unit"),
        (_, Some("ENDPOINT")) if !["http://", "https://"].iter().any(|scheme| value.starts_with(scheme)) => {
            Some("http://host:port or https://host:port; without a scheme nothing is sent")
        }
        (_, Some("PROTOCOL")) if !["grpc", "http/protobuf"].contains(&value) => Some("grpc or http/protobuf"),
        (_, Some("COMPRESSION")) if value != "none" => Some("none: compression is not compiled in"),
        (_, Some("CERTIFICATE" | "CLIENT_KEY" | "CLIENT_CERTIFICATE")) => {
            Some("not available in this version: the system's roots decide")
        }
        (_, Some("HEADERS")) | ("OTEL_RESOURCE_ATTRIBUTES", _)
            if value.split(',').any(|pair| !pair.trim().is_empty() && !pair.contains('=')) =>
        {
            Some("name=value, separated by commas")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn each_wrong_value_is_told_by_its_name() {
        for (name, value) in [
            ("OTEL_TRACES_SAMPLER", "Always_On"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER_ARG", "half"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
            ("OTEL_TRACES_SAMPLER_ARG", "NaN"),
            ("OTEL_TRACES_EXPORTER", "jaeger"),
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_BSP_SCHEDULE_DELAY", "5s"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2s"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization Bearer"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c"),
        ] {
            let found = complaints(&env(&[(name, value)]));
            assert!(found.len() == 1 && found[0].starts_with(name), "{name}={value}: {found:?}");
        }
    }

    #[test]
    fn right_values_and_foreign_names_are_no_matter() {
        let right = env(&[
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,c=d"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", ""),
            ("OTEL_SDK_DISABLED", "TRUE"),
            ("PATH", "gzip"),
        ]);
        assert_eq!(complaints(&right), Vec::<String>::new());
    }

    #[test]
    fn the_variable_for_traces_wins_over_the_one_for_all() {
        let v = Variables::new(
            env(&[
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "7"),
                ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "9"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ("OTEL_SERVICE_NAME", ""),
            ])
            .into_iter(),
        );
        assert_eq!((v.exporter("TIMEOUT"), v.exporter("PROTOCOL")), (Some("9"), Some("grpc")));
        assert_eq!(v.get("OTEL_SERVICE_NAME"), None);
    }
}
