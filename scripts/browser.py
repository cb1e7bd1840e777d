"""Headless Chromium by way of chromedriver (Debian: chromium chromium-driver). Standard library only."""

import base64
import json
import shutil
import subprocess

import live


class Browser:
    def __init__(self, width=1280, height=900):
        self.driver_path, self.size = shutil.which("chromedriver"), (width, height)
        if not self.driver_path or not shutil.which("chromium"):
            raise live.Failed("there is no chromium and chromedriver: apt-get install chromium chromium-driver")

    def __enter__(self):
        port = live.free_ports(1)[0]
        self.address = f"127.0.0.1:{port}"
        self.process = subprocess.Popen([self.driver_path, f"--port={port}", "--silent"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            live.until("chromedriver is ready", lambda: self._ask("GET", "/status")["ready"])
            options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", f"--window-size={self.size[0]},{self.size[1]}"],
                       "binary": shutil.which("chromium")}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
            self.session = "/session/" + self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def __exit__(self, *_):
        try:
            self._ask("DELETE", self.session)
        except (OSError, live.Failed):
            pass
        self.process.terminate()
        self.process.wait()

    def _ask(self, method, path, body=None):
        code, answer = live.ask(self.address, method, path, json.dumps(body or {}) if method == "POST" else None, {"Content-Type": "application/json"}, timeout=60)
        value = json.loads(answer)["value"]
        if code != 200:
            raise live.Failed(f"chromedriver on {path}: {value.get('message', value)}")
        return value

    def open(self, url):
        self._ask("POST", self.session + "/url", {"url": url})

    def js(self, script, *args):
        return self._ask("POST", self.session + "/execute/sync", {"script": script, "args": list(args)})

    def cdp(self, command, **params):
        return self._ask("POST", self.session + "/goog/cdp/execute", {"cmd": command, "params": params})

    def keys(self, text):
        actions = [a for key in text for a in ({"type": "keyDown", "value": key}, {"type": "keyUp", "value": key})]
        self._ask("POST", self.session + "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def log(self, kind="browser"):
        return self._ask("POST", self.session + "/se/log", {"type": kind})

    def phone(self, width=375, height=812):
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)

    def desktop(self):
        self.cdp("Emulation.clearDeviceMetricsOverride")

    def dark(self, is_dark=True):
        self.cdp("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}])

    def picture(self, path, full=True):
        shot = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        with open(path, "wb") as f:
            f.write(base64.b64decode(shot["data"]))
