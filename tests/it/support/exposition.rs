//! Reads Prometheus text: families with their type and help, and every series.

use std::collections::{BTreeMap, BTreeSet};

/// One metric family.
#[derive(Debug, Clone, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
    /// Values of each label, in all series, without `le`.
    pub(crate) labels: BTreeMap<String, BTreeSet<String>>,
}

/// One line with a value.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// A whole scrape.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scrape {
    pub(crate) families: BTreeMap<String, Family>,
    pub(crate) samples: Vec<Sample>,
}

impl Scrape {
    /// Panics on a line that is not Prometheus text, and on a series that is there twice.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let mut scrape = Self::default();
        let mut seen = BTreeSet::new();
        for line in text.lines().filter(|l| !l.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
                scrape.families.entry(name.into()).or_default().help = help.into();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type line has a type");
                scrape.families.entry(name.into()).or_default().kind = kind.into();
            } else if !line.starts_with('#') {
                let sample = parse_sample(line);
                assert!(seen.insert(line.rsplit_once(' ').map(|(k, _)| k.to_owned())), "twice: {line}");
                scrape.take(sample);
            }
        }
        scrape
    }

    fn take(&mut self, sample: Sample) {
        let name = self.family_of(&sample.name).to_owned();
        let family = self.families.get_mut(&name).unwrap_or_else(|| panic!("{name} has no type"));
        for (label, value) in sample.labels.iter().filter(|(label, _)| *label != "le") {
            family.labels.entry(label.clone()).or_default().insert(value.clone());
        }
        self.samples.push(sample);
    }

    /// The family that a sample belongs to: `x_bucket`, `x_sum` and `x_count` are of histogram `x`.
    fn family_of<'a>(&self, name: &'a str) -> &'a str {
        for suffix in ["_bucket", "_sum", "_count"] {
            if let Some(base) = name.strip_suffix(suffix)
                && self.families.get(base).is_some_and(|f| f.kind == "histogram" || f.kind == "summary")
            {
                return base;
            }
        }
        name
    }

    /// The sum of the samples of a name that have all these labels; `None` when there is none.
    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |s: &Sample| {
            labels.iter().all(|(label, value)| s.labels.get(*label).is_some_and(|have| have == value))
        };
        let mut found = self.samples.iter().filter(|s| s.name == name && has(s)).peekable();
        found.peek()?;
        Some(found.map(|s| s.value).sum())
    }
}

fn parse_sample(line: &str) -> Sample {
    let (name, mut rest) = line.split_at(line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}")));
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while let Some((label, after)) = rest.split_once("=\"") {
            if label.starts_with('}') {
                break;
            }
            let (value, after) = take_quoted(after);
            labels.insert(label.trim_start_matches(',').to_owned(), value);
            rest = after;
        }
        rest = rest.strip_prefix('}').unwrap_or_else(|| panic!("labels do not end: {line}"));
    }
    let value = rest.split_whitespace().next().and_then(|v| v.parse().ok());
    Sample { name: name.into(), labels, value: value.unwrap_or_else(|| panic!("no value: {line}")) }
}

/// The text up to the closing quote, and what follows it.
fn take_quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, other)) => value.push(other),
                None => break,
            },
            other => value.push(other),
        }
    }
    panic!("a label's value does not end: {text}");
}
