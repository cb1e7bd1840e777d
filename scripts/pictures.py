#!/usr/bin/env python3
"""docs/images: the status page, and `ctl watch` on a terminal, of a real run."""

import html
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import browser
import live
from live import say

IMAGES = live.ROOT / "docs/images"
COLUMNS, LINES = 118, 20
# What `ctl` paints with, on a dark ground.
COLORS = {"1": "font-weight:700", "2": "color:#8b949e", "31": "color:#ff7b72", "32": "color:#56d364", "33": "color:#e3b341"}


def spans(line):
    """A line with escapes of colour as markup."""
    out, style = "", ""
    for part in re.split(r"(\x1b\[[\d;]*m)", line):
        if m := re.fullmatch(r"\x1b\[([\d;]*)m", part):
            style = ";".join(COLORS[c] for c in m[1].split(";") if c in COLORS)
        elif part:
            out += f'<span style="{style}">{html.escape(part)}</span>'
    return out


def terminal(cluster, page):
    """In tmux, which tells what stands where in which colour."""
    session = f"blockraft-{os.getpid()}"
    env = ",".join(n.api for n in cluster.nodes)
    live.run("tmux", "new-session", "-d", "-s", session, "-x", COLUMNS, "-y", LINES, f"env BLOCKRAFT_ENDPOINTS={env} {live.binary()} ctl watch")
    try:
        screen = lambda *more: live.run("tmux", "capture-pane", "-p", "-t", session, *more)
        live.until("the view shows a rate", lambda: re.search(r"[1-9]\d*\.\d blocks/s", screen()))
        leader = cluster.leader()
        leader.kill()
        cluster.leader()
        leader.start()
        live.until("all answer again", lambda: f"node {leader.id} answers" in screen() and "does not answer" not in screen().split("events")[0])
        live.time.sleep(3)
        lines = screen("-e").rstrip().splitlines()
    finally:
        live.run("tmux", "kill-session", "-t", session)
    body = "\n".join(spans(l) for l in lines)
    with tempfile.NamedTemporaryFile("w", suffix=".html") as f:
        f.write(f'<meta charset="utf-8"><body style="margin:0;background:#0d1117;color:#e6edf3"><pre style="margin:14px;font:14px/1.35 DejaVu Sans Mono,monospace;display:inline-block">{body}</pre>')
        f.flush()
        page.open(f"file://{f.name}")
        size = page.js("const r = document.querySelector('pre').getBoundingClientRect(); return [Math.ceil(r.width) + 28, Math.ceil(r.height) + 28]")
        page.cdp("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)
        page.picture(IMAGES / "watch.png", full=False)


def status_page(cluster, page):
    page.cdp("Emulation.setDeviceMetricsOverride", width=1000, height=820, deviceScaleFactor=1, mobile=False)
    page.open(f"http://{cluster.followers()[0].api}/")
    live.until("two minutes' charts fill", lambda: page.js("return state.rates.length > 70"), within=180)
    page.picture(IMAGES / "page.png", full=False)


def main():
    if not shutil.which("tmux") or not shutil.which("pngquant"):
        raise live.Failed("there is no tmux or no pngquant")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with live.Cluster("my-chain", settings=live.CALM) as cluster, browser.Browser() as page:
        cluster.leader()
        producer = live.Producer(cluster, rate=25)
        producer.start()
        terminal(cluster, page)
        status_page(cluster, page)
        producer.end()
    for image in IMAGES.glob("*.png"):
        live.run("pngquant", "--force", "--skip-if-larger", "--ext", ".png", "64", image)
        say(image.name, image.stat().st_size, "bytes")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except live.Failed as e:
        sys.exit(f"pictures: {e}")
