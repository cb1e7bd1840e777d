//! What commands write: results on stdout, everything else on stderr.
//!
//! Writing never panics: a closed stdout is an [`io::Error`] that ends the command quietly.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::value::RawValue;

/// Between two looks whether anybody reads. By eye: nobody waits longer for a prompt.
const LOOK: Duration = Duration::from_millis(500);

/// Whether stdout shows colours: a terminal, and `NO_COLOR` is not set to anything.
pub(crate) fn is_colored() -> bool {
    let is_forbidden = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
        || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    io::stdout().is_terminal() && !is_forbidden
}

pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Writes all of it, and flushes.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

pub(crate) fn print_line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Completes once whoever read stdout is gone: only the next write would tell, and none may come for long.
pub(crate) async fn reader_gone() {
    while !is_reader_gone() {
        tokio::time::sleep(LOOK).await;
    }
}

/// True for a pipe alone.
fn is_reader_gone() -> bool {
    let stdout = io::stdout();
    // An error is shown unasked.
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

/// One line on stderr. Nobody is told when that cannot be written.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

pub(crate) fn complain(message: &str) {
    note(&format!("blockraft: {message}"));
}

/// Indents JSON without touching the order of its fields or its numbers.
pub(crate) fn pretty(raw: &RawValue) -> String {
    let text = raw.get();
    let mut out = String::with_capacity(2 * text.len());
    let mut depth = 0;
    let mut in_string = false;
    let mut is_escaped = false;
    let mut chars = text.chars().filter(|c| !matches!(c, '\n' | '\r' | '\t')).peekable();
    while let Some(c) = chars.next() {
        if in_string {
            out.push(c);
            match c {
                _ if is_escaped => is_escaped = false,
                '\\' => is_escaped = true,
                '"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match c {
            ' ' => {}
            '"' => {
                in_string = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while chars.peek() == Some(&' ') {
                    chars.next();
                }
                if let Some(close) = chars.next_if(|c| matches!(c, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth -= 1;
                new_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => out.push(c),
        }
    }
    out
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    for _ in 0..depth {
        out.push_str("  ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_indented_and_else_left_alone() {
        let raw = r#"{"z":{ }, "a":[1,18446744073709551615,{"k":"a:{,}\"\\"}],"e":[],"n":null}"#;
        let raw = RawValue::from_string(raw.into()).expect("JSON");
        assert_eq!(
            pretty(&raw),
            r#"{
  "z": {},
  "a": [
    1,
    18446744073709551615,
    {
      "k": "a:{,}\"\\"
    }
  ],
  "e": [],
  "n": null
}"#
        );
        let back: serde_json::Value = serde_json::from_str(&pretty(&raw)).expect("still JSON");
        assert_eq!(back, serde_json::from_str::<serde_json::Value>(raw.get()).expect("JSON"));
    }
}
