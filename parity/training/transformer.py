"""Some training steps of the transformer on both sides: `train.masked_tokens`, and Flax with optax."""

import dataclasses
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import optax

from convert import rules
from convert.files.tensors import one_thread
from maskgit_pt.launch import Processes
from parity import weights
from parity.jax_code import jit
from parity.pairs import TransformerPair
from parity.training import optax_side
from parity.training.run import Run, arrays, curves, gradients
from train.configs import defaults
from train.data.tokens import ShardWriter
from train.tasks.masked_tokens import NAME, MaskedTokens

STEPS = 20
_IMAGES = 50
_PIXELS = 16  # an image's side over its tokens'; only the shards' manifest asks


def write_shards(pair: TransformerPair, folder: Path) -> None:
    """Token shards that the transformer fits: the class tells most of an image."""
    side = pair.side
    rng = np.random.default_rng(0)
    writer = ShardWriter(
        folder,
        grid=(side, side),
        crops=2,
        codebook_size=pair.codes,
        class_names=[f"class {i}" for i in range(pair.classes)],
        image_size=_PIXELS * side,
        tokenizer="none",
    )
    labels = rng.integers(0, pair.classes, _IMAGES)
    noise = rng.integers(0, 2, (_IMAGES, 2, side * side))
    tokens = (3 * labels[:, None, None] + np.arange(side * side) + noise) % pair.codes
    writer.write(0, tokens, labels)
    writer.finish(1)


def settings(pair: TransformerPair, shards: Path, **changes: Any) -> ml_collections.ConfigDict:
    """The settings of a run without dropout; `changes` by their full names.

    Warm-up, clipping, decay of the rate and the average all take part within the few steps.
    """
    sizes = pair.ours.to_config()
    config = defaults.get_config()
    config.update(
        batch_size=4,
        num_train_steps=STEPS,
        num_class=pair.classes,
        image_size=_PIXELS * pair.side,
        label_drop_rate=0.3,
        precision="float32",  # no autocast: the weights' own precision
        compile=False,
        polyak_decay=0.6,
    )
    config.transformer.update(
        num_layers=sizes["num_hidden_layers"],
        num_embeds=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_heads=sizes["num_attention_heads"],
        dropout_rate=0.0,
    )
    config.optimizer.update(lr=1e-3, warmup_steps=5, lr_schedule="cosine", lr_min=1e-4)
    config.data.update(tokens=str(shards), num_workers=0)
    config.update_from_flattened_dict(changes)
    return config


@dataclasses.dataclass(frozen=True)
class Ours:
    """The trainer of `train.masked_tokens` itself, from the pair's weights.

    Attributes:
      pair: whose weights, and whose precision.
      config: from `settings`.
    """

    pair: TransformerPair
    config: ml_collections.ConfigDict

    def batches(self) -> list[dict[str, np.ndarray]]:
        """Every step's codes, masks, labels as the trainer draws them."""
        batches = MaskedTokens(self.config, Processes("cpu", alone=True)).load(
            0, self.config.num_train_steps
        )
        return [{name: value.numpy() for name, value in batch.items()} for batch in batches]

    @one_thread()
    def run(self) -> Run:
        """All steps."""
        task = MaskedTokens(self.config, Processes("cpu", alone=True))
        state = task.state
        dtype = next(self.pair.ours.parameters()).dtype
        # In place: optimizer and loss hold these very parameters.
        for model in (state.models[NAME], state.averages[NAME]):
            model.to(dtype).load_state_dict(self.pair.ours.state_dict())
        model, start, first, steps = state.models[NAME], arrays(state.models[NAME]), {}, []
        for step, batch in enumerate(task.load(0, self.config.num_train_steps)):
            if step == 0:
                task.backward(batch["codes"], batch["masked"], batch["labels"])
                first = gradients(model)
                task.optimizer.zero_grad()
            task.step(batch, step)
            steps.append(task.metrics.take(task.processes))
        names = ("loss", "grad_norm", "accuracy")
        return Run(
            curves([{name: step[name] for name in names} for step in steps]),
            {NAME: first},
            {NAME: start},
            {NAME: arrays(model)},
            {NAME: arrays(state.averages[NAME])},
        )


class Theirs:
    """The same in JAX: the loss of `libml/losses.py`, its gradient, and optax.

    Args:
      pair: whose weights, and whose precision.
      config: from `settings`; runs may differ from it in what concerns the optimizer.
    """

    def __init__(self, pair: TransformerPair, config: ml_collections.ConfigDict):
        self.pair, self.config = pair, config

    def _inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The official sequences: class token first, which counts for nothing in the loss."""
        codes, masked, labels = batch["codes"], batch["masked"], batch["labels"]
        label_ids = np.where(labels < 0, -1, self.pair.codes + labels)[:, None]
        nothing = np.zeros_like(label_ids)
        counted = np.ones_like(masked) if self.config.compute_loss_for_all else masked
        dtype = next(self.pair.ours.parameters()).detach().numpy().dtype
        return {
            "ids": np.concatenate([label_ids, np.where(masked, -1, codes)], 1).astype(np.int32),
            "targets": np.concatenate([nothing, codes], 1).astype(np.int32),
            "weights": np.concatenate([nothing, counted], 1).astype(dtype),
            "masked": np.concatenate([nothing, masked], 1).astype(bool),
        }

    def run(self, config: ml_collections.ConfigDict, batches: list[dict[str, np.ndarray]]) -> Run:
        """All steps, with the optimizer of `config`."""
        optimizer = optax_side.adamw(config.optimizer, config.num_train_steps)

        def update(variables: Any, average: Any, state: Any, gradient: Any, step: Any) -> Any:
            change, state = optimizer.update(gradient, state, variables)
            variables = optax.apply_updates(variables, change)
            average = optax_side.average(average, variables, step, config.polyak_decay)
            return variables, average, state, optax_side.global_norm(gradient)

        update = jit(update, quick=self.pair.is_small)
        packing = optax_side.Packing(self.pair.variables)
        packed = packing.pack(self.pair.variables)
        average, state, first, steps = packed, optax_side.init(optimizer, packed), {}, []
        for step, batch in enumerate(batches):
            inputs = self._inputs(batch)
            (loss, logits), gradient = self.pair.loss_and_gradients(
                packing.unpack(packed),
                inputs["ids"],
                inputs["targets"],
                inputs["weights"],
                config.label_smoothing,
            )
            first = first or {NAME: self._arrays(gradient)}
            packed, average, state, norm = update(
                packed, average, state, packing.pack(gradient), step
            )
            right = (np.asarray(logits).argmax(-1) == inputs["targets"])[inputs["masked"]]
            steps.append({"loss": loss, "grad_norm": norm, "accuracy": right.mean()})
        return Run(
            curves(steps),
            first,
            {NAME: self._arrays(self.pair.variables)},
            {NAME: self._arrays(packing.unpack(packed))},
            {NAME: self._arrays(packing.unpack(average))},
        )

    def _arrays(self, tree: Any) -> dict[str, np.ndarray]:
        converted = rules.to_torch(
            weights.flatten(tree), "maskgit_transformer", self.pair.ours.to_config()
        )
        return {name: value.numpy() for name, value in converted.items()}
