"""Samplers: how masked tokens are filled in.

All work with any of the networks, but for "self-guidance", which needs one with its module, and "dimo", which
needs a one-step generator.

- "official": parallel decoding as Google's code does it;
- "confidence": the sampler of the 2023 reproduction;
- "confidence-2025": the one in the code of Halton-MaskGIT, which may draw known tokens again;
- "random", "halton": in an order fixed beforehand;
- "moment", "moment-halton": positions are chosen before their tokens are drawn;
- "remdm": with remasking;
- "mage": MAGE's form of Google's decoding;
- "self-guidance": UnlockMGM's, which repels the guess of its own guidance module;
- "dimo": all at once, for generators distilled to one step.

A new sampler is a dataclass that extends `base.Sampler`, entered in `SAMPLERS`.
"""

import dataclasses
from typing import Any

from maskgit_pt.samplers.base import Predict, Sampler, State
from maskgit_pt.samplers.confidence import ConfidenceSampler
from maskgit_pt.samplers.confidence_2025 import Confidence2025Sampler
from maskgit_pt.samplers.dimo import DimoSampler
from maskgit_pt.samplers.mage import MageSampler
from maskgit_pt.samplers.moment import MomentSampler
from maskgit_pt.samplers.moment_halton import MomentHaltonSampler
from maskgit_pt.samplers.official import OfficialSampler
from maskgit_pt.samplers.ordered import HaltonSampler, RandomSampler, halton_order
from maskgit_pt.samplers.remdm import RemdmSampler
from maskgit_pt.samplers.self_guidance import SelfGuidanceSampler

SAMPLERS: dict[str, type[Sampler]] = {
    sampler.name: sampler
    for sampler in (
        OfficialSampler,
        ConfidenceSampler,
        Confidence2025Sampler,
        RandomSampler,
        HaltonSampler,
        MomentSampler,
        MomentHaltonSampler,
        RemdmSampler,
        MageSampler,
        SelfGuidanceSampler,
        DimoSampler,
    )
}

__all__ = [
    "SAMPLERS",
    "Confidence2025Sampler",
    "ConfidenceSampler",
    "DimoSampler",
    "HaltonSampler",
    "MageSampler",
    "MomentHaltonSampler",
    "MomentSampler",
    "OfficialSampler",
    "Predict",
    "RandomSampler",
    "RemdmSampler",
    "Sampler",
    "SelfGuidanceSampler",
    "State",
    "create",
    "halton_order",
]


def create(name: str, **settings: Any) -> Sampler:
    """A sampler by its name; settings that are None keep their defaults.

    Raises:
      ValueError: an unknown sampler, a setting it does not have, or a value out of range.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler is {name!r}; known: {', '.join(SAMPLERS)}")
    settings = {key: value for key, value in settings.items() if value is not None}
    known = [field.name for field in dataclasses.fields(SAMPLERS[name])]
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise ValueError(f"sampler {name!r} has no {unknown[0]}; it takes {', '.join(known)}")
    return SAMPLERS[name](**settings)
