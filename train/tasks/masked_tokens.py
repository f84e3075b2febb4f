"""Stage 2: the transformer learns to fill in masked tokens (Chang et al. 2022, section 3.2)."""

import dataclasses
import sys
from collections.abc import Sequence

import ml_collections
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from maskgit_pt import pipeline
from maskgit_pt.launch import Processes
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.maskgit_transformer import Transformer
from train import settings
from train.configs import defaults
from train.run import distributed, early_stop, profiles
from train.run.metrics import Metrics
from train.run.state import TrainState, whole_weights
from train.tasks import kernels, networks, optimizers, starting, token_metrics, token_pictures
from train.tasks.base import Task
from train.tasks.token_source import Tokens

NAME = "transformer"


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
        config, self.tokens, start = self.open(config, processes)
        super().__init__(config, processes)
        self.batches, self.tokenizer = self.tokens.batches, self.tokens.tokenizer
        self.work_per_image = _work_per_image(config, self.tokens)
        torch.manual_seed(config.seed)
        self.model = self.make_model(config, self.tokens)
        self.model.class_names = networks.class_names(config, self.tokens.class_names)
        self.model.image_size = config.image_size
        self.model.tokenizer_fingerprint = self.tokens.fingerprint
        if start:
            starting.fill(self.model, start)
        self.prepare_model()
        self.held_out = self.tokens.open_held_out(config, processes)
        _check_sampling(config, self.model, self.tokenizer)
        self.average = self._make_average() if config.polyak_decay > 0 else None
        self._loss = self._spread(self.model.to(processes.device))
        self.optimizer = optimizers.make_adamw(self.model, config.optimizer)
        self._rates = None
        if start and config.optimizer.init_lr_scale != 1:
            self._rates = starting.LearningRates(
                self.model, self.optimizer, config.optimizer, start
            )
        self.metrics = Metrics([*token_metrics.NAMES, "grad_norm"], processes.device)
        averages = {NAME: self.average.model} if self.average else {}
        self.state = TrainState(
            {NAME: self.model}, averages, {NAME: self.optimizer}, self.metrics.sums
        )

    @classmethod
    def describe(
        cls, config: ml_collections.ConfigDict, processes: Processes
    ) -> tuple[dict[str, object], float]:
        """See `Task.describe`."""
        config, tokens, start = cls.open(config, processes)
        with torch.device("cpu" if start else "meta"):
            model = cls.make_model(config, tokens)
        if start:
            starting.fill(model, start)
        _check_sampling(config, model, tokens.tokenizer)
        parameters = sum(p.numel() for p in model.parameters())
        held_out = tokens.open_held_out(config, processes)
        order, work = tokens.batches.order, _work_per_image(config, tokens)
        memory = networks.memory_of_training(config, tokens.num_codes, tokens.num_tokens)
        return {
            "parameters": f"{parameters:,}",
            "images": f"{order.num_images:,} x {order.crops} crops",
            "classes": networks.describe_classes(config, tokens.class_names),
            "held out": f"{held_out.num_images:,} images" if held_out else "none",
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
    def open(
        cls, config: ml_collections.ConfigDict, processes: Processes
    ) -> tuple[ml_collections.ConfigDict, Tokens, starting.Start | None]:
        """Checks the settings, opens tokens and the weights to start from.

        Returns:
          The settings, completed by what both tell; tokens; and what to start from, None without `init_from`.
        """
        cls.check(config)
        trained, config = starting.load(config)
        tokens = Tokens.open(config, processes)
        start = None
        if trained is not None:
            start = starting.plan(trained, config, tokens)
            tokens.batches.classes = start.data_classes
            if processes.is_main:
                print(f"config.init_from: {start.describe()}", file=sys.stderr)
        names = start.class_names if start else tokens.data_classes
        config = starting.with_classes(config, names)
        return config, dataclasses.replace(tokens, class_names=names), start

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
        rate = self.learning_rate(step)
        if self._rates is None:
            norm = self.update(NAME, rate, step, self.average)
        else:  # which change the weights once more before they are averaged
            with self._rates.step():
                norm = self.update(NAME, rate, step)
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
        values, weights = token_metrics.sums(loss, correct, batch)
        # The norm is that of all processes' gradients: each counts it for its own samples.
        count = torch.full_like(values[:1], len(loss))
        self.metrics.add(torch.cat([values, norm.double() * count]), torch.cat([weights, count]))

    def scores(self) -> dict[str, float]:
        """Metrics on the held-out tokens by the averaged weights; see `token_metrics.HeldOut`."""
        if self.held_out is None:
            return {}
        model = self.average.model if self.average else self.model
        if self.config.parallel == "fsdp":
            weights = whole_weights(model, everywhere=True)
            model = self.make_model(self.config, self.tokens).to(self.processes.device)
            model.load_state_dict(weights)
        config, training = self.config, model.training
        loss = self.loss_class(
            model, self.tokens.num_codes, config.label_smoothing, config.compute_loss_for_all
        ).eval()
        try:
            return self.held_out.scores(loss, self.loss_inputs, self.autocast)
        finally:
            model.train(training)

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
            "samples": token_pictures.samples(maskgit, self.config),
            "filled_in": token_pictures.filled_in(maskgit, codes, batch["labels"], batch["masked"]),
        }


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings out of range; ValueError names the field."""
    check_common(config, defaults.get_config(), (*networks.MODELS, starting.AS_INIT))


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
    settings.check_ranges(config)
    settings.check_choice(config, "model", models)
    settings.check_choice(config, "precision", ("bfloat16", "float32"))
    settings.check_choice(config, "parallel", distributed.PARALLEL)
    kernels.check(config)
    profiles.check(config)
    settings.check_choice(config, "optimizer.decay", optimizers.DECAYS)
    settings.check_choice(config, "optimizer.lr_schedule", optimizers.SCHEDULES)
    early_stop.check(config)
    if config.parallel == "fsdp" and config.optimizer.init_lr_scale != 1:
        raise ValueError(
            f"config.optimizer.init_lr_scale is {config.optimizer.init_lr_scale} with config.parallel "
            "'fsdp'; accepted: 1, or config.parallel 'ddp'"
        )


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
