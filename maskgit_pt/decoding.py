"""The settings of sampling: their fields, their flags, and their description.

A setting is a field of `Decoding` or of a sampler, declared there by `settings.setting`; everything else
(flags of all commands, arguments of `MaskGIT.generate`, what samples say about themselves) follows from it.
"""

import dataclasses
import math
from typing import Any

from absl import flags

from maskgit_pt import samplers
from maskgit_pt.settings import define_flag, fields, plain_type, setting

# "sampler", the settings of that sampler, and the fields of `Decoding`; those left out have their defaults.
Settings = dict[str, Any]


@dataclasses.dataclass
class Decoding:
    """How tokens are drawn.

    Attributes:
      sampler: see `maskgit_pt.samplers`.
      guidance: w of classifier-free guidance; 0 for none. It is meant for weights that were trained with
        dropped labels, which Google's were not.
      guidance_schedule: see `libml.guidance.weights`.
      softmax_temperature: the logits are divided by it.
      start_step: the first step to do.

    Raises:
      ValueError: a value out of range.
    """

    sampler: samplers.Sampler
    guidance: float = setting(
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
    softmax_temperature: float = setting(1.0, "The logits are divided by it.")
    start_step: int = setting(0, "The first step. Editing with the official sampler: 2.", least=0)

    def __post_init__(self):
        if not 0 < self.softmax_temperature < math.inf:
            raise ValueError(
                f"softmax_temperature is {self.softmax_temperature}; accepted: above 0"
            )
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance is {self.guidance}; accepted: 0 or more")
        if not 0 <= self.start_step < self.sampler.steps:
            raise ValueError(
                f"start_step is {self.start_step}; accepted: 0 to {self.sampler.steps - 1}, "
                "less than steps"
            )

    @classmethod
    def create(cls, sampler: str | samplers.Sampler = "official", **settings: Any) -> "Decoding":
        """Makes it from plain settings: fields of this class; the others go to the sampler.

        Args:
          sampler: a name of `samplers.SAMPLERS`, or a sampler.
          **settings: those that are None keep their defaults.

        Raises:
          ValueError: an unknown setting or sampler, or a value out of range.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        own = {name: given.pop(name) for name in fields(cls) if name in given}
        if isinstance(sampler, str):
            sampler = samplers.create(sampler, **given)
        elif given:
            raise ValueError(f"{next(iter(given))} is a setting of the sampler: give it there")
        return cls(sampler, **own)

    def describe(self) -> Settings:
        """Returns all settings, defaults included, as JSON can hold them."""
        own = {name: getattr(self, name) for name in fields(type(self))}
        return {"sampler": self.sampler.name} | dataclasses.asdict(self.sampler) | own


def resolve(settings: Settings) -> Settings:
    """Returns all settings with their defaults, in a form that is equal for equal samples.

    Raises:
      ValueError: an unknown setting or a value out of range.
    """
    found = Decoding.create(**settings).describe()
    if not found["start_step"]:
        del found["start_step"]
    if not found["guidance"]:
        del found["guidance_schedule"]
    if found.get("choice", "linear") != "linear":
        del found["choice_temperature"]  # the other choices have none
    # An int and a float of one value are one setting.
    return {k: float(v) if type(v) is int and k != "steps" else v for k, v in found.items()}


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
    for name in NAMES[1:]:
        if name == "start_step" and not start_step:
            continue
        owners = [cls for cls in (Decoding, *samplers.SAMPLERS.values()) if name in fields(cls)]
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
    """Returns the settings that were given as flags."""
    given = {name: flag_values[name].value for name in NAMES if name in flag_values}
    return {name: value for name, value in given.items() if value is not None}


def _help(name: str) -> str:
    """Returns the help of a setting: what its samplers say of it, what they say alike said once."""
    if name in fields(Decoding):
        field = fields(Decoding)[name]
        return f"{field.metadata['help']} Default: {field.default}."
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
