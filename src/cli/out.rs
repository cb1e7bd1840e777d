//! What commands write: results on stdout, everything else on stderr.
//!
//! Writing never panics: a closed stdout is an [`io::Error`] that ends the command quietly.

use std::io::{self, Write};

/// Writes all of it, and flushes.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// One line on stderr. Nobody is told when that cannot be written.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

pub(crate) fn complain(message: &str) {
    note(&format!("blockraft: {message}"));
}
