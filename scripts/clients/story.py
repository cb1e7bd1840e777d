"""What is tried: one cluster, one story for all clients. Each judge returns a cell: (grade, words)."""

import json
import os
import time

import live
from live import say, until
from programs import Browser, Gate, Pages, Program
from rows import BROWSERS, EVENTS, JSON_RPC

# Grades, better first.
YES, PARTLY, NO, NONE = "✓", "~", "✗", "–"
EXACT = 2**53 + 1
LARGE = 3 << 20
# The slowest reader here comes back after ten seconds, and after twenty the second time.
LATER = 60
# Quiet enough that nobody but a dead leader is replaced while forty programs start on two cores; a dead one is found by
# its connections, long before.
PATIENT = live.CALM | {"raft.heartbeat_timeout": "5s", "raft.leader_lease_timeout": "2500ms", "raft.election_timeout": "5s"}
OWN = {"leadership": ("raft_subscribeLeadership", [None]), "applied": ("block_subscribeApplied", [1, None])}
ALIAS = {"leadership": ("raft_subscribe", ["leadership"]), "applied": ("raft_subscribe", ["applied", {"fromHeight": 1}])}

FEATURES = {
    JSON_RPC: ["no params", "by position", "by name", "batch", "refusal", "2^53 + 1", "3 MiB", "leadership", "applied", "raft_subscribe", "leader change", "SIGTERM", "node back", "429", "503"],
    EVENTS: ["ids", "3 MiB", "leader change", "SIGTERM", "node back", "kill -9", "429", "503"],
}


class Chain:
    """Blocks, one after the other, proposed to whoever leads."""

    def __init__(self, cluster):
        self.cluster, self.height, self.indexes = cluster, 0, {}

    def add(self, n=1, timestamp=None, data=b""):
        for _ in range(n):
            block = {"height": self.height + 1, "hash": "0x" + os.urandom(32).hex(), "timestamp": str(timestamp or time.time_ns()), "header": "0x", "data": "0x" + data.hex()}

            def propose(block=block):
                leader = self.cluster.leader()
                return live.call(leader.api, "block_propose", {"block": block}, timeout=20)

            self.indexes[block["height"]] = until("a block is agreed", propose)["index"]
            self.height += 1


class Feeds:
    """Of one client: its subscriptions, by name, as lists of lines."""

    def __init__(self, row, lines, end, is_over):
        self.row, self.lines, self.end, self.is_over = row, lines, end, is_over
        self.names = list(lines)

    def items(self, name):
        """Parsed items; an event's data is as the reader got it."""
        found = []
        for line in self.lines[name]():
            if "item" in line:
                found.append(line["item"])
            elif line.get("event") not in (None, "message") or line.get("data"):
                try:
                    found.append(json.loads(line["data"]))
                except (ValueError, TypeError):
                    found.append({"broken": line.get("data")})
        return found

    def heights(self, name):
        return [i["block"]["height"] for i in self.items(name) if "block" in i]


def calls(row, program, node, leader):
    """What needs no change of the cluster."""

    def good(answer, is_right):
        if "error" in answer:
            return NO, answer["error"]["text"][:60]
        return (YES, "") if is_right(answer["result"]) else (NO, f"answers {json.dumps(answer['result'])[:60]}")

    cells = {}
    how = good(row.ask(program, do="how"), lambda r: r["leaderId"] == leader.id)
    plain = good(row.ask(program, do="call", method="raft_status"), lambda r: r["nodeId"] == node.id)
    cells["no params"] = how if how[0] == NO else plain
    cells["by position"] = good(row.ask(program, do="call", method="raft_leader", params=[True]), lambda r: r["verified"] is True)
    cells["by name"] = good(row.ask(program, do="call", method="raft_leader", params={"verify": True}), lambda r: r["verified"] is True)
    if row.has_batch:
        two = [["raft_leader", []], ["block_get", [1]]]
        cells["batch"] = good(row.ask(program, do="batch", calls=two), lambda r: r[0]["leaderId"] == leader.id and r[1]["block"]["height"] == 1)
    else:
        cells["batch"] = NONE, ""
    block = {"height": 99, "hash": "0x01", "timestamp": "1", "header": "0x", "data": "0x"}
    cells["refusal"] = refusal(row.ask(program, do="call", method="block_propose", params=[block]), -32030, "leaderApi", leader.api)
    read = good(row.ask(program, do="call", method="block_get", params=[1]), lambda r: r["block"]["timestamp"] == str(EXACT))
    sent = row.ask(program, do="call", method="block_get", params=[EXACT])
    cells["2^53 + 1"] = read if read[0] == NO else (YES, "") if "error" in sent else (NO, "is taken as a number")
    return cells


def refusal(answer, code, key, value):
    if "error" not in answer:
        return NO, "is taken for an answer"
    error = answer["error"]
    data = error.get("data") or {}
    if error.get("code") == code:
        return (YES, "code, data") if data.get(key) == value else (PARTLY, "code")
    return (PARTLY, "message") if "does not lead" in error["text"] else (NO, error["text"][:60])


def status(answer, code, number):
    """What is left of an answer that is not 200."""
    if "error" not in answer:
        return NO, "is taken for an answer"
    error = answer["error"]
    if code is not None and error.get("code") == code:
        return YES, "code, data" if (error.get("data") or {}).get("retryAfterMs") else "code"
    if code is not None and (error.get("inBody") == code or str(code) in error["text"]):
        return PARTLY, "body, by hand"
    said = error["text"] + json.dumps(error.get("data"))
    return (PARTLY, "status") if str(number) in said else (NO, error["text"].split(":")[0].split("(")[0])


def large(row, program, height, data, leader):
    answer = row.ask(program, do="big", height=height, leader=row.url(leader.api))
    if "error" in answer:
        return NO, answer["error"]["text"][:60]
    want = {"bytes": len(data), "first": data.hex()[:16], "last": data.hex()[-16:], "duplicate": True}
    return (YES, "") if answer["result"] == want else (NO, json.dumps(answer["result"])[:60])


def after(feeds, name, since, heights):
    """Of the blocks behind `since`: what was missed, what came twice, what came broken."""
    got = feeds.heights(name)[since:]
    missed = [h for h in heights if h not in got]
    fresh = [h for h in heights if 1 < got.count(h)]
    again = len(got) - len([h for h in heights if h in got]) - sum(got.count(h) - 1 for h in fresh)
    broken = [i for i in feeds.items(name) if "broken" in i]
    if missed:
        return NO, f"missed {len(missed)}" if len(missed) < len(heights) else "does not come back"
    words = "nothing missed"
    if fresh or again:
        words += ", all again from the start" if len(feeds.heights(name)[:since]) <= again else f", {len(fresh) + again} twice"
    if broken:
        words += ", one broken"
    return (PARTLY if fresh or again or broken else YES), words


def drain(node):
    """Takes what its bucket holds, and some seconds' worth more: a batch is let in whole and paid for later."""
    many = [{"jsonrpc": "2.0", "id": i, "method": "raft_leader"} for i in range(8)]
    live.ask(node.api, "POST", "/", json.dumps(many), {"Content-Type": "application/json"})
    return True


class Story:
    def __init__(self, rows):
        self.rows, self.cells = rows, {row.name: {} for row in rows}
        self.pages = Pages()

    def put(self, row, feature, cell):
        known = row.fickle.get(feature)
        if known and (cell[0] == YES or known in cell[1]):
            cell = PARTLY, f"at times {known}"
        self.cells[row.name][feature] = cell
        say(f"{row.name}: {feature}: {' '.join(cell)}".rstrip())

    def run(self):
        settings = PATIENT | {"api.allowed_origins": [self.pages.origin]}
        with live.Cluster("clients", settings=settings) as cluster, live.Cluster("limited", n=1, settings=settings | {"api.rate_limit": 1}) as limited:
            try:
                self.play(cluster, limited)
            finally:
                self.pages.end()
        return self.cells

    def play(self, cluster, limited):
        leader = cluster.leader()
        # The node that clients are connected to.
        node = cluster.followers()[0]
        chain = Chain(cluster)
        data = os.urandom(LARGE)
        chain.add(timestamp=EXACT)
        chain.add(data=data)
        chain.add(5)
        until("the followers have all", lambda: all(live.call(n.api, "block_head", {"consistency": "local"})["block"]["height"] == chain.height for n in cluster.nodes))
        limited.leader()
        first = {"height": 1, "hash": "0x01", "timestamp": "1", "header": "0x", "data": "0x"}
        until("a block where one call a second is let in", lambda: live.call(limited.nodes[0].api, "block_propose", {"block": first}), every=1.5)
        rpc = [row for row in self.rows if row.table == JSON_RPC]
        events = [row for row in self.rows if row.table == EVENTS]
        programs = {}
        gate = Gate(node.api)
        gate.is_shut = True
        gates = {row.name: Gate(node.api) for row in events}
        feeds = []
        try:
            for row in rpc:
                program = programs[row.name] = row.start(node.api)
                program.next()
                for feature, cell in calls(row, program, node, leader).items():
                    self.put(row, feature, cell)
                self.put(row, "3 MiB", large(row, program, 2, data, leader))
                self.put(row, "503", status(row.ask(program, do="call", method="raft_status", url=row.url(gate.address)), None, 503))
            for row in rpc:
                self.put(row, "429", self.limit(row, programs[row.name], limited.nodes[0]))
            feeds = [self.open(row, node, gates, limited.nodes[0]) for row in self.rows if row.has_feed or row.table == EVENTS]
            self.overload([of for of in feeds if of.row.table == EVENTS], limited.nodes[0])
            self.feeds(cluster, chain, feeds, programs, rpc, leader, node, gates)
        finally:
            for program in programs.values():
                program.end()
            for of in feeds:
                of.end()
            for g in (gate, *gates.values()):
                g.end()

    @staticmethod
    def limit(row, program, node):
        """The bucket is drained first, for as long as the client may take to start."""
        url = row.url(node.api)
        for _ in range(5):
            drain(node)
            answer = row.ask(program, do="call", method="raft_status", url=url)
            if "error" in answer:
                break
        return status(answer, -32034, 429)

    def open(self, row, node, gates, limited):
        """Starts what a client follows."""
        if row.table == JSON_RPC:
            started = {f"{way} {topic}": row.start(node.api, "feed", method, json.dumps(params))
                       for way, topics in (("own", OWN), ("alias", ALIAS)) for topic, (method, params) in topics.items()}
        else:
            path = "/v1/applied?fromHeight=1"
            drain(limited)
            urls = {"applied": f"http://{node.api}{path}", "gate": f"http://{gates[row.name].address}{path}", "limited": f"http://{limited.api}{path}"}
            if row.name in BROWSERS:
                browser = Browser(BROWSERS[row.name], self.pages, urls)
                return Feeds(row, {name: lambda name=name: browser.lines(name) for name in urls}, browser.end, lambda name: any("ended" in l for l in browser.lines(name)))
            started = {name: Program([*row.argv, url, "events"]) for name, url in urls.items()}

        def end():
            for program in started.values():
                program.end()

        return Feeds(row, {name: lambda p=p: list(p.lines) for name, p in started.items()}, end, lambda name: started[name].process.poll() is not None)

    def feeds(self, cluster, chain, feeds, programs, rpc, leader, node, gates):
        def each(what, is_true, within=LATER):
            """Waits until it is true for every feed, or the time is over."""
            try:
                until(what, lambda: all(of.is_over(name) or is_true(of, name) for of in feeds for name in of.names), within)
            except live.Failed:
                pass

        def is_applied(name):
            return name in ("own applied", "alias applied", "applied", "gate")

        # Both feeds from the first block to the last, and a leadership.
        each("all have caught up", lambda of, name: any("caughtUp" in i for i in of.items(name)) if is_applied(name) else name == "limited" or of.items(name))
        chain.add(3)
        each("all have the live ones", lambda of, name: not is_applied(name) or chain.height in of.heights(name))
        upto = list(range(1, chain.height + 1))
        for of in feeds:
            row = of.row
            if row.table == JSON_RPC:
                works = {name: (upto == of.heights(name) if is_applied(name) else any(i.get("leaderId") == leader.id for i in of.items(name))) for name in of.names}
                for topic in OWN:
                    self.put(row, topic, (YES, "") if works[f"own {topic}"] else (NO, self.why(of, f"own {topic}")))
                self.put(row, "raft_subscribe", (YES, "") if works["alias leadership"] and works["alias applied"] else (NO, self.why(of, "alias applied")))
            else:
                self.put(row, "ids", self.ids(of, upto, chain))
                large = [i for i in of.items("applied") if i.get("block", {}).get("height") == 2]
                self.put(row, "3 MiB", (YES, "truncated, to be read") if large and large[0].get("truncated") else (NO, self.why(of, "applied")))
        # The leader dies, and the third node takes over.
        leader = cluster.leader()
        if leader is node:
            raise live.Failed("the node that clients watch leads: the machine is too busy for this")
        third = next(n for n in cluster.nodes if n not in (leader, node))
        live.call(node.api, "raft_pause", {"reason": "not the one that is watched"})
        leader.kill()
        until("the third leads", lambda: third.status().get("ready"))
        chain.add(2)
        each("all have heard of it", lambda of, name: chain.height in of.heights(name) if is_applied(name) else name == "limited" or any(i.get("leaderId") == third.id for i in of.items(name)), 20)
        leader.start()
        live.call(node.api, "raft_resume")
        for of in feeds:
            if of.row.table == JSON_RPC:
                told = [any(i.get("leaderId") == third.id for i in of.items(f"{way} leadership")) and chain.height in of.heights(f"{way} applied") for way in ("own", "alias")]
                self.put(of.row, "leader change", (YES, "is told") if all(told) else (PARTLY, "is told by one name") if any(told) else (NO, self.why(of, "own leadership")))
            else:
                self.put(of.row, "leader change", (YES, "goes on") if of.heights("applied") == list(range(1, chain.height + 1)) else (NO, self.why(of, "applied")))
        with_feeds = [of.row.name for of in feeds]
        for row in rpc:
            if row.name not in with_feeds:
                answer = row.ask(programs[row.name], do="call", method="raft_leader")
                is_told = answer.get("result", {}).get("leaderId") == third.id
                self.put(row, "leader change", (YES, "by asking") if is_told else (NO, str(answer)[:60]))
        until("the killed node is back", lambda: leader.status().get("leaderId") == third.id)
        self.gates(chain, feeds, gates)
        self.stop(chain, feeds, programs, rpc, with_feeds, node, each, is_applied, is_killed=False)
        self.stop(chain, feeds, programs, rpc, with_feeds, node, each, is_applied, is_killed=True)

    def stop(self, chain, feeds, programs, rpc, with_feeds, node, each, is_applied, is_killed):
        """The node ends, five blocks are missed, it comes back, five more."""
        names = [(of, name) for of in feeds for name in of.names if is_applied(name) and name != "gate"]
        since = {(of.row.name, name): len(of.heights(name)) for of, name in names}
        lines = {(of.row.name, name): len(of.items(name)) for of in feeds for name in of.names}
        first = chain.height + 1
        node.kill() if is_killed else node.stop()
        chain.add(5)
        node.start()
        until("the node is back", lambda: node.status().get("appliedIndex", 0) >= chain.indexes[chain.height])
        chain.add(5)
        heights = list(range(first, chain.height + 1))
        each("all have come back", lambda of, name: not is_applied(name) or name == "gate" or all(h in of.heights(name) for h in heights))
        for of in feeds:
            row = of.row
            mine = [name for name in of.names if is_applied(name) and name != "gate"]
            cell = min((after(of, name, since[row.name, name], heights) for name in mine), key=lambda c: -"✓~✗".index(c[0]))
            if is_killed:
                if row.table == EVENTS:
                    self.put(row, "kill -9", cell)
                continue
            self.put(row, "node back", cell)
            said = [[i["end"]["reason"] for i in of.items(name)[lines[row.name, name]:] if "end" in i][:1] for name in of.names if name not in ("gate", "limited")]
            self.put(row, "SIGTERM", (YES, "end") if all(s == ["shuttingDown"] for s in said) else (NO, f"no end on {sum(s != ['shuttingDown'] for s in said)} of {len(said)}"))
        for row in [] if is_killed else rpc:
            if row.name in with_feeds:
                continue
            answers = [row.ask(programs[row.name], do="call", method="raft_status") for _ in range(2)]
            which = [i for i, a in enumerate(answers) if a.get("result", {}).get("nodeId") == node.id]
            self.put(row, "node back", {0: (YES, "the next call"), 1: (PARTLY, "the second call")}.get(which[0] if which else None, (NO, answers[-1].get("error", {}).get("text", "")[:60])))
            self.put(row, "SIGTERM", (NONE, ""))

    def gates(self, chain, feeds, gates):
        """A balancer answers the reconnect of an event reader with 503, then has servers again."""
        readers = [of for of in feeds if of.row.table == EVENTS]
        for of in readers:
            gates[of.row.name].shut()
        try:
            until("each was refused", lambda: all(gates[of.row.name].refused or of.is_over("gate") for of in readers), 25)
        except live.Failed:
            pass
        for of in readers:
            gates[of.row.name].is_shut = False
        chain.add()
        try:
            until("each goes on", lambda: all(of.is_over("gate") or chain.height in of.heights("gate") for of in readers), 30)
        except live.Failed:
            pass
        for of in readers:
            goes_on = chain.height in of.heights("gate")
            if not gates[of.row.name].refused:
                cell = NO, self.why(of, "gate")
            else:
                cell = (YES, "goes on") if goes_on else (PARTLY, "over for good, and told")
                if not goes_on and not any("ended" in l for l in of.lines["gate"]()):
                    cell = NO, "over for good"
            self.put(of.row, "503", cell)

    def overload(self, readers, node):
        """A node over its limit answers 200 with an end; the reader comes back when there is room."""

        def is_told(of):
            return any(i.get("end", {}).get("reason") == "overloaded" for i in of.items("limited"))

        def is_in(of):
            return any("caughtUp" in i for i in of.items("limited"))

        for what, look in (("each is told", lambda: drain(node) and all(map(is_told, readers))), ("each is in", lambda: all(map(is_in, readers)))):
            try:
                until(what, look, LATER)
            except live.Failed:
                pass
        for of in readers:
            words = ("end, then goes on" if is_in(of) else "end, and stays out") if is_told(of) else self.why(of, "limited")
            self.put(of.row, "429", (YES if is_told(of) and is_in(of) else NO, words))

    @staticmethod
    def ids(of, upto, chain):
        """Every block once, in order, each with the index it has as its id."""
        lines = [l for l in of.lines["applied"]() if l.get("event") == "block"]
        right = [(str(chain.indexes[h]), h) for h in upto]
        got = [(str(l["id"]), json.loads(l["data"])["block"]["height"]) for l in lines]
        empty = [l for l in of.lines["applied"]() if "event" in l and not l["data"]]
        if empty:
            return PARTLY, "and empty events"
        return (YES, "") if got == right else (NO, Story.why(of, "applied"))

    @staticmethod
    def why(of, name):
        """Of what went wrong, what the client said."""
        said = [l["ended"] for l in of.lines[name]() if "ended" in l]
        return (said[-1].split(":")[0] if said else "nothing came" if not of.items(name) else "items are missing")[:60]
