"""Client programs as processes, pages in browsers, and a gate between clients and a node. Standard library only."""

import http.server
import json
import os
import pathlib
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
# What HAProxy sends when it has no server.
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 107\r\nCache-Control: no-cache\r\nConnection: close\r\nContent-Type: text/html\r\n\r\n<html><body><h1>503 Service Unavailable</h1>\nNo server is available to handle this request.\n</body></html>\n"


class Program:
    """A client program: commands in, lines out."""

    def __init__(self, argv):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1)
        self.lines, self.answers = [], queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            (self.lines.append if "item" in said or "ended" in said or "event" in said else self.answers.put)(said)
        self.answers.put(None)

    def next(self, within=60):
        try:
            said = self.answers.get(timeout=within)
        except queue.Empty:
            return {"error": {"text": f"no answer in {within} s"}}
        return said or {"error": {"text": "the program ended: " + self.said()}}

    def ask(self, **command):
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except OSError:
            return {"error": {"text": "the program ended: " + self.said()}}
        return self.next()

    def said(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace").strip()[-300:]

    def end(self):
        self.process.kill()
        self.process.wait()


class Pages:
    """Serves page.html and takes what pages report."""

    def __init__(self):
        self.reports = []
        page, reports = (HERE / "page.html").read_bytes(), self.reports

        class Serve(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(200 if self.path.startswith("/?") else 404, page)

            def do_POST(self):
                reports.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.answer(204, b"")

            def answer(self, status, body):
                self.send_response(status)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Serve)
        self.server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def end(self):
        self.server.shutdown()
        self.server.server_close()


FIREFOX_SETTINGS = """user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.aboutwelcome.enabled", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("app.normandy.enabled", false);
user_pref("app.update.enabled", false);
user_pref("browser.safebrowsing.downloads.remote.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("services.settings.server", "data:,");
user_pref("toolkit.telemetry.reportingpolicy.firstRun", false);
"""


class Browser:
    """A headless browser with one page open, on which `sources` are followed."""

    def __init__(self, kind, pages, sources):
        self.pages, self.kind = pages, kind
        self.folder = tempfile.mkdtemp(prefix="blockraft-browser-")
        url = f"{pages.origin}/?{urllib.parse.urlencode({'page': kind, **sources})}"
        if kind == "chromium":
            argv = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={self.folder}", url]
        else:
            (pathlib.Path(self.folder) / "user.js").write_text(FIREFOX_SETTINGS)
            argv = ["firefox-esr", "--headless", "--no-remote", "--profile", self.folder, url]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def lines(self, source):
        return [r for r in list(self.pages.reports) if r["page"] == self.kind and r["source"] == source]

    def end(self):
        # Of its own session: the browser's many processes with it.
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Gate:
    """Stands before a node: passes connections on, or answers 503 as a balancer without servers does."""

    def __init__(self, to):
        self.to, self.is_shut, self.refused, self.open = to, False, 0, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._take, args=(client,), daemon=True).start()

    def _take(self, client):
        try:
            if self.is_shut:
                client.settimeout(5)
                request = b""
                while b"\r\n\r\n" not in request and (got := client.recv(65536)):
                    request += got
                self.refused += 1
                client.sendall(REFUSAL)
                client.shutdown(socket.SHUT_WR)
                # A close with unread bytes would be a reset.
                while client.recv(65536):
                    pass
                client.close()
                return
            host, port = self.to.rsplit(":", 1)
            server = socket.create_connection((host, int(port)))
        except OSError:
            client.close()
            return
        self.open += [client, server]
        for a, b in ((client, server), (server, client)):
            threading.Thread(target=self._pass, args=(a, b), daemon=True).start()

    @staticmethod
    def _pass(a, b):
        try:
            while got := a.recv(65536):
                b.sendall(got)
        except OSError:
            pass
        for s in (a, b):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def shut(self):
        self.is_shut = True
        for s in self.open:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.open = []

    def end(self):
        self.listener.close()
        self.shut()
