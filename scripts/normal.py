"""Normal life, for the alert matrix: what goes on all day without anybody being called."""

import signal
import time

import faults
import live

# By the shortened times, minutes: how often all nodes are started again in turn, and how long the chain is idle.
ROUND = 20
IDLE = 2


def life(scene, length, scale):
    """Lives so many seconds by the clock; says what was done."""
    began, done, round_for, idle_for = time.monotonic(), {"rolling restarts": 0, "transfers": 0, "pauses": 0}, ROUND * 60 / scale, IDLE * 60 / scale
    end = began + length
    while True:
        next_round = time.monotonic() + round_for
        faults.rolling(scene)
        done["rolling restarts"] += 1
        for _ in range(3):
            scene.wait(5)
            live.call(scene.cluster.leader().api, "raft_transferLeader", timeout=15)
            done["transfers"] += 1
        reader = faults.reader(scene, "10m", "&name=indexer&fromHeight=1")
        scene.wait(5)
        pause(scene)
        done["pauses"] += 1
        scene.wait(5)
        reader.send_signal(signal.SIGTERM)
        live.call(scene.cluster.leader().api, "snapshot_create", timeout=30)
        scene.producer.is_paused.set()
        scene.wait(idle_for)
        scene.producer.is_paused.clear()
        while time.monotonic() < min(next_round, end):
            scene.wait(1)
        if end <= time.monotonic():
            return ", ".join(f"{n} {what}" for what, n in done.items()) + f", {scene.producer.agreed} blocks"


def pause(scene):
    """Work on the leader's machine: it does not lead meanwhile."""
    leader = scene.cluster.leader()
    live.call(leader.api, "raft_pause", {"reason": "new cables"}, timeout=15)
    scene.wait(5)
    live.call(leader.api, "raft_resume", {"reason": "done"}, timeout=15)
