//! What each fault costs: how long nobody was ready, and how long no block was acknowledged.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_bad_network_between_three | partitions, a slow node, late pieces, resets: promises 1 to 3, safety 11, 12, 22 |
//! | a_slow_node_that_is_needed | an election that only the slow node can decide |
//! | stopped_nodes_and_hung_disks | SIGSTOP, syncs that hang: safety 17, design 11 |
//! | five_nodes_in_two_parts | the leader with a minority, with a majority, one way |
//!
//! After each fault one node leads, the promises hold, and nobody was ready beside another. No figure is asserted;
//! `make faults` is the long run, with the figures printed for `benches/README.md`.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::faults::UNABLE;
use crate::support::{
    NodeId,
    bench::{median, number},
    cluster::Roles,
    config::{Settings, settings},
    disk,
    net::Way,
    scene::Scene,
    wait::pause,
    watch::{Ready, Watch, longest_gap, two_ready},
};

/// Between two acts of a fault that is repeated.
const AGAIN: Duration = Duration::from_millis(100);
/// Acknowledged before a fault, and after it.
const BLOCKS: usize = 20;

type Act = Box<dyn Fn(&mut Scene, &Roles)>;

/// What is done to the cluster.
struct Fault {
    name: String,
    begin: Act,
    /// Done again and again while it lasts.
    again: Option<Act>,
    end: Act,
    lasts: Duration,
    /// Who of the others must take over before it ends.
    heirs: Option<fn(&Roles) -> Vec<NodeId>>,
    /// Nobody can lead while it lasts: its cost counts from its end.
    is_total: bool,
}

/// What one fault came to.
struct Cost {
    no_leader: Duration,
    no_block: Duration,
    terms: u64,
}

/// How long, and how often; each a variable of its own. By default as little as shows the promises.
struct Plan {
    rounds: u64,
    lasts: Duration,
    stall_after: Duration,
    /// The longest SIGSTOP.
    stop_max: u64,
    /// A part of the names of those that are wanted.
    only: String,
}

impl Plan {
    fn from_env() -> Self {
        let seconds = |name, default| Duration::from_secs(number(name, default));
        Self {
            rounds: number("FAULTS_ROUNDS", 1),
            lasts: seconds("FAULTS_SECONDS", 1),
            stall_after: seconds("FAULTS_STALL_SECONDS", 1),
            stop_max: number("FAULTS_STOP_MAX", 1),
            only: std::env::var("FAULTS_ONLY").unwrap_or_default(),
        }
    }

    fn settings(&self) -> Settings {
        settings([("leadership.stall_after", format!("{}s", self.stall_after.as_secs()).into())])
    }

    /// One that a network makes, and undoes.
    fn network(&self, name: &str, begin: impl Fn(&Scene, &Roles) + 'static) -> Fault {
        Fault {
            name: name.to_owned(),
            begin: Box::new(move |scene, roles| begin(scene, roles)),
            again: None,
            end: Box::new(|scene, _| scene.net.heal()),
            lasts: self.lasts,
            heirs: None,
            is_total: false,
        }
    }

    /// A node, chosen by its role, stands still for a while.
    fn stop(&self, name: &str, seconds: u64, who: fn(&Roles) -> NodeId) -> Fault {
        let signal = move |signal: Signal| -> Act {
            Box::new(move |scene, roles| scene.cluster.node(who(roles)).signal(signal))
        };
        Fault {
            begin: signal(Signal::STOP),
            end: signal(Signal::CONT),
            lasts: Duration::from_secs(seconds),
            ..self.network(&format!("SIGSTOP of {name} for {seconds} s"), |_, _| {})
        }
    }

    /// The syncs of a node, chosen by its role, hang for a while.
    fn hang(&self, name: &str, lasts: Duration, who: fn(&Roles) -> NodeId) -> Fault {
        Fault {
            begin: Box::new(move |scene, roles| {
                disk::begin(scene.cluster.node(who(roles)), disk::Fault::Hangs);
            }),
            end: Box::new(move |scene, roles| disk::mend(scene.cluster.node(who(roles)))),
            lasts,
            ..self.network(&format!("{name} hangs for {:.1} s", lasts.as_secs_f64()), |_, _| {})
        }
    }

    /// Every fault, as often as planned; prints what each cost.
    fn run(&self, scene: &mut Scene, faults: Vec<Fault>) {
        UNABLE.iter().for_each(|said| scene.cluster.allow(said));
        let mut out = String::from(
            "| fault | rounds | no ready leader, ms | no block acknowledged, ms | terms |\n|---|---|---|---|---|\n",
        );
        for fault in faults.iter().filter(|f| f.name.contains(&self.only)) {
            let costs: Vec<Cost> = (0..self.rounds).map(|_| fault.once(scene)).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{}", row(fault, &costs));
        }
        #[expect(clippy::print_stdout, reason = "the figures are what a long run is for")]
        {
            println!("{out}");
        }
    }
}

fn row(fault: &Fault, costs: &[Cost]) -> String {
    let ms = |of: fn(&Cost) -> Duration| {
        let (middle, least, most) = median(costs.iter().map(|c| of(c).as_secs_f64() * 1e3));
        if costs.len() == 1 {
            format!("{middle:.0}")
        } else {
            format!("{middle:.0} ({least:.0}–{most:.0})")
        }
    };
    let name = if fault.is_total { format!("{}, from its end", fault.name) } else { fault.name.clone() };
    let terms: Vec<String> = costs.iter().map(|c| c.terms.to_string()).collect();
    format!(
        "| {name} | {} | {} | {} | {} |",
        costs.len(),
        ms(|c| c.no_leader),
        ms(|c| c.no_block),
        terms.join(" ")
    )
}

impl Fault {
    fn replaces(self, heirs: fn(&Roles) -> Vec<NodeId>) -> Self {
        Self { heirs: Some(heirs), ..self }
    }

    fn total(self) -> Self {
        Self { is_total: true, ..self }
    }

    /// Once, under load; one node leads afterwards, and every promise holds.
    #[track_caller]
    fn once(&self, scene: &mut Scene) -> Cost {
        scene.produce_beside_each();
        scene.history.wait_for_more(BLOCKS);
        let roles = scene.roles();
        let watch = Watch::start(scene.cluster.endpoints());
        let began = Instant::now();
        (self.begin)(scene, &roles);
        while began.elapsed() < self.lasts {
            match &self.again {
                Some(act) => act(scene, &roles),
                None => pause(self.lasts.saturating_sub(began.elapsed())),
            }
            pause(AGAIN);
        }
        if let Some(heirs) = self.heirs {
            scene.cluster.leader_among(&heirs(&roles), roles.fence);
        }
        let ended = Instant::now();
        (self.end)(scene, &roles);
        scene.cluster.leader();
        scene.history.wait_for_more(BLOCKS);
        let (seen, terms) = (watch.seen(), scene.roles().fence - roles.fence);
        drop(watch);
        if let Some((first, late)) = two_ready(&seen) {
            panic!("{}: promise 3: ready at once, or too late: {first:?}, {late:?}", self.name);
        }
        let history = scene.check();
        let from = if self.is_total { ended } else { began };
        Cost {
            no_leader: longest_gap(from, seen.iter().map(Ready::answered)),
            no_block: longest_gap(from, history.acknowledged_at()),
            terms,
        }
    }
}

fn leader(roles: &Roles) -> NodeId {
    roles.leader
}

fn follower(roles: &Roles) -> NodeId {
    roles.others[0]
}

fn others(roles: &Roles) -> Vec<NodeId> {
    roles.others.clone()
}

fn all(roles: &Roles) -> Vec<NodeId> {
    roles.others.iter().copied().chain([roles.leader]).collect()
}

/// The leader and so many of the others, and the rest.
fn parts(roles: &Roles, n: usize) -> (Vec<NodeId>, Vec<NodeId>) {
    let (with, rest) = roles.others.split_at(n);
    (with.iter().copied().chain([roles.leader]).collect(), rest.to_vec())
}

/// 99 ms more both ways between a node and all others, and each twelfth piece late by 200 to 500 ms.
fn slow(scene: &Scene, node: NodeId, roles: &Roles) {
    let way = Way::late(12, 200, 500).delayed(99);
    scene.net.set_all(&[node], &all(roles), way);
    scene.net.set_all(&all(roles), &[node], way);
}

#[test]
fn a_bad_network_between_three() {
    let plan = Plan::from_env();
    let mut scene = Scene::new(3, plan.settings());
    let late = |every: u32| {
        let name = format!("{} % of the pieces late by 200 ms, all ways", 100 / every);
        plan.network(&name, move |scene, roles| {
            scene.net.set_all(&all(roles), &all(roles), Way::late(every, 200, 200));
        })
    };
    let mut resets = plan.network("the leader's connections reset each 100 ms", |_, _| {});
    resets.again = Some(Box::new(|scene, roles| scene.net.reset(roles.leader)));
    let faults = vec![
        plan.network("the leader alone", |s, r| s.net.part(&[r.leader], &r.others)).replaces(others),
        plan.network("the leader is not heard", |s, r| s.net.set_all(&[r.leader], &r.others, Way::CUT))
            .replaces(others),
        plan.network("the leader hears nobody", |s, r| s.net.set_all(&r.others, &[r.leader], Way::CUT))
            .replaces(others),
        plan.network("a follower alone", |s, r| s.net.part(&[follower(r)], &all(r))),
        plan.network("every node alone", |s, r| s.net.part(&all(r), &all(r))).total(),
        plan.network("the leader's entries lost, its heartbeats not", |s, r| {
            s.net.set_all(&[r.leader], &r.others, Way::LOG_CUT);
        })
        .replaces(others),
        plan.network("a slow follower: 99 ms more, bursts of 200–500 ms", |s, r| slow(s, follower(r), r)),
        plan.network("a slow leader: the same", |s, r| slow(s, leader(r), r)),
        late(100),
        late(20),
        late(5),
        resets,
    ];
    plan.run(&mut scene, faults);
    scene.cluster.end();
}

/// With the leader dead the slow node is needed for a quorum: so the timings are those of its network.
#[test]
fn a_slow_node_that_is_needed() {
    let plan = Plan::from_env();
    let mut all = plan.settings();
    all.extend(settings([
        // Above a round trip of 198 ms and the shorter bursts.
        ("raft.heartbeat_interval", "400ms".into()),
        ("raft.heartbeat_timeout", "2s".into()),
        ("raft.leader_lease_timeout", "1s".into()),
        ("raft.election_timeout", "2s".into()),
    ]));
    let mut scene = Scene::new(3, all);
    let killed = Fault {
        begin: Box::new(|scene, roles| {
            slow(scene, follower(roles), roles);
            scene.cluster.node_mut(roles.leader).kill();
        }),
        end: Box::new(|scene, roles| {
            scene.net.heal();
            scene.cluster.node_mut(roles.leader).start();
        }),
        ..plan.network("a slow follower, and the leader is killed; heartbeat_timeout 2 s", |_, _| {})
    };
    plan.run(&mut scene, vec![killed.replaces(others)]);
    scene.cluster.end();
}

#[test]
fn stopped_nodes_and_hung_disks() {
    let plan = Plan::from_env();
    let mut scene = Scene::with(3, plan.settings(), disk::prepare);
    scene.cluster.allow("the log's sync");
    let mut faults = Vec::new();
    for seconds in [1, 5, 30].into_iter().filter(|s| *s <= plan.stop_max) {
        faults.push(plan.stop("the leader", seconds, leader).replaces(others));
    }
    faults.push(plan.stop("a follower", plan.stop_max.min(5), follower));
    let (short, long) = (plan.stall_after * 3 / 5, plan.stall_after * 2);
    faults.push(plan.hang("the leader's disk", short, leader));
    faults.push(plan.hang("the leader's disk", long, leader).replaces(others));
    faults.push(plan.hang("a follower's disk", long, follower));
    plan.run(&mut scene, faults);
    scene.cluster.end();
}

#[test]
fn five_nodes_in_two_parts() {
    let plan = Plan::from_env();
    let mut scene = Scene::new(5, plan.settings());
    let part = |name: &str, n: usize| {
        plan.network(name, move |scene, roles| {
            let (with, rest) = parts(roles, n);
            scene.net.part(&with, &rest);
        })
    };
    let faults = vec![
        part("five nodes: the leader alone", 0).replaces(others),
        part("five nodes: the leader with one other", 1).replaces(|roles| parts(roles, 1).1),
        part("five nodes: the leader with two others", 2),
        plan.network("five nodes: three do not hear the leader and one other", |scene, roles| {
            let (with, rest) = parts(roles, 1);
            scene.net.set_all(&with, &rest, Way::CUT);
        })
        .replaces(|roles| parts(roles, 1).1),
        plan.network("five nodes: the leader and one other do not hear the three", |scene, roles| {
            let (with, rest) = parts(roles, 1);
            scene.net.set_all(&rest, &with, Way::CUT);
        })
        .replaces(|roles| parts(roles, 1).1),
    ];
    plan.run(&mut scene, faults);
    scene.cluster.end();
}
