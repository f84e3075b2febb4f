"""A trace of some steps of a run, for Perfetto or chrome://tracing."""

import re
from pathlib import Path

import ml_collections
import torch
from torch.profiler import ProfilerActivity, profile

from maskgit_pt.launch import Processes

_WINDOW = re.compile(r"(\d+)-(\d+)")


def window(config: ml_collections.ConfigDict) -> range:
    """The steps that `config.profile_steps` names, counted from 0; empty for "".

    Raises:
      ValueError: it is no window.
    """
    text = config.profile_steps
    match = _WINDOW.fullmatch(text)
    if not text:
        return range(0)
    if not match or int(match[1]) > int(match[2]):
        raise ValueError(f"config.profile_steps is {text!r}; accepted: FIRST-LAST, e.g. 10-15")
    return range(int(match[1]), int(match[2]) + 1)


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses a `config.profile_steps` that is no window; ValueError."""
    window(config)


class Profile:
    """Profiles a window of steps and writes one file a process.

    Args:
      config: of the run.
      run: its folder.
      processes: this process and its peers.
    """

    def __init__(self, config: ml_collections.ConfigDict, run: Path, processes: Processes):
        self.window = window(config)
        self.path = run / "profile" / f"rank{processes.rank}_steps{config.profile_steps}.json.gz"
        self._activities = [ProfilerActivity.CPU]
        if processes.device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Starts at the window's first step, or in its middle if the run begins there."""
        if step in self.window and self._profile is None:
            self._profile = profile(activities=self._activities, record_shapes=True)
            self._profile.start()

    def after(self, step: int) -> None:
        """Writes the file after the window's last step."""
        if self._profile is not None and step >= self.window[-1]:
            self.close()

    def close(self) -> None:
        """Writes what was profiled, if anything was; also for a run that ends in the window."""
        if self._profile is None:
            return
        if ProfilerActivity.CUDA in self._activities:
            torch.cuda.synchronize()
        self._profile.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.path))
        self._profile = None
