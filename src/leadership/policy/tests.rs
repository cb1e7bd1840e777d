use super::*;
use crate::leadership::executor::Illness;
use crate::machine::apply::Leadership;
use crate::types::{position::LogPos, proto::LeadershipCause};

const NODE: NodeId = 1;
const SYNC_TIMEOUT: Duration = Duration::from_secs(1);
const STALL_AFTER: Duration = Duration::from_secs(5);

fn status(role: Role) -> Status {
    Status {
        role,
        term: 7,
        leader_id: Some(if role == Role::Leader { NODE } else { 2 }),
        positions: Default::default(),
        committed_term: 7,
        members: Default::default(),
        quorum_ack_age: (role == Role::Leader).then_some(Duration::from_millis(20)),
        peers: None,
        is_started: true,
        is_running: true,
    }
}

fn view(term: u64, node_id: NodeId, settings_index: LogIndex) -> View {
    let mut view = View {
        leadership: Some(Leadership {
            pos: LogPos { term, index: 3 },
            node_id,
            cause: LeadershipCause::Election,
            operation_id: String::new(),
            started_at_ms: 0,
        }),
        ..View::default()
    };
    view.settings.index = settings_index;
    view
}

fn inputs<'a>(status: &'a Status, view: &'a View) -> Inputs<'a> {
    Inputs {
        node_id: NODE,
        now: Instant::now(),
        status,
        view,
        lease_timeout: Duration::from_millis(175),
        stall_after: STALL_AFTER,
        sync_timeout: SYNC_TIMEOUT,
        is_disk_full: false,
        is_store_failed: false,
        has_diverged: false,
        intent: Intent::Lead,
        removed: None,
        is_itself: true,
        committed_a_second_ago: 0,
        has_applied_enough: true,
        is_paused: false,
        executor: None,
        sync_in_progress: None,
        stalled_for: Duration::ZERO,
        is_clock_unsure: false,
        given_up_term: None,
        fenced_term: None,
        led_since: None,
    }
}

#[test]
fn a_leader_that_applied_its_own_leadership_holds_the_fence() {
    let (s, v) = (status(Role::Leader), view(7, NODE, 4));
    let verdict = judge(&inputs(&s, &v));
    assert_eq!(verdict.fence, Some(7));
    assert_eq!(verdict.lease_remaining, Duration::from_millis(155));
    assert!(verdict.failing.is_empty());
    assert_eq!(verdict.grade(), FitnessGrade::Fit);
}

#[test]
fn each_missing_thing_withholds_the_fence_and_is_named() {
    let good = view(7, NODE, 4);
    let s = status(Role::Leader);
    let failing = |s: &Status, v: &View, change: &dyn Fn(&mut Inputs<'_>)| {
        let mut i = inputs(s, v);
        change(&mut i);
        let verdict = judge(&i);
        assert_eq!(verdict.fence, None);
        for check in &verdict.failing {
            assert!(!hint(*check, &i).is_empty());
        }
        verdict.failing
    };
    // A leadership of an earlier term, or another node's in this one, is not this node's.
    assert_eq!(failing(&s, &view(6, NODE, 4), &|_| ()), [Check::Leadership]);
    assert_eq!(failing(&s, &view(7, 2, 4), &|_| ()), [Check::Leadership]);
    assert_eq!(failing(&s, &view(7, NODE, 0), &|_| ()), [Check::Settings]);
    assert_eq!(failing(&s, &good, &|i| i.intent = Intent::HandOver), [Check::Handover]);
    assert_eq!(failing(&s, &good, &|i| i.has_diverged = true), [Check::Storage]);
    let told = Removed { version: 9, told_by: 2 };
    assert_eq!(failing(&s, &good, &|i| i.removed = Some(told)), [Check::Member]);
    assert_eq!(failing(&s, &good, &|i| i.is_itself = false), [Check::Member]);
    let mut without_vote = s.clone();
    without_vote.members.voters = [2, 3].into();
    assert_eq!(failing(&without_vote, &good, &|_| ()), [Check::Member]);
    assert_eq!(failing(&s, &good, &|i| i.intent = Intent::Stop), [Check::Stopping]);
    let told = Removed { version: 9, told_by: 2 };
    assert_eq!(failing(&s, &good, &|i| i.removed = Some(told)), [Check::Member]);
    let mut without_vote = s.clone();
    without_vote.members.voters = [2, 3].into();
    assert_eq!(failing(&without_vote, &good, &|_| ()), [Check::Member]);
    assert_eq!(failing(&s, &good, &|i| i.is_disk_full = true), [Check::Storage]);
    assert_eq!(failing(&s, &good, &|i| i.has_diverged = true), [Check::Storage]);
    // Once raft was told it takes no entries in that term, whatever came of the hand-over.
    assert_eq!(failing(&s, &good, &|i| i.given_up_term = Some(7)), [Check::Handover]);
    assert_eq!(failing(&s, &good, &|i| i.sync_in_progress = Some(STALL_AFTER)), [Check::Sync]);
    assert_eq!(failing(&s, &good, &|i| i.stalled_for = STALL_AFTER), [Check::Stalled]);
    // Safety rule 17: after a jump of the clock a quorum has to be asked first.
    assert_eq!(failing(&s, &good, &|i| i.is_clock_unsure = true), [Check::Clock]);
    // Safety rule 11: openraft goes on saying Leader; the clock says that the quorum is gone.
    let cut = Status { quorum_ack_age: Some(Duration::from_millis(175)), ..s.clone() };
    assert_eq!(failing(&cut, &good, &|_| ()), [Check::Lease]);
    let never = Status { quorum_ack_age: None, ..s.clone() };
    assert_eq!(failing(&never, &good, &|_| ()), [Check::Lease]);
    assert_eq!(failing(&status(Role::Follower), &good, &|_| ()), [Check::Role]);
    assert_eq!(
        failing(&status(Role::Follower), &good, &|i| i.is_paused = true),
        [Check::Role, Check::Paused]
    );
}

#[test]
fn what_is_past_does_not_withhold_the_fence() {
    let (s, v) = (status(Role::Leader), view(7, NODE, 4));
    let mut i = inputs(&s, &v);
    i.given_up_term = Some(6);
    i.sync_in_progress = Some(STALL_AFTER - Duration::from_millis(1));
    i.stalled_for = STALL_AFTER - Duration::from_millis(1);
    assert_eq!(judge(&i).fence, Some(7), "a stall shorter than leadership.stall_after deposes nobody");
}

#[test]
fn caught_up_needs_a_leader_a_commit_of_its_term_and_an_applied_index_of_a_second_ago() {
    let (s, v) = (status(Role::Follower), view(7, 2, 4));
    assert!(judge(&inputs(&s, &v)).is_caught_up);
    assert!(!judge(&inputs(&Status { leader_id: None, ..s.clone() }, &v)).is_caught_up);
    assert!(!judge(&inputs(&Status { committed_term: 6, ..s.clone() }, &v)).is_caught_up);
    assert!(!judge(&Inputs { committed_a_second_ago: 1, ..inputs(&s, &v) }).is_caught_up);
    assert!(!judge(&inputs(&Status { is_started: false, ..s.clone() }, &v)).is_caught_up);
}

#[test]
fn paused_alone_is_unwilling_and_everything_else_unable() {
    let (s, v) = (status(Role::Follower), view(7, 2, 4));
    let graded = |change: &dyn Fn(&mut Inputs<'_>)| {
        let mut i = inputs(&s, &v);
        change(&mut i);
        let verdict = judge(&i);
        (verdict.grade(), verdict.may_stand)
    };
    assert_eq!(graded(&|_| ()), (FitnessGrade::Fit, true));
    assert_eq!(graded(&|i| i.is_paused = true), (FitnessGrade::Unwilling, false));
    assert_eq!(graded(&|i| i.is_disk_full = true), (FitnessGrade::Unable, false));
    assert_eq!(graded(&|i| i.sync_in_progress = Some(STALL_AFTER)), (FitnessGrade::Unable, false));
    assert_eq!(graded(&|i| i.intent = Intent::Stop), (FitnessGrade::Unable, false));
    assert_eq!(
        graded(&|i| {
            i.is_paused = true;
            i.is_disk_full = true;
        }),
        (FitnessGrade::Unable, false)
    );
    // Far behind: no target of a transfer, and no candidate.
    assert_eq!(
        graded(&|i| {
            i.committed_a_second_ago = 166_305;
            i.has_applied_enough = false;
        }),
        (FitnessGrade::Unable, false)
    );
    // With the leader gone nobody is caught up; who was when it was last heard may stand.
    let alone = Status { leader_id: None, ..s.clone() };
    let verdict = judge(&inputs(&alone, &v));
    assert_eq!((verdict.is_caught_up, verdict.may_stand), (false, true));
}

fn ill(what: Illness, since: Instant) -> Ill {
    Ill { what, since }
}

#[test]
fn a_paused_leader_keeps_its_fence() {
    let (s, v) = (status(Role::Leader), view(7, NODE, 4));
    let verdict = judge(&Inputs { is_paused: true, ..inputs(&s, &v) });
    assert_eq!((verdict.fence, verdict.grade()), (Some(7), FitnessGrade::Unwilling));
}

#[test]
fn without_a_leader_or_a_membership_the_hints_claim_nothing_they_cannot_know() {
    let v = view(7, 2, 4);
    let said = |s: &Status, check, removed| hint(check, &Inputs { removed, ..inputs(s, &v) });
    let mut s = status(Role::Follower);
    s.positions.applied = 23;
    s.positions.cluster_committed = 23;
    s.members.nodes = [(1, Default::default())].into();
    let alone = Status { leader_id: None, ..s.clone() };
    let unknown = "no leader is heard, so what is missing behind entry 23 is not known";
    assert_eq!(said(&alone, Check::CaughtUp, None), unknown);
    let mut behind = alone.clone();
    behind.positions.cluster_committed = 40;
    assert!(
        said(&behind, Check::CaughtUp, None)
            .starts_with("applied 23 of at least 40 committed entries; no leader")
    );
    let old_term = Status { committed_term: 6, ..s.clone() };
    let waits = "nothing that node 2 committed in term 7 has come yet; wait";
    assert_eq!(said(&old_term, Check::CaughtUp, None), waits);
    s.positions.cluster_committed = 40;
    assert!(said(&s, Check::CaughtUp, None).starts_with("applied 23 of 40 entries"));

    let told = Some(Removed { version: 9, told_by: 2 });
    assert!(said(&alone, Check::Member, told).starts_with("node 2 says that this node is in no membership"));
    assert!(said(&alone, Check::Leader, None).starts_with("no leader is heard: is a majority"));
    let nobody = Status { members: Default::default(), ..alone };
    assert!(said(&nobody, Check::Member, told).starts_with("this node knows no membership, and node 2 says"));
    assert!(said(&nobody, Check::Leader, None).contains("this node knows no membership"));
}

#[test]
fn a_new_leader_waits_for_its_executor_and_hands_over_when_that_lasts() {
    let (s, v) = (status(Role::Leader), view(7, NODE, 4));
    let now = Instant::now() + Duration::from_secs(100);
    // Ill long before it led: the time counts from when it began to.
    let behind = ill(Illness::Lagging(5), now - Duration::from_secs(90));
    let looked = |led: Duration, fenced_term| {
        let led_since = Some(now - led);
        let i = Inputs { now, executor: Some(&behind), led_since, fenced_term, ..inputs(&s, &v) };
        let verdict = judge(&i);
        (verdict.fence, verdict.grade())
    };
    assert_eq!(looked(Duration::ZERO, None), (None, FitnessGrade::Fit));
    assert_eq!(looked(SYNC_TIMEOUT - Duration::from_millis(1), Some(6)), (None, FitnessGrade::Fit));
    assert_eq!(looked(SYNC_TIMEOUT, Some(6)), (None, FitnessGrade::Unable));
    // Caught up in time: it is ready.
    assert_eq!(judge(&inputs(&s, &v)).fence, Some(7));
}

#[test]
fn an_executor_that_falls_behind_has_its_time_and_one_that_forked_has_none() {
    let (s, v) = (status(Role::Leader), view(7, NODE, 4));
    let now = Instant::now() + Duration::from_secs(100);
    let looked = |what: Illness, for_: Duration| {
        let ill = ill(what, now - for_);
        let led_since = Some(now - Duration::from_secs(50));
        let i = Inputs { now, executor: Some(&ill), led_since, fenced_term: Some(7), ..inputs(&s, &v) };
        let verdict = judge(&i);
        (verdict.fence, verdict.grade())
    };
    let short = SYNC_TIMEOUT - Duration::from_millis(1);
    assert_eq!(looked(Illness::Lagging(2), short), (Some(7), FitnessGrade::Fit));
    assert_eq!(looked(Illness::Lagging(2), SYNC_TIMEOUT), (None, FitnessGrade::Unable));
    assert_eq!(looked(Illness::Silent(short), SYNC_TIMEOUT), (None, FitnessGrade::Unable));
    assert_eq!(looked(Illness::Forked(9), Duration::ZERO), (None, FitnessGrade::Unable));
    // On a follower any illness makes it no target.
    let (f, ill) = (status(Role::Follower), ill(Illness::Lagging(2), now));
    let verdict = judge(&Inputs { now, executor: Some(&ill), ..inputs(&f, &v) });
    assert_eq!((verdict.grade(), verdict.may_stand), (FitnessGrade::Unable, false));
}
