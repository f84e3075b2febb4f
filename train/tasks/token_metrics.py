"""What is measured of a model that fills in tokens: while it trains, and on tokens that are held out."""

import contextlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.launch import Processes
from train.data.batches import TokenBatches
from train.run.metrics import Metrics

RATIO_BINS = 5  # the loss is also reported for mask ratios 0 to .2, .2 to .4, ...
_AT_RATIOS = [f"loss_at_ratio_{(i + 1) / RATIO_BINS:.1f}" for i in range(RATIO_BINS)]
NAMES = ("loss", "accuracy", *_AT_RATIOS)
PREFIX = "eval_"


def sums(loss: Tensor, correct: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weighted sums and weights, each float64 [len(NAMES)], for `Metrics.add`.

    Args:
      loss, correct: of every sample [b], see `masked_tokens.MaskedLoss`.
      batch: with `masked` bool [b, n] and `ratio` float32 [b].
    """
    bins = (batch["ratio"] * RATIO_BINS).ceil().long().clamp(1, RATIO_BINS) - 1
    in_bin = F.one_hot(bins, RATIO_BINS).to(torch.float64)  # [b, RATIO_BINS]
    loss = loss.double()
    head = torch.stack([loss.sum(), correct.sum().double()])
    counts = torch.stack([torch.full_like(head[0], len(loss)), batch["masked"].sum().double()])
    return torch.cat([head, loss @ in_bin]), torch.cat([counts, in_bin.sum(0)])


class HeldOut:
    """The metrics on tokens that are not trained on, under the same masks whenever they are asked for.

    The masks depend on nothing but an image's place and the way a run masks, so that what two steps or two
    runs differ by is their weights alone. No label is dropped.

    Args:
      batches: of the held-out images, with masks; see `train.data.batches.open_held_out`.
      processes: this process and its peers, which share the work.
    """

    def __init__(self, batches: TokenBatches, processes: Processes):
        self.batches, self.processes = batches, processes
        self.num_images = batches.order.num_images

    @torch.no_grad()
    def scores(
        self,
        loss: nn.Module,
        inputs: tuple[str, ...],
        context: Callable[[], contextlib.AbstractContextManager],
    ) -> dict[str, float]:
        """Means over all held-out images; called by all processes together.

        Args:
          loss: a `MaskedLoss` with the weights to look at, in evaluation mode.
          inputs: what of a batch it takes beside the codes.
          context: makes what every batch is computed in: the precision.

        Returns:
          "eval_loss", "eval_accuracy", "eval_loss_at_ratio_0.2", ...: defined as in training.
        """
        device, share = self.processes.device, self.batches.share
        metrics = Metrics(NAMES, device)
        for step in range(-(-self.num_images // share.batch_size)):
            rows = self.num_images - step * share.batch_size - share.rows.start
            if rows <= 0:  # the others' share ends the last batch
                break
            batch = {name: value[:rows].to(device) for name, value in self.batches[step].items()}
            with context():
                found = loss(batch["codes"], *(batch[name] for name in inputs))
            metrics.add(*sums(*found, batch))
        found = metrics.take(self.processes)
        return {PREFIX + name: value for name, value in found.items()}
