//! Which lines are written: the text of a filter, and what it leaves to us.

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Libraries that say more than anybody wants to know; each is quiet unless the filter names it.
const QUIET: [(&str, LevelFilter); 14] = [
    // A WARN for each message to a peer that is down, some twenty a second: the transport tells it once.
    ("openraft", LevelFilter::ERROR),
    // An ERROR for a change of membership that is merely refused: whoever asked is answered.
    ("openraft::raft::api::management", LevelFilter::OFF),
    ("jsonrpsee", LevelFilter::WARN),
    ("jsonrpsee_core", LevelFilter::WARN),
    ("jsonrpsee_server", LevelFilter::WARN),
    ("soketto", LevelFilter::WARN),
    ("h2", LevelFilter::WARN),
    ("hyper", LevelFilter::WARN),
    ("hyper_util", LevelFilter::WARN),
    ("tonic", LevelFilter::WARN),
    ("tower", LevelFilter::WARN),
    // A dead collector is a line each batch; the exporter's wrapper says it once.
    ("opentelemetry", LevelFilter::OFF),
    ("opentelemetry_sdk", LevelFilter::OFF),
    ("opentelemetry-otlp", LevelFilter::OFF),
];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no log filter: {what}")]
pub(crate) struct WrongFilter {
    text: String,
    what: String,
}

pub(crate) fn parse(text: &str) -> Result<EnvFilter, WrongFilter> {
    let wrong = |what: String| WrongFilter { text: text.to_owned(), what };
    let directives: Vec<&str> = text.split(',').map(str::trim).filter(|d| !d.is_empty()).collect();
    if directives.is_empty() {
        return Err(wrong("it names no level; `off` is one".into()));
    }
    // The library takes a word that is no level for a target, and silences everything else: most likely a typo.
    if let Some(word) =
        directives.iter().find(|d| !d.contains(['=', '[']) && d.parse::<LevelFilter>().is_err())
    {
        return Err(wrong(format!(
            "{word:?} is no level: off, error, warn, info, debug or trace; of a module: {word}=trace"
        )));
    }
    let plain =
        directives.iter().rev().find_map(|d| d.parse::<LevelFilter>().ok()).unwrap_or(LevelFilter::OFF);
    let mut whole = directives.join(",");
    for (target, level) in QUIET {
        if level < plain && !directives.iter().any(|d| names(d, target)) {
            whole.push_str(&format!(",{target}={level}"));
        }
    }
    EnvFilter::builder().parse(&whole).map_err(|error| wrong(error.to_string()))
}

/// Whether a directive is about `target` or a module in it.
fn names(directive: &str, target: &str) -> bool {
    let named = directive.split(['=', '[']).next().unwrap_or_default();
    named == target || named.strip_prefix(target).is_some_and(|rest| rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let filter = parse(text).expect("a good filter").to_string();
        let mut directives: Vec<_> = filter.split(',').map(str::to_owned).collect();
        directives.sort();
        directives
    }

    #[test]
    fn libraries_are_quiet_unless_named() {
        let has = |text: &str, directive: &str| shown(text).iter().any(|d| d == directive);
        assert!(has("info", "openraft=error") && has("info", "info") && has("debug", "hyper=warn"));
        assert!(has("info", "opentelemetry-otlp=off") && has("error", "opentelemetry=off"));
        assert!(
            has("info,openraft=debug", "openraft=debug") && !has("info,openraft=debug", "openraft=error")
        );
        assert!(!has("info,openraft::core=debug", "openraft=error"));
        // Quiet never means louder than what was asked for.
        assert!(!has("error", "openraft=error") && !has("off", "opentelemetry=off"));
        assert_eq!(shown("blockraft=debug"), ["blockraft=debug"]);
    }

    #[test]
    fn a_wrong_filter_is_told() {
        let said = parse("info,a=b=c").expect_err("a wrong filter").to_string();
        assert!(said.starts_with("\"info,a=b=c\" is no log filter"), "{said}");
        for typo in ["inof", "info,blockraft", "not a filter!!"] {
            let said = parse(typo).expect_err("no level").to_string();
            assert!(said.contains("is no level"), "{said}");
        }
        assert!(parse(" , ").is_err());
        assert!(parse("[peer]=debug").is_ok() && parse("OFF").is_ok());
    }
}
