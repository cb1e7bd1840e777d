//! Placeholder.
/// Placeholder.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}
pub(crate) fn run(_args: Args) -> u8 {
    0
}
