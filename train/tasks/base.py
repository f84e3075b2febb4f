"""What the training loop needs of a task."""

import abc
from collections.abc import Iterator

import ml_collections
import torch
from PIL import Image
from torch import Tensor

from maskgit_pt.launch import Processes
from train.data import batches as data
from train.data import loading
from train.run.metrics import Metrics
from train.run.state import TrainState
from train.tasks import one_pass, optimizers


class Task(abc.ABC):
    """Networks, optimizers, batches and the step of a run: whole after construction.

    A subclass sets the attributes in its constructor; see `train.loop.TASKS` for those that there are.

    Args:
      config: of the run.
      processes: this process and its peers.

    Attributes:
      batches: item s is this process's share of the batch of step s.
      state: what a checkpoint holds.
      metrics: means since the last log line; `step` adds to them.
      work_per_image: floating-point operations of a step on one image, a multiply-add counted as two.

    Raises:
      FileNotFoundError, ValueError: data, weights or settings that do not fit.
    """

    batches: data.Batches
    state: TrainState
    metrics: Metrics
    work_per_image: float

    def __init__(self, config: ml_collections.ConfigDict, processes: Processes):
        self.config, self.processes = config, processes

    @classmethod
    @abc.abstractmethod
    def describe(
        cls, config: ml_collections.ConfigDict, processes: Processes
    ) -> tuple[dict[str, object], float]:
        """What `--dry_run` prints, and `work_per_image`; checks what the constructor would, but makes
        no networks."""

    @abc.abstractmethod
    def step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """One update of the weights.

        Args:
          batch: an item of `batches`.
          step: from 0.

        Returns:
          A scalar tensor that is finite if and only if this step was sound.
        """

    @abc.abstractmethod
    def learning_rate(self, step: int) -> float:
        """The rate of this step, for the log."""

    def load(self, first_step: int, last_step: int) -> Iterator[dict[str, Tensor]]:
        """This process's batches of the steps first_step ... last_step - 1."""
        pin = self.processes.device.type == "cuda"
        return loading.load(self.batches, first_step, last_step, self.config.data.num_workers, pin)

    def about_batch(self, step: int) -> dict[str, list[int]]:
        """Which images the global batch of a step holds."""
        share = data.Share(self.config.batch_size)
        images, crops, epochs = self.batches.order.at(step, share)
        return {"images": images.tolist(), "crops": crops.tolist(), "epochs": epochs.tolist()}

    def scores(self) -> dict[str, float]:
        """Scores on held-out data, if the task has any; called by all processes together."""
        return {}

    def pictures(self) -> dict[str, Image.Image]:
        """Pictures of how far the run has come, in the main process; called by all processes."""
        return {}

    def autocast(self) -> torch.autocast:
        """The precision of the settings: bfloat16 where it is safe, or float32."""
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=enabled)

    def update(
        self, name: str, rate: float, step: int, average: optimizers.Average | None = None
    ) -> Tensor:
        """Clips a network's gradients, takes an optimizer step, clears them, and moves the average along.

        Returns:
          The norm of the gradients before they were clipped, a scalar tensor.
        """
        model, optimizer = self.state.models[name], self.state.optimizers[name]
        max_norm = self.config.optimizer.clip_norm
        optimizers.set_learning_rate(optimizer, rate)
        if one_pass.suits(self.config, self.processes.device):
            norm = one_pass.update(model, optimizer, average, max_norm, step)
        else:
            norm = optimizers.clip_gradients(model.parameters(), max_norm)
            optimizer.step()
            if average:
                average.update(model, step)
        optimizer.zero_grad(set_to_none=True)
        return norm
