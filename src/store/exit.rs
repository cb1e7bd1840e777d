//! How the process before this one ended.
//!
//! At each start `LAST_EXIT` is set to "killed" and at each orderly end to what happened: so a
//! process that could say nothing is told from one that stopped.

use std::io;
use std::path::Path;

use crate::store::files;
use crate::store::state::apply::unix_ms;

const LAST_EXIT: &str = "LAST_EXIT";

/// Label values of `node_last_exit`.
pub(crate) const CAUSES: [Cause; 5] = [Cause::Clean, Cause::Killed, Cause::Fatal, Cause::Panic, Cause::First];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Stopped in order.
    Clean,
    /// Ended without a word: killed, or the machine went down.
    Killed,
    /// Could not go on, and said why.
    Fatal,
    Panic,
    /// There was none before.
    First,
}

impl Cause {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Killed => "killed",
            Self::Fatal => "fatal",
            Self::Panic => "panic",
            Self::First => "first",
        }
    }
}

/// The end of the process before this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LastExit {
    pub(crate) cause: Cause,
    /// Unix milliseconds: when it ended, or when it was started if it was killed.
    pub(crate) at_ms: u64,
    pub(crate) text: String,
}

/// Says how this process ends. Durable on return; the last word counts.
pub(crate) fn record(data_dir: &Path, cause: Cause, text: &str) -> io::Result<()> {
    let text = text.replace('\n', " ");
    let content = format!("cause = {}\nat_ms = {}\ntext = {text}\n", cause.label(), unix_ms());
    files::write_atomic(&data_dir.join(LAST_EXIT), content.as_bytes())
}

/// What the process before said; from here on this one counts as killed until it says otherwise.
pub(crate) fn take_last(data_dir: &Path, is_first: bool) -> io::Result<LastExit> {
    let last = match read(data_dir)? {
        Some(last) => last,
        None if is_first => LastExit { cause: Cause::First, at_ms: 0, text: String::new() },
        None => LastExit { cause: Cause::Killed, at_ms: 0, text: String::new() },
    };
    // What one that was killed says of those before it would grow by each.
    let text = if last.cause == Cause::Killed { "" } else { last.text.as_str() };
    let before = format!("it ran since this time; the one before ended: {} {text}", last.cause.label());
    record(data_dir, Cause::Killed, before.trim_end())?;
    Ok(last)
}

/// What stands in the file, without changing it. A file that does not parse says nothing.
pub(crate) fn read(data_dir: &Path) -> io::Result<Option<LastExit>> {
    let Some(content) = files::read_optional(&data_dir.join(LAST_EXIT))? else { return Ok(None) };
    let content = String::from_utf8_lossy(&content).into_owned();
    let field = |key: &str| {
        content
            .lines()
            .filter_map(|l| l.split_once(" = "))
            .find(|(k, _)| *k == key)
            .map(|(_, v)| v.to_owned())
    };
    let cause = field("cause").and_then(|c| CAUSES.into_iter().find(|known| known.label() == c));
    Ok(cause.map(|cause| LastExit {
        cause,
        at_ms: field("at_ms").and_then(|a| a.parse().ok()).unwrap_or(0),
        text: field("text").unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_killed_again_and_again_says_no_more_each_time() {
        let dir = tempfile::TempDir::new().unwrap();
        record(dir.path(), Cause::Fatal, "the disk failed").unwrap();
        let texts: Vec<String> = (0..4).map(|_| take_last(dir.path(), false).unwrap().text).collect();
        assert_eq!(texts[0], "the disk failed");
        assert!(texts[1].ends_with("the one before ended: fatal the disk failed"), "{}", texts[1]);
        assert!(texts[2].ends_with("the one before ended: killed"), "{}", texts[2]);
        assert_eq!(texts[3], texts[2]);
    }
}
