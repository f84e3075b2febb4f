"""The demo's commands: each is run once, timed, and taken up again if it was interrupted."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskgit_pt.files import write_atomically
from maskgit_pt.progress import duration

STATE_NAME = "demo.json"
MODULES = {
    "maskgit-classifier": "train.classifier",
    "maskgit-train": "train",
    "maskgit-export": "train.export",
    "maskgit-tokenize": "train.tokenize",
    "maskgit-sample": "maskgit_pt.sample",
    "maskgit-evaluate": "train.evaluate",
    "maskgit-plot": "train.plot",
}
Command = list[str]


def run(command: Command) -> int:
    """Runs a command of the project, written as one would type it; returns its exit code."""
    launcher, rest = command[: -len(_own(command))], _own(command)
    module = ["-m", MODULES[rest[0]]]
    safe = ["-P"] if sys.flags.safe_path else []  # a folder `train` of the user's is not meant
    if launcher:
        processes = [word for word in launcher[1:] if word != "--no-python"]
        module = ["-m", "torch.distributed.run", *processes, *module]
    return subprocess.run([sys.executable, *safe, *module, *rest[1:]]).returncode


def _own(command: Command) -> Command:
    """A command without the torchrun in front of it."""
    return command[next(i for i, word in enumerate(command) if word in MODULES) :]


def spread(command: Command, processes: int) -> Command:
    """The command for several processes on this machine."""
    if processes == 1:
        return command
    return ["torchrun", f"--nproc_per_node={processes}", "--no-python", *command]


class Stages:
    """What has been done in a demo's folder.

    Args:
      folder: of the demo; made.
      asked: the settings that decide the result; a folder that was begun with others is refused.
      clock: gives the time in seconds.

    Attributes:
      done: stage -> {"commands": as typed, "seconds": of all attempts, "whole": whether it is done, and what
        else was noted}, in the order of their beginning.

    Raises:
      ValueError: the folder holds a demo with other settings, or something else.
    """

    def __init__(
        self, folder: Path, asked: dict[str, Any], clock: Callable[[], float] = time.perf_counter
    ):
        self.folder, self.clock = folder, clock
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / STATE_NAME
        self.done: dict[str, dict[str, Any]] = {}
        self.asked = json.loads(json.dumps(asked))
        if self.path.exists():
            self._take_up()
        elif any(folder.iterdir()):
            raise ValueError(f"{folder} holds something else than a demo; name another --output")
        self._write()

    def _take_up(self) -> None:
        try:
            stored = json.loads(self.path.read_text("utf-8"))
            asked, self.done = dict(stored["asked"]), dict(stored["stages"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: damaged ({error}); remove the folder") from None
        for name, value in self.asked.items():
            if asked.get(name) != value:
                raise ValueError(
                    f"{self.folder} holds a demo with {name} {asked.get(name)!r}, now it is {value!r}; "
                    "continue with the same settings, or name another --output"
                )

    @property
    def seconds(self) -> float:
        """Of everything so far, in all attempts."""
        return sum(stage["seconds"] for stage in self.done.values())

    def rows(self) -> list[tuple[str, str, list[str]]]:
        """For the page: each stage, how long it took, and its commands."""
        return [
            (name, duration(stage["seconds"]), stage["commands"])
            for name, stage in self.done.items()
        ]

    def whole(self, name: str) -> bool:
        """Whether a stage is done."""
        return self.done.get(name, {}).get("whole", False)

    def commands(self, name: str, *commands: Command) -> None:
        """Runs the commands of a stage, unless they have been run.

        Raises:
          ValueError: one of them failed; its own message stands above.
        """

        def work() -> dict[str, Any]:
            for command in commands:
                print(f"$ {shlex.join(command)}", flush=True)
                if run(command):
                    raise ValueError("the command above failed; see its message")
            return {}

        self.work(name, work, [shlex.join(command) for command in commands])

    def work(
        self, name: str, function: Callable[[], dict[str, Any]], commands: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Calls `function` unless the stage is done; returns what it gave (JSON), or gave then."""
        stage = self.done.setdefault(name, {"seconds": 0.0, "whole": False})
        stage["commands"] = list(commands)
        if stage["whole"]:
            return stage["noted"]
        begin, before = self.clock(), stage["seconds"]
        try:
            stage["noted"] = function()
            stage["whole"] = True
        finally:
            stage["seconds"] = round(before + self.clock() - begin, 2)
            self._write()
        return stage["noted"]

    def _write(self) -> None:
        text = json.dumps({"asked": self.asked, "stages": self.done}, indent=2) + "\n"
        write_atomically(self.path, text.encode())
