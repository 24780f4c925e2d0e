"""Drives a real Chromium by its DevTools protocol over a pipe, without a driver.

`Chromium` is a process, and `Page` is a tab with its own profile. Every wait is bounded. A page
records its requests (`requests`) and its errors (`complaints`). Names of other hosts do not
resolve, so that requests to them fail and are recorded.
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 20.0
REBOUND = "attacker.example"
"""A name that resolves to this machine, as after DNS rebinding."""
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # which needs more rights than a container has
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# Chromium wants its pipes at 3 and 4, where subprocess cannot put them.
AT_3_AND_4 = ("sh", "-c", 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1')
KEYS = {"Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r")}


def find() -> str | None:
    """Returns the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """A browser that runs for the duration of a `with` block."""

    def __init__(self, path: str) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [*AT_3_AND_4, path, *FLAGS, f"--user-data-dir={self._profile.name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._ids = itertools.count(1)
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._pages: dict[str, Page] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(PATIENCE)
        self._stdin.close()
        self._stdout.close()
        self._profile.cleanup()

    @contextlib.contextmanager
    def page(self, width: int = 1200, height: int = 900) -> Iterator[Page]:
        """Opens a tab that shares nothing with others."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)
        session = self.send("Target.attachToTarget", flatten=True, **target)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            page.send(f"{domain}.enable")
        page.resize(width, height)
        yield page
        self.send("Target.disposeBrowserContext", browserContextId=context)

    def send(self, method: str, session: str | None = None, /, **parameters: Any) -> Any:
        """Sends a command and returns its result. Events that arrive meanwhile go to their page."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._stdin.write(json.dumps(message).encode() + b"\0")
        self._stdin.flush()
        until = time.monotonic() + PATIENCE
        while (answer := self._next(method, until)).get("id") != number:
            if page := self._pages.get(answer.get("sessionId", "")):
                page.note(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self, method: str, until: float) -> dict[str, Any]:
        try:
            message = self._messages.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"{method}: no answer in {PATIENCE:g} s") from None
        assert message is not None, f"{method}: Chromium has ended"
        return message

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._stdout.fileno(), 1 << 16):
            *whole, rest = (rest + chunk).split(b"\0")
            for message in whole:
                self._messages.put(json.loads(message))
        self._messages.put(None)


class Page:
    """A tab."""

    def __init__(self, chromium: Chromium, session: str) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._choosers: list[dict[str, Any]] = []
        self._chromium = chromium
        self._session = session

    def send(self, method: str, **parameters: Any) -> Any:
        return self._chromium.send(method, self._session, **parameters)

    def open(self, url: str) -> None:
        """Opens a URL. Returns when the page and its initial requests have loaded."""
        assert "errorText" not in self.send("Page.navigate", url=url), url
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression, or of a promise once it is fulfilled."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Waits until an expression is truthy, and returns its value."""
        until = time.monotonic() + PATIENCE
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < until, f"never: {expression}"
            time.sleep(0.03)
        return value

    def texts(self, selector: str) -> list[str]:
        """Returns the visible text of each element that matches."""
        found: list[str] = self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)"
        )
        return found

    def click(self, selector: str) -> None:
        """Clicks the center of an element with the mouse, as soon as it exists."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.wait_for(f"!!{element}")
        self.evaluate(f"{element}.scrollIntoView({{ block: 'center', behavior: 'instant' }})")
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def choose(self, selector: str, *files: pathlib.Path) -> None:
        """Chooses files for an <input type=file>."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drop(self, selector: str, *files: pathlib.Path) -> None:
        """Drags files onto an element."""
        x, y = self._middle(selector)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, name: str) -> None:
        key, code, text = KEYS[name]
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    @contextlib.contextmanager
    def choosing(self, *files: pathlib.Path) -> Iterator[None]:
        """Expects a file chooser in the block, and answers it with these files."""
        self.send("Page.setInterceptFileChooserDialog", enabled=True)
        yield
        until = time.monotonic() + PATIENCE
        while not self._choosers:
            assert time.monotonic() < until, "no file chooser"
            self.evaluate("1")
        node = self._choosers.pop()["backendNodeId"]
        paths = [str(file) for file in files]
        self.send("DOM.setFileInputFiles", backendNodeId=node, files=paths)

    def resize(self, width: int, height: int, scale: float = 1.0, mobile: bool = False) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )

    def prefer(self, **features: str) -> None:
        """Sets media features of the user, such as prefers_color_scheme="dark"."""
        chosen = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.send("Emulation.setEmulatedMedia", features=chosen)

    def screenshot(self) -> bytes:
        """Returns the whole page as PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        answer = self.send(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1}
        )
        return base64.b64decode(answer["data"])

    def _middle(self, selector: str) -> tuple[float, float]:
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        return x, y

    def note(self, event: dict[str, Any]) -> None:
        """Records an event."""
        told = event["params"]
        match event["method"]:
            case "Network.requestWillBeSent":
                url = told["request"]["url"]
                if not url.startswith(("data:", "blob:")):
                    self.requests.append(url)
            case "Page.fileChooserOpened":
                self._choosers.append(told)
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.complaints.append(json.dumps(told["entry"]))
