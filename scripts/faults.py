"""The faults of the alert matrix: what is done to a cluster, and which alerts that must raise."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import threading
import time

import live

# How fast a disk writes, by its device number: of cgroup v1, which has it for the whole of a disk.
THROTTLE = pathlib.Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
LIBFAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


class Scene:
    """What a fault may touch. Whatever it starts ends with it."""

    def __init__(self, cluster, producer, prometheus, watch):
        self.cluster, self.producer, self.prometheus, self.watch = cluster, producer, prometheus, watch
        self.repeated, self.ends = [], []

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.rest()

    def rest(self):
        if live.STOP.wait(0.2):
            raise live.Failed("stopped")

    def every(self, seconds, what):
        self.repeated.append([0.0, seconds, what])

    def tick(self):
        now = time.monotonic()
        for entry in self.repeated:
            if entry[0] <= now:
                entry[0] = now + entry[1]
                try:
                    entry[2]()
                except (OSError, ValueError, live.Refused):
                    pass
        self.rest()

    def at_end(self, what):
        self.ends.append(what)

    def close(self):
        for what in reversed(self.ends):
            what()

    def head(self):
        return live.call(self.cluster.leader().api, "block_head")

    def next_block(self, api):
        """A block that fits on that node's head."""
        head = live.call(api, "block_head")
        height, at = (head["block"]["height"], int(head["block"]["timestamp"])) if head else (0, 0)
        return {"height": height + 1, "hash": "0x" + os.urandom(32).hex(), "timestamp": str(max(time.time_ns(), at + 1)), "header": "0x", "data": "0x"}


@dataclasses.dataclass
class Fault:
    name: str
    says: str
    act: object
    must: set = dataclasses.field(default_factory=set)
    may: set = dataclasses.field(default_factory=set)
    # How long its alerts are waited for, at most, and how long it lasts at least.
    hold: int = 90
    least: int = 50
    rate: int = 10
    size: int = 256
    settings: dict = dataclasses.field(default_factory=dict)
    per_node: dict = dataclasses.field(default_factory=dict)
    unscraped: set = dataclasses.field(default_factory=set)
    # These nodes run another version of the program.
    upgraded: set = dataclasses.field(default_factory=set)


def nothing(scene):
    pass


def rolling(scene):
    for node in scene.cluster.nodes:
        node.stop()
        node.start()
        live.until("it is ready again", lambda: live.ask(node.api, "GET", "/readyz")[0] == 200)
        scene.wait(5)


def transfers(scene):
    for _ in range(6):
        live.call(scene.cluster.leader().api, "raft_transferLeader", timeout=15)
        scene.wait(3)


def idle(scene):
    scene.producer.is_paused.set()


def leader_dies_and_returns(scene):
    leader = scene.cluster.leader()
    leader.kill()
    scene.cluster.leader()
    leader.start()


def leader_dies(scene):
    scene.cluster.leader().kill()


def follower_hangs(scene):
    scene.cluster.followers()[0].signal(signal.SIGSTOP)


def majority_dies(scene):
    leader = scene.cluster.leader()
    for node in [leader, scene.cluster.followers()[0]]:
        node.kill()


def all_die(scene):
    for node in scene.cluster.nodes:
        node.kill()


def leader_cut_off(scene):
    """With a producer beside it: what that proposes before the lease is over may still be agreed on, or not."""
    leader, others = scene.cluster.leader(), scene.cluster.followers()
    # The other one would be in its way at the same height.
    scene.producer.is_paused.set()
    scene.wait(1)
    block = scene.next_block(leader.api)
    leader.cut_from(*others)
    for other in others:
        other.cut_from(leader)
    try:
        live.call(leader.api, "block_propose", {"block": block, "timeoutMs": 200})
        raise live.Failed("a leader that was cut off got a block agreed on")
    except live.Refused as e:
        if e.data.get("kind") != "unknown":
            raise live.Failed(f"a leader that was cut off refused a block: {e}") from e
    # Two producers beside one leader would be a fault of another kind.
    live.until("another leads", lambda: any(n.status().get("ready") for n in others))
    scene.producer.is_paused.clear()


def follower_deaf(scene):
    follower = scene.cluster.followers()[0]
    follower.cut_from(*[n for n in scene.cluster.nodes if n is not follower])


def all_cut_off(scene):
    for node in scene.cluster.nodes:
        node.cut_from(*[n for n in scene.cluster.nodes if n is not node])


def flapping(scene):
    for _ in range(5):
        leader = scene.cluster.leader()
        leader.signal(signal.SIGSTOP)
        live.until("another leads", lambda: [n for n in scene.cluster.nodes if n is not leader and n.status().get("ready")])
        leader.signal(signal.SIGCONT)
        scene.wait(2)


def restart_loop(scene):
    follower = scene.cluster.followers()[0]
    for _ in range(4):
        follower.kill()
        follower.start()
        live.until("it answers", lambda: follower.status().get("leaderId"))
        scene.wait(3)


def reader(scene, rate, query):
    api = scene.cluster.leader().api
    process = subprocess.Popen(["curl", "-sN", "--limit-rate", rate, f"http://{api}/v1/applied?maxItemBytes=0{query}"], stdout=subprocess.DEVNULL)
    scene.at_end(process.wait)
    scene.at_end(process.kill)
    scene.at_end(lambda: process.send_signal(signal.SIGCONT))
    return process


def slow_reader(scene):
    reader(scene, "600k", "&name=indexer&buffer=5")


def stalled_reader(scene):
    process = reader(scene, "10m", "&name=indexer&buffer=5")
    scene.wait(2)
    process.send_signal(signal.SIGSTOP)


def stranger(scene):
    process = reader(scene, "10m", "&buffer=5")
    scene.wait(2)
    process.send_signal(signal.SIGSTOP)


def snapshots_fail(scene):
    for node in scene.cluster.nodes:
        folder = node.data / "snapshots"
        live.until("it has made one", folder.is_dir)
        live.run("chattr", "+i", folder)
        scene.at_end(lambda folder=folder: subprocess.run(["chattr", "-i", folder]))


def disk(scene, node, frozen, free):
    """Frozen for so many seconds, then free for so many, again and again."""
    is_over = threading.Event()

    def work():
        while not is_over.is_set():
            node.freeze()
            is_over.wait(frozen)
            node.freeze(False)
            is_over.wait(free)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    scene.at_end(thread.join)
    scene.at_end(is_over.set)


def slow_disk(scene):
    disk(scene, scene.cluster.followers()[0], 0.9, 0.6)


def hung_follower(scene):
    disk(scene, scene.cluster.followers()[0], 1000, 0)


def hung_leader(scene):
    disk(scene, scene.cluster.leader(), 1000, 0)


def fill(scene, node):
    free = os.statvfs(node.folder).f_bavail * os.statvfs(node.folder).f_frsize
    # Half of store.min_free is left.
    live.run("fallocate", "-l", free - (32 << 20), node.folder / "ballast")


def full_follower(scene):
    fill(scene, scene.cluster.followers()[0])


def full_leader(scene):
    fill(scene, scene.cluster.leader())


def full_everywhere(scene):
    for node in scene.cluster.nodes:
        fill(scene, node)


def full_and_asked(scene):
    """A producer that asks for no fence, and goes on; it is the only one."""
    scene.producer.is_paused.set()
    scene.wait(1)
    full_everywhere(scene)

    def again():
        api = live.call(scene.cluster.nodes[0].api, "raft_leader")["leaderApi"]
        live.call(api, "block_propose", {"block": scene.next_block(api)})

    scene.every(0.5, again)


def throttle(scene, folder, bytes_per_second):
    """The disk under `folder` writes so much a second, whoever writes."""
    if not THROTTLE.exists():
        raise live.Failed(f"no disk can be slowed here: there is no {THROTTLE}")
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    THROTTLE.write_text(f"{number} {bytes_per_second}")
    scene.at_end(lambda: THROTTLE.write_text(f"{number} 0"))


def slow_state(scene, bytes_per_second):
    """Only the disk under `state/` of a follower: its log is on another."""
    node = scene.cluster.followers()[0]
    folder = node.own_state_disk(4000)
    live.until("it is back", lambda: node.status().get("leaderId"))
    throttle(scene, folder, bytes_per_second)


def slow_apply(scene):
    slow_state(scene, 600_000)


def stalled_apply(scene):
    slow_state(scene, 20_000)


def slow_follower(scene):
    """A quarter of what the chain has shown to need, however fast this machine is: it may get slower."""
    first, seconds = scene.head()["block"]["height"], 3
    scene.wait(seconds)
    bits = 8 * scene.producer.size * (scene.head()["block"]["height"] - first) / seconds
    scene.cluster.followers()[0].slow_link(f"{int(bits / 4)}bit", "30kb")


def stuck_change(scene):
    """Forced, though the other voter that it needs is down: the voters behind the change have no majority."""
    down, removed = scene.cluster.followers()
    leader = scene.cluster.leader()
    down.kill()
    try:
        live.call(leader.api, "raft_removeMember", {"nodeId": removed.id, "force": True}, timeout=30)
    except live.Refused as e:
        if e.data.get("kind") != "unknown":
            raise


def removed_member(scene):
    """Its process goes on."""
    live.call(scene.cluster.leader().api, "raft_removeMember", {"nodeId": scene.cluster.followers()[0].id}, timeout=30)


def second_cluster(scene):
    """A node that was down is recovered as a cluster of its own, though the other two serve; somebody feeds it too."""
    lost = scene.cluster.followers()[0]
    lost.stop()
    live.run(live.binary(), "recover", "--apply", lost.data, "--yes")
    lost.start()
    live.until("it leads itself", lambda: lost.status().get("ready"))
    # A checkpoint is every 64th block.
    for _ in range(80):
        live.call(lost.api, "block_propose", {"block": scene.next_block(lost.api)})


def conflict(scene):
    def again():
        head = scene.head()["block"]
        block = {"height": head["height"], "hash": "0x" + os.urandom(32).hex(), "timestamp": str(int(head["timestamp"]) + 1), "header": "0x", "data": "0x"}
        live.call(scene.cluster.leader().api, "block_propose", {"block": block})

    scene.every(3, again)


def stale_fence(scene):
    old = scene.cluster.leader().status()["fence"] - 1

    def again():
        api = scene.cluster.leader().api
        live.call(api, "block_propose", {"block": scene.next_block(api), "fence": old})

    scene.every(3, again)


def disk_fails(scene):
    """Its syncs fail; then the disk is mended and the node is started again."""
    node, folder = scene.cluster.followers()[0], scene.cluster.folder
    library, trigger = folder / "failsync.so", folder / "fail-now"
    live.run("cc", "-shared", "-fPIC", "-o", library, live.ROOT / "scripts/failsync.c", "-ldl")
    node.stop()
    node.start(env={"LD_PRELOAD": str(library), "FAILSYNC": str(trigger)})
    live.until("it is back", lambda: node.status().get("leaderId"))
    trigger.touch()
    live.until("it ends by itself", lambda: not node.is_running())
    trigger.unlink()
    node.start()
    live.until("it is back", lambda: node.status().get("leaderId"))


def pause(scene):
    live.call(scene.cluster.followers()[0].api, "raft_pause", {"reason": "matrix"})


def pause_leader(scene):
    live.call(scene.cluster.leader().api, "raft_pause", {"reason": "matrix"}, timeout=15)


def pause_all(scene):
    for node in scene.cluster.nodes:
        live.call(node.api, "raft_pause", {"reason": "matrix"}, timeout=15)


def executor(scene, node, behind):
    def report():
        head = scene.head()["block"]
        block = live.call(node.api, "block_get", {"height": max(1, head["height"] - behind)})["block"]
        live.call(node.api, "executor_report", {"height": block["height"], "hash": block["hash"]})

    scene.every(0.5, report)


def executor_lags(scene):
    executor(scene, scene.cluster.followers()[0], 50)


def clock(scene):
    node = scene.cluster.followers()[0]
    node.stop()
    node.start(env={"LD_PRELOAD": LIBFAKETIME, "FAKETIME": "+5s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"})


AWAY = {"NodeDown", "QuorumAtRisk", "PeerUnreachable"}
CUT = {"NodeWithoutLeader", "QuorumAtRisk", "PeerUnreachable"}
UNKNOWN = {"ProposalsUnknown"}
WATCHED = {"feed.watched": ["indexer"]}
# No snapshot is due: that of a state on a disk of its own is a copy.
NO_SNAPSHOTS = {"snapshot.threshold": 100000, "snapshot.threshold_bytes": "8GiB"}
FAULTS = [
    Fault("idle chain", "nobody proposes", idle),
    Fault("rolling restart", "each node stopped and started in turn", rolling),
    Fault("transfers", "six hand-overs that were asked for", transfers),
    Fault("stranger's reader", "an unnamed reader of the feed stalls", stranger, rate=20, size=60000),
    Fault("leader dies, returns", "the leader is killed, and started again", leader_dies_and_returns, may=UNKNOWN),
    Fault("leader dies", "the leader is killed, and stays away", leader_dies, AWAY, UNKNOWN),
    Fault("follower hangs", "a follower's process stands still", follower_hangs, AWAY),
    Fault("quorum lost", "two of three are killed", majority_dies, {"NoLeader", "QuorumLost", "NodeDown", "ElectionsFailing"}, UNKNOWN),
    Fault("all die", "all three are killed", all_die, {"NoLeader", "QuorumLost", "NodeDown", "MetricsAbsent"}),
    Fault("leader cut off", "no packet passes between the leader, with a producer beside it, and the others", leader_cut_off, CUT | UNKNOWN),
    Fault("one-way partition", "a follower hears nobody, and is heard", follower_deaf, CUT),
    Fault("all cut off", "no packet passes between any two", all_cut_off, {"NoLeader", "ElectionsFailing", "LeaderQuorumAckStale", "PeerUnreachable"},
          UNKNOWN | {"BlockProductionStalled", "ProposalsFailing", "QuorumAtRisk"}),
    Fault("flapping leader", "five leaders in a row stand still for seconds", flapping, {"ElectionChurn"}, UNKNOWN),
    Fault("restart loop", "a follower is killed and started four times", restart_loop, {"NodeRestarting"}),
    Fault("slow apply", "the disk under a follower's state writes less than comes", slow_apply, {"ApplyLagHigh", "ApplyLagGrowing"}, {"ApplyStalled"}, settings=NO_SNAPSHOTS, rate=25, size=100000, hold=150),
    Fault("stalled apply", "the disk under a follower's state hardly writes", stalled_apply, {"ApplyLagHigh", "ApplyLagGrowing", "ApplyStalled"}, settings=NO_SNAPSHOTS, rate=25, size=100000, hold=150),
    Fault("slow follower", "the link to a follower carries a quarter of what comes", slow_follower, {"FollowerCannotCatchUp"}, {"FollowerLagging", "CompactionLagHigh"}, rate=30, size=8000, hold=220,
          settings={"snapshot.threshold": 12, "snapshot.trailing_logs": 10, "snapshot.grace_entries": 10, "state.history_blocks": 10}),
    Fault("slow reader", "a watched reader reads at a fraction of the rate", slow_reader, {"ApplyMessagesDropped"}, {"ApplyGapNotRepaired"}, settings=WATCHED, rate=20, size=60000, hold=110),
    Fault("stalled reader", "a watched reader stalls", stalled_reader, {"ApplyMessagesDropped", "ApplyGapNotRepaired"}, settings=WATCHED, rate=20, size=60000),
    Fault("snapshots fail", "nothing can be written where snapshots lie", snapshots_fail, {"SnapshotFailing", "CompactionLagHigh"}, hold=170, rate=20),
    Fault("slow disk", "a follower's disk stands still for 0.9 s again and again", slow_disk, {"LogSyncSlow"}),
    Fault("hung sync, follower", "a follower's disk hangs", hung_follower, CUT | {"LogSyncStuck"}),
    Fault("hung sync, leader", "the leader's disk hangs", hung_leader, CUT | {"LogSyncStuck"}, UNKNOWN),
    Fault("full disk, follower", "a follower's disk is full", full_follower, {"DiskFillingUp", "FollowerLagging"}, {"CompactionLagHigh"}, hold=110),
    Fault("full disk, leader", "the leader's disk is full", full_leader, {"DiskFillingUp"}, {"FollowerLagging", "CompactionLagHigh"}),
    Fault("full disk everywhere", "all three disks are full", full_everywhere, {"DiskFillingUp", "LeaderNotReady"}),
    Fault("full disk, asked", "all three disks are full, and a producer goes on without a fence", full_and_asked,
          {"DiskFillingUp", "LeaderNotReady", "BlockProductionStalled", "ProposalsFailing", "RpcErrorsHigh"}),
    Fault("failing disk", "a follower's syncs fail; it is started again on a sound disk", disk_fails, {"CoreStopped"}),
    Fault("conflicting producer", "another producer proposes other blocks at the heights that are taken", conflict, {"BlockConflict"}),
    Fault("stale fence", "a producer proposes under the fence of a former term", stale_fence, {"FenceRejections"}),
    Fault("stuck change", "a voter is removed by force while another is down", stuck_change, {"MembershipChangeStuck", "NodeDown", "NoLeader", "ElectionsFailing"},
          # Here a leader that gets nothing through is waited for as long as three seconds are; it goes after five.
          UNKNOWN | {"LeaderNotReady", "LeaderQuorumAckStale", "BlockProductionStalled"}),
    Fault("removed member", "a voter is removed, and its process goes on", removed_member, {"NodeWithoutLeader"}),
    Fault("two clusters", "a node that was down is recovered as a cluster of its own beside the other two, and fed", second_cluster, {"TwoReadyLeaders", "BlockForked", "PeerUnreachable", "QuorumAtRisk", "ElectionChurn"}),
    Fault("unscraped voter", "Prometheus does not know one of three", nothing, {"MetricsAbsent"}, unscraped={3}),
    Fault("dead collector", "nobody listens where traces go", nothing, {"TelemetryLost"}, settings={"telemetry.otlp_endpoint": "http://127.0.0.1:9"}),
    Fault("settings differ", "one node has another heartbeat timeout", nothing, {"ConfigSkew"}, per_node={3: {"raft.heartbeat_timeout": "2500ms", "raft.election_timeout": "3s"}}),
    Fault("versions differ", "one node of three runs another version", nothing, {"VersionSkew"}, upgraded={3}),
    Fault("paused follower", "a follower is paused and forgotten", pause, {"NodePaused"}),
    Fault("paused leader", "the leader is paused, hands over, and is forgotten", pause_leader, {"NodePaused"}),
    Fault("all paused", "all three are paused and forgotten", pause_all, {"NodePaused"}),
    Fault("lagging executor", "the executor beside a follower is 50 blocks behind", executor_lags, {"ExecutorLagging"}),
    Fault("clock", "a follower's clock is 5 s ahead", clock, {"ClockSkew"}),
]
