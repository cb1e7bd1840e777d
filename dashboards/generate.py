#!/usr/bin/env python3
"""Writes the Grafana boards under boards/; with --check it writes nothing and says what differs.

Python, because a board is edited by whoever operates the cluster, and needs no build for it. What a panel says of an
alert is quoted from alerts.yml, which is refused when the rule says something else. Every alert is on a panel, and
every exported family is used by a panel, a rule, or a runbook.
"""

import json
import pathlib
import re
import sys

from boardlib import AMBER, BLUE, GREEN, GREY, JOIN, RED, Panel, Rules, Wrong, board, by_cluster, by_node, quantile, quantile_ever, summed

HERE = pathlib.Path(__file__).resolve().parent
P = Panel
RATE = "[$__rate_interval]"
YES_NO = {0: ("no", GREY), 1: ("yes", GREEN)}
GOOD_BAD = {0: ("bad", RED), 1: ("good", GREEN)}
ROLES = {1: ("follower", BLUE), 2: ("learner", "light-blue"), 3: ("candidate", AMBER), 4: ("leader, not ready", "yellow"),
         5: ("stopped", RED), 6: ("leader, ready", GREEN)}
CAUSES = {1: ("first start", GREY), 2: ("clean", GREEN), 3: ("killed", AMBER), 4: ("fatal", RED), 5: ("panic", RED)}


def states(family, label, codes):
    """One number a node, out of one 0/1 series a value."""
    return " or ".join(f'{code} * {family}{{{label}="{value}"}}' for value, code in codes.items())


def per_node(family, legend="{{node_name}}"):
    return (by_node(family), legend)


def cluster_board(rules):
    role = f"sum without (role) ({states('blockraft_raft_role', 'role', dict(follower=1, learner=2, candidate=3, leader=4, stopped=5))}) + 2 * blockraft_raft_ready"
    # Minutes with a ready leader, of all minutes since the cluster was first seen: what nobody scraped counts as without.
    ready = 'sum_over_time((cluster:blockraft_ready:sum{cluster_id="$cluster"} > bool 0)[30d:1m])'
    seen = 'time() - min_over_time(timestamp(cluster:blockraft_voters:max{cluster_id="$cluster"})[30d:1m])'
    return board(rules, "blockraft-cluster", "blockraft 1: cluster", "Who leads, whether blocks are agreed, what fires.", [
        ("Now", [
            P("Leader", "none", "The node that leads, in raft's own view.", "One name.",
              [(by_node("blockraft_raft_is_leader == 1"), "{{node_name}}", dict(instant=True))], ["NoLeader"], "stat", 4, 4, text="name"),
            P("Term", "none", "The newest term that any node tells; it rises with each election.", "It stands still for days.",
              [(by_cluster("cluster:blockraft_term:max"), "term")], kind="stat", w=3, h=4, base=BLUE),
            P("Ready leaders", "none", "Nodes that lead and hold the fence: their producer may act.", "1.",
              [(by_cluster("cluster:blockraft_ready:sum"), "ready")], ["LeaderNotReady", "TwoReadyLeaders"], "stat", 3, 4, below=1),
            P("Failures survived", "none", "Voters heard of lately beyond a majority.", "1 with three nodes, 2 with five; negative: the quorum is lost.",
              [(by_cluster(f"max by (cluster_id) (blockraft_raft_failure_tolerance {JOIN})"), "tolerance")],
              [("QuorumAtRisk", f"max by (cluster_id) (blockraft_raft_failure_tolerance {JOIN})", "==", "0")], "stat", 3, 4, below=1),
            P("Head", "none", "Height of the highest applied block.", "It rises as the chain produces.",
              [(by_cluster("cluster:blockraft_head:max"), "head")], kind="stat", w=4, h=4, base=BLUE),
            P("Since the last block", "s", "Time since any node applied a block.", "About the chain's block time; large on an idle chain.",
              [(by_cluster(f"time() - max by (cluster_id) ((blockraft_block_applied_timestamp_seconds > 0) {JOIN})"), "ago")],
              [("BlockProductionStalled", f"time() - max by (cluster_id) ((blockraft_block_applied_timestamp_seconds > 0) {JOIN})", ">",
                f"5 * max by (cluster_id) ((blockraft_block_expected_interval_seconds > 0) {JOIN})")], "stat", 3, 4, base=BLUE),
            P("With a ready leader, 30 days", "percentunit", "Share of the last 30 days, or since the cluster was first seen, with a ready leader; minutes that nobody "
              "scraped count as without.", "Above 99.9 %.", [(f"clamp_max(({ready}) / ((1 + ({seen}) / 60)), 1)", "share", dict(instant=True))],
              kind="stat", w=4, h=4, below=0.999, decimals=3),
        ]),
        ("Nodes", [
            P("Roles", "none", "Each node's role; a gap is a node that was not scraped.", "One ready leader, the others followers.",
              [(by_node(role), "{{node_name}}")], ["QuorumLost"], "state-timeline", 12, 7, map=ROLES),
            P("Alerts that fire", "none", "Each alert of this cluster while it fires.", "Empty.",
              [('max by (alertname, node_id, peer_id, severity) (ALERTS{alertstate="firing", cluster_id="$cluster"})', "{{alertname}} {{node_id}}{{peer_id}}")],
              kind="state-timeline", w=12, h=7, map={1: ("fires", RED)}, show="never"),
            P("Voters up", "none", "Voters whose role is known to Prometheus, and all voters.", "The two are the same.",
              [(by_cluster("cluster:blockraft_voters_up:count"), "up"), (by_cluster("cluster:blockraft_voters:max"), "voters")],
              [("QuorumLost", "last_over_time(cluster:blockraft_voters:max[1h]))", "<", "floor(last_over_time(cluster:blockraft_voters:max[1h]) / 2) + 1")], min=0),
            P("A leader is heard", "bool_on_off", "1 while the node hears a leader, by its own clock.", "1 on every node.",
              [per_node("blockraft_raft_has_leader")], [("NoLeader", "last_over_time(cluster:blockraft_has_leader:max[1h]))", "==", "0"),
                                                        ("NodeWithoutLeader", f"(blockraft_raft_has_leader {JOIN})", "==", "0")], min=0, max=1),
            P("Without a leader", "percentunit", "Share of the time during which the node heard no leader.", "0, but for half a second at a change.",
              [per_node(f"rate(blockraft_raft_leaderless_seconds_total{RATE})")], ["NoLeader"], min=0),
        ]),
        ("Blocks", [
            P("Blocks agreed", "ops", "Blocks applied a second, of the node that applied most.", "The chain's rate.",
              [(f"max (rate(blockraft_blocks_applied_total{RATE}) * on (job, instance) group_left () blockraft_node_info{{cluster_id=\"$cluster\"}})", "blocks"),
               (f"max (rate(blockraft_block_bytes_total{RATE}) * on (job, instance) group_left () blockraft_node_info{{cluster_id=\"$cluster\"}}) / 1024", "KiB")], min=0),
            P("Height by node", "none", "Height of each node's head.", "All the same, within a few blocks.", [per_node("blockraft_block_head_height")], ["BlockProductionStalled"]),
            P("Head's age", "s", "How far the head's own timestamp lies behind the node's clock.", "Below the block time; negative: the producer's clock is ahead.",
              [per_node("blockraft_node_clock_timestamp_seconds - (blockraft_block_head_timestamp_seconds > 0)")]),
        ]),
        ("Lags", [
            P("Behind the cluster", "none", "Entries that the cluster committed and the node has not applied: what its readers feel.", "0 to a few.",
              [per_node("blockraft_raft_behind_entries")], ["FollowerCannotCatchUp"], min=0),
            P("Not yet replicated", "none", "Entries of the leader's log that a peer is not known to hold.", "A few, while blocks flow.",
              [(by_node("blockraft_raft_peer_replication_lag_entries"), "to node {{peer_id}}")], ["FollowerLagging"], min=0),
            P("Not yet applied", "none", "Entries committed and not applied on the node, the highest of the last minute.", "0 to a few.",
              [per_node("blockraft_raft_apply_lag_entries_max")], ["ApplyLagHigh"], min=0),
        ]),
        ("Forks", [
            P("Checkpoint heights", "none", "Highest applied height divisible by 64, 4096 and 262144.", "The same on all nodes, or about to be.",
              [(by_node("blockraft_block_checkpoint_height"), "{{node_name}} every {{every}}")], ["BlockForked"], w=12),
            P("Checkpoint fingerprints", "none", "The first 48 bits of the checkpoint's hash: two values at one height are a fork.", "One value for each height, on all nodes.",
              [(by_node("blockraft_block_checkpoint_fingerprint"), "{{node_name}} every {{every}}")], ["BlockForked"], w=12),
        ]),
    ])


def proposals_board(rules):
    bad = 'blockraft_raft_proposals_total{outcome=~"no_leader|overloaded|storage|timeout|unknown"}[5m]'
    stages = "queue|commit_wait|apply_wait|apply"
    means = (f'(rate(blockraft_raft_stage_seconds_sum{{stage=~"{stages}"}}{RATE}) / rate(blockraft_raft_stage_seconds_count{{stage=~"{stages}"}}{RATE})) '
             "and on (job, instance) blockraft_raft_is_leader == 1")
    unfit = '(min_over_time(blockraft_raft_apply_subscriber_gap_entries{subscriber!~"ws|sse"}[1m])'
    return board(rules, "blockraft-proposals", "blockraft 2: proposals and the apply feed", "Where a block's time goes, what is refused, who follows.", [
        ("Time of a block", [
            P("Where the time goes", "s", "Mean time of a block in each stage on the leader. Means stack; percentiles do not.", "commit_wait, the quorum's disks and network, is most of it.",
              [(by_node(means), "{{stage}}")], w=12, h=9, stack=True, min=0),
            P("Time from proposal to answer", "s", "Every committed proposal; a dot is one that was traced and leads to its trace.", "A narrow band at a few milliseconds.",
              [(summed(f'increase(blockraft_raft_proposal_seconds_bucket{{outcome="committed"}}{RATE})', "le"), "{{le}}", dict(exemplar=True, format="heatmap"))],
              kind="heatmap", w=12, h=9),
            P("Proposal to answer, percentiles", "s", "Of committed proposals.", "99 in 100 within a few times the median.",
              [(quantile(q, "blockraft_raft_proposal_seconds", where='{outcome="committed"}'), f"p{100 * q:g}") for q in (0.5, 0.9, 0.99)], min=0),
            P("Stages, 99 in 100", "s", "Each stage of all chosen nodes: append and deliver are every node's, replicate the leader's.", "Within milliseconds on a quiet disk.",
              [(quantile(0.99, "blockraft_raft_stage_seconds", "stage"), "{{stage}}")], min=0),
            P("Applying", "s", "Time to apply one entry, 99 in 100, by kind of entry.", "Well below a millisecond for a block.",
              [(quantile(0.99, "blockraft_raft_apply_seconds", "kind"), "{{kind}}")], ["ApplyLagHigh"], min=0),
        ]),
        ("Outcomes", [
            P("Proposals", "ops", "Answers a second by outcome. Refused ones did not happen; timeout and unknown may have.", "committed alone, with some duplicate after a failover.",
              [(summed(f"rate(blockraft_raft_proposals_total{RATE})", "outcome") + " > 0", "{{outcome}}")], ["ProposalsUnknown"], min=0),
            P("Failed for the cluster's reasons", "none", "Failed proposals of the last five minutes, and 1 in 100 of all.", "0.",
              [(by_cluster(f"sum by (cluster_id) (increase({bad} {JOIN})".replace("[5m] ", "[5m]) ")), "failed")],
              [("ProposalsFailing", f"sum by (cluster_id) (increase({bad}) {JOIN})", ">",
                f'0.01 * sum by (cluster_id) (increase(blockraft_raft_proposals_total{{outcome!="not_leader"}}[5m]) {JOIN})')], min=0),
            P("Without a verdict", "none", "Proposals of the last ten minutes that timed out or lost their leader.", "0, and a few after a failover.",
              [(by_cluster(f'sum by (cluster_id) (increase(blockraft_raft_proposals_total{{outcome=~"timeout|unknown"}}[10m]) {JOIN})'), "unknown")],
              [("ProposalsUnknown", f'sum by (cluster_id) (increase(blockraft_raft_proposals_total{{outcome=~"timeout|unknown"}}[10m]) {JOIN})', ">", "0")], min=0),
            P("In flight", "none", "Proposals admitted and not yet answered.", "Below api.max_in_flight by far.", [per_node("blockraft_raft_proposals_in_flight")],
              ["BlockProductionStalled"], min=0),
            P("Blocks refused by the state machine", "none", "In five minutes, by reason, of the node that counted most.", "0.",
              [(f'max by (reason) (increase(blockraft_block_refused_total[5m]) * on (job, instance) group_left () blockraft_node_info{{cluster_id="$cluster"}})', "{{reason}}")],
              [("BlockConflict", '(increase(blockraft_block_refused_total{reason="conflict"}[5m])', ">", "0"),
               ("FenceRejections", '(increase(blockraft_block_refused_total{reason="fenced"}[5m])', ">", "0")], min=0),
            P("Longest wait to be applied", "s", "Age of the oldest entry that is committed and not applied.", "0, or milliseconds.",
              [per_node("blockraft_raft_apply_oldest_wait_seconds")], [("ApplyLagHigh", "((blockraft_raft_apply_oldest_wait_seconds", ">", "2")], min=0),
            P("Apply lag", "none", "Entries committed and not applied here.", "0 to a few; it falls again after a restart.", [per_node("blockraft_raft_apply_lag_entries")],
              [("ApplyLagGrowing", "blockraft_raft_apply_lag_entries", ">", "20"), ("ApplyStalled", "((min_over_time(blockraft_raft_apply_lag_entries[1m])", ">", "0")], min=0),
        ]),
        ("Feed of applied blocks", [
            P("Messages to subscribers", "ops", "Applied blocks handed over a second.", "Blocks a second times subscribers.",
              [(summed(f"rate(blockraft_raft_apply_messages_total{RATE})", "subscriber"), "{{subscriber}}"),
               (summed(f"rate(blockraft_raft_apply_messages_replayed_total{RATE})", "subscriber"), "{{subscriber}}, replayed")], min=0),
            P("Dropped", "none", "Blocks of five minutes that a full buffer kept from its subscriber. They are replayed behind it.", "0 for the watched ones.",
              [(by_node('sum without (reason) (increase(blockraft_raft_apply_messages_dropped_total{reason="full"}[5m]))'), "{{node_name}} {{subscriber}}")],
              [("ApplyMessagesDropped", '(sum without (reason) (increase(blockraft_raft_apply_messages_dropped_total{reason="full", subscriber!~"ws|sse"}[5m]))', ">", "0")], min=0),
            P("Not yet repaired", "none", "Entries between what was applied and what the subscriber with the largest gap has.", "0, but for seconds.",
              [(by_node("blockraft_raft_apply_subscriber_gap_entries"), "{{node_name}} {{subscriber}}")], [("ApplyGapNotRepaired", unfit, ">", "0")], min=0),
            P("Waiting for the slowest", "none", "Blocks in the fullest buffer, and how many fit.", "Near 0.",
              [(by_node("blockraft_raft_apply_queue_depth"), "{{node_name}} {{subscriber}}"), (by_node("blockraft_raft_apply_queue_capacity"), "{{node_name}} {{subscriber}}: fit")], min=0),
            P("Subscribers", "none", "Who follows the applied blocks.", "As many as you run.", [(summed("blockraft_raft_apply_subscribers", "subscriber"), "{{subscriber}}")], min=0),
            P("Gaps told", "none", "Gaps that subscribers were told of in five minutes.", "0.",
              [(by_node("increase(blockraft_raft_apply_gaps_total[5m])"), "{{node_name}} {{subscriber}}")], ["ApplyGapNotRepaired"], min=0),
        ]),
        ("Executor", [
            P("Executor's lag", "none", "Blocks that the executor beside the node is behind, and what is allowed.", "At or below the limit.",
              [per_node("blockraft_executor_lag_blocks")], [("ExecutorLagging", "(blockraft_executor_lag_blocks", ">", "blockraft_executor_max_lag_blocks")], min=0),
            P("Executor's last report", "s", "Time since it reported; shown once it has.", "Below executor.report_timeout.",
              [per_node("blockraft_executor_report_age_seconds and on (job, instance) blockraft_executor_reported == 1")], ["ExecutorLagging"], min=0),
            P("Verdicts", "ops", "What executors were told, a second.", "in_sync, and behind by one.",
              [(summed(f"rate(blockraft_executor_verdicts_total{RATE})", "verdict"), "{{verdict}}")], min=0),
        ]),
    ])


def elections_board(rules):
    ack = f"min by (cluster_id) (blockraft_raft_quorum_ack_age_seconds {JOIN})"
    timeout = f"max by (cluster_id) (blockraft_raft_heartbeat_timeout_seconds {JOIN})"
    lost = f'max by (cluster_id, node_id, outcome) (increase(blockraft_raft_elections_total{{outcome=~"lost|pre_vote_lost"}}[5m]) {JOIN})'
    skew = "(abs(blockraft_node_clock_timestamp_seconds - timestamp(blockraft_node_clock_timestamp_seconds))"
    return board(rules, "blockraft-elections", "blockraft 3: elections and leadership", "Why the leader changed, and whether it will again.", [
        ("Churn", [
            P("Leader changes nobody asked for", "none", "Terms of the last 15 minutes, less transfers and resignations.", "0.",
              [(by_cluster("cluster:blockraft_churn:15m"), "terms in 15 minutes")],
              [("ElectionChurn", "cluster:blockraft_churn:15m", ">", "3")], min=0),
            P("Leader changes by reason", "none", "In the panel's window, as the nodes counted them.", "Empty; transfer and resign when asked for.",
              [(f'max by (reason) (increase(blockraft_raft_leader_changes_total{RATE}) * on (job, instance) group_left () blockraft_node_info{{cluster_id="$cluster"}})', "{{reason}}")],
              ["ElectionChurn"], bars=True, min=0),
            P("Terms that went by", "none", "Each node's count of terms, in the panel's window.", "0.", [per_node(f"increase(blockraft_raft_terms_advanced_total{RATE})")],
              ["ElectionChurn"], min=0),
            P("Candidacies", "none", "Of the last five minutes, by outcome.", "started and won, once for each change.",
              [(summed("increase(blockraft_raft_elections_total[5m])", "outcome"), "{{outcome}}")], [("ElectionsFailing", f"sum by (cluster_id) ({lost})", ">", "2.5")], min=0),
            P("Votes", "ops", "Votes that were asked for and given, a second.", "Empty between elections.",
              [(summed(f"rate(blockraft_raft_votes_total{RATE})", "direction", "kind", "granted") + " > 0", "{{kind}} {{direction}}, granted {{granted}}")], min=0),
            P("Leader since", "dateTimeFromNow", "When the leadership began, as each node knows it.", "Days ago, and the same on all nodes.",
              [per_node("1000 * (blockraft_raft_leader_since_timestamp_seconds > 0)")], ["TwoReadyLeaders"], "stat", base=BLUE, text="value_and_name"),
        ]),
        ("Acknowledgements", [
            P("Quorum's last acknowledgement", "s", "Age of the newest message that a quorum acknowledged to the leader.", "About one heartbeat interval.",
              [(by_cluster(ack), "age")], [("LeaderQuorumAckStale", ack, ">", timeout)], min=0),
            P("Each peer's last acknowledgement", "s", "Age of the newest message that a peer acknowledged to the leader.", "About one heartbeat interval.",
              [(by_node("blockraft_raft_peer_last_ack_age_seconds"), "node {{peer_id}}")],
              [("PeerUnreachable", f"max by (cluster_id, peer_id) (blockraft_raft_peer_last_ack_age_seconds {JOIN})", ">",
                f"10 * max by (cluster_id) (blockraft_raft_heartbeat_interval_seconds {JOIN})")], min=0),
            P("Lease", "s", "Time that the leader may act without asking, and the whole lease.", "Most of the lease; at 0 the fence is withdrawn.",
              [(by_node("blockraft_raft_lease_remaining_seconds"), "{{node_name}} has"), (f"max ({by_node('blockraft_raft_leader_lease_timeout_seconds')})", "lease")], ["LeaderNotReady"], min=0),
            P("Runtime stalls", "percentunit", "Share of the time by which sleeps overslept: stolen CPU, a stopped process.", "Below 1 %.",
              [per_node(f"rate(blockraft_runtime_stall_seconds_total{RATE})")], ["ElectionChurn"], min=0),
            P("Clocks", "s", "Each node's clock against Prometheus's time of the scrape.", "Within the scrape's own time.",
              [per_node("abs(blockraft_node_clock_timestamp_seconds - timestamp(blockraft_node_clock_timestamp_seconds))")], [("ClockSkew", skew, ">", "2")], min=0),
            P("Clocks against each other", "s", "Each peer's clock minus the node's, from heartbeats.", "Milliseconds.",
              [(by_node("abs(blockraft_peer_clock_offset_seconds)"), "{{node_name}} sees node {{peer_id}}")],
              [("ClockSkew", "max by (job, instance) (abs(blockraft_peer_clock_offset_seconds))", ">", "0.5")], min=0),
        ]),
        ("Hand-overs", [
            P("Time of a hand-over", "s", "Median and 99 in 100, from the request until another node leads, since the processes started.", "Below half a second.",
              [(quantile_ever(q, "blockraft_raft_handover_seconds", "outcome"), f"p{100 * q:g} {{{{outcome}}}}") for q in (0.5, 0.99)], min=0),
            P("Hand-overs by outcome", "none", "In the panel's window.", "transferred.", [(summed(f"increase(blockraft_raft_transfers_total{RATE})", "outcome"), "{{outcome}}")], bars=True, min=0),
            P("Resignations by reason", "none", "In the panel's window.", "Empty; shutdown during an upgrade.",
              [(summed(f"increase(blockraft_raft_resignations_total{RATE})", "reason"), "{{reason}}")], bars=True, min=0),
        ]),
        ("Last resort", [
            P("Candidacies of last resort", "none", "How often an unfit node stood because no fit one led, in the panel's window.", "0.",
              [per_node(f"increase(blockraft_raft_last_resorts_total{RATE})")], ["LeaderNotReady"], w=24, h=6, min=0),
        ]),
        ("Members and settings", [
            P("Paused", "none", "Nodes that were asked not to lead.", "no.", [per_node("blockraft_raft_paused")],
              [("NodePaused", "(blockraft_raft_paused", "==", "1")], "state-timeline", map={0: ("no", GREY), 1: ("paused", AMBER)}),
            P("Members", "none", "Voters and learners, as each node knows them.", "The same on all nodes.",
              [(f'max by (suffrage) ({by_node("blockraft_raft_members")})', "{{suffrage}}, most"), (f'min by (suffrage) ({by_node("blockraft_raft_members")})', "{{suffrage}}, least")], min=0),
            P("A change of members is under way", "none", "Between two memberships.", "no, but for a moment.", [per_node("blockraft_raft_membership_joint")],
              [("MembershipChangeStuck", "(blockraft_raft_membership_joint", "==", "1")], "state-timeline", map={0: ("no", GREY), 1: ("joint", AMBER)}),
            P("Timeouts", "s", "The raft settings of each node.", "The same on all nodes.",
              [(by_node("blockraft_raft_heartbeat_timeout_seconds"), "{{node_name}}: heartbeat timeout"), (by_node("blockraft_raft_heartbeat_interval_seconds"), "{{node_name}}: heartbeat interval"),
               (by_node("blockraft_raft_election_timeout_seconds"), "{{node_name}}: election timeout")],
              [("ConfigSkew", timeout, "!=", f"min by (cluster_id) (blockraft_raft_heartbeat_timeout_seconds {JOIN})")], w=24, h=6, min=0),
        ]),
    ])


def log_board(rules):
    threshold = "3 * blockraft_raft_snapshot_threshold_entries"
    lag = f"max by (cluster_id, peer_id) (blockraft_raft_peer_replication_lag_seconds {JOIN})"
    slow = "(histogram_quantile(0.99, rate(blockraft_raft_log_sync_seconds_bucket[5m]))"
    failed = 'increase(blockraft_raft_snapshots_total{outcome=~"failed|corrupt"}[15m])'
    installs = 'increase(blockraft_raft_snapshots_total{op="install", outcome="ok"}[15m])'
    order = "(blockraft_raft_purged_index"
    return board(rules, "blockraft-log", "blockraft 4: log, snapshots, compaction", "What is durable, what a restart replays, whether a follower can catch up.", [
        ("Disk", [
            P("Time of one sync", "s", "Every synced write of the log; a dot is one that was traced.", "A narrow band: the disk's own time.",
              [(summed(f"increase(blockraft_raft_log_sync_seconds_bucket{RATE})", "le"), "{{le}}", dict(exemplar=True, format="heatmap"))], kind="heatmap", w=12, h=9),
            P("Slow syncs", "s", "One sync in a hundred takes longer.", "Below a quarter of the election timeout by far.",
              [per_node(f"histogram_quantile(0.99, rate(blockraft_raft_log_sync_seconds_bucket{RATE}))")],
              [("LogSyncSlow", slow, ">", "0.25 * blockraft_raft_election_timeout_seconds")], w=12, h=9, min=0),
            P("Sync in progress", "s", "Age of the sync in progress: a disk that hangs observes nothing else.", "0, or milliseconds.",
              [per_node("blockraft_raft_log_sync_oldest_wait_seconds")], [("LogSyncStuck", "(blockraft_raft_log_sync_oldest_wait_seconds", ">", "blockraft_raft_heartbeat_timeout_seconds")], min=0),
            P("Entries a sync", "none", "Mean number of entries that one sync made durable.", "Rises with the load: that is how the disk keeps up.",
              [per_node(f"rate(blockraft_raft_log_sync_batch_entries_sum{RATE}) / rate(blockraft_raft_log_sync_batch_entries_count{RATE})")], min=0),
            P("Appends", "s", "From an append's arrival until it is durable, 99 in 100.", "One or two syncs.", [per_node(f"histogram_quantile(0.99, rate(blockraft_raft_log_append_seconds_bucket{RATE}))")],
              ["LogSyncSlow"], min=0),
        ]),
        ("Positions", [
            P("Positions", "none", "purged ≤ snapshot ≤ applied ≤ committed ≤ last, on every node, always.", "Lines that rise together, never crossing.",
              [(by_node(f"blockraft_raft_{p}_index"), "{{node_name}} " + p) for p in ("last_log", "committed", "cluster_committed", "applied", "snapshot", "purged")],
              [("PositionsInconsistent", order, ">", "blockraft_raft_snapshot_index")], w=16, h=9),
            P("Entries committed", "ops", "Entries a second, by each node's applied index.", "A little above the blocks agreed.", [per_node(f"rate(blockraft_raft_applied_index{RATE})")], h=9, min=0),
            P("What a restart replays", "none", "Entries applied since the newest snapshot, and three thresholds.", "A saw between 0 and the threshold.",
              [per_node("blockraft_raft_compaction_lag_entries")], [("CompactionLagHigh", "(blockraft_raft_compaction_lag_entries", ">", threshold)], min=0),
            P("Log entries", "none", "Entries that are not purged.", "Below threshold + trailing + one build's.", [per_node("blockraft_raft_log_entries")],
              [("CompactionLagHigh", "blockraft_raft_log_entries", ">", f"{threshold} + blockraft_raft_trailing_logs_entries")], min=0),
            P("Log bytes", "bytes", "Stored bytes of the entries that are not purged.", "Bounded.", [per_node("blockraft_raft_log_bytes")], ["CompactionLagHigh"], min=0),
            P("Purged", "ops", "Entries a second deleted because a snapshot holds them.", "The rate of entries, in steps.", [per_node(f"rate(blockraft_raft_log_purged_entries_total{RATE})")], min=0),
        ]),
        ("Snapshots", [
            P("Snapshots by outcome", "none", "Of the last 15 minutes.", "ok alone.",
              [(by_node("increase(blockraft_raft_snapshots_total[15m])") + " > 0", "{{node_name}} {{op}} {{outcome}}")],
              [("SnapshotFailing", failed, ">", "0"), ("FollowerCannotCatchUp", installs, ">", "2.5")], min=0),
            P("Running", "none", "Snapshots being built, sent or installed.", "Moments.", [(by_node("blockraft_raft_snapshot_running"), "{{node_name}} {{op}}")],
              ["SnapshotFailing"], "state-timeline", map=YES_NO, show="never"),
            P("Since the newest one", "s", "Age of the newest snapshot.", "About threshold / rate; any age on an idle chain.",
              [per_node("time() - (blockraft_raft_snapshot_last_success_timestamp_seconds > 0)")], ["CompactionLagHigh"], min=0),
            P("Time to build, send, install", "s", "99 in 100 over all chosen nodes, since they started.", "Well below the time that the log keeps.",
              [(quantile_ever(0.99, f"blockraft_raft_snapshot_{op}_seconds"), op) for op in ("build", "send", "install")], min=0),
            P("Size and number kept", "bytes", "Bytes of the newest snapshot times those kept.", "Steady.",
              [per_node("blockraft_raft_snapshot_bytes"), (by_node("blockraft_raft_snapshot_bytes * blockraft_raft_snapshots_retained"), "{{node_name}}, all kept")], min=0),
            P("Time the log keeps, against an install", "s", "How long a follower may be away and still catch up from the log, and how long a snapshot takes to get there.",
              "The log keeps longer than an install takes.",
              [(by_node("blockraft_raft_log_oldest_age_seconds"), "{{node_name}} keeps"),
               (f"{quantile_ever(0.99, 'blockraft_raft_snapshot_install_seconds')} + {quantile_ever(0.99, 'blockraft_raft_snapshot_send_seconds')}", "send and install")],
              ["FollowerCannotCatchUp"], log=True),
        ]),
        ("Followers", [
            P("Followers' lag", "s", "Age of the oldest entry that a peer is not known to hold.", "Milliseconds.", [(by_node("blockraft_raft_peer_replication_lag_seconds"), "node {{peer_id}}")],
              [("FollowerLagging", lag, ">", "5")], w=12, min=0),
            P("Followers' positions", "none", "Last entry that each peer is known to hold.", "All near the leader's last.", [(by_node("blockraft_raft_peer_matched_index"), "node {{peer_id}}")],
              ["FollowerLagging"], w=12),
        ]),
    ], snapshots=True)


def node_board(rules):
    errors = 'sum without (code, method) (rate(blockraft_rpc_requests_total{code=~"-32603|-32035|-32038"}[5m]))'
    all_calls = "0.01 * sum without (code, method) (rate(blockraft_rpc_requests_total[5m]))"
    free = "(blockraft_store_free_bytes"
    versions = "count by (cluster_id) (count by (cluster_id, version) (blockraft_build_info * on (job, instance) group_left (cluster_id) blockraft_node_info))"
    exits = states("blockraft_node_last_exit", "cause", dict(first=1, clean=2, killed=3, fatal=4, panic=5))
    scope = 'last_over_time(blockraft_node_info{cluster_id="$cluster", instance=~"$instance"}[1d])'
    return board(rules, "blockraft-node", "blockraft 5: node and API", "Process, disk, peers, calls, telemetry.", [
        ("Process", [
            P("Scraped", "none", "Whether Prometheus gets an answer from each node it has known within a day.", "yes.",
              [(f"up * on (job, instance) group_left (node_name) (0 * max by (job, instance, node_name) ({scope}) + 1)", "{{node_name}}")],
              [("NodeDown", "up", "==", "0"), "MetricsAbsent"], "state-timeline", map={0: ("down", RED), 1: ("up", GREEN)}),
            P("Health", "none", "The checks behind /livez and /readyz.", "good.", [(by_node("blockraft_health_check"), "{{node_name}} {{type}} {{name}}")], ["CoreStopped"], "state-timeline",
              map=GOOD_BAD, show="never"),
            P("Starts", "none", "Starts of the last 15 minutes.", "0; 1 after an upgrade.", [per_node("increase(blockraft_node_starts_total[15m])")],
              [("NodeRestarting", "(increase(blockraft_node_starts_total[15m])", ">", "2.5")], min=0),
            P("Stopped from serving", "none", "Up, and stopped because its state differs from the others'.", "no.", [per_node("blockraft_raft_fatal")],
              [("CoreStopped", "(blockraft_raft_fatal", "==", "1")], "state-timeline", map={0: ("no", GREY), 1: ("stopped", RED)}),
            P("How the process before ended", "none", "Out of the data folder.", "clean.", [(by_node(f"sum without (cause) ({exits})"), "{{node_name}}")], ["CoreStopped"], "stat",
              map=CAUSES, text="value_and_name", base=GREY),
            P("Versions", "none", "How many nodes run which version.", "One version, but during an upgrade.",
              [(by_cluster(versions), "versions"), ('count by (version, revision) (blockraft_build_info * on (job, instance) group_left () blockraft_node_info{cluster_id="$cluster"})', "nodes of {{version}} ({{revision}})")],
              [("VersionSkew", versions, ">", "1")], min=0),
            P("CPU", "percentunit", "Cores in use.", "Below one at a few thousand blocks a second.", [per_node(f"rate(process_cpu_seconds_total{RATE})")], min=0),
            P("Memory", "bytes", "Resident memory.", "Level after the first minutes.", [per_node("process_resident_memory_bytes")], min=0),
            P("File descriptors and threads", "none", "Open descriptors and threads.", "Level, far below process_max_fds.",
              [(by_node("process_open_fds"), "{{node_name}}: open"), (by_node("process_threads"), "{{node_name}}: threads")], min=0),
        ]),
        ("Disk", [
            P("Free space", "bytes", "Bytes that may still be written; below store.min_free entries are refused.", "Twice store.min_free, and level.",
              [per_node("blockraft_store_free_bytes")], [("DiskFillingUp", free, "<", "2 * blockraft_store_min_free_bytes")], min=0),
            P("Databases", "bytes", "Bytes of the files of log and state.", "Level after the history is full.", [(by_node("blockraft_store_bytes"), "{{node_name}} {{db}}")], ["DiskFillingUp"], min=0),
            P("Compaction behind", "bytes", "Bytes that compactions have still to do.", "Falls back to 0.", [(by_node("blockraft_store_pending_compaction_bytes"), "{{node_name}} {{db}}")], min=0),
            P("Writes that waited", "percentunit", "Share of the time that writes waited for flushes, compactions, or space.", "0.",
              [(by_node(f"rate(blockraft_store_write_stall_seconds_total{RATE})"), "{{node_name}} {{db}}")], ["ApplyStalled"], w=12, min=0),
            P("Errors of the databases", "none", "In five minutes, by operation.", "0.", [(by_node("increase(blockraft_store_errors_total[5m])") + " > 0", "{{node_name}} {{db}} {{op}}")],
              ["CoreStopped"], w=12, min=0),
        ]),
        ("Peers", [
            P("Round trips to peers", "s", "99 in 100, by kind of message.", "Network and the peer's sync.", [(quantile(0.99, "blockraft_peer_rpc_seconds", "rpc"), "{{rpc}}")], ["PeerUnreachable"], min=0),
            P("Failed exchanges", "ops", "By peer and reason.", "0; connect and closed while a peer is away.",
              [(summed(f"rate(blockraft_peer_rpc_errors_total{RATE})", "peer_id", "reason") + " > 0", "node {{peer_id}}: {{reason}}")], ["PeerUnreachable"], min=0),
            P("Bytes to and from peers", "Bps", "By direction.", "On the leader: blocks times followers.", [(summed(f"rate(blockraft_peer_bytes_total{RATE})", "node_name", "direction"), "{{node_name}} {{direction}}")], min=0),
            P("Connected", "none", "The control connection to each peer.", "yes.", [(by_node("blockraft_peer_connected"), "{{node_name}} to node {{peer_id}}")], ["PeerUnreachable"], "state-timeline", 24, 6,
              map={0: ("no", RED), 1: ("yes", GREEN)}, show="never"),
        ]),
        ("API", [
            P("Calls", "reqps", "By method or route.", "The proposers' and scrapers' rate.", [(summed(f"rate(blockraft_rpc_requests_total{RATE})", "method") + " > 0", "{{method}}")], min=0),
            P("Failed inside", "reqps", "Calls that failed for the node's own reasons, and 1 in 100 of all.", "0.", [(by_node(errors), "{{node_name}}")],
              [("RpcErrorsHigh", errors, ">", all_calls)], min=0),
            P("Answers by code", "reqps", "ok, or the error's code.", "ok, and the refusals that clients cause.", [(summed(f"rate(blockraft_rpc_requests_total{RATE})", "code") + " > 0", "{{code}}")], ["RpcErrorsHigh"], min=0),
            P("Time of a call", "s", "99 in 100, by method.", "Milliseconds; streams and long polls longer.", [(quantile(0.99, "blockraft_rpc_request_seconds", "method") + " > 0", "{{method}}")], min=0),
            P("Turned away", "reqps", "Requests that no method saw, by reason.", "0.", [(summed(f"rate(blockraft_rpc_rejected_total{RATE})", "reason") + " > 0", "{{reason}}")], min=0),
            P("Connections and calls in flight", "none", "Open connections, calls being answered.", "Below api.max_connections.",
              [(by_node("blockraft_http_connections"), "{{node_name}}: connections"), (by_node("blockraft_rpc_in_flight"), "{{node_name}}: calls")], min=0),
            P("WebSocket sessions that ended", "ops", "By what ended them.", "client.", [(summed(f"rate(blockraft_ws_sessions_closed_total{RATE})", "reason"), "{{reason}}")], w=12, min=0),
            P("Audited operations", "none", "Control operations in the panel's window, by action and outcome.", "What people asked for.",
              [(summed(f"increase(blockraft_audit_events_total{RATE})", "action", "outcome") + " > 0", "{{action}} {{outcome}}")], w=12, bars=True, min=0),
        ]),
        ("Telemetry", [
            P("Spans", "ops", "Spans that the collector took.", "Some ten a block, up to the budget.", [per_node(f"rate(blockraft_telemetry_spans_exported_total{RATE})")], min=0),
            P("Lost", "none", "Spans lost, batches refused, instants overwritten, in ten minutes.", "0.",
              [(by_node("sum without (reason) (increase(blockraft_telemetry_spans_dropped_total[10m]))"), "{{node_name}}: spans"),
               (by_node("increase(blockraft_telemetry_export_failures_total[10m])"), "{{node_name}}: batches"),
               (by_node("increase(blockraft_telemetry_instants_lost_total[10m])"), "{{node_name}}: instants")],
              [("TelemetryLost", "(increase(blockraft_telemetry_export_failures_total[10m])", ">", "0"),
               ("TelemetryLost", "sum without (reason) (increase(blockraft_telemetry_spans_dropped_total[10m]))", ">", "0")], min=0),
            P("Log lines lost", "none", "Lines that nobody took, in ten minutes.", "0.", [per_node("increase(blockraft_log_lines_dropped_total[10m])")], min=0),
        ]),
    ])


BOARDS = {"1-cluster": cluster_board, "2-proposals": proposals_board, "3-elections": elections_board, "4-log": log_board, "5-node": node_board}
# Exported for a person or a tool that reads them by hand; a panel would say nothing.
UNUSED = {"process_virtual_memory_bytes", "process_virtual_memory_max_bytes", "process_max_fds"}


def unused(boards):
    """Families that nothing shipped looks at."""
    catalogue = (HERE.parent / "api/metrics.md").read_text()
    families = set(re.findall(r"^\| `(\w+)` \|", catalogue, re.M))
    texts = [json.dumps(b) for b in boards.values()] + [p.read_text() for p in [HERE / "alerts.yml", *sorted((HERE / "runbooks").glob("*.md"))]]
    words = set(re.findall(r"\w+", " ".join(texts)))
    used = {re.sub(r"_(bucket|sum|count)$", "", w) for w in words} | words
    return sorted(families - used - UNUSED)


def main(args):
    rules = Rules((HERE / "alerts.yml").read_text())
    boards = {name: make(rules) for name, make in BOARDS.items()}
    wrong = [f"no panel draws {a}" for a in sorted(set(rules.alerts) - rules.drawn)]
    wrong += [f"nothing uses {f}" for f in unused(boards)]
    folder = HERE / "boards"
    folder.mkdir(exist_ok=True)
    for name, content in boards.items():
        path, text = folder / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        if "--check" not in args:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            wrong.append(f"boards/{name}.json is not what generate.py writes")
    wrong += [f"boards/{p.name} is written by nothing" for p in folder.glob("*.json") if p.stem not in boards]
    for line in wrong:
        print(f"boards: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Wrong as e:
        sys.exit(f"boards: {e}")
