"""Everything that a GPU is asked, in one command:

    python -m pytest -m gpu -q -s tests/gpu

A table comes at the end, and one line of JSON after it. MASKGIT_PT_GPU_SECONDS (default 480) is how long all
parts together may take; what is left then is skipped.
"""

import dataclasses
import json
import os
import time

import pytest
import torch
from gpu_parts import PARTS, run_part
from gpu_tools import FULL, Figures
from gpu_worker import Worker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
]


class _Session:
    """The worker, the time left, and what was found so far."""

    def __init__(self):
        self.worker = Worker()
        self.budget = float(os.environ.get("MASKGIT_PT_GPU_SECONDS", 480))
        self.end = time.monotonic() + self.budget
        self.found: dict[str, dict] = {}

    def tell(self) -> None:
        """Prints the table and the line."""
        print("\n")
        for name, part in self.found.items():
            print(f"{name}: {part['state']}, {part.get('seconds', 0):.0f} s")
            for figure, value in part.get("figures", {}).items():
                print(f"  {figure:<64} {_short(value)}")
            for sentence in part.get("wrong", []):
                print(f"  WRONG: {sentence}")
        print(json.dumps(self.found, default=str))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@pytest.fixture(scope="module")
def session():
    session = _Session()
    yield session
    session.worker.stop()
    session.tell()


@pytest.mark.parametrize("name", PARTS)
def test_part(name, session, tmp_path):
    left = session.end - time.monotonic()
    if left < 5:
        session.found[name] = {"state": "left out"}
        pytest.skip(f"the budget of {session.budget:.0f} s is used up")
    start = time.monotonic()
    found = session.found[name] = {"state": "failed"}
    try:
        limit = min(left, PARTS[name].seconds)
        notes = tmp_path / "figures"
        report = session.worker.call(run_part, name, "cuda", FULL, notes, seconds=limit)
    except (RuntimeError, TimeoutError) as error:
        found |= {"figures": Figures.noted(notes), "wrong": [str(error)]}
        raise
    finally:
        found["seconds"] = time.monotonic() - start
    found |= dataclasses.asdict(report)
    assert not report.wrong, "; ".join(report.wrong)
    found["state"] = "passed"
