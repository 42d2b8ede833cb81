"""Pages in a headless Chromium, served from this machine, with a record of what they asked for."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


def chromium() -> str | None:
    """The path of Chromium; None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Server(ThreadingHTTPServer):
    """Serves a folder and some more files, and keeps what pages post to /result."""

    daemon_threads = True

    def __init__(self, folder: Path, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.files = files
        self.asked: list[str] = []
        self.result: str | None = None
        self.arrived = threading.Event()

    @property
    def url(self) -> str:
        """Address of the folder."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: Server
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".wasm": "application/wasm", ".js": "text/javascript"}

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        data = self.server.files.get(self.path.split("?")[0])
        if self.path == "/favicon.ico":
            data = b""
        if data is None:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        self.server.result = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.send_response(204)
        self.end_headers()
        self.server.arrived.set()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path, files: Mapping[str, bytes] | None = None) -> Iterator[Server]:
    """A server of `folder`, and of {path: bytes}."""
    server = Server(folder, files or {})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def visit(server: Server, page: str, profile: Path, *, log: Path | None = None, seconds: float = 120.0) -> str:
    """Open a page and return what it posts to /result. `log` receives what the page says to the console."""
    command = [chromium(), *OPTIONS, f"--user-data-dir={profile}", "--enable-logging=stderr", f"{server.url}/{page}"]
    with (log or profile.with_suffix(".log")).open("wb") as said:
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            assert server.arrived.wait(seconds), f"{page} gave no result in {seconds} s; it asked for {server.asked}"
        finally:
            browser.terminate()
            browser.wait()
    return server.result or ""


def show(server: Server, page: str, profile: Path) -> str:
    """Open a page without scripts, and return its document as Chromium made it. Requests to any host reach the server."""
    rules = f"--host-resolver-rules=MAP * 127.0.0.1:{server.server_port}"
    command = [chromium(), *OPTIONS[:-1], rules, f"--user-data-dir={profile}", "--dump-dom", f"{server.url}/{page}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=110).stdout
