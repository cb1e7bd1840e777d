//! `recover`: a cluster that lost its quorum for good comes back from one folder.

use std::path::{Path, PathBuf};

use crate::cli::ctl::confirm::confirm;
use crate::cli::exit::{self, Failure};
use crate::cli::out;
use crate::cli::table::{Cell, Table, Tone};
use crate::store::inspect::{self, Depth};
use crate::store::offline::plan::{Judged, Loss, Plan, Unusable};
use crate::store::offline::recover::{Pending, Recovered};
use crate::types::NodeId;

const AFTER_HELP: &str = "\
Examples:
  blockraft recover --plan n1/ n3/                 which folder holds most, and what is lost with the others
  blockraft recover --apply n3/                    node 3 alone is the cluster from then on
  blockraft recover --apply n3/ --keep 1,3         nodes 1 and 3; node 1 comes back with an empty folder

The last resort, for when no quorum of the voters can ever start again: blocks that only the lost nodes held are
gone. Every node of the old cluster must be stopped, and stays stopped. Step by step: docs/recovery.md.

Exit codes: 0 done · 1 refused, nothing happened · 2 usage · 4 the folder is damaged";

/// Bring a cluster back that lost its quorum for good: offline, explicit, audited.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Recover {
    /// Look at the stopped nodes' folders and say what can be saved.
    #[arg(long, value_name = "DIR", num_args = 1.., required_unless_present = "apply", conflicts_with = "apply")]
    plan: Vec<PathBuf>,
    /// Carry the plan out on this folder.
    #[arg(long, value_name = "DIR")]
    apply: Option<PathBuf>,
    /// The nodes that stay members; without it the folder's own alone.
    #[arg(long, value_name = "ID,…", value_delimiter = ',', requires = "apply")]
    keep: Vec<NodeId>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(args: &Recover) -> u8 {
    exit::code(match &args.apply {
        Some(dir) => apply(dir, &args.keep, args.yes),
        None => plan(&args.plan),
    })
}

fn plan(dirs: &[PathBuf]) -> Result<u8, Failure> {
    let (mut survivors, mut unusable, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for dir in dirs {
        match Judged::new(dir, inspect::look(dir, Depth::Start)) {
            Judged::Survivor(survivor) => survivors.push(survivor),
            Judged::Unusable(folder) => unusable.push(folder),
            Judged::Refused(why) => refused.push(why),
        }
    }
    // What is in one of them may decide what is lost.
    if !refused.is_empty() {
        return Err(Failure::failed(format!("no plan is made: {}", refused.join("; "))));
    }
    let plan = Plan::new(survivors, unusable).map_err(Failure::failed)?;
    out::print(&told(&plan, out::is_colored()))?;
    match plan.loss() {
        Some(Loss::Unknown { .. }) => Ok(exit::DONE),
        Some(Loss::NoRecoveryNeeded) | None => Ok(exit::FAILED),
    }
}

fn told(plan: &Plan, is_colored: bool) -> String {
    let mut t = Table::new(&["FOLDER", "NODE", "TERM", "LAST INDEX", "COMMITTED", "LAST BLOCK"]);
    for (i, s) in plan.survivors.iter().enumerate() {
        let tone = if i == 0 { Tone::Good } else { Tone::Plain };
        t.row([
            Cell::new(s.dir.display().to_string(), tone),
            s.node_id.into(),
            s.last.term.into(),
            s.last.index.into(),
            s.committed.into(),
            s.height.map_or("-".into(), |h| h.to_string()).into(),
        ]);
    }
    let mut text = if plan.survivors.is_empty() { String::new() } else { t.render(is_colored) };
    for Unusable { dir, why } in &plan.unusable {
        text += &format!("{}: nothing of it can be saved: {why}\n", dir.display());
    }
    text.push('\n');
    text + &advice(plan)
}

fn advice(plan: &Plan) -> String {
    let (Some(best), Some(loss)) = (plan.best(), plan.loss()) else {
        return "No folder can be saved.\n".into();
    };
    let voters = list(&best.voters.iter().copied().collect::<Vec<_>>());
    let missing = match loss {
        Loss::NoRecoveryNeeded => {
            return format!(
                "Of the voters {voters} a quorum is here: nothing is lost, and there is nothing to recover.\nStart these nodes.\n"
            );
        }
        Loss::Unknown { missing } => missing,
    };
    let height = best.height.map_or("no block".into(), |h| format!("block {h}"));
    let mut text = format!(
        "The most advanced is {} (node {}): it ends with {height}, at index {} of term {}.\n",
        best.dir.display(),
        best.node_id,
        best.last.index,
        best.last.term
    );
    text += &format!(
        "Lost: whatever the voters {} acknowledged behind that; of {voters} they could do so without the others.\n",
        list(&missing)
    );
    if let Some(version) = best.removed_at {
        text += &format!(
            "Node {} was removed from the cluster by entry {version}: nothing that was accepted since is in its folder.\n",
            best.node_id
        );
    }
    if best.committed < best.last.index {
        text += &format!(
            "Kept, though nobody may have been told that they were accepted: the entries {} to {}.\n",
            best.committed + 1,
            best.last.index
        );
    }
    text += &format!("If none of them can come back: blockraft recover --apply {}\n", best.dir.display());
    text
}

fn list(ids: &[NodeId]) -> String {
    ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

fn apply(dir: &Path, keep: &[NodeId], is_yes: bool) -> Result<u8, Failure> {
    let failed = |e: crate::store::offline::OfflineError| Failure {
        code: e.exit_code(),
        message: Some(e.to_string()),
    };
    let pending = Pending::new(dir, keep).map_err(failed)?;
    let recovery = pending.recovery();
    if pending.is_begun() {
        out::note("A recover of this folder was cut short: this goes on with it.");
    }
    out::note(&format!(
        "{} (node {} of {}) ends at index {} of term {}.\nVoters from then on: {}. Every other node of the cluster is left behind for good, with what only it holds.",
        dir.display(),
        pending.identity().node_id,
        pending.identity().cluster_id,
        recovery.base.index,
        recovery.base.term,
        list(&recovery.keep),
    ));
    confirm("Recover the cluster from this folder?", is_yes)?;
    let Recovered { identity, recovery } = pending.apply(dir).map_err(failed)?;
    out::print(&format!(
        "recovered: epoch {}, term {}, voters {}\n{}",
        recovery.epoch,
        recovery.term,
        list(&recovery.keep),
        next_steps(identity.node_id, &recovery.keep),
    ))?;
    Ok(exit::DONE)
}

fn next_steps(node_id: NodeId, keep: &[NodeId]) -> String {
    let kept: Vec<NodeId> = keep.iter().copied().filter(|id| *id != node_id).collect();
    let others = match &kept[..] {
        [] => String::new(),
        [one] => format!(
            "Wipe the folder of node {one} and start it with cluster.peers = []: it is a voter already.\n"
        ),
        several => format!(
            "Wipe the folders of the nodes {} and start them with cluster.peers = []: they are voters already.\n",
            list(several)
        ),
    };
    format!(
        "Start node {node_id}.\n{others}Every other node comes back with its folder wiped, and added again (docs/recovery.md).\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_needs_no_adding() {
        let alone = next_steps(3, &[3]);
        assert!(alone.starts_with("Start node 3.\nEvery other node") && !alone.contains("voter"), "{alone}");
        assert!(
            next_steps(1, &[1, 2])
                .contains("folder of node 2 and start it with cluster.peers = []: it is a voter")
        );
        assert!(next_steps(1, &[1, 2, 4]).contains("folders of the nodes 2, 4 and start them"));
    }
}
