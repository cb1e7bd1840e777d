//! `inspect`: what lies in a stopped node's data folder.

pub(crate) mod report;

use std::path::{Path, PathBuf};

use crate::cli::exit::{self, Failure};
use crate::cli::inspect::report::Report;
use crate::cli::out;
use crate::store::inspect::{self, Depth, Found};

const AFTER_HELP: &str = "\
Examples:
  blockraft inspect /var/lib/blockraft              what is there
  blockraft inspect /var/lib/blockraft --verify     and whether every checksum holds; takes as long as the
                                                    folder is large
  blockraft inspect n1/ --json

Changes nothing. The node must be stopped.

Exit codes: 0 no problem seen · 1 it cannot be read, is no data folder, or something is wrong that refuses no
start · 2 usage · 4 a start would refuse the folder";

/// What whoever uses a folder makes in it first.
const LOCK: &str = "LOCK";

/// Look into a stopped node's data folder: log range, vote, snapshots, head, membership, sizes, checksums.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The node's `node.data_dir`.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Read everything and check every checksum.
    #[arg(long)]
    pub(crate) verify: bool,
    /// The report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args) -> u8 {
    exit::code(show(args))
}

fn show(args: &Args) -> Result<u8, Failure> {
    let depth = if args.verify { Depth::All } else { Depth::Start };
    let found = inspect::look(&args.dir, depth)
        .map_err(|e| Failure { code: e.exit_code(), message: Some(e.to_string()) })?;
    check_taken(&args.dir, &found, args.dir.join(LOCK).exists())?;
    let report = Report::new(&args.dir, found, args.verify);
    out::print(&if args.json { report.json() } else { report.table(out::is_colored()) })?;
    Ok(report.exit_code())
}

/// A folder in which nothing is kept is one's only if a node, or a restore, took it.
fn check_taken(dir: &Path, found: &Found, is_taken: bool) -> Result<(), Failure> {
    if found.is_blank() && !is_taken {
        return Err(Failure::failed(format!(
            "{}: this is no data folder of blockraft (no IDENTITY, and no log/ or state/ of a node)",
            dir.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::exit::{Cause, LastExit};

    #[test]
    fn a_folder_that_no_node_took_is_no_data_folder_and_one_just_taken_is() {
        let dir = Path::new("/tmp");
        let refused = check_taken(dir, &Found::default(), false).expect_err("no data folder");
        assert_eq!(refused.code, exit::FAILED);
        let said = "/tmp: this is no data folder of blockraft (no IDENTITY, and no log/ or state/ of a node)";
        assert_eq!(refused.message.as_deref(), Some(said));
        assert_eq!(check_taken(dir, &Found::default(), true), Ok(()));
        let ended = LastExit { cause: Cause::Clean, at_ms: 1, text: "stopped in order".into() };
        let mut told = Found::default();
        told.last_exit = Some(ended);
        assert_eq!(check_taken(dir, &told, false), Ok(()));
    }
}
