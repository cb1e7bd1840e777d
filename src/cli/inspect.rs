//! `inspect`: what lies in a stopped node's data folder.

pub(crate) mod report;

use std::path::PathBuf;

use crate::cli::exit::{self, Failure};
use crate::cli::inspect::report::Report;
use crate::cli::out;
use crate::store::inspect::{self, Depth};

const AFTER_HELP: &str = "\
Examples:
  blockraft inspect /var/lib/blockraft              what is there
  blockraft inspect /var/lib/blockraft --verify     and whether every checksum holds; takes as long as the
                                                    folder is large
  blockraft inspect n1/ --json

Changes nothing. The node must be stopped.

Exit codes: 0 read · 1 cannot be read, or --verify found a problem · 2 usage · 4 the folder is damaged";

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
    let report = Report::new(&args.dir, found, args.verify);
    out::print(&if args.json { report.json() } else { report.table(out::is_colored()) })?;
    Ok(report.exit_code())
}
