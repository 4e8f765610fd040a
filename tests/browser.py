"""A headless Chromium that the tests of the page drive: its DevTools protocol over a pipe, which needs no package."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars")  # fmt: skip


def find():
    """The program, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def missing() -> str | None:
    """What to say where there is no browser; None where there is one."""
    return None if find() else "no Chromium is installed (apt-get install chromium)"


class Browser:
    """One Chromium with one page."""

    def __init__(self, folder):
        ours, theirs = os.pipe(), os.pipe()  # what it reads, what it writes

        def wire():  # it listens on descriptor 3 and answers on 4; both are copied away first, as they may be in use
            read, write = os.dup(ours[0]), os.dup(theirs[1])
            high = os.dup2(read, 100), os.dup2(write, 101)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        arguments = [find(), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(
            arguments, close_fds=False, preexec_fn=wire, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self.write, self.read, self.buffer, self.number, self.events = ours[1], theirs[0], b"", 0, []
        self.session = None
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, timeout=300, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout
        while True:
            answer = self._next(end - time.monotonic())
            if answer is None:
                raise TimeoutError(method)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self, seconds):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(seconds, 0))
            part = os.read(self.read, 1 << 20) if ready else b""
            if not part:
                return None
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    # --- what the tests do ---

    def open(self, address, ready="document.documentElement?.dataset.ready === 'all'", timeout=300):
        self.events.clear()
        self.call("Page.navigate", url=str(address))
        self.until(ready, timeout)

    def size(self, width, height=900):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, name):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def js(self, expression):
        """The value of an expression, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails'].get('exception', found['exceptionDetails'])}")
        return found["result"].get("value")

    def until(self, expression, timeout=300):
        """Waits until an expression is true."""
        end = time.monotonic() + timeout
        while not self.js(f"Boolean({expression})"):
            if time.monotonic() > end:
                raise AssertionError(f"never true: {expression}; the page says {self.errors()}")
            time.sleep(0.05)

    def texts(self, selector):
        return self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((n) => n.textContent)")

    def set(self, selector, value):
        """Puts a value into a field, as a person does."""
        self.js(f"""(() => {{ const n = document.querySelector({json.dumps(selector)});
            if (n.type === "checkbox") {{ if (n.checked !== {json.dumps(value)}) n.click(); return; }}
            n.value = {json.dumps(value)}; n.dispatchEvent(new Event("input", {{bubbles: true}}));
            n.dispatchEvent(new Event("change", {{bubbles: true}})); }})()""")

    def click(self, selector):
        self.js(f"document.querySelector({json.dumps(selector)}).click()")

    def key(self, key):
        """A real key press, to what has the focus."""
        code = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Tab": 9}.get(key, ord(key[0].upper()))
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def errors(self):
        """What the page threw or was forbidden."""
        self.js("0")
        found = []
        for event in self.events:
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found

    def requests(self):
        """The addresses that the page asked for."""
        self.js("0")
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def shot(self, path, whole=False):
        shown = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **(
            {"clip": {**self.js("({x: 0, y: 0, width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight})"), "scale": 1}} if whole else {}
        ))  # fmt: skip
        path.write_bytes(base64.b64decode(shown["data"]))

    def close(self):
        with contextlib.suppress(TimeoutError, OSError, RuntimeError):
            self.session = None
            self.call("Browser.close", timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.write)
        os.close(self.read)
