"""The settings of sampling: their fields, their flags, and their description.

A setting is a field of `Decoding` or of a sampler, declared there by `settings.setting`; everything else
(flags of all commands, arguments of `MaskGIT.generate`, what samples say about themselves) follows from it.
"""

import dataclasses
import math
import os
from typing import Any

import torch
import yaml
from absl import flags

from maskgit_pt import samplers
from maskgit_pt.libml import guidance
from maskgit_pt.libml.rng import Noise, Rng, noise_of
from maskgit_pt.libml.truncation import TruncatedNoise
from maskgit_pt.samplers.base import per_step
from maskgit_pt.settings import check, check_value, define_flag, fields, plain_type, setting

# "sampler", the settings of that sampler, and the fields of `Decoding`; those left out have their defaults.
Settings = dict[str, Any]


@dataclasses.dataclass
class Decoding:
    """How tokens are drawn.

    Attributes:
      sampler: see `maskgit_pt.samplers`.
      guidance: w of classifier-free guidance; 0 for none; or a list, one w a step. It is meant for weights
        that were trained with dropped labels, which Google's were not.
      guidance_schedule: see `libml.guidance.weights`; does not touch a list.
      softmax_temperature: the logits are divided by it; or a list, one value a step.
      logit_scale, logit_scale_last, logit_scale_power, logit_scale_warmup: the logits of step s of T are
        multiplied by (first + (last - first) s / (T - 1))**power, and by half of it in so many steps at the
        start: the softmax temperature as Halton-MaskGIT writes it, where larger is sharper.
      top_k: only the k likeliest codes are drawn; 0 for all.
      top_p: only the fewest codes that together have this probability are drawn; 1 for all.
      start_step: the first step to do.

    Raises:
      ValueError: a value out of range.
    """

    sampler: samplers.Sampler
    guidance: float | list[float] = setting(
        0.0,
        "Classifier-free guidance w: logits = (1 + w) conditional - w unconditional. For weights trained "
        "with dropped labels, which Google's are not.",
        least=0,
    )
    guidance_schedule: str = setting(
        "linear",
        "constant, linear (in the steps), linear-r (in the share of decided tokens), power-cosine4 (any "
        "power).",
    )
    softmax_temperature: float | list[float] = setting(1.0, "The logits are divided by it.")
    logit_scale: float = setting(1.0, "The logits are multiplied by it.")
    logit_scale_last: float | None = setting(
        None, "Factor of the logits in the last step, reached linearly from logit_scale."
    )
    logit_scale_power: float = setting(1.0, "Exponent of the factor of the logits.")
    logit_scale_warmup: int = setting(
        0, "So many steps at the start have half the factor of the logits.", least=0
    )
    top_k: int = setting(0, "Only the k likeliest codes are drawn; 0: all.", least=0)
    top_p: float = setting(
        1.0,
        "Only the likeliest codes that together have this probability are drawn; 1: all.",
        least=0,
    )
    start_step: int = setting(0, "The first step. Editing with the official sampler: 2.", least=0)

    def __post_init__(self):
        check(self)
        for name, least in (("softmax_temperature", "above 0"), ("guidance", "0 or more")):
            for value in per_step(name, getattr(self, name), self.sampler.steps):
                if not 0 <= value < math.inf or (value == 0 and least == "above 0"):
                    raise ValueError(f"{name} is {value}; accepted: {least}")
        if not all(0 < scale < math.inf for scale in self.logit_scales()):
            raise ValueError(
                f"logit_scale, logit_scale_last are {self.logit_scale}, {self.logit_scale_last} with the "
                f"power {self.logit_scale_power}; accepted: above 0"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; accepted: above 0, at most 1 (all)")
        if not 0 <= self.start_step < self.sampler.steps:
            raise ValueError(
                f"start_step is {self.start_step}; accepted: 0 to {self.sampler.steps - 1}, "
                "less than steps"
            )

    def logit_scales(self) -> list[float]:
        """The factor of the logits in every step, as float32 gives it."""
        steps = self.sampler.steps
        last = self.logit_scale if self.logit_scale_last is None else self.logit_scale_last
        scales = torch.linspace(self.logit_scale, last, steps) ** self.logit_scale_power
        scales[: self.logit_scale_warmup] *= 0.5
        return scales.tolist()

    def softmax_temperatures(self) -> list[float]:
        """What the logits are divided by in every step."""
        return per_step("softmax_temperature", self.softmax_temperature, self.sampler.steps)

    def guidance_weights(self, tokens: int) -> list[float]:
        """The guidance w of every step, for images of so many tokens.

        Raises:
          ValueError: an unknown schedule.
        """
        if isinstance(self.guidance, list):
            return self.guidance
        masked_after = self.sampler.masked_after(tokens)
        return guidance.weights(self.guidance_schedule, self.guidance, masked_after, tokens)

    def noise(self, rng: Rng) -> Noise:
        """The source of noise behind `rng`, which draws codes as `top_k` and `top_p` say."""
        noise = noise_of(rng)
        if self.top_k or self.top_p < 1:
            return TruncatedNoise(noise, self.top_k, self.top_p)
        return noise

    @classmethod
    def create(cls, sampler: str | samplers.Sampler | None = None, **settings: Any) -> "Decoding":
        """Makes it from plain settings: fields of this class; the others go to the sampler.

        Args:
          sampler: a name of `samplers.SAMPLERS`, or a sampler; default: "official".
          **settings: those that are None keep their defaults. Those that can be lists, one value a step, say
            by their length how many steps there are; "strategy" is a file of more settings, see
            `read_strategy`, which settings given here overrule.

        Raises:
          ValueError: an unknown setting or sampler, or a value out of range.
        """
        given = complete({"sampler": sampler} | settings)
        sampler = given.pop("sampler", "official")
        own = {name: given.pop(name) for name in fields(cls) if name in given}
        if isinstance(sampler, str):
            sampler = samplers.create(sampler, **given)
        elif not isinstance(sampler, samplers.Sampler):
            known = ", ".join(samplers.SAMPLERS)
            raise ValueError(f"sampler is {sampler!r}; accepted: {known}, or a samplers.Sampler")
        elif given:
            raise ValueError(f"{next(iter(given))} is a setting of the sampler: give it there")
        return cls(sampler, **own)

    def describe(self) -> Settings:
        """Returns all settings, defaults included, as JSON can hold them."""
        own = {name: getattr(self, name) for name in fields(type(self))}
        return {"sampler": self.sampler.name} | dataclasses.asdict(self.sampler) | own


# AutoNAT's names of settings -> ours, and what their lists leave out at the end.
_AUTONAT = {
    "manual_ratios": ("schedule", [0.0]),
    "manual_temp": ("choice_temperature", [0.0]),
    "manual_samp_temp": ("softmax_temperature", []),
    "manual_cfg": ("guidance", []),
}


def read_strategy(path: str | os.PathLike) -> Settings:
    """Reads settings from a YAML file, where a setting may change from step to step.

    The file maps names of settings to values. A list has one value a step and so says how many steps there
    are; these settings can be lists:

    - mask_ratio, another name of schedule: the share of tokens still masked after each step;
    - gumbel, another name of choice_temperature: the factor of the noise on the confidence, as it is;
    - softmax_temperature;
    - guidance: w, as it is;
    - self_guidance: its scale, as it is.

    The files of AutoNAT (LeapLabTHU/ImprovedNAT) are read as well: manual_ratios and manual_temp, which leave
    out the last step (0), manual_samp_temp and manual_cfg.

    Raises:
      ValueError: no such file, no mapping of names, an unknown name, or lists of several lengths.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ValueError(f"strategy {path}: cannot be read: {reason}") from None
    if not isinstance(found, dict):
        raise ValueError(
            f"strategy {path}: accepted: a YAML mapping of names of settings to values"
        )
    names = {"mask_ratio": "schedule", "gumbel": "choice_temperature"}
    for name in found:
        if names.get(name, name) not in NAMES and name not in _AUTONAT:
            known = ", ".join([*names, *NAMES])
            raise ValueError(f"strategy {path}: no setting is called {name!r}; known: {known}")
    settings = {}
    for name, value in found.items():
        ours, end = _AUTONAT.get(name, (names.get(name, name), []))
        if value is not None:
            settings[ours] = value + end if isinstance(value, list) else value
    for name in settings.keys() - {"sampler"}:
        owner = next(cls for cls in _owners() if name in fields(cls))
        try:
            check_value(owner, name, settings[name])
        except ValueError as error:
            raise ValueError(f"strategy {path}: {error}") from None
    lengths = {name: len(value) for name, value in settings.items() if isinstance(value, list)}
    if len(set(lengths.values()) | ({settings["steps"]} if "steps" in settings else set())) > 1:
        each = ", ".join(f"{name} {length}" for name, length in lengths.items())
        steps = f" and steps is {settings['steps']}" if "steps" in settings else ""
        raise ValueError(
            f"strategy {path}: lists of several lengths ({each}){steps}; accepted: one value a step in each"
        )
    return _with_steps(settings)


def complete(settings: Settings) -> Settings:
    """Settings without those that are None, and with those that they imply.

    These are what the file "strategy" says that they do not, and the number of steps that a list has.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if "strategy" in given:
        given = read_strategy(given.pop("strategy")) | given
    if isinstance(given.get("sampler", ""), str):  # another one has its steps
        given = _with_steps(given)
    return given


def _with_steps(settings: Settings) -> Settings:
    """With the number of steps that a list has, where none is given."""
    lengths = [len(value) for value in settings.values() if isinstance(value, list)]
    return {"steps": lengths[0]} | settings if lengths else settings


def _owners() -> tuple[type, ...]:
    """The dataclasses that settings belong to."""
    return (Decoding, *samplers.SAMPLERS.values())


def resolve(settings: Settings) -> Settings:
    """Returns all settings with their defaults, in a form that is equal for equal samples.

    Raises:
      ValueError: an unknown setting or a value out of range.
    """
    found = Decoding.create(**settings).describe()
    if not found["start_step"]:
        del found["start_step"]
    if not found["guidance"] or isinstance(found["guidance"], list):
        del found["guidance_schedule"]
    if found.get("choice", "linear") != "linear":
        del found["choice_temperature"]  # the other choices have none
    for name in ("logit_scale_last", "top_k", "top_p", "logit_scale_warmup"):
        if found[name] == fields(Decoding)[name].default:
            del found[name]
    # An int and a float of one value are one setting.
    return {k: _as_floats(v) if k != "steps" else v for k, v in found.items()}


def _as_floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_floats(number) for number in value]
    return float(value) if type(value) is int else value


def define_flags(flag_values: flags.FlagValues, start_step: bool = False) -> None:
    """Defines a flag for each setting; without a value, so that the sampler's own default holds.

    Args:
      flag_values: of the program.
      start_step: whether `--start_step` is among them, which is for editing.
    """
    known = list(samplers.SAMPLERS)
    flags.DEFINE_enum(
        "sampler", None, known, "How tokens are filled in. Default: official.", flag_values
    )
    flags.DEFINE_string(
        "strategy",
        None,
        "A YAML file of settings by these names. Lists of one value a step are mask_ratio (schedule), gumbel "
        "(choice_temperature), softmax_temperature, guidance and self_guidance. Other flags overrule it.",
        flag_values,
    )
    for name in NAMES[1:]:
        if name == "start_step" and not start_step:
            continue
        owners = [cls for cls in _owners() if name in fields(cls)]
        found = [fields(owner)[name] for owner in owners]
        choices = [field.metadata["choices"] for field in found if field.metadata["choices"]]
        leasts = [field.metadata["least"] for field in found]
        define_flag(
            name,
            plain_type(owners[0], name),
            None,
            flag_values,
            help=_help(name),
            choices=dict.fromkeys(text for texts in choices for text in texts) or None,
            least=None if None in leasts else min(leasts),
        )


def from_flags(flag_values: flags.FlagValues) -> Settings:
    """Returns the settings that were given as flags or in the file of `--strategy`."""
    names = [name for name in ("strategy", *NAMES) if name in flag_values]
    return complete({name: flag_values[name].value for name in names})


def _help(name: str) -> str:
    """Returns the help of a setting: what its samplers say of it, what they say alike said once."""
    if name in fields(Decoding):
        field = fields(Decoding)[name]
        default = "" if field.default is None else f" Default: {field.default}."
        return field.metadata["help"] + default
    helps: dict[str, dict[Any, list[str]]] = {}  # help -> default -> samplers
    for sampler, cls in samplers.SAMPLERS.items():
        if name in fields(cls):
            field = fields(cls)[name]
            of_help = helps.setdefault(field.metadata["help"], {})
            of_help.setdefault(field.default, []).append(sampler)
    parts = []
    for text, defaults in helps.items():
        owners = [sampler for names in defaults.values() for sampler in names]
        whose = "" if len(owners) == len(samplers.SAMPLERS) else f"{_listed(owners)}: "
        each = [
            f"{default} ({_listed(names)})" if len(defaults) > 1 else str(default)
            for default, names in defaults.items()
        ]
        parts.append(f"{whose}{text} Default: {', '.join(each)}.")
    return " ".join(parts)


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


# Of all settings; the sampler first.
NAMES = tuple(
    dict.fromkeys(
        ["sampler"]
        + [name for cls in (*samplers.SAMPLERS.values(), Decoding) for name in fields(cls)]
    )
)
