"""The demo's model: trained on the first start, while a page shows how far it is."""

import collections
import dataclasses
import functools
import http.server
import io
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

_LINES = 12  # of the training's output, on the page
_PORTS = range(7860, 7960)  # as Gradio looks for a free one
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>maskgit studio</title>
<style>
body {font: 16px/1.5 system-ui, sans-serif; max-width: 46em; margin: 3em auto; padding: 0 1em; color: #27272a}
pre {background: #f4f4f5; border-radius: 8px; padding: 1em; overflow: auto; font-size: 13px;
  white-space: pre-wrap; overflow-wrap: anywhere}
</style>
<h1>maskgit studio</h1>
<p>A small model of handwritten digits is being trained on this machine. It takes some minutes, and only the
first time. Then the studio appears here by itself.</p>
<p id="state" role="status">Starting.</p>
<pre id="lines"></pre>
<script>
async function look() {
  try {
    const answer = await fetch("waiting.json", {cache: "no-store"});
    if (!answer.ok) return location.reload();
    const {seconds, lines} = await answer.json();
    state.textContent = `Training since ${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
    document.getElementById("lines").textContent = lines.join("\\n");
  } catch {
    state.textContent = "The server does not answer. If it does not come back, look at its terminal.";
  }
  setTimeout(look, 1000);
}
const state = document.getElementById("state");
look();
</script>
"""


@dataclasses.dataclass
class Waiting:
    """What the page shows: the end of a program's output, and since when it runs."""

    start: float = dataclasses.field(default_factory=time.monotonic)
    lines: collections.deque = dataclasses.field(
        default_factory=functools.partial(collections.deque, maxlen=_LINES)
    )

    def follow(self, output: IO[bytes]) -> None:
        """Reads the output to its end; shows it in the terminal too. A progress bar is one line."""
        replaced = False
        for line in io.TextIOWrapper(output, errors="replace", newline=""):  # ends at "\r" as well
            print(line, end="", flush=True)
            if text := line.strip():
                if replaced:
                    self.lines.pop()
                self.lines.append(text)
                replaced = line.endswith("\r")

    def as_json(self) -> bytes:
        """What the page asks for every second."""
        seconds = time.monotonic() - self.start
        return json.dumps({"seconds": seconds, "lines": list(self.lines)}).encode()


def free_port(host: str) -> int:
    """The first port from 7860 on that nobody listens on.

    Raises:
      OSError: there is none.
    """
    for port in _PORTS:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {_PORTS.start} to {_PORTS.stop - 1}; --port takes another")


def model(output: Path, host: str, port: int) -> Path:
    """Trains the digits by the project's own command, once; meanwhile serves a page that says so.

    Args:
      output: folder; the model stands in `demo` in it.
      host, port: where the page is served.

    Returns:
      The folder with `transformer` and `tokenizer`.

    Raises:
      ValueError: the training failed.
      OSError: the port is taken.
    """
    folder = output / "demo"
    if (folder / "report.json").is_file():
        return folder
    waiting = Waiting()
    with _Server((host, port), waiting):
        print(
            f"Training a small model of handwritten digits into {folder}. http://{host}:{port} shows how far "
            "it is, and becomes the studio.",
            flush=True,
        )
        output.mkdir(parents=True, exist_ok=True)
        # -P: a folder `train` of the user's is not meant.
        command = [sys.executable, "-P", "-u", "-m", "train.digits", f"--output={folder}"]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, **pipe) as process:
            waiting.follow(process.stdout)
    if process.returncode:
        raise ValueError("the demo model could not be trained; see the message above")
    return folder


class _Server(http.server.ThreadingHTTPServer):
    """Serves the page and what it asks for, in threads, until the `with` block ends."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], waiting: Waiting):
        super().__init__(address, _Handler)
        self.waiting = waiting

    def __enter__(self) -> "_Server":
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.partition("?")[0] == "/waiting.json":
            self._answer(self.server.waiting.as_json(), "application/json")
        else:
            self._answer(_PAGE.encode(), "text/html; charset=utf-8")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing: the terminal is the training's."""
