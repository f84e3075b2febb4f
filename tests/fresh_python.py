"""Fresh Python processes that have imported PyTorch and its like, and nothing of this project.

Importing PyTorch takes seconds, and is no part of what these processes test. A server imports it once and
forks; each process ends as Python does, with what is registered for its exit.
"""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SERVER = """
import json, os, signal, sys
import absl.flags, huggingface_hub.hub_mixin, ml_collections, safetensors.torch, torch, yaml

for line in sys.stdin:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    job = json.loads(line)
    for number, name in enumerate(("/dev/null", job["stdout"], job["stderr"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    signal.alarm(job["seconds"])
    sys.argv[1:] = job["arguments"]
    exec(job["code"], {"__name__": "__main__"})
    break
"""


@functools.cache
def _server() -> subprocess.Popen:
    command = [sys.executable, "-c", _SERVER]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)


def run(code: str, *arguments: object, seconds: int = 120) -> subprocess.CompletedProcess:
    """Runs code in the folder of the repository, as `python -c CODE ARGUMENTS` does.

    Returns:
      With `returncode`, and `stdout` and `stderr` as texts.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder, "stdout"), Path(folder, "stderr")
        job = {"code": code, "arguments": [str(one) for one in arguments], "seconds": seconds}
        job |= {"stdout": str(out), "stderr": str(error)}
        server = _server()
        print(json.dumps(job), file=server.stdin, flush=True)
        returned = int(server.stdout.readline())
        return subprocess.CompletedProcess(code, returned, out.read_text(), error.read_text())
