"""Stage 2: the transformer learns to fill in masked tokens (Chang et al. 2022, section 3.2)."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import ml_collections
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from maskgit_pt import imagenet, pipeline, utils
from maskgit_pt.launch import Processes
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.pretrained import load_any
from train import settings
from train.configs import defaults
from train.data import batches as data
from train.data.tokens import tokenizer_fingerprint
from train.run import distributed, profiles
from train.run.metrics import Metrics
from train.run.state import TrainState, whole_weights
from train.tasks import kernels, networks, optimizers
from train.tasks.base import Task

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
        return self.compare(logits, codes, masked)

    def compare(self, logits: Tensor, codes: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, n, K] -> what `forward` returns."""
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


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Where the tokens of a run come from.

    Attributes:
      batches: with masks; from token shards, or of images that are still to be tokenized.
      tokenizer: None if the run has none: then there are no pictures.
      num_codes: K.
      num_tokens: n, of an image.
      class_names: of the classes, as the model keeps them; None: mere numbers, or ImageNet's.
    """

    batches: data.Batches
    tokenizer: nn.Module | None
    num_codes: int
    num_tokens: int
    class_names: list[str] | None = None

    @classmethod
    def open(cls, config: ml_collections.ConfigDict, processes: Processes) -> Self:
        """Opens what the settings name; errors as `Task`."""
        tokenizer = _load_tokenizer(config, processes.device)
        if config.data.images:
            num_tokens = (config.image_size // tokenizer.downsampling) ** 2
            batches = data.open_images(config, processes, num_tokens)
            names = _class_names(batches.collection.class_names, config.num_class)
            return cls(batches, tokenizer, len(tokenizer.get_codebook_funct()), num_tokens, names)
        batches = data.open_tokens(config, processes)
        shards = batches.shards
        if tokenizer is not None:
            shards.require(tokenizer=tokenizer_fingerprint(tokenizer))
        names = _class_names(shards.class_names, config.num_class)
        return cls(batches, tokenizer, shards.codebook_size, shards.num_tokens, names)


class MaskedTokens(Task):
    """Stage 2 as a task; see `Task`. Networks that learn to fill in tokens in another way are subclasses.

    Attributes:
      tokens: where they come from.
      model: the transformer.
      average: its moving average, or None.
      loss_class: the model with its loss, see `MaskedLoss`.
      loss_inputs: what of a batch the loss takes beside the codes.
    """

    loss_class = MaskedLoss
    loss_inputs = ("masked", "labels")

    def __init__(self, config: ml_collections.ConfigDict, processes: Processes):
        self.check(config)
        super().__init__(config, processes)
        self.tokens = Tokens.open(config, processes)
        self.batches, self.tokenizer = self.tokens.batches, self.tokens.tokenizer
        self.work_per_image = _work_per_image(config, self.tokens)
        torch.manual_seed(config.seed)
        self.model = self.make_model(config, self.tokens)
        self.model.class_names = self.tokens.class_names
        self.model.image_size = config.image_size
        if config.init_from:
            networks.start_from(self.model, config.init_from)
        self.prepare_model()
        _check_sampling(config, self.model, self.tokenizer)
        self.average = self._make_average() if config.polyak_decay > 0 else None
        self._loss = self._spread(self.model.to(processes.device))
        self.optimizer = optimizers.make_adamw(self.model, config.optimizer)
        ratios = [f"loss_at_ratio_{(i + 1) / RATIO_BINS:.1f}" for i in range(RATIO_BINS)]
        self.metrics = Metrics(["loss", "accuracy", "grad_norm", *ratios], processes.device)
        averages = {NAME: self.average.model} if self.average else {}
        self.state = TrainState(
            {NAME: self.model}, averages, {NAME: self.optimizer}, self.metrics.sums
        )

    @classmethod
    def describe(
        cls, config: ml_collections.ConfigDict, processes: Processes
    ) -> tuple[dict[str, object], float]:
        """See `Task.describe`."""
        cls.check(config)
        tokens = Tokens.open(config, processes)
        with torch.device("cpu" if config.init_from else "meta"):
            model = cls.make_model(config, tokens)
        if config.init_from:
            networks.start_from(model, config.init_from)
        _check_sampling(config, model, tokens.tokenizer)
        parameters = sum(p.numel() for p in model.parameters())
        order, work = tokens.batches.order, _work_per_image(config, tokens)
        memory = networks.memory_of_training(config, tokens.num_codes, tokens.num_tokens)
        return {
            "parameters": f"{parameters:,}",
            "images": f"{order.num_images:,} x {order.crops} crops",
            "classes": f"{config.num_class}, {_called(tokens.class_names)}",
            "tokens an image": f"{tokens.num_tokens} of {tokens.num_codes} codes",
            "steps an epoch": f"{order.num_images / config.batch_size:,.1f}",
            "work an image": f"{work / 1e9:.1f} GFLOP",
            "memory (modelled)": f"{memory.fixed / 1e9:.2f} GB and {memory.an_image / 1e9:.2f} GB an image",
        }, work

    @classmethod
    def check(cls, config: ml_collections.ConfigDict) -> None:
        """Refuses settings out of range; ValueError names the field."""
        check(config)

    @classmethod
    def make_model(cls, config: ml_collections.ConfigDict, tokens: Tokens) -> nn.Module:
        """The untrained network of the settings."""
        return networks.make_model(config, tokens.num_codes, tokens.num_tokens)

    def prepare_model(self) -> None:
        """What is left to do to the new model before it is trained."""

    def _make_average(self) -> optimizers.Average:
        average = self.make_model(self.config, self.tokens)
        average.load_state_dict(self.model.state_dict())
        average.to(self.processes.device)
        if self.config.parallel == "fsdp":
            self._spread(average)
        return optimizers.Average(average, self.config.polyak_decay)

    def _spread(self, model: nn.Module) -> nn.Module:
        config = self.config
        loss = self.loss_class(
            model, self.tokens.num_codes, config.label_smoothing, config.compute_loss_for_all
        ).train()
        kernels.prepare(model, config)
        if config.compile:
            loss.compare = torch.compile(loss.compare, **kernels.compile_options(config))
        return distributed.parallelize(loss, kernels.layers(model), self.processes, config.parallel)

    def step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """See `Task.step`."""
        device = self.processes.device
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        codes = batch["codes"] if "codes" in batch else self._tokenize(batch["pixels"])
        loss, correct = self.backward(codes, *(batch[name] for name in self.loss_inputs))
        norm = self.update(NAME, self.optimizer, self.learning_rate(step))
        if self.average:
            self.average.update(self.model, step)
        self._count(loss, correct, batch, norm)
        return loss.sum() + norm

    def backward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Adds up the gradients of a batch, in at most `accumulation_steps` parts.

        Args:
          *inputs: the codes and the other `loss_inputs`, see `MaskedLoss.forward`.

        Returns:
          loss and correct tokens of every sample, [B], detached.
        """
        parts = self.config.accumulation_steps
        pieces = list(zip(*(value.chunk(parts) for value in inputs), strict=True))
        device, b = inputs[0].device, len(inputs[0])
        results = []
        for number, piece in enumerate(pieces, 1):
            with distributed.without_gradient_sync(self._loss, number == len(pieces)):
                with self.autocast(), kernels.attention(self.config.attention, device):
                    loss, correct = self._loss(*piece)
                (loss.sum() / b).backward()
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

    def learning_rate(self, step: int) -> float:
        """Of this step, for the log."""
        return optimizers.learning_rate(self.config.optimizer, step, self.config.num_train_steps)

    def pictures(self) -> dict[str, Image.Image]:
        """Samples, and tokens filled in, by the averaged weights; none without a tokenizer."""
        if self.tokenizer is None:
            return {}
        weights = whole_weights(self.average.model if self.average else self.model)
        if not self.processes.is_main:
            return {}
        model = self.make_model(self.config, self.tokens)
        model.load_state_dict(weights)
        maskgit = pipeline.MaskGIT(model.to(self.processes.device), self.tokenizer)
        batch = self.batches[0]
        codes = (
            batch["codes"]
            if "codes" in batch
            else self._tokenize(batch["pixels"].to(self.processes.device))
        )
        return {
            "samples": _samples(maskgit, self.config),
            "filled_in": _filled_in(maskgit, codes, batch["labels"], batch["masked"]),
        }


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings out of range; ValueError names the field."""
    check_common(config, defaults.get_config(), networks.MODELS)
    settings.check_range(config, "num_class", 1)


def check_common(
    config: ml_collections.ConfigDict, known: ml_collections.ConfigDict, models: Sequence[str]
) -> None:
    """Checks what all tasks on masked tokens have in common; errors as `check`.

    Args:
      config: of the run.
      known: the task's defaults.
      models: the networks that the task trains.
    """
    settings.check_fields(config, known)
    settings.check_choice(config, "model", models)
    settings.check_range(config, "timeout_minutes", 0.1)
    settings.check_choice(config, "precision", ("bfloat16", "float32"))
    settings.check_choice(config, "parallel", distributed.PARALLEL)
    kernels.check(config)
    profiles.check(config)
    settings.check_choice(config, "optimizer.decay", optimizers.DECAYS)
    settings.check_choice(config, "optimizer.lr_schedule", optimizers.SCHEDULES)
    for name in ("batch_size", "accumulation_steps", "num_train_steps", "samples_per_mask_ratio",
                 "log_every_steps", "checkpoint_every_steps", "keep_checkpoints"):  # fmt: skip
        settings.check_range(config, name, 1)
    for name in ("label_drop_rate", "label_smoothing", "min_masking_rate", "polyak_decay"):
        settings.check_range(config, name, 0, 1)
    for name in ("lr", "weight_decay", "clip_norm", "warmup_steps", "lr_min"):
        settings.check_range(config, f"optimizer.{name}", 0)


def _work_per_image(config: ml_collections.ConfigDict, tokens: Tokens) -> float:
    return networks.work_per_image(config, tokens.num_codes, tokens.num_tokens)


def _check_sampling(
    config: ml_collections.ConfigDict, model: nn.Module, tokenizer: nn.Module | None
) -> None:
    """Tries the settings of the pictures now rather than thousands of steps later."""
    if tokenizer is None:
        return
    try:
        pipeline.MaskGIT(model, tokenizer).decoding(**config.sampling.to_dict())
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.sampling, config.tokenizer: {error}") from None


def _class_names(found: list[str], num_class: int) -> list[str] | None:
    """What the model keeps of the data's class names; classes without data are called by their number."""
    if num_class == 0:
        return None
    return imagenet.stored_names([*found, *map(str, range(len(found), num_class))])


def _called(names: list[str] | None) -> str:
    if names is None:
        return "without names but ImageNet's"
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


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


def _samples(model: pipeline.MaskGIT, config: ml_collections.ConfigDict) -> Image.Image:
    """A grid of generated images; the same noise every time.

    Args:
      model: with the weights to show.
      config: of the run: how many, of which classes, by which settings.
    """
    count, classes = config.eval_show_num, max(1, config.num_class)
    labels = [i * classes // count for i in range(count)]
    if classes < count:
        labels = [i % classes for i in range(count)]
    result = model.generate(labels, seed=config.seed, **config.sampling.to_dict())
    return utils.visualize_images(result.images, columns=min(8, count))


@torch.inference_mode()
def _filled_in(
    model: pipeline.MaskGIT, codes: Tensor, labels: Tensor, masked: Tensor, count: int = 8
) -> Image.Image:
    """Rows of: the image as the tokenizer gives it back, what the model sees of it, its most likely
    completion in one step.

    Args:
      model: with the weights to show.
      codes: int64 [B, n].
      labels: int64 [B].
      masked: bool [B, n].
      count: how many to show.
    """
    codes, labels, masked = (v[:count].to(model.device) for v in (codes, labels, masked))
    logits = model.transformer.code_logits(codes.where(~masked, -1), labels, model.num_codes)
    guess = torch.where(masked, logits[..., : model.num_codes].argmax(-1), codes)
    grid = (len(codes), model.side, model.side)
    whole = model.tokens_to_images(codes.view(grid))
    patch = model.image_size // model.side
    visible = (~masked).view(grid)[:, None].repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    seen = torch.where(visible.cpu(), whole, 0.5)
    rows = torch.cat([whole, seen, model.tokens_to_images(guess.view(grid))])
    return utils.visualize_images(rows, columns=len(codes))
