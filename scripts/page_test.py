#!/usr/bin/env python3
"""The status page in headless Chromium, over a live cluster. `--pictures DIR` keeps what it looked like.

Attacks: what the page shows is what the nodes say, it loads nothing from elsewhere, keeps one stream and none while
hidden, fits a phone, can be read in the dark, works from the keyboard, and says so when its node is lost.
"""

import pathlib
import sys
import urllib.parse

import browser
import live
from live import say

# WCAG 2 AA for text.
CONTRAST_MIN = 4.5
CONTRAST = """
const lum = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$|transparent/.test(c)) return c; } return "rgb(255, 255, 255)"; };
return [...document.querySelectorAll("h1, h2, h3, a, button, dt, dd, li, td, th, time, .soft, .badge, #leader, .figure b")].filter((e) => e.textContent && e.offsetParent && !e.matches(".skip, .skip *")).map((e) => {
  const [a, b] = [lum(getComputedStyle(e).color), lum(back(e))].sort((x, y) => y - x);
  return [(a + .05) / (b + .05), e.tagName + "." + e.className + " " + e.textContent.slice(0, 30)];
}).sort((x, y) => x[0] - y[0])[0];
"""


def check(what, is_so, got=""):
    if not is_so:
        raise live.Failed(f"not so: {what} {got}")
    say("ok:", what)


def text(page, ident):
    return page.js("return document.getElementById(arguments[0]).textContent", ident)


def subscribers(node):
    _, body = live.ask(node.api, "GET", "/metrics")
    lines = [l for l in body.decode().splitlines() if l.startswith('blockraft_raft_apply_subscribers{subscriber="sse"}')]
    return int(float(lines[0].split()[-1]))


def asked(node):
    _, body = live.ask(node.api, "GET", "/metrics")
    lines = [l for l in body.decode().splitlines() if l.startswith("blockraft_rpc_requests_total") and 'method="GET /cluster"' in l and 'code="ok"' in l]
    return int(float(lines[0].split()[-1])) if lines else 0


def hide(page, is_hidden):
    page.js("Object.defineProperty(document, 'hidden', { configurable: true, get: () => arguments[0] }); document.dispatchEvent(new Event('visibilitychange'))"
            .replace("arguments[0]", "true" if is_hidden else "false"))


def shows(page, cluster, node):
    page.open(f"http://{node.api}/")
    live.until("the page shows who leads", lambda: text(page, "leader") == f"n{cluster.leader().id} leads")
    live.until("all nodes are shown", lambda: page.js("return document.querySelectorAll('#nodes section').length") == len(cluster.nodes))
    live.until("the page says whose it is", lambda: text(page, "state") == f"live, from n{node.id}")
    check(f"node {node.id}'s page shows who leads, and all nodes", True)


def moves(page, cluster, node):
    height = lambda: page.js("return Number(document.querySelector('#figures b').textContent.replace(/\\D/g, ''))")
    first = live.until("a head is shown", height)
    live.until("the head moves", lambda: first + 20 < height())
    head = live.call(node.api, "block_head")["block"]["height"]
    check("the head it shows is the node's", abs(head - height()) < 200, f"{head} {height()}")
    live.until("eight blocks are listed", lambda: page.js("return document.querySelectorAll('#blocks tr').length") == 8)
    live.until("the node's metrics are shown", lambda: "sse 1" in text(page, "subscribers"))
    check("one stream is open", subscribers(node) == 1, subscribers(node))
    live.until("nothing is wrong, and it says so", lambda: "Nothing" in text(page, "why"))


def keeps_to_itself(page, hosts):
    seen = set()
    for entry in page.log("performance"):
        message = live.json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            seen.add(urllib.parse.urlsplit(message["params"]["request"]["url"]))
    strangers = [u.geturl() for u in seen if u.scheme != "data" and u.netloc not in hosts]
    check("nothing is loaded from elsewhere", seen and not strangers, strangers)


def fits(page, folder):
    for width in (320, 375, 768):
        page.phone(width)
        wide = live.until("the page is laid out", lambda: page.js("return document.documentElement.scrollWidth"))
        check(f"nothing sticks out at a width of {width}", wide <= width, wide)
    page.phone(375)
    if folder:
        page.picture(folder / "phone.png")
    for is_dark in (False, True):
        page.dark(is_dark)
        worst = page.js(CONTRAST)
        check(f"text can be read {'in the dark' if is_dark else 'in the light'}", CONTRAST_MIN <= worst[0], worst)
    if folder:
        page.picture(folder / "phone-dark.png")
    page.desktop()
    if folder:
        page.picture(folder / "dark.png")
        page.dark(False)
        page.picture(folder / "light.png")
    page.dark(False)


def obeys_keys(page, cluster, node):
    page.js("document.activeElement.blur()")
    tab, enter = "\ue004", "\ue007"
    page.keys(tab)
    check("the first stop is a link past the head", page.js("return document.activeElement.className") == "skip")
    page.keys(tab)
    check("then the button", page.js("return document.activeElement.id") == "pause")
    page.keys(tab)
    link = page.js("return document.activeElement.textContent")
    check("then the nodes", link in [n.api for n in cluster.nodes], link)
    before = text(page, "figures")
    live.until("the page goes on", lambda: text(page, "figures") != before)
    check("what has the focus keeps it while the page changes", page.js("return document.activeElement.textContent") == link)
    page.keys("p")
    check("p pauses", page.js("return document.getElementById('pause').getAttribute('aria-pressed')") == "true")
    live.until("a paused page keeps no stream", lambda: subscribers(node) == 0)
    page.js("document.getElementById('pause').focus()")
    page.keys(enter)
    live.until("the button goes on", lambda: text(page, "state").startswith("live") and subscribers(node) == 1)
    other = next(n for n in cluster.nodes if n is not node)
    page.keys(str(other.id))
    live.until("a number opens that node's page", lambda: page.js("return location.host") == other.api)
    check("the keyboard is enough", True)


def rests_while_hidden(page, node):
    hide(page, True)
    live.until("a hidden page keeps no stream", lambda: subscribers(node) == 0)
    first = asked(node)
    # Two polls of the page and more.
    live.time.sleep(3)
    check("a hidden page asks nothing", asked(node) == first, f"{first} {asked(node)}")
    hide(page, False)
    live.until("seen again, it goes on", lambda: subscribers(node) == 1 and first < asked(node))


def tells_of_losses(page, cluster, node, folder):
    leader = cluster.leader()
    away = next(n for n in cluster.nodes if n is not node and n is not leader)
    away.kill()
    live.until("a node that is away is named", lambda: f"n{away.id} does not answer" in text(page, "why"))
    live.until("its card says so", lambda: "no answer" in text(page, "nodes"))
    left = page.js("return [...document.querySelectorAll('#nodes dl')].filter((d) => d.offsetParent).length")
    check("and shows nothing of before", left == len(cluster.nodes) - 1, left)
    if folder:
        page.picture(folder / "follower-away.png")
    away.start()
    live.until("its return is told", lambda: f"n{away.id} answers" in text(page, "history") and "does not answer" not in text(page, "why"))
    node.kill()
    live.until("the page says that its node is lost", lambda: page.js("return document.body.className") == "is-lost")
    box = text(page, "lost")
    check("it names the node, and where else to look", f"n{node.id} does not answer" in box and all(f"n{n.id}" in box for n in cluster.nodes), box)
    check("the title says so", page.js("return document.title").startswith("lost"))
    if folder:
        page.picture(folder / "lost.png")
    node.start()
    live.until("it goes on by itself", lambda: page.js("return document.body.className") == "" and text(page, "state") == f"live, from n{node.id}")
    live.until("the stream too", lambda: subscribers(node) == 1)


def main(args):
    folder = pathlib.Path(args[args.index("--pictures") + 1]) if "--pictures" in args else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with live.Cluster("page-test", settings=live.CALM | {"snapshot.threshold": 200}) as cluster, browser.Browser() as page:
        cluster.leader()
        producer = live.Producer(cluster, rate=15)
        producer.start()
        node = cluster.followers()[0]
        shows(page, cluster, node)
        moves(page, cluster, node)
        fits(page, folder)
        obeys_keys(page, cluster, node)
        node = next(n for n in cluster.nodes if n.api == page.js("return location.host"))
        shows(page, cluster, node)
        rests_while_hidden(page, node)
        tells_of_losses(page, cluster, node, folder)
        keeps_to_itself(page, {n.api for n in cluster.nodes})
        # A connection that is refused or breaks off is the lost node's.
        loud = [e["message"] for e in page.log() if e["level"] == "SEVERE" and "net::ERR_" not in e["message"]]
        check("the console is quiet", not loud, loud)
        producer.end()
    say("the page does what it should")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except live.Failed as e:
        sys.exit(f"page-test: {e}")
