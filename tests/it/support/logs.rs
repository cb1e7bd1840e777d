//! What a node wrote: JSON lines, one per event.

use std::{fs, path::Path};

use serde_json::Value;

/// One line of a node's log.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// Empty for a line that is no JSON.
    pub(crate) level: String,
    pub(crate) target: String,
    pub(crate) message: String,
    pub(crate) text: String,
}

/// Every line so far.
pub(crate) fn read(path: &Path) -> Vec<Line> {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().map(parse).collect()
}

fn parse(text: &str) -> Line {
    let json: Value = serde_json::from_str(text).unwrap_or_default();
    let field = |name: &str| {
        let value = json.get(name).or_else(|| json.get("fields").and_then(|f| f.get(name)));
        value.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (level, target, message) = (field("level"), field("target"), field("message"));
    Line { level, target, message, text: text.to_owned() }
}

impl Line {
    /// A warning, an error, or a panic: nothing a test takes without naming it.
    pub(crate) fn is_alarming(&self) -> bool {
        // openraft warns of each attempt that it repeats; what counts of it the node says itself.
        let is_own = !self.target.starts_with("openraft");
        self.level == "ERROR" || (self.level == "WARN" && is_own) || self.text.contains("panicked at")
    }

    /// Whether the line names all of the words, wherever.
    pub(crate) fn names(&self, words: &[&str]) -> bool {
        words.iter().all(|word| self.text.contains(word))
    }
}
