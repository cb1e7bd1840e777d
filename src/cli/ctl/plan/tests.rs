use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

fn planned(line: &str) -> Call {
    let words = std::iter::once("ctl").chain(line.split_whitespace());
    let command = Line::try_parse_from(words).expect("well-formed").command;
    plan(command, "op").unwrap_or_else(|_| panic!("a call"))
}

#[test]
fn commands_become_calls() {
    for (line, method, want) in [
        ("status", "raft_status", "null"),
        ("leader --verify", "raft_leader", r#"{"verify":true}"#),
        ("members remove 2 --force", "raft_removeMember", r#"{"force":true,"nodeId":2,"operationId":"op"}"#),
        (
            "members add 4 n4:7500 --wait",
            "raft_addLearner",
            r#"{"nodeId":4,"operationId":"op","peerAddr":"n4:7500","wait":true}"#,
        ),
        ("transfer 3 --wait 800ms", "raft_transferLeader", r#"{"operationId":"op","timeoutMs":800,"to":3}"#),
        ("history --limit 5", "raft_history", r#"{"limit":5}"#),
        (
            "settings set chain.block_interval=1s chain.require_fence=true state.history_blocks=9",
            "raft_configure",
            r#"{"set":{"chain.block_interval":"1s","chain.require_fence":true,"state.history_blocks":9}}"#,
        ),
        ("block range 7 --limit 3", "block_range", r#"{"fromHeight":7,"limit":3}"#),
        ("block get 0x1a", "block_get", r#"{"height":26}"#),
        ("block head --linearizable", "block_head", r#"{"consistency":"linearizable"}"#),
        ("snapshot create --no-wait", "snapshot_create", r#"{"operationId":"op","wait":false}"#),
        ("log debug --for 10m", "node_setLogFilter", r#"{"filter":"debug","forMs":600000}"#),
        (r#"call block_get {"height":1}"#, "block_get", r#"{"height":1}"#),
    ] {
        let call = planned(line);
        assert_eq!((call.method.as_str(), call.params.to_string().as_str()), (method, want), "{line}");
    }
}

#[test]
fn what_changes_the_cluster_asks_and_goes_to_the_leader() {
    for line in ["members remove 2", "members demote 2", "transfer", "resign", "settings set a.b=1"] {
        let call = planned(line);
        assert!(call.question.is_some() && !call.is_read, "{line}");
        assert_eq!(call.target, Target::Leader, "{line}");
    }
    for line in ["pause", "elect", "snapshot purge-log", "call raft_removeMember [2]"] {
        assert!(planned(line).question.is_some(), "{line}");
    }
    for line in ["members remove 2 --dry-run", "status", "resume", "members add 4 n4:1"] {
        assert!(planned(line).question.is_none(), "{line}");
    }
}

#[test]
fn a_wait_is_longer_than_the_patience() {
    assert_eq!(planned("transfer --wait 30s").patience, Duration::from_secs(32));
    assert_eq!(planned("transfer --wait 1s").patience, PATIENCE);
}

#[test]
fn a_bound_that_a_node_would_refuse_is_usage() {
    for line in ["block range 1 --limit 0", "history --limit 0", "transfer --wait 31s", "block get 0xzz"] {
        let words = std::iter::once("ctl").chain(line.split_whitespace());
        assert!(Line::try_parse_from(words).is_err(), "{line}");
    }
    let words = ["ctl", "transfer", "--wait", "31s"];
    let said = Line::try_parse_from(words).err().expect("refused").to_string();
    assert!(said.contains("--wait") && said.contains("from 1ms to 30s"), "{said}");
}

/// By the table itself: what is not here may have happened when its answer is lost.
#[test]
fn every_method_either_reads_or_acts() {
    for method in crate::api::table::methods() {
        let acts = method.audited
            || method.is_leader_only
            || method.name == "executor_report"
            || crate::api::subscriptions::needs_socket(method.name);
        for name in method.names() {
            assert_eq!(READS.contains(&name), !acts, "{name}");
        }
    }
    assert!(READS.is_sorted());
}

#[test]
fn wrong_params_are_usage() {
    for text in ["{", "7", "\"x\""] {
        let failure = raw("raft_status".into(), Some(text)).err().expect("refused");
        assert_eq!(failure.code, crate::cli::exit::USAGE, "{text}");
    }
    assert!(setting("a").is_err() && setting("=1").is_err());
}
