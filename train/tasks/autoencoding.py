"""Stage 1: the tokenizer learns to give images back, against a discriminator (Chang et al. 2022, 3.1).

The losses are the official ones (`maskgit_pt.libml.losses`) with the published weights. The authors did not
publish the step that combines them; it is written after the VQGAN trainer that they describe: reconstruction,
quantizer, perceptual and adversarial loss for the tokenizer, then the discriminator with R1.
"""

import copy
import functools
import math
from collections.abc import Iterator

import ml_collections
import torch
from PIL import Image
from torch import Tensor, nn

from maskgit_pt import utils
from maskgit_pt.launch import Processes
from maskgit_pt.libml import losses, rng
from maskgit_pt.nets.discriminator import Discriminator
from maskgit_pt.nets.vqgan_tokenizer import QUANTIZERS, VQVAE
from train import evaluation, randomness, settings
from train.configs import tokenizer_defaults
from train.data import batches as data
from train.evaluation.reference import load_reference
from train.run import distributed
from train.run.metrics import Metrics
from train.run.state import TrainState, whole_weights
from train.tasks import optimizers, perceptual
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


class Autoencoding:
    """The task that the loop runs; see `train.loop`.

    Args:
      config: of the run.
      processes: this process and its peers.

    Raises:
      FileNotFoundError, ValueError: images, weights or settings that do not fit.
    """

    def __init__(self, config: ml_collections.ConfigDict, processes: Processes):
        check(config)
        self.config, self.processes = config, processes
        self.adversarial = config.vqgan.g_adversarial_loss_weight > 0
        self.perceptual = perceptual.load(config, processes.device)
        self.batches = data.open_images(config)
        self.batches.share = data.Share(config.batch_size, processes.rank, processes.world_size)
        self._eval_images = None
        if config.eval_images:  # complains before hours of training
            self._eval_images = evaluation.open_source(config.eval_images, config.image_size)

    def describe(self) -> dict[str, object]:
        """What `--dry_run` prints."""
        with torch.device("meta"):
            models = {"parameters": VQVAE(self.config)}
            if self.adversarial:
                models["parameters of the discriminator"] = Discriminator(self.config)
        images = self.batches.order.num_images
        sizes = {name: f"{sum(p.numel() for p in m.parameters()):,}" for name, m in models.items()}
        return sizes | {
            "images": f"{images:,}",
            "steps an epoch": f"{images / self.config.batch_size:,.1f}",
            "perceptual loss": "on" if self.perceptual else "off",
            "work an image": f"{self.work_per_image / 1e9:,.1f} GFLOP",
        }

    @functools.cached_property
    def work_per_image(self) -> float:
        """Floating-point operations of a step on one image, a multiply-add counted as two.

        1,311 GFLOP for the published configuration at 256 px: 945 of the tokenizer, 25 of the perceptual
        loss, 62 of the way back through the discriminator, 279 of its own update.
        """
        config, judge = self.config, None
        with torch.device("meta"):
            tokenizer = VQVAE(config).train()
            if self.adversarial:
                judge = DiscriminatorLoss(Discriminator(config), config.vqgan)
            images = torch.empty(1, 3, config.image_size, config.image_size)
        compare = self.perceptual and copy.deepcopy(self.perceptual).to("meta")

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

    def start(self) -> TrainState:
        """Makes networks, averages and optimizers, spread over the processes."""
        config, device = self.config, self.processes.device
        torch.manual_seed(config.seed)
        self.tokenizer = VQVAE(config).to(device).train()
        state = TrainState({TOKENIZER: self.tokenizer}, {}, {}, torch.empty(0))
        names = ["loss", "reconstruction_loss", "quantizer_loss", "perplexity", "codebook_usage"]
        names += ["grad_norm"] + ["perceptual_loss"] * bool(self.perceptual)
        self.average = None
        if config.polyak_decay > 0:
            average = VQVAE(config).to(device)
            average.load_state_dict(self.tokenizer.state_dict())
            self.average = optimizers.Average(average, config.polyak_decay)
            state.averages[TOKENIZER] = average
        if self.adversarial:
            self.discriminator = Discriminator(config).to(device)
            state.models[DISCRIMINATOR] = self.discriminator
            self._judge = self._spread(DiscriminatorLoss(self.discriminator, config.vqgan))
            names += ["adversarial_loss", "discriminator_loss", "gradient_penalty"]
        if config.compile:
            self.tokenizer.encoder.compile()
            self.tokenizer.decoder.compile()
        self._reconstruct = self._spread(Reconstruction(self.tokenizer))
        for name, model in state.models.items():
            state.optimizers[name] = optimizers.make_adamw(model, config.optimizer)
        self.optimizers = state.optimizers
        self.metrics = Metrics(names, device)
        state.sums = self.metrics.sums
        self._scoring = self._reference = None
        if self._eval_images is not None:
            self._scoring = self._make_scoring()
        return state

    def _make_scoring(self) -> evaluation.Context:
        """What scores are computed with: the same throughout the run, and had before it."""
        config = self.config
        return evaluation.Context.make(
            None if config.eval_features == "off" else config.eval_features,
            config.inception_weights or None,
            device=self.processes.device,
        )

    def _spread(self, module: nn.Module) -> nn.Module:
        return distributed.parallelize(module, [], self.processes, "ddp", torch.float32)

    def load(self, first_step: int, last_step: int) -> Iterator[dict[str, Tensor]]:
        """This process's batches of these steps."""
        pin = self.processes.device.type == "cuda"
        return data.load(self.batches, first_step, last_step, self.config.data.num_workers, pin)

    def step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """One update of the tokenizer, then one of the discriminator on the same images.

        Args:
          batch: an item of `data.ImageBatches`.
          step: from 0.

        Returns:
          A scalar tensor that is finite if and only if this step was sound.
        """
        images = batch["pixels"].to(self.processes.device, non_blocking=True).float() / 255
        metrics, fake = self.update_tokenizer(images, step)
        if self.adversarial:
            metrics |= self.update_discriminator(images, fake, step)
        values = torch.stack([metrics[name].double() for name in self.metrics.names])
        weights = torch.full_like(values, len(images))
        self.metrics.add(values * weights, weights)
        return values.sum()

    def update_tokenizer(self, images: Tensor, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Images float32 [B, 3, H, W] in [0, 1] -> metrics, and the reconstructions."""
        config = self.config
        if self.adversarial:
            self.discriminator.requires_grad_(False)
        with self._autocast():
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
            if self.adversarial:
                metrics["adversarial_loss"] = losses.generator_loss(
                    fake_logit=self.discriminator(fake), loss_type=config.vqgan.loss_type
                )
                weight = config.vqgan.g_adversarial_loss_weight
                loss = loss + weight * metrics["adversarial_loss"]
        loss.backward()
        metrics["grad_norm"] = self._update(TOKENIZER, self.tokenizer, config.optimizer.g_lr, step)
        if self.average:
            self.average.update(self.tokenizer, step)
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
        with self._autocast():
            loss, penalty = self._judge(real, fake)
        (loss + penalty).backward()
        self._update(DISCRIMINATOR, self.discriminator, self.config.optimizer.d_lr, step)
        return {"discriminator_loss": loss.detach(), "gradient_penalty": penalty.detach()}

    def _update(self, name: str, model: nn.Module, lr: float, step: int) -> Tensor:
        config, optimizer = self.config, self.optimizers[name]
        norm = optimizers.clip_gradients(model.parameters(), config.optimizer.clip_norm)
        rate = optimizers.learning_rate(config.optimizer, step, config.num_train_steps, lr)
        optimizers.set_learning_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=enabled)

    def noise(self, step: int) -> rng.Rng:
        """Where the Gumbel quantizer's noise of a step comes from; None for the other quantizer."""
        if self.config.vqvae.quantizer != "gumbel":
            return None
        seed = randomness.generator(self.config.seed, "gumbel", step, self.processes.rank)
        generator = torch.Generator(self.processes.device)
        return generator.manual_seed(int(seed.integers(2**63)))

    def about_batch(self, step: int) -> dict[str, list[int]]:
        """Which images the global batch of a step holds."""
        images, _, epochs = self.batches.order.at(step, data.Share(self.config.batch_size))
        return {"images": images.tolist(), "epochs": epochs.tolist()}

    def learning_rate(self, step: int) -> float:
        """Of this step, for the log."""
        config = self.config
        return optimizers.learning_rate(
            config.optimizer, step, config.num_train_steps, config.optimizer.g_lr
        )

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
        return {"reconstructions": utils.visualize_images(both.cpu(), columns=len(images))}


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings out of range; ValueError names the field."""
    settings.check_fields(config, tokenizer_defaults.get_config())
    settings.check_choice(config, "precision", ("bfloat16", "float32"))
    settings.check_choice(config, "reconstruction_loss", tuple(_RECONSTRUCTION))
    settings.check_choice(config, "vqvae.quantizer", tuple(QUANTIZERS))
    settings.check_choice(config, "vqgan.loss_type", ("non-saturating", "hinge"))
    settings.check_choice(config, "vqgan.gradient_penalty", ("r1", "none"))
    settings.check_choice(config, "eval_features", ("inception", "pixels", "random", "off"))
    settings.check_choice(config, "optimizer.decay", optimizers.DECAYS)
    settings.check_choice(config, "optimizer.lr_schedule", optimizers.SCHEDULES)
    for name in ("batch_size", "num_train_steps", "log_every_steps", "checkpoint_every_steps",
                 "keep_checkpoints"):  # fmt: skip
        settings.check_range(config, name, 1)
    settings.check_range(config, "polyak_decay", 0, 1)
    for name in ("perceptual_loss_weight", "vqgan.g_adversarial_loss_weight",
                 "vqgan.grad_penalty_cost", "optimizer.g_lr", "optimizer.d_lr"):  # fmt: skip
        settings.check_range(config, name, 0)
    if config.vqvae.norm_type == "BN":
        raise ValueError("config.vqvae.norm_type is 'BN'; accepted for training: GN, LN")
