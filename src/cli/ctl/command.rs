//! The words of `ctl`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use crate::cli::units;
use crate::types::{Height, LogIndex, NodeId, Term};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// How a node stands: role, term, positions, head, lease, members, peers.
    Status {
        /// All nodes, in one table.
        #[arg(long)]
        all: bool,
    },
    /// What keeps the cluster from taking blocks, in words.
    Why,
    /// Who leads, with which fence.
    Leader {
        /// Have a quorum confirm it.
        #[arg(long)]
        verify: bool,
    },
    /// Who belongs to the cluster; add, promote, demote, remove, update.
    #[command(subcommand_negates_reqs = true)]
    Members {
        #[command(subcommand)]
        change: Option<Members>,
    },
    /// Hand leadership to a voter, by default the most caught-up fit one; returns when it leads.
    Transfer(Transfer),
    /// Have the leader give leadership up.
    Resign {
        /// Why, for history and audit.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// How long the hand-over may take [default: the node's raft.resign_timeout].
        #[arg(long, value_parser = units::parse_wait, value_name = "TIME")]
        wait: Option<Duration>,
    },
    /// Have one node stand for election (needs --node).
    Elect {
        /// Ask the leader to hand over to this node.
        #[arg(long)]
        force: bool,
    },
    /// Not this node if another can: it hands over and does not lead while a fit peer could (needs --node).
    Pause {
        /// Why, for history and audit.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Take a pause back (needs --node).
    Resume {
        /// Why, for history and audit.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Elections, hand-overs, membership changes, snapshots, pauses, starts and stops.
    History {
        #[command(flatten)]
        page: Page,
        /// Only what this operation did.
        #[arg(long, value_name = "ID")]
        operation: Option<String>,
    },
    /// What the nodes were asked to do, by whom, and how it ended.
    #[command(args_conflicts_with_subcommands = true)]
    Audit {
        #[command(flatten)]
        page: Page,
        #[command(subcommand)]
        verify: Option<Audit>,
    },
    /// The settings of the cluster; change them.
    Settings {
        #[command(subcommand)]
        set: Option<Settings>,
    },
    /// Change one node's log filter (needs --node), e.g. `log info,blockraft::leadership=debug --for 10m`.
    Log {
        /// A level, and levels of single parts after commas: `info,blockraft::leadership=debug`.
        filter: String,
        /// Put the former one back after this time.
        #[arg(long = "for", value_parser = units::parse_for, value_name = "TIME")]
        duration: Option<Duration>,
    },
    /// Blocks: read them, see where one comes from and where its time went, propose one.
    #[command(subcommand)]
    Block(Block),
    /// Snapshots of a node: make, list, describe, verify, export; purge the log behind them.
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// All nodes on one screen, as they move. Elsewhere than on a terminal: every change of leadership, one line each.
    Watch(Watch),
    /// Follow applied blocks, one line each.
    Tail(Tail),
    /// Call any method, e.g. `call block_get '{"height":42}'`.
    Call {
        method: String,
        /// Params as a JSON object or array; `-` reads them from stdin.
        params: Option<String>,
    },
    /// Whether a node's process answers, of several the first that does: exit code 0 or 1.
    Live,
    /// Whether nodes may serve, and their checks: exit code 0 or 1.
    ///
    /// The node of --node, else every one of --endpoints: a single one that is not ready, or does not answer, is
    /// exit code 1. Of the default endpoints those count at which a node listens.
    Ready {
        /// Ask again until they are, this long.
        #[arg(long, value_parser = units::parse_duration, value_name = "TIME")]
        wait: Option<Duration>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Lines on a terminal too.
    #[arg(long)]
    pub(crate) lines: bool,
    /// Lines, from this leadership on instead of the one in force.
    #[arg(long, value_name = "ID")]
    pub(crate) from_id: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Transfer {
    /// The node that shall lead.
    pub(crate) to: Option<NodeId>,
    /// How long it may take [default: the node's raft.resign_timeout].
    #[arg(long, value_parser = units::parse_wait, value_name = "TIME")]
    pub(crate) wait: Option<Duration>,
    /// Also to a node that is not fit.
    #[arg(long)]
    pub(crate) force: bool,
    /// Say what would happen.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Page {
    /// From this id on; without it the newest.
    #[arg(long, value_name = "ID")]
    pub(crate) from_id: Option<u64>,
    /// At most so many, 1 to 1000.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) limit: Option<u64>,
    /// Of every node, in the order of time.
    #[arg(long)]
    pub(crate) all: bool,
}

/// What a change of membership may be tied to.
#[derive(Debug, Args)]
pub(crate) struct Change {
    /// Only if the membership still has this version.
    #[arg(long, value_name = "N")]
    pub(crate) expected_version: Option<LogIndex>,
    /// Also when no reachable quorum would be left.
    #[arg(long)]
    pub(crate) force: bool,
    /// Say what the new quorum and tolerance would be.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Members {
    /// Add a learner: it follows, and is counted in no quorum.
    Add {
        /// The id in the new node's own settings.
        node_id: NodeId,
        /// host:port for the other nodes.
        peer_addr: String,
        /// host:port of its API; without it ctl finds the node only when --endpoints names it.
        #[arg(long, value_name = "ADDR")]
        api: Option<String>,
        /// Return only when it has caught up.
        #[arg(long)]
        wait: bool,
        /// Only if the membership still has this version.
        #[arg(long, value_name = "N")]
        expected_version: Option<LogIndex>,
        /// Also when it cannot be dialled.
        #[arg(long)]
        force: bool,
    },
    /// Make a learner a voter.
    Promote {
        /// Its id, as `members` lists it.
        node_id: NodeId,
        #[command(flatten)]
        change: Change,
    },
    /// Make a voter a learner.
    Demote {
        /// Its id, as `members` lists it.
        node_id: NodeId,
        #[command(flatten)]
        change: Change,
    },
    /// Remove a node from the cluster.
    Remove {
        /// Its id, as `members` lists it.
        node_id: NodeId,
        #[command(flatten)]
        change: Change,
    },
    /// Give a member another address or name.
    Update {
        /// Its id, as `members` lists it.
        node_id: NodeId,
        /// host:port for the other nodes.
        #[arg(long, value_name = "ADDR")]
        peer: Option<String>,
        /// host:port of its API.
        #[arg(long, value_name = "ADDR")]
        api: Option<String>,
        /// 1 to 63 of a-z, 0-9 and -; no other member's.
        #[arg(long)]
        name: Option<String>,
        /// Only if the membership still has this version.
        #[arg(long, value_name = "N")]
        expected_version: Option<LogIndex>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check the chain of records.
    Verify {
        /// Of every node.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Settings {
    /// Change settings for the whole cluster, e.g. `set chain.block_interval=1s`.
    Set {
        #[arg(required = true, value_name = "KEY=VALUE")]
        pairs: Vec<String>,
        /// Only if the settings in force are still those of this entry.
        #[arg(long, value_name = "N")]
        expected_index: Option<LogIndex>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Block {
    /// The highest applied block.
    Head {
        /// Ask the leader how far it must be.
        #[arg(long)]
        linearizable: bool,
    },
    /// One block, with its content.
    Get {
        /// Decimal, or hex with 0x.
        #[arg(value_parser = units::parse_integer)]
        height: Height,
    },
    /// Blocks from a height on.
    Range {
        /// Decimal, or hex with 0x.
        #[arg(value_parser = units::parse_integer)]
        from: Height,
        /// At most so many, from 1 on.
        #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
    },
    /// Who proposed a block, when, and where it stands in the log.
    Provenance {
        /// Decimal, or hex with 0x.
        #[arg(value_parser = units::parse_integer)]
        height: Height,
    },
    /// Where a block's time went, on every node.
    Timeline {
        /// Decimal, or hex with 0x.
        #[arg(value_parser = units::parse_integer)]
        height: Height,
    },
    /// What an executor that is at this block would be told.
    Reconcile {
        /// Decimal, or hex with 0x.
        #[arg(value_parser = units::parse_integer)]
        height: Height,
        /// 0x hex.
        hash: String,
        /// The executor's hash at the cluster's head.
        #[arg(long, value_name = "HASH")]
        hash_at_head: Option<String>,
    },
    /// Propose a block; what is not given follows the head.
    Propose(Propose),
}

#[derive(Debug, Args)]
pub(crate) struct Propose {
    /// The whole block as JSON; `-` reads it from stdin.
    #[arg(conflicts_with_all = ["height", "hash", "timestamp", "header", "data", "parent_hash"])]
    pub(crate) block: Option<String>,
    /// [default: the head's + 1]
    #[arg(long, value_parser = units::parse_integer)]
    pub(crate) height: Option<Height>,
    /// 0x hex [default: made from the content].
    #[arg(long)]
    pub(crate) hash: Option<String>,
    /// Nanoseconds since the epoch [default: the time].
    #[arg(long, value_name = "NS")]
    pub(crate) timestamp: Option<u64>,
    /// 0x hex, or @FILE.
    #[arg(long)]
    pub(crate) header: Option<String>,
    /// 0x hex, or @FILE.
    #[arg(long)]
    pub(crate) data: Option<String>,
    /// 0x hex; must then be the head's hash.
    #[arg(long, value_name = "HASH")]
    pub(crate) parent_hash: Option<String>,
    /// Only under this fence.
    #[arg(long)]
    pub(crate) fence: Option<Term>,
    /// How long to wait for the commit [default: the node's api.propose_timeout].
    #[arg(long, value_parser = units::parse_wait, value_name = "TIME")]
    pub(crate) wait: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Make one.
    Create {
        /// Return at once.
        #[arg(long)]
        no_wait: bool,
    },
    /// All that the node keeps, newest first.
    List,
    /// One of them, with its files.
    Describe { id: String },
    /// Check one's files against their checksums.
    Verify { id: String },
    /// What makes them, how long the log is, what was purged.
    Status,
    /// Purge the log behind the snapshot (needs --node).
    PurgeLog {
        /// No further than this index.
        #[arg(long, value_name = "INDEX")]
        upto: Option<LogIndex>,
    },
    /// Write one to a tar file, which `snapshot restore` takes.
    Export {
        /// The newest one when left out.
        id: Option<String>,
        /// [default: ID.tar here]; `-` is stdout.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// From this block on, those already applied first.
    #[arg(long, visible_alias = "from", value_name = "HEIGHT", value_parser = units::parse_integer)]
    #[arg(conflicts_with = "from_index")]
    pub(crate) from_height: Option<Height>,
    /// From this log index on.
    #[arg(long, value_name = "INDEX", value_parser = units::parse_integer)]
    pub(crate) from_index: Option<LogIndex>,
    /// Items above so many bytes come without header and data.
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_item_bytes: Option<u64>,
}
