"""Settings of a run: a recipe, changed on the command line, checked, and kept with the run."""

import difflib
import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from maskgit_pt.command_line import UsageError
from maskgit_pt.files import write_atomically

FILE_NAME = "config.json"
# What a run may be continued with another value of. The rest decides the result.
MAY_CHANGE = (
    "num_train_steps", "accumulation_steps", "data.tokens", "data.images", "data.num_workers",
    "data.eval_tokens", "tokenizer", "compile", "compile_mode", "attention", "recompute", "profile_steps",
    "parallel", "log_every_steps", "checkpoint_every_steps",
    "keep_checkpoints", "timeout_minutes", "eval_every_steps", "eval_show_num", "sampling",
)  # fmt: skip
# Settings that runs of earlier versions lack, and what they did.
_CAME_LATER = {
    "mask_order": "random",
    "samples_per_mask_ratio": 1,
    "data.eval_tokens": "",
    "data.eval_share": 0.0,
    "keep_classes": False,
    "init_classes": "",
    "early_stop_evals": 0,
    "init_other_tokenizer": False,
    "optimizer.init_lr_scale": 1.0,
    "discriminator.width_rule": "official",
}

# (least, most) -> the numbers among the settings, of all tasks, that must lie between them.
RANGES = {
    (1, math.inf): (
        "batch_size", "accumulation_steps", "num_train_steps", "samples_per_mask_ratio", "image_size",
        "log_every_steps", "checkpoint_every_steps", "keep_checkpoints", "eval_show_num",
        "transformer.num_layers", "transformer.num_embeds", "transformer.intermediate_size",
        "transformer.num_heads", "decoder.num_layers", "decoder.num_embeds", "decoder.num_heads",
        "discriminator.channel_multiplier", "vqvae.codebook_size", "vqvae.embedding_dim", "vqvae.filters",
        "vqvae.channel_multipliers",
    ),
    (0, math.inf): (
        "num_class", "early_stop_evals", "eval_every_steps", "data.num_workers", "optimizer.lr",
        "optimizer.g_lr", "optimizer.d_lr", "optimizer.lr_min", "optimizer.weight_decay",
        "optimizer.clip_norm", "optimizer.warmup_steps", "optimizer.epsilon", "perceptual_loss_weight",
        "vqgan.g_adversarial_loss_weight", "vqgan.grad_penalty_cost", "vqvae.num_res_blocks",
        "vqvae.commitment_cost", "vqvae.entropy_loss_ratio", "tau_anneal.tau_warmup_steps",
        "tau_anneal.tau_decay_steps",
    ),
    (0, 1): (
        "label_drop_rate", "label_smoothing", "min_masking_rate", "polyak_decay", "data.eval_share",
        "optimizer.init_lr_scale", "transformer.dropout_rate",
    ),
    (0, 0.99999): ("optimizer.beta1", "optimizer.beta2"),
    (1e-9, math.inf): ("vqvae.entropy_temperature", "tau_anneal.tau_max", "tau_anneal.tau_min"),
    (0.05, 1e6): ("timeout_minutes",),
    (0, 2**63 - 1): ("seed",),
}  # fmt: skip

RECIPES = Path(__file__).parent / "configs"


def recipes() -> list[str]:
    """Names of the project's own recipes, e.g. "best256"."""
    files = RECIPES.glob("*.py")
    return sorted(f.stem for f in files if not f.stem.endswith(("__init__", "defaults")))


def with_recipe_files(argv: Sequence[str]) -> list[str]:
    """Puts the file of a recipe of the project in place of its name: `--config=best256`."""
    found = list(argv)
    for i, argument in enumerate(argv):
        flag, equals, name = argument.partition("=")
        if flag in ("--config", "-config") and (equals or i + 1 < len(argv)):
            place, start = (i, f"{flag}=") if equals else (i + 1, "")
            name = name if equals else argv[i + 1]
            if name in recipes() and not Path(name).is_file():
                found[place] = f"{start}{RECIPES / name}.py"
    return found


def define_flag(flag_values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Adds `--config=FILE` and `--config.field=VALUE` to a program's flags."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "A recipe: best256, say, or a file; --config.optimizer.lr=2e-4 (after it) changes a field.",
        flag_values=flag_values,
        sys_argv=list(argv),
    )


def check_arguments(argv: Sequence[str]) -> None:
    """Finds mistakes in `--config` and `--config.field` before the flags are parsed.

    Raises:
      FileNotFoundError: no such recipe.
      UsageError: a field that the recipe does not have; with the nearest one that it has.
    """
    recipe = None
    for argument, following in itertools.pairwise([*argv, ""]):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            recipe = value if equals else following
    if recipe is None:
        return
    if not Path(recipe).is_file():
        raise FileNotFoundError(
            f"--config={recipe}: no such recipe or file; accepted: {', '.join(recipes())}, or a file"
        )
    known = list(flatten(load_file(recipe)))
    groups = {name.rsplit(".", 1)[0] for name in known if "." in name}
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if match and match[1] not in known and match[1] not in groups:
            near = _nearest(match[1], known)
            hint = f"; did you mean --config.{near}?" if near else ""
            raise UsageError(f"--config.{match[1]}: {recipe} has no such setting{hint}")


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that `name` may be meant for: by spelling, or the same word in another group."""
    last = name.rsplit(".", 1)[-1]
    same = [k for k in known if k.rsplit(".", 1)[-1] == last]
    return next(iter(same + difflib.get_close_matches(name, known, 1, 0.5)), None)


def load_file(path: str) -> ml_collections.ConfigDict:
    """Runs `get_config()` of a recipe file."""
    values = flags.FlagValues()
    define_flag(values, [f"--config={path}"])
    values(["config", f"--config={path}"])
    return values.config


def flatten(config: ml_collections.ConfigDict | dict, prefix: str = "") -> dict[str, object]:
    """{"optimizer.lr": 1e-4, ...}; an empty group stays."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict | dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def check_fields(config: ml_collections.ConfigDict, defaults: ml_collections.ConfigDict) -> None:
    """Refuses fields that no code reads and values of another type, e.g. of a user's own recipe.

    `sampling` is free: its fields are checked by the sampler.

    Raises:
      ValueError: names the field and what is accepted.
    """
    known, found = flatten(defaults), flatten(config)
    for name in found:
        if name not in known and not name.startswith("sampling."):
            near = _nearest(name, list(known))
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"config: unknown setting {name}{hint}")
    for name, default in known.items():
        if name.startswith("sampling"):
            continue
        if name not in found:
            raise ValueError(f"config: the setting {name} is missing")
        accepted = {float: (int, float), tuple: (tuple, list)}.get(type(default), type(default))
        if not isinstance(found[name], accepted):
            raise ValueError(
                f"config.{name} is {found[name]!r}; accepted: a value like {default!r}"
            )


def check_choice(config: ml_collections.ConfigDict, name: str, accepted: Sequence[str]) -> str:
    """The value of field `name`; ValueError if it is none of `accepted`."""
    value = flatten(config)[name]
    if value not in accepted:
        raise ValueError(f"config.{name} is {value!r}; accepted: {', '.join(accepted)}")
    return value


def check_ranges(config: ml_collections.ConfigDict) -> None:
    """ValueError if a number, or one of a tuple, is not within its `RANGES`; names the field."""
    found = flatten(config)
    for (low, high), names in RANGES.items():
        for name in names:
            value = found.get(name, low)
            numbers = value if isinstance(value, tuple | list) else (value,)
            if not numbers or not all(_is_within(number, low, high) for number in numbers):
                upto = "or more" if high == math.inf else f"to {high:g}"
                raise ValueError(f"config.{name} is {value}; accepted: {low:g} {upto}")


def _is_within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and low <= value <= high


def compare(config: ml_collections.ConfigDict, run: Path) -> None:
    """Compares the settings with those of the run's folder, if it has any.

    Raises:
      ValueError: a setting that decides the result differs.
    """
    path = run / FILE_NAME
    if not path.exists():
        return
    if "model_type" in read(run):
        raise ValueError(f"{run} holds a model, not a training run; name another --output")
    old, new = flatten(read(run)), flatten(json.loads(config.to_json()))
    old |= {name: v for name, v in _CAME_LATER.items() if name in new and name not in old}
    for name in sorted(old.keys() | new.keys()):
        fixed = name not in MAY_CHANGE and name.split(".")[0] not in MAY_CHANGE
        if fixed and old.get(name) != new.get(name):
            raise ValueError(
                f"{path}: this run has {name} {old.get(name)!r}, now it is {new.get(name)!r}; "
                "continue with the same settings, or name another --output"
            )


def deciding(config: ml_collections.ConfigDict | dict[str, object]) -> dict[str, object]:
    """The settings, or flat ones, that decide the curves of a run; those that came later are filled in.

    All but the seed, the places of data, the precision, and those that a run may be continued with another
    value of. Of these the number of steps and the interval that a point is a mean over stay.
    """
    given = config if isinstance(config, dict) else json.loads(config.to_json())
    flat = flatten(given)
    flat |= {name: value for name, value in _CAME_LATER.items() if name not in flat}
    anyhow = ("seed", "precision", "init_from", "data.split", "data.eval_share", "data.eval_tokens",
              "eval_images", "eval_features", "inception_weights")  # fmt: skip
    kept = ("num_train_steps", "log_every_steps")
    found = {}
    for name, value in flat.items():
        free = name in (*MAY_CHANGE, *anyhow) or name.split(".")[0] in MAY_CHANGE
        if name in kept or not free:
            found[name] = value
    return dict(sorted(found.items()))


def keep(config: ml_collections.ConfigDict, run: Path) -> None:
    """Writes the settings into the run's folder, after `compare`."""
    compare(config, run)
    path = run / FILE_NAME
    write_atomically(path, (json.dumps(config.to_dict(), indent=2) + "\n").encode())


def read(run: Path) -> ml_collections.ConfigDict:
    """The settings that a run was made with."""
    path = run / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; {run} is not the folder of a training run")
    try:
        return ml_collections.ConfigDict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a configuration: {error}") from None
