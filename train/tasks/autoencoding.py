"""Stage 1: the tokenizer learns to give images back, against a discriminator (Chang et al. 2022, 3.1).

The losses are the official ones (`maskgit_pt.libml.losses`) with the published weights. The authors did not
publish the step that combines them; it is written after the VQGAN trainer that they describe: reconstruction,
quantizer, perceptual and adversarial loss for the tokenizer, then the discriminator with R1.
"""

import copy
import math

import ml_collections
import torch
from PIL import Image
from torch import Tensor, nn

from maskgit_pt import utils
from maskgit_pt.launch import Processes
from maskgit_pt.libml import losses, rng
from maskgit_pt.nets.discriminator import WIDTH_RULES, Discriminator
from maskgit_pt.nets.vqgan_tokenizer import QUANTIZERS, VQVAE
from train import evaluation, randomness, settings
from train.configs import tokenizer_defaults
from train.data import batches as data
from train.evaluation.features import check_name
from train.evaluation.reference import load_reference
from train.evaluation.sources import Source
from train.run import distributed, profiles
from train.run.metrics import Metrics
from train.run.state import TrainState, whole_weights
from train.tasks import optimizers, perceptual
from train.tasks.base import Task
from train.tasks.flops import count_operations

TOKENIZER, DISCRIMINATOR = "tokenizer", "discriminator"
_RECONSTRUCTION = {"l1": losses.l1_loss, "l2": losses.l2_loss}


class Reconstruction(nn.Module):
    """The tokenizer in training: what is spread over processes.

    Args:
      tokenizer: the network, in training mode.
    """

    def __init__(self, tokenizer: VQVAE):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(
        self, images: Tensor, tau: float, rng: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Images [B, 3, H, W] -> reconstructions, the quantizer's loss, and all that it returns."""
        features = self.tokenizer.encoder(images)
        # Distances to the codes are differences of large numbers: autocast would ruin them.
        with torch.autocast(images.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            quantized, result = self.tokenizer.quantizer(features, tau=tau, rng=rng)
        loss = torch.as_tensor(result["quantizer_loss"], device=images.device)
        return self.tokenizer.decode(quantized), loss, result


class DiscriminatorLoss(nn.Module):
    """The discriminator with its losses; one forward pass, gradient penalty included.

    Args:
      discriminator: the network.
      config: `config.vqgan`.
    """

    def __init__(self, discriminator: Discriminator, config: ml_collections.ConfigDict):
        super().__init__()
        self.discriminator = discriminator
        self.config = config

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Real and generated images [B, 3, H, W] -> adversarial loss, gradient penalty; scalars."""
        penalty = real.new_zeros(())
        if self.config.gradient_penalty == "r1":
            real_logit, penalty = losses.r1_gradient_penalty(
                self.discriminator, real, self.config.grad_penalty_cost
            )
        else:
            real_logit = self.discriminator(real)
        fake_logit = self.discriminator(fake)
        loss = losses.discriminator_loss(
            real_logit=real_logit, fake_logit=fake_logit, loss_type=self.config.loss_type
        )
        return loss, penalty


def temperature(config: ml_collections.ConfigDict, step: int) -> float:
    """tau of the Gumbel quantizer at a step: `tau_max`, then down to `tau_min` along a half cosine.

    The authors publish the ends and the lengths; the shape is that of taming-transformers' Gumbel VQGAN.

    Args:
      config: `config.tau_anneal`.
      step: from 0.
    """
    done = (step - config.tau_warmup_steps) / max(1, config.tau_decay_steps)
    share = (1 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2
    return config.tau_min + (config.tau_max - config.tau_min) * share


class Autoencoding(Task):
    """Stage 1 as a task; see `Task`.

    Attributes:
      tokenizer, discriminator: the networks; the latter None without adversarial loss.
      average: the tokenizer's moving average, or None.
      perceptual: the perceptual loss, or None.
    """

    def __init__(self, config: ml_collections.ConfigDict, processes: Processes):
        check(config)
        super().__init__(config, processes)
        device = processes.device
        self.perceptual = perceptual.load(config, device)
        self.batches = data.open_images(config, processes)
        self.work_per_image = _work_per_image(config, self.perceptual)
        self._eval_images, self._reference = _open_eval_images(config), None
        self._scoring = self._make_scoring() if self._eval_images else None
        torch.manual_seed(config.seed)
        self.tokenizer = VQVAE(config).to(device).train()
        self.tokenizer.image_size = config.image_size
        self.average = self._make_average() if config.polyak_decay > 0 else None
        self.discriminator = Discriminator(config).to(device) if _is_adversarial(config) else None
        models = {TOKENIZER: self.tokenizer, DISCRIMINATOR: self.discriminator}
        models = {name: model for name, model in models.items() if model is not None}
        self.optimizers = {
            name: optimizers.make_adamw(model, config.optimizer) for name, model in models.items()
        }
        if device.type == "cuda":  # the order in which a GPU convolves in half precision
            for network in (*models.values(), self.perceptual):
                if network is not None:
                    network.to(memory_format=torch.channels_last)
        if config.compile:
            self.tokenizer.encoder.compile()
            self.tokenizer.decoder.compile()
        self._reconstruct = self._spread(Reconstruction(self.tokenizer))
        self._judge = None
        if self.discriminator is not None:
            self._judge = self._spread(DiscriminatorLoss(self.discriminator, config.vqgan))
        self.metrics = Metrics(self._metric_names(), device)
        averages = {TOKENIZER: self.average.model} if self.average else {}
        self.state = TrainState(models, averages, self.optimizers, self.metrics.sums)

    @classmethod
    def describe(
        cls, config: ml_collections.ConfigDict, processes: Processes
    ) -> tuple[dict[str, object], float]:
        """See `Task.describe`."""
        check(config)
        compare = perceptual.load(config, processes.device)
        images = data.open_images(config, processes).order.num_images
        _open_eval_images(config)
        with torch.device("meta"):
            models = {"parameters": VQVAE(config)}
            if _is_adversarial(config):
                models["parameters of the discriminator"] = Discriminator(config)
        sizes = {name: f"{sum(p.numel() for p in m.parameters()):,}" for name, m in models.items()}
        work = _work_per_image(config, compare)
        return sizes | {
            "images": f"{images:,}",
            "steps an epoch": f"{images / config.batch_size:,.1f}",
            "perceptual loss": "on" if compare else "off",
            "work an image": f"{work / 1e9:,.1f} GFLOP",
        }, work

    def _metric_names(self) -> list[str]:
        names = ["loss", "reconstruction_loss", "quantizer_loss", "perplexity", "codebook_usage"]
        names += ["grad_norm"] + ["perceptual_loss"] * bool(self.perceptual)
        if self.discriminator is not None:
            names += ["adversarial_loss", "discriminator_loss", "gradient_penalty"]
        return names

    def _make_average(self) -> optimizers.Average:
        average = VQVAE(self.config).to(self.processes.device)
        average.load_state_dict(self.tokenizer.state_dict())
        return optimizers.Average(average, self.config.polyak_decay)

    def _make_scoring(self) -> evaluation.Context:
        """What scores are computed with: the same throughout the run, and had before it."""
        config = self.config
        return evaluation.Context.make(
            None if config.eval_features == "off" else config.eval_features,
            config.inception_weights or None,
            device=self.processes.device,
            workers=self.processes.patient(),
        )

    def _spread(self, module: nn.Module) -> nn.Module:
        return distributed.parallelize(module, [], self.processes, "ddp")

    def step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """One update of the tokenizer, then one of the discriminator on the same images; see `Task.step`."""
        images = batch["pixels"].to(self.processes.device, non_blocking=True).float() / 255
        metrics, fake = self.update_tokenizer(images, step)
        if self.discriminator is not None:
            metrics |= self.update_discriminator(images, fake, step)
        values = torch.stack([metrics[name].double() for name in self.metrics.names])
        weights = torch.full_like(values, len(images))
        self.metrics.add(values * weights, weights)
        return values.sum()

    def update_tokenizer(self, images: Tensor, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Images float32 [B, 3, H, W] in [0, 1] -> metrics, and the reconstructions."""
        config = self.config
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        with self.autocast():
            fake, quantizer_loss, codes = self._reconstruct(
                images, temperature(config.tau_anneal, step), self.noise(step)
            )
            fake = fake.to(images.dtype)
            metrics = {
                "reconstruction_loss": _RECONSTRUCTION[config.reconstruction_loss](images, fake),
                "quantizer_loss": quantizer_loss,
            }
            loss = metrics["reconstruction_loss"] + quantizer_loss
            if self.perceptual:
                metrics["perceptual_loss"] = self.perceptual(images, fake)
                loss = loss + config.perceptual_loss_weight * metrics["perceptual_loss"]
            if self.discriminator is not None:
                metrics["adversarial_loss"] = losses.generator_loss(
                    fake_logit=self.discriminator(fake), loss_type=config.vqgan.loss_type
                )
                weight = config.vqgan.g_adversarial_loss_weight
                loss = loss + weight * metrics["adversarial_loss"]
        loss.backward()
        rate = self.learning_rate(step)
        metrics["grad_norm"] = self.update(TOKENIZER, rate, step, self.average)
        metrics["perplexity"], _ = losses.get_perplexity(codes["encodings"].detach())
        metrics["codebook_usage"] = self._codebook_usage(codes["encoding_indices"])
        metrics["loss"] = loss
        return {name: value.detach() for name, value in metrics.items()}, fake.detach()

    def _codebook_usage(self, indices: Tensor) -> Tensor:
        """The share of codes that are the nearest of any feature in the whole batch."""
        used = torch.zeros(self.config.vqvae.codebook_size, device=indices.device)
        used[indices.flatten()] = 1.0
        if self.processes.world_size > 1:
            torch.distributed.all_reduce(used, torch.distributed.ReduceOp.MAX)
        return used.mean()

    def update_discriminator(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        """Real images and reconstructions [B, 3, H, W] -> metrics."""
        self.discriminator.requires_grad_(True)
        with self.autocast():
            loss, penalty = self._judge(real, fake)
        (loss + penalty).backward()
        rate = self._rate(step, self.config.optimizer.d_lr)
        self.update(DISCRIMINATOR, rate, step)
        return {"discriminator_loss": loss.detach(), "gradient_penalty": penalty.detach()}

    def noise(self, step: int) -> rng.Rng:
        """Where the Gumbel quantizer's noise of a step comes from; None for the other quantizer."""
        if self.config.vqvae.quantizer != "gumbel":
            return None
        seed = randomness.generator(self.config.seed, "gumbel", step, self.processes.rank)
        generator = torch.Generator(self.processes.device)
        return generator.manual_seed(int(seed.integers(2**63)))

    def learning_rate(self, step: int) -> float:
        """The tokenizer's rate of this step."""
        return self._rate(step, self.config.optimizer.g_lr)

    def _rate(self, step: int, highest: float) -> float:
        config = self.config
        return optimizers.learning_rate(config.optimizer, step, config.num_train_steps, highest)

    def scores(self) -> dict[str, float]:
        """Reconstruction of `eval_images` by the averaged weights; called by all processes together.

        Raises:
          FileNotFoundError, ValueError: see `train.evaluation.evaluate_tokenizer`.
        """
        if self._scoring is None:
            return {}
        metrics = ["psnr", "codebook_usage", "perplexity"]
        if self._scoring.extractor is not None:
            metrics.append("rfid")
            self._reference = self._reference or load_reference(  # computed once a run
                self._eval_images, self._scoring, self._eval_images, with_features=False
            )
        metrics += ["ssim"] * (self.config.image_size >= evaluation.reconstruction.SSIM_WINDOW)
        found = evaluation.evaluate_tokenizer(
            self.average.model if self.average else self.tokenizer,
            self._eval_images,
            self._reference,
            metrics=metrics,
            features=self._scoring.extractor,
            device=self.processes.device,
            workers=self._scoring.workers,
        )
        return {f"eval_{name}": value for name, value in found.metrics.items()}

    def pictures(self) -> dict[str, Image.Image]:
        """Images over their reconstructions by the averaged weights; called by all processes."""
        weights = whole_weights(self.average.model if self.average else self.tokenizer)
        if not self.processes.is_main:
            return {}
        tokenizer = VQVAE(self.config)
        tokenizer.load_state_dict(weights)
        tokenizer.to(self.processes.device).eval()
        count = self.config.eval_show_num
        with torch.inference_mode():
            images = self.batches[0]["pixels"][:count].to(self.processes.device).float() / 255
            both = torch.cat([images, tokenizer(images).clamp(0, 1)])
        return {
            "reconstructions": utils.visualize_images(both.cpu(), columns=len(images), enlarge=True)
        }


def _is_adversarial(config: ml_collections.ConfigDict) -> bool:
    return config.vqgan.g_adversarial_loss_weight > 0


def _open_eval_images(config: ml_collections.ConfigDict) -> Source | None:
    if not config.eval_images:
        return None
    return evaluation.open_source(config.eval_images, config.image_size)


def _work_per_image(
    config: ml_collections.ConfigDict, compare: perceptual.PerceptualLoss | None
) -> float:
    """Floating-point operations of a step on one image, a multiply-add counted as two.

    1,311 GFLOP for the published configuration at 256 px: 945 of the tokenizer, 25 of the perceptual
    loss, 62 of the way back through the discriminator, 279 of its own update.
    """
    judge = None
    with torch.device("meta"):
        tokenizer = VQVAE(config).train()
        if _is_adversarial(config):
            judge = DiscriminatorLoss(Discriminator(config), config.vqgan)
        images = torch.empty(1, 3, config.image_size, config.image_size)
    compare = compare and copy.deepcopy(compare).to("meta")

    def step() -> None:
        fake = tokenizer(images)
        loss = fake.sum()
        if compare:
            loss = loss + compare(images, fake)
        if judge:
            judge.requires_grad_(False)
            loss = loss + judge.discriminator(fake).sum()
        loss.backward()
        if judge:
            judge.requires_grad_(True)
            sum(judge(images, fake.detach())).backward()

    return float(count_operations(step))


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings out of range; ValueError names the field."""
    settings.check_fields(config, tokenizer_defaults.get_config())
    settings.check_ranges(config)
    settings.check_choice(config, "precision", ("bfloat16", "float32"))
    profiles.check(config)
    settings.check_choice(config, "reconstruction_loss", tuple(_RECONSTRUCTION))
    settings.check_choice(config, "vqvae.quantizer", tuple(QUANTIZERS))
    settings.check_choice(config, "vqgan.loss_type", ("non-saturating", "hinge"))
    settings.check_choice(config, "discriminator.width_rule", WIDTH_RULES)
    settings.check_choice(config, "vqgan.gradient_penalty", ("r1", "none"))
    if config.eval_features != "off":
        try:
            check_name(config.eval_features)
        except ValueError as error:
            raise ValueError(f"config.eval_features: {error}, off") from None
    settings.check_choice(config, "optimizer.decay", optimizers.DECAYS)
    settings.check_choice(config, "optimizer.lr_schedule", optimizers.SCHEDULES)
    if config.vqvae.norm_type == "BN":
        raise ValueError("config.vqvae.norm_type is 'BN'; accepted for training: GN, LN")
