"""The end of a run whose held-out loss no longer falls (`config.early_stop_evals`)."""

from pathlib import Path

import ml_collections

from maskgit_pt.launch import Processes
from train.run.metrics import read_metrics

_METRIC = "eval_loss"


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings with which the best checkpoint would be lost, or that hold nothing out.

    Raises:
      ValueError: names the field.
    """
    patience, every = config.early_stop_evals, config.eval_every_steps
    if not patience:
        return
    if not (config.data.eval_tokens or config.data.eval_share) or not every:
        raise ValueError(
            f"config.early_stop_evals is {patience}; accepted: 0, or with config.data.eval_tokens or "
            "config.data.eval_share, and config.eval_every_steps"
        )
    between, rest = divmod(every, config.checkpoint_every_steps)
    if rest or config.keep_checkpoints <= patience * between:
        raise ValueError(
            f"config.early_stop_evals is {patience} with {config.keep_checkpoints} checkpoints kept, one "
            f"every {config.checkpoint_every_steps} steps: the best of the evaluations, one every {every} "
            f"steps, would be lost; accepted: config.checkpoint_every_steps {every} and "
            f"config.keep_checkpoints {patience + 1} or more"
        )


def best_step(run: Path, config: ml_collections.ConfigDict) -> int | None:
    """The step with the least held-out loss, once `early_stop_evals` evaluations since were no better.

    None: the run is to go on. It follows from the run's metrics alone, so that a resumed run stops as well.
    """
    patience = config.get("early_stop_evals", 0)
    if not patience:
        return None
    found = [(line[_METRIC], line["step"]) for line in read_metrics(run) if _METRIC in line]
    best = min(range(len(found)), key=lambda i: found[i], default=0)
    return found[best][1] if len(found) > best + patience else None


def is_over(run: Path, config: ml_collections.ConfigDict, processes: Processes) -> bool:
    """`best_step` for all processes together: whether to stop."""
    return processes.any(processes.is_main and best_step(run, config) is not None)
