"""The faults of the alert matrix: what is done to a cluster, and which alerts that must raise."""

import dataclasses
import os
import signal
import subprocess
import threading
import time

import live

LIBFAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


class Scene:
    """What a fault may touch. Whatever it starts ends with it."""

    def __init__(self, cluster, producer, prometheus, watch):
        self.cluster, self.producer, self.prometheus, self.watch = cluster, producer, prometheus, watch
        self.repeated, self.ends = [], []

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.2)

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
        time.sleep(0.2)

    def at_end(self, what):
        self.ends.append(what)

    def close(self):
        for what in reversed(self.ends):
            what()

    def head(self):
        return live.call(self.cluster.leader().api, "block_head")


@dataclasses.dataclass
class Fault:
    name: str
    says: str
    act: object
    must: set = dataclasses.field(default_factory=set)
    may: set = dataclasses.field(default_factory=set)
    hold: int = 60
    rate: int = 10
    size: int = 256
    settings: dict = dataclasses.field(default_factory=dict)
    per_node: dict = dataclasses.field(default_factory=dict)
    unscraped: set = dataclasses.field(default_factory=set)
    # Left out where the binary has not this method.
    needs: str = ""


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
    leader, others = scene.cluster.leader(), scene.cluster.followers()
    leader.cut_from(*others)
    for other in others:
        other.cut_from(leader)


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


def conflict(scene):
    def again():
        head = scene.head()["block"]
        block = {"height": head["height"], "hash": "0x" + os.urandom(32).hex(), "timestamp": str(int(head["timestamp"]) + 1), "header": "0x", "data": "0x"}
        live.call(scene.cluster.leader().api, "block_propose", {"block": block})

    scene.every(3, again)


def stale_fence(scene):
    old = scene.cluster.leader().status()["fence"] - 1

    def again():
        head = scene.head()["block"]
        block = {"height": head["height"] + 1, "hash": "0x" + os.urandom(32).hex(), "timestamp": str(time.time_ns()), "header": "0x", "data": "0x"}
        live.call(scene.cluster.leader().api, "block_propose", {"block": block, "fence": old})

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


def no_collector(scene):
    pass


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
UNKNOWN = {"ProposalsUnknown"}
FAULTS = [
    Fault("normal life", "nothing, under load", nothing, hold=90),
    Fault("rolling restart", "each node stopped and started in turn", rolling),
    Fault("idle chain", "nobody proposes", idle, hold=90),
    Fault("stranger's reader", "an unnamed reader of the feed stalls", stranger, rate=20, size=60000),
    Fault("leader dies, returns", "the leader is killed, and started again", leader_dies_and_returns, may=UNKNOWN),
    Fault("leader dies", "the leader is killed, and stays away", leader_dies, AWAY, UNKNOWN),
    Fault("follower hangs", "a follower's process stands still", follower_hangs, AWAY),
    Fault("quorum lost", "two of three are killed", majority_dies, {"NoLeader", "QuorumLost", "NodeDown", "ElectionsFailing"}, UNKNOWN),
    Fault("all die", "all three are killed", all_die, {"NoLeader", "QuorumLost", "NodeDown", "MetricsAbsent"}, hold=90),
    Fault("leader cut off", "no packet passes between the leader and the others", leader_cut_off, {"NodeWithoutLeader", "QuorumAtRisk", "PeerUnreachable"}, UNKNOWN),
    Fault("one-way partition", "a follower hears nobody, and is heard", follower_deaf, {"NodeWithoutLeader", "QuorumAtRisk", "PeerUnreachable"}),
    Fault("all cut off", "no packet passes between any two", all_cut_off, {"NoLeader", "ElectionsFailing", "LeaderQuorumAckStale", "PeerUnreachable"},
          UNKNOWN | {"BlockProductionStalled", "ProposalsFailing", "QuorumAtRisk"}),
    Fault("flapping leader", "five leaders in a row stand still for seconds", flapping, {"ElectionChurn"}, UNKNOWN, hold=40),
    Fault("restart loop", "a follower is killed and started four times", restart_loop, {"NodeRestarting"}, hold=40),
    Fault("slow reader", "a watched reader reads at a fraction of the rate", slow_reader, {"ApplyMessagesDropped"}, {"ApplyGapNotRepaired"}, settings={"feed.watched": ["indexer"]}, rate=20, size=60000, hold=100),
    Fault("stalled reader", "a watched reader stalls", stalled_reader, {"ApplyMessagesDropped", "ApplyGapNotRepaired"}, settings={"feed.watched": ["indexer"]}, rate=20, size=60000),
    Fault("snapshots fail", "nothing can be written where snapshots lie", snapshots_fail, {"SnapshotFailing", "CompactionLagHigh"}, hold=170, rate=20),
    Fault("slow disk", "a follower's disk stands still for 0.9 s again and again", slow_disk, {"LogSyncSlow"}, hold=80),
    Fault("hung sync, follower", "a follower's disk hangs", hung_follower, {"LogSyncStuck", "NodeWithoutLeader", "PeerUnreachable", "QuorumAtRisk"}),
    Fault("hung sync, leader", "the leader's disk hangs", hung_leader, {"LogSyncStuck", "NodeWithoutLeader", "PeerUnreachable", "QuorumAtRisk"}, UNKNOWN),
    Fault("full disk, follower", "a follower's disk is full", full_follower, {"DiskFillingUp", "FollowerLagging"}, {"CompactionLagHigh"}, hold=110),
    Fault("full disk, leader", "the leader's disk is full", full_leader, {"DiskFillingUp"}, {"FollowerLagging", "CompactionLagHigh"}, hold=110),
    Fault("full disk everywhere", "all three disks are full", full_everywhere, {"DiskFillingUp", "LeaderNotReady"}, hold=110),
    Fault("failing disk", "a follower's syncs fail; it is started again on a sound disk", disk_fails, {"CoreStopped"}, hold=20),
    Fault("conflicting producer", "another producer proposes other blocks at the heights that are taken", conflict, {"BlockConflict"}, hold=30),
    Fault("stale fence", "a producer proposes under the fence of a former term", stale_fence, {"FenceRejections"}, hold=30),
    Fault("unscraped voter", "Prometheus does not know one of three", nothing, {"MetricsAbsent"}, hold=80, unscraped={3}),
    Fault("dead collector", "nobody listens where traces go", no_collector, {"TelemetryLost"}, hold=90, settings={"telemetry.otlp_endpoint": "http://127.0.0.1:9"}),
    Fault("settings differ", "one node has another heartbeat timeout", nothing, {"ConfigSkew"}, hold=80, per_node={3: {"raft.heartbeat_timeout": "2500ms", "raft.election_timeout": "3s"}}),
    Fault("transfers", "six hand-overs that were asked for", transfers, needs="raft_transferLeader"),
    Fault("paused follower", "a follower is paused and forgotten", pause, {"NodePaused"}, hold=80, needs="raft_pause"),
    Fault("paused leader", "the leader is paused, hands over, and is forgotten", pause_leader, {"NodePaused"}, hold=80, needs="raft_pause"),
    Fault("all paused", "all three are paused and forgotten", pause_all, {"NodePaused"}, hold=80, needs="raft_pause"),
    Fault("lagging executor", "the executor beside a follower is 50 blocks behind", executor_lags, {"ExecutorLagging"}, hold=40, needs="executor_report"),
    Fault("clock", "a follower's clock is 5 s ahead", clock, {"ClockSkew"}, hold=40),
]
