"""Stage 2: the transformer learns to fill in masked tokens (Chang et al. 2022, section 3.2)."""

from collections.abc import Iterator

import ml_collections
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from maskgit_pt import pipeline
from maskgit_pt.launch import Processes
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.pretrained import load_any
from train import settings
from train.configs import defaults
from train.data import batches as data
from train.data.tokens import tokenizer_fingerprint
from train.run import distributed
from train.run.metrics import Metrics
from train.run.state import TrainState, whole_weights
from train.tasks import networks, optimizers, pictures

NAME = "transformer"
RATIO_BINS = 5  # the loss is also reported for mask ratios 0 to .2, .2 to .4, ...


class MaskedLoss(nn.Module):
    """The transformer with its training loss: what is compiled and spread over processes.

    Args:
      model: the transformer.
      num_codes: K.
      label_smoothing: in [0, 1].
      all_tokens: whether known tokens count as well.
    """

    def __init__(
        self,
        model: Transformer | BesnierTransformer,
        num_codes: int,
        label_smoothing: float,
        all_tokens: bool,
    ):
        super().__init__()
        self.model = model
        self.num_codes = num_codes
        self.label_smoothing = label_smoothing
        self.all_tokens = all_tokens

    def forward(self, codes: Tensor, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Masks, predicts and compares.

        The logits are cut to the codes before the loss, as the authors' later trainer does: a masked
        position is never a class.

        Args:
          codes: int64 [B, n], the image.
          masked: bool [B, n], what the model does not see.
          labels: int64 [B], -1 where dropped.

        Returns:
          loss float32 [B]: the mean over each sample's masked tokens (official
          `weighted_sequence_cross_entropy_loss` before its mean over the batch); and int64 [B], how
          many masked tokens the most likely code gets right.
        """
        logits = self.model.code_logits(torch.where(masked, -1, codes), labels, self.num_codes)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(
            logits.flatten(0, 1),
            codes.flatten(),
            label_smoothing=self.label_smoothing,
            reduction="none",
        ).view_as(codes)  # [B, n]
        weights = torch.ones_like(loss) if self.all_tokens else masked.to(loss.dtype)
        correct = ((logits.detach().argmax(-1) == codes) & masked).sum(-1)
        return (loss * weights).sum(-1) / weights.sum(-1), correct


class MaskedTokens:
    """The task that the loop runs; see `train.loop`.

    Args:
      config: of the run.
      processes: this process and its peers.

    Raises:
      FileNotFoundError, ValueError: data, tokenizer or settings that do not fit.
    """

    def __init__(self, config: ml_collections.ConfigDict, processes: Processes):
        check(config)
        self.config, self.processes = config, processes
        self.tokenizer = _load_tokenizer(config, processes.device)
        if config.data.tokens:
            self.batches = data.open_tokens(config)
            shards = self.batches.shards
            self.num_codes, self.num_tokens = shards.codebook_size, shards.num_tokens
            if self.tokenizer is not None:
                shards.require(tokenizer=tokenizer_fingerprint(self.tokenizer))
        else:
            self.batches = data.open_images(config)
            self.num_codes = len(self.tokenizer.get_codebook_funct())
            self.num_tokens = (config.image_size // self.tokenizer.downsampling) ** 2
        self.batches.hide(config, self.num_tokens)
        self.batches.share = data.Share(config.batch_size, processes.rank, processes.world_size)
        self.work_per_image = networks.work_per_image(config, self.num_codes, self.num_tokens)

    def describe(self) -> dict[str, object]:
        """What `--dry_run` prints."""
        with torch.device("cpu" if self.config.init_from else "meta"):
            model = networks.make_model(self.config, self.num_codes, self.num_tokens)
        if self.config.init_from:
            networks.start_from(model, self.config.init_from)
        self._check_sampling(model)
        parameters = sum(p.numel() for p in model.parameters())
        images = self.batches.order.num_images
        return {
            "parameters": f"{parameters:,}",
            "images": f"{images:,} x {self.batches.order.crops} crops",
            "tokens an image": f"{self.num_tokens} of {self.num_codes} codes",
            "steps an epoch": f"{images / self.config.batch_size:,.1f}",
            "work an image": f"{self.work_per_image / 1e9:.1f} GFLOP",
        }

    def start(self) -> TrainState:
        """Makes networks, averages and optimizer, spread over the processes."""
        config, device = self.config, self.processes.device
        torch.manual_seed(config.seed)
        model = networks.make_model(config, self.num_codes, self.num_tokens)
        if config.init_from:
            networks.start_from(model, config.init_from)
        average = networks.make_model(config, self.num_codes, self.num_tokens)
        average.load_state_dict(model.state_dict())
        self._check_sampling(average)
        self._loss = self._spread(model.to(device))
        self.average = None
        if config.polyak_decay > 0:
            if config.parallel == "fsdp":
                self._spread(average.to(device))
            self.average = optimizers.Average(average.to(device), config.polyak_decay)
        self.model = model
        self.optimizer = optimizers.make_adamw(model, config.optimizer)
        ratios = [f"loss_at_ratio_{(i + 1) / RATIO_BINS:.1f}" for i in range(RATIO_BINS)]
        self.metrics = Metrics(["loss", "accuracy", "grad_norm", *ratios], device)
        averages = {NAME: self.average.model} if self.average else {}
        return TrainState({NAME: model}, averages, {NAME: self.optimizer}, sums=self.metrics.sums)

    def _check_sampling(self, model: nn.Module) -> None:
        """Tries the settings of the pictures now rather than thousands of steps later."""
        if self.tokenizer is None:
            return
        try:
            maskgit = pipeline.MaskGIT(model, self.tokenizer)
            maskgit.decoding(**self.config.sampling.to_dict())
        except (TypeError, ValueError) as error:
            raise ValueError(f"config.sampling, config.tokenizer: {error}") from None

    def _spread(self, model: nn.Module) -> nn.Module:
        config = self.config
        loss = MaskedLoss(
            model, self.num_codes, config.label_smoothing, config.compute_loss_for_all
        ).train()
        if config.compile:
            # One block, compiled once for all layers: gradients leave the backward pass block by block
            # and are reduced while it goes on.
            for block in model.blocks:
                block.compile(dynamic=False)
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        return distributed.parallelize(loss, model.blocks, self.processes, config.parallel, dtype)

    def load(self, first_step: int, last_step: int) -> Iterator[dict[str, Tensor]]:
        """This process's batches of these steps."""
        pin = self.processes.device.type == "cuda"
        return data.load(self.batches, first_step, last_step, self.config.data.num_workers, pin)

    def step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """One update of the weights.

        Args:
          batch: an item of `data.Batches`.
          step: from 0.

        Returns:
          A scalar tensor that is finite if and only if this step was sound.
        """
        config, device = self.config, self.processes.device
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        codes = batch["codes"] if "codes" in batch else self._tokenize(batch["pixels"])
        loss, correct = self.backward(codes, batch["masked"], batch["labels"])
        norm = optimizers.clip_gradients(self.model.parameters(), config.optimizer.clip_norm)
        rate = optimizers.learning_rate(config.optimizer, step, config.num_train_steps)
        optimizers.set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model, step)
        self._count(loss, correct, batch, norm)
        return loss.sum() + norm

    def backward(self, codes: Tensor, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Adds up the gradients of a batch, in at most `accumulation_steps` parts.

        Args:
          codes, masked, labels: see `MaskedLoss.forward`.

        Returns:
          loss and correct tokens of every sample, [B], detached.
        """
        parts = self.config.accumulation_steps
        pieces = list(zip(*(value.chunk(parts) for value in (codes, masked, labels)), strict=True))
        results = []
        autocast = torch.autocast(
            codes.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
        )
        for number, piece in enumerate(pieces, 1):
            with distributed.without_gradient_sync(self._loss, number == len(pieces)):
                with autocast:
                    loss, correct = self._loss(*piece)
                (loss.sum() / len(codes)).backward()
            results.append((loss.detach(), correct))
        losses, corrects = zip(*results, strict=True)
        return torch.cat(losses), torch.cat(corrects)

    @torch.no_grad()
    def _tokenize(self, pixels: Tensor) -> Tensor:
        """uint8 [b, 3, H, W] -> codes int64 [b, n]."""
        images = pixels.to(next(self.tokenizer.parameters()).dtype) / 255
        parts = [self.tokenizer.encode_to_indices(part).flatten(1) for part in images.split(64)]
        return torch.cat(parts)

    def _count(self, loss: Tensor, correct: Tensor, batch: dict, norm: Tensor) -> None:
        b = len(loss)
        bins = (batch["ratio"] * RATIO_BINS).ceil().long().clamp(1, RATIO_BINS) - 1
        in_bin = F.one_hot(bins, RATIO_BINS).to(torch.float64)  # [b, RATIO_BINS]
        # The norm is that of all processes' gradients: each counts it for its own samples.
        head = [loss.double().sum(), correct.sum().double(), norm.double() * b]
        counts = [torch.full_like(head[0], b), batch["masked"].sum().double()]
        counts.append(counts[0])
        values = torch.cat([torch.stack(head), loss.double() @ in_bin])
        self.metrics.add(values, torch.cat([torch.stack(counts), in_bin.sum(0)]))

    def about_batch(self, step: int) -> dict[str, list[int]]:
        """Which images the global batch of a step holds."""
        share = data.Share(self.config.batch_size)
        images, crops, epochs = self.batches.order.at(step, share)
        return {"images": images.tolist(), "crops": crops.tolist(), "epochs": epochs.tolist()}

    def learning_rate(self, step: int) -> float:
        """Of this step, for the log."""
        return optimizers.learning_rate(self.config.optimizer, step, self.config.num_train_steps)

    def scores(self) -> dict[str, float]:
        """Nothing: `train.sweep --study=training` scores the checkpoints of a run."""
        return {}

    def pictures(self) -> dict[str, Image.Image]:
        """Samples, and tokens filled in, by the averaged weights; called by all processes.

        Empty without a tokenizer, and in all processes but the main one.
        """
        if self.tokenizer is None:
            return {}
        weights = whole_weights(self.average.model if self.average else self.model)
        if not self.processes.is_main:
            return {}
        model = networks.make_model(self.config, self.num_codes, self.num_tokens)
        model.load_state_dict(weights)
        maskgit = pipeline.MaskGIT(model.to(self.processes.device), self.tokenizer)
        batch = self.batches[0]
        codes = (
            batch["codes"]
            if "codes" in batch
            else self._tokenize(batch["pixels"].to(self.processes.device))
        )
        return {
            "samples": pictures.samples(maskgit, self.config),
            "filled_in": pictures.filled_in(maskgit, codes, batch["labels"], batch["masked"]),
        }


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings out of range; ValueError names the field."""
    settings.check_fields(config, defaults.get_config())
    settings.check_choice(config, "model", networks.MODELS)
    settings.check_choice(config, "precision", ("bfloat16", "float32"))
    settings.check_choice(config, "parallel", distributed.PARALLEL)
    settings.check_choice(config, "optimizer.decay", optimizers.DECAYS)
    settings.check_choice(config, "optimizer.lr_schedule", optimizers.SCHEDULES)
    for name in ("batch_size", "accumulation_steps", "num_train_steps", "num_class",
                 "log_every_steps", "checkpoint_every_steps", "keep_checkpoints"):  # fmt: skip
        settings.check_range(config, name, 1)
    for name in ("label_drop_rate", "label_smoothing", "min_masking_rate", "polyak_decay"):
        settings.check_range(config, name, 0, 1)
    for name in ("lr", "weight_decay", "clip_norm", "warmup_steps", "lr_min"):
        settings.check_range(config, f"optimizer.{name}", 0)


def _load_tokenizer(config: ml_collections.ConfigDict, device: torch.device) -> nn.Module | None:
    if bool(config.data.tokens) == bool(config.data.images):
        raise ValueError(
            "config.data: name either tokens (a folder of maskgit-tokenize) or images; found "
            f"tokens={config.data.tokens!r}, images={config.data.images!r}"
        )
    if config.tokenizer:
        tokenizer = load_any(config.tokenizer, pipeline.TOKENIZERS, device=device)
        return tokenizer.requires_grad_(False)
    if config.data.images:
        raise ValueError("config.data.images needs config.tokenizer to make tokens of them")
    return None
