use super::*;

const CONFIG: Config = Config {
    last_resort_after: Duration::from_secs(5),
    handover_budget: 4,
    handover_window: Duration::from_secs(60),
    pause: Duration::from_secs(1),
};

fn look(now: Instant, unfit: &[Check]) -> Look<'_> {
    Look {
        now,
        is_leader: true,
        has_quorum: true,
        unfit,
        is_fit_to_stand: unfit.is_empty(),
        is_barred: false,
        leaderless_for: Duration::ZERO,
        is_deaf: false,
        fittest: Some(FitnessGrade::Fit),
        is_forced: false,
        is_busy: false,
        is_leaving: false,
    }
}

fn follower(now: Instant, unfit: &[Check]) -> Look<'_> {
    Look { is_leader: false, has_quorum: false, fittest: None, ..look(now, unfit) }
}

/// The keeper once it has said that a node may stand, or not.
fn settled(first: &Look<'_>) -> Keeper {
    let mut keeper = Keeper::new(CONFIG);
    keeper.step(first);
    keeper
}

fn hand_over(why: Check, cause: LeadershipCause) -> Action {
    Action::HandOver { cause, accepts: FitnessGrade::Fit, why }
}

#[test]
fn a_fit_leader_is_left_alone() {
    let now = Instant::now();
    let mut keeper = Keeper::new(CONFIG);
    assert_eq!(keeper.step(&look(now, &[])), [Action::SetMayStand(true)]);
    assert_eq!(keeper.step(&look(now, &[])), []);
}

#[test]
fn an_unfit_node_does_not_stand_until_nobody_led_for_long() {
    let now = Instant::now();
    let mut keeper = settled(&follower(now, &[]));
    let paused = follower(now, &[Check::Paused]);
    assert_eq!(keeper.step(&paused), [Action::SetMayStand(false)]);
    let waiting =
        Look { leaderless_for: CONFIG.last_resort_after - Duration::from_millis(1), ..paused.clone() };
    assert_eq!(keeper.step(&waiting), []);
    let alone = Look { leaderless_for: CONFIG.last_resort_after, ..paused.clone() };
    assert_eq!(keeper.step(&alone), [Action::SetMayStand(true), Action::TellLastResort]);
    assert_eq!(keeper.step(&alone), [], "said once");
    // Somebody leads again.
    assert_eq!(keeper.step(&paused), [Action::SetMayStand(false)]);
    assert_eq!(keeper.step(&alone), [Action::SetMayStand(true), Action::TellLastResort]);
}

#[test]
fn a_node_that_was_removed_is_no_last_resort() {
    let now = Instant::now();
    let removed = follower(now, &[Check::Member]);
    let mut keeper = settled(&removed);
    let alone = Look { leaderless_for: 2 * CONFIG.last_resort_after, ..removed };
    assert_eq!(keeper.step(&alone), []);
}

#[test]
fn a_node_whose_disk_hangs_does_not_take_its_own_deafness_for_a_missing_leader() {
    let start = Instant::now();
    let at = |now: Instant| Look { leaderless_for: now - start, ..follower(now, &[Check::Sync]) };
    let mut keeper = settled(&at(start));
    let hung = start + 2 * CONFIG.last_resort_after;
    assert_eq!(keeper.step(&Look { is_deaf: true, ..at(hung) }), []);
    // The disk is back: raft has not heard yet what came meanwhile.
    let back = hung + Duration::from_millis(1);
    assert_eq!(keeper.step(&at(back)), []);
    assert_eq!(keeper.step(&at(hung + CONFIG.last_resort_after - Duration::from_millis(1))), []);
    let alone = at(hung + CONFIG.last_resort_after);
    assert_eq!(keeper.step(&alone), [Action::SetMayStand(true), Action::TellLastResort]);
}

#[test]
fn a_node_that_just_started_does_not_stand_however_fit() {
    let now = Instant::now();
    let barred = Look { is_barred: true, leaderless_for: Duration::from_secs(60), ..follower(now, &[]) };
    let mut keeper = Keeper::new(CONFIG);
    assert_eq!(keeper.step(&barred), [Action::SetMayStand(false)]);
    assert_eq!(keeper.step(&Look { is_barred: false, ..barred }), [Action::SetMayStand(true)]);
}

#[test]
fn a_leader_that_is_not_fit_hands_over_to_somebody_better_alone() {
    let now = Instant::now();
    let with = |unfit: &[Check], fittest| {
        let mut keeper = settled(&follower(now, unfit));
        let look = look(now, unfit);
        keeper.step(&Look { fittest, ..look })
    };
    let fit = Some(FitnessGrade::Fit);
    let unwilling = Some(FitnessGrade::Unwilling);
    let unable = Some(FitnessGrade::Unable);
    assert_eq!(with(&[Check::Paused], fit), [hand_over(Check::Paused, LeadershipCause::Pause)]);
    assert_eq!(with(&[Check::Storage], fit), [hand_over(Check::Storage, LeadershipCause::Unfit)]);
    // With nobody fit a paused leader goes on, with its fence.
    for fittest in [unwilling, unable, None] {
        assert_eq!(with(&[Check::Paused], fittest), []);
    }
    // Who can do nothing gives way to one who merely would rather not.
    let to_unwilling = Action::HandOver {
        cause: LeadershipCause::Unfit,
        accepts: FitnessGrade::Unwilling,
        why: Check::Executor,
    };
    assert_eq!(with(&[Check::Executor, Check::Paused], unwilling), [to_unwilling]);
    assert_eq!(with(&[Check::Executor], unable), []);
    assert_eq!(with(&[Check::Executor], None), []);
}

#[test]
fn one_hand_over_at_a_time_and_none_of_a_follower() {
    let now = Instant::now();
    let mut keeper = settled(&follower(now, &[Check::Paused]));
    let paused = look(now, &[Check::Paused]);
    assert_eq!(keeper.step(&Look { is_busy: true, ..paused.clone() }), []);
    assert_eq!(keeper.step(&follower(now, &[Check::Paused])), []);
    assert_eq!(keeper.step(&Look { is_forced: true, ..paused.clone() }), [], "somebody wants it to lead");
    assert_eq!(keeper.step(&look(now, &[Check::Stopping, Check::Paused])), [], "the stop does it");
    assert_eq!(keeper.step(&paused).len(), 1);
}

#[test]
fn the_budget_keeps_leadership_from_bouncing() {
    let start = Instant::now();
    let unfit = [Check::Executor];
    let mut keeper = settled(&follower(start, &unfit));
    // Looked at every 100 ms for a minute and a bit.
    let mut at = Vec::new();
    for tick in 0..700 {
        let now = start + Duration::from_millis(100) * tick;
        if !keeper.step(&look(now, &unfit)).is_empty() {
            at.push((now - start).as_millis());
        }
    }
    // 1, 2, 4 pauses between; then the budget is used up until one after the other leaves the window.
    assert_eq!(at, [0, 1_000, 3_000, 7_000, 60_000, 63_000, 67_000]);
    let mut none = Keeper::new(Config { handover_budget: 0, ..CONFIG });
    none.step(&follower(start, &unfit));
    assert_eq!(none.step(&look(start, &unfit)), []);
}

#[test]
fn a_leader_whose_entries_do_not_get_through_falls_silent_when_nobody_takes_over() {
    let now = Instant::now();
    let stalled = [Check::Stalled];
    let mut keeper = settled(&follower(now, &stalled));
    let alone = Look { fittest: None, ..look(now, &stalled) };
    assert_eq!(keeper.step(&alone), [Action::SetHeartbeats(false)]);
    // Silent, it soon has no quorum: that is the purpose.
    assert_eq!(keeper.step(&Look { has_quorum: false, ..alone.clone() }), []);
    // Somebody else was elected.
    assert_eq!(keeper.step(&follower(now, &stalled)), [Action::SetHeartbeats(true)]);
    // Or the entries got through after all.
    assert_eq!(keeper.step(&alone), [Action::SetHeartbeats(false)]);
    assert_eq!(keeper.step(&look(now, &[])), [Action::SetMayStand(true), Action::SetHeartbeats(true)]);
}

#[test]
fn a_leader_that_leaves_waits_for_its_hand_over_unless_it_is_stuck() {
    let now = Instant::now();
    let mut keeper = settled(&follower(now, &[Check::Member]));
    let leaving = Look { is_leaving: true, ..look(now, &[Check::Member]) };
    assert_eq!(keeper.step(&leaving), []);
    let hung = [Check::Sync, Check::Member];
    let stuck = Look { is_leaving: true, ..look(now, &hung) };
    assert_eq!(keeper.step(&stuck), [hand_over(Check::Sync, LeadershipCause::Removed)]);
    let later = now + 2 * CONFIG.pause;
    let stuck = Look { now: later, ..stuck };
    assert_eq!(keeper.step(&stuck), [Action::SetHeartbeats(false)]);
}

#[test]
fn a_stalled_leader_tries_to_hand_over_before_it_falls_silent() {
    let now = Instant::now();
    let hung = [Check::Sync];
    let mut keeper = settled(&follower(now, &hung));
    assert_eq!(keeper.step(&look(now, &hung)), [hand_over(Check::Sync, LeadershipCause::Unfit)]);
    assert_eq!(keeper.step(&Look { is_busy: true, ..look(now, &hung) }), []);
    // It was refused: everybody else lacks what this one has. Once is enough: nobody is ready meanwhile.
    let later = now + 2 * CONFIG.pause;
    assert_eq!(keeper.step(&look(later, &hung)), [Action::SetHeartbeats(false)]);
    // The next time it is stuck it tries again first.
    assert_eq!(keeper.step(&follower(later, &[])), [Action::SetMayStand(true), Action::SetHeartbeats(true)]);
    let again = later + 2 * CONFIG.pause;
    let actions = keeper.step(&look(again, &hung));
    assert_eq!(actions, [Action::SetMayStand(false), hand_over(Check::Sync, LeadershipCause::Unfit)]);
}

/// One that is stuck while it is handed over for something else is not silenced on top.
#[test]
fn a_leader_that_hands_over_goes_on_with_its_heartbeats() {
    let now = Instant::now();
    let stalled = [Check::Stalled];
    let mut keeper = settled(&follower(now, &stalled));
    assert_eq!(keeper.step(&Look { is_busy: true, fittest: None, ..look(now, &stalled) }), []);
}

#[test]
fn a_leader_without_a_quorum_is_not_silenced() {
    let now = Instant::now();
    let stalled = [Check::Stalled];
    let mut keeper = settled(&follower(now, &stalled));
    let cut = Look { fittest: None, has_quorum: false, ..look(now, &stalled) };
    assert_eq!(keeper.step(&cut), [], "if the quorum comes back it is ready again in the same term");
}
