//! The question before something is changed.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::cli::exit::Failure;

/// Returns when the answer is yes.
pub(crate) fn confirm(question: &str, is_yes: bool) -> Result<(), Failure> {
    if is_yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{question} There is no terminal to ask on: add --yes")));
    }
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "{question} [y/N] ");
    let _ = stderr.flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Failure::failed("not done"))
}
