//! The terminal that `dev` and `ctl watch` draw on.

use std::{io, time::Instant};

use rustix::process::{Signal, getpid, kill_process};

use crate::cli::dev::board::Board;
use crate::cli::dev::screen::{Facts, frame};
use crate::cli::out;

/// The other screen of the terminal, and no cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// The terminal, while it shows the view. Gives it back when dropped.
pub(crate) struct Screen {
    is_colored: bool,
}

impl Screen {
    pub(crate) fn open() -> io::Result<Self> {
        out::print(ENTER)?;
        Ok(Self { is_colored: out::is_colored() })
    }

    /// Stops this process with the terminal given back; returns once somebody lets it go on.
    pub(crate) fn suspend(&self) -> io::Result<()> {
        out::print(LEAVE)?;
        // Not with SIGTSTP again, which is listened to.
        kill_process(getpid(), Signal::STOP)?;
        out::print(ENTER)
    }

    pub(crate) fn draw(&self, facts: &Facts, board: &Board) -> io::Result<()> {
        let (width, height) = size();
        let frame = frame(facts, board, width, height, self.is_colored, Instant::now());
        let mut text = String::from("\x1b[H");
        for (i, line) in frame.lines().enumerate() {
            if 0 < i {
                text.push_str("\r\n");
            }
            text.push_str(line);
            // The rest of the line as it was before.
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        out::print(&text)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = out::print(LEAVE);
    }
}

/// Columns and lines of the terminal; the usual 80 by 24 where it does not tell.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if 0 < size.ws_col && 0 < size.ws_row => (size.ws_col.into(), size.ws_row.into()),
        Ok(_) | Err(_) => (80, 24),
    }
}
