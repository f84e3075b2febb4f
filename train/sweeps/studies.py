"""The studies of the 2023 report, and what has been published on them, as data for `train.sweep`.

The report is Besnier & Chen, "A Pytorch Reproduction of Masked Generative Image Transformer", arXiv
2310.14400. Where it shows a curve whose numbers are not in its text, the values swept here are our own
choice. A published result is shown beside every cell of any sweep that has the same settings and image size.
"""

import dataclasses
from typing import Any

from maskgit_pt.decoding import Settings, resolve


@dataclasses.dataclass(frozen=True)
class Published:
    """A published result.

    Attributes:
      who: whose, and of which weights.
      image_size: pixels.
      settings: how the samples were drawn.
      metrics: named as those of `train.evaluate`; only what was published.
      source: where it stands.
      note: what was not published and is assumed here.
    """

    who: str
    image_size: int
    settings: Settings
    metrics: dict[str, float]
    source: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """Settings to compare.

    Attributes:
      title: what it shows.
      fixed: settings of all cells, by image size; of other sizes than these, those of 256.
      grid: setting -> values, the first one along the plot; by image size if they differ.
      cases: instead of it or besides, cells that are not a grid: name -> settings; by image size.
      over_training: needs several models: the checkpoints of a run, or exported ones.
    """

    title: str
    fixed: dict[int, Settings]
    grid: dict[int, dict[str, tuple]] = dataclasses.field(default_factory=dict)
    cases: dict[int, dict[str, Settings]] = dataclasses.field(default_factory=dict)
    over_training: bool = False

    def at(self, image_size: int) -> tuple[Settings, dict[str, tuple], dict[str, Settings]]:
        """Fixed settings, grid and cases for images of this size."""
        size = image_size if image_size in self.fixed else 256
        return self.fixed[size], self.grid.get(size, {}), self.cases.get(size, {})


def _confidence(steps: int, temperature: float, guidance: float, **others: Any) -> Settings:
    return {
        "sampler": "confidence", "schedule": "arccos", "choice": "linear", "steps": steps,
        "choice_temperature": temperature, "guidance": guidance, "guidance_schedule": "linear",
    } | others  # fmt: skip


def _official(steps: int, temperature: float = 4.5, **others: Any) -> Settings:
    return {
        "sampler": "official", "schedule": "cosine", "steps": steps, "choice_temperature": temperature,
    } | others  # fmt: skip


# Table 2. The code of the report multiplies the logits by its softmax temperature, here they are divided.
BEST_256 = _confidence(8, 4.5, 3.0)
BEST_512 = _confidence(15, 7.0, 2.8)
SHOWCASE_512 = _confidence(32, 7.0, 9.0, softmax_temperature=1 / 1.3)
# Wang et al., arXiv 2503.00307.
_REMDM = {
    "sampler": "remdm", "steps": 64, "remasking": "rescale", "eta": 0.05, "softmax_temperature": 0.8,
}  # fmt: skip


def _without(settings: Settings, *names: str) -> Settings:
    return {name: value for name, value in settings.items() if name not in names}


_SCHEDULES = ("root", "linear", "square", "cosine", "arccos")

STUDIES: dict[str, Study] = {
    "best": Study(
        "best settings (Table 2)",
        fixed={256: {}, 512: {}},
        cases={256: {"best": BEST_256}, 512: {"best": BEST_512, "showcase": SHOWCASE_512}},
    ),
    "comparison": Study(
        "comparison (Table 3): the samplers of the published results, on these weights",
        fixed={256: {}, 512: {}},
        cases={
            256: {
                "Besnier & Chen": BEST_256,
                "Chang et al.": _official(8),
                "xyfJASON": _official(8, 10.0, guidance=3.0, guidance_schedule="linear-r"),
                "ReMDM": _REMDM,
            },
            512: {"Besnier & Chen": BEST_512, "Chang et al.": _official(12)},
        },
    ),
    "schedulers": Study(
        "schedulers (Table 4)",
        fixed={
            256: _without(BEST_256, "schedule"),
            512: _without(BEST_512, "schedule") | {"steps": 12},
        },
        grid=dict.fromkeys((256, 512), {"schedule": _SCHEDULES}),
    ),
    "gumbel": Study(
        "temperature of the Gumbel noise",
        fixed={
            256: _without(BEST_256, "choice_temperature"),
            512: _without(BEST_512, "choice_temperature"),
        },
        grid={
            256: {"choice_temperature": (0.0, 1.5, 3.0, 4.5, 6.0, 8.0, 10.0, 15.0)},
            512: {"choice_temperature": (0.0, 2.0, 4.5, 7.0, 9.0, 12.0, 15.0)},
        },
    ),
    "steps": Study(
        "number of steps",
        fixed={256: _without(BEST_256, "steps"), 512: _without(BEST_512, "steps")},
        grid={
            256: {"steps": (4, 6, 8, 10, 12, 16, 24, 32)},
            512: {"steps": (6, 8, 12, 15, 20, 25, 32)},
        },
    ),
    "guidance": Study(
        "guidance weight",
        fixed={256: _without(BEST_256, "guidance"), 512: _without(BEST_512, "guidance")},
        grid={
            256: {"guidance": (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 9.0)},
            512: {"guidance": (0.0, 1.0, 2.0, 2.8, 4.0, 6.0, 9.0)},
        },
    ),
    "training": Study(
        "training progress (Figure 2)",
        fixed={256: BEST_256, 512: BEST_512},
        over_training=True,
    ),
}

_REPORT = "arXiv 2310.14400 and the README of github.com/valeoai/Maskgit-pytorch v1.0"
_TABLE_4 = "arXiv 2310.14400, Table 4"
_ASSUMED = "noise temperature and guidance assumed to be those of the best settings"
_STEPS_ASSUMED = "steps and noise temperature assumed to be those of the paper"
_PAPER = "arXiv 2202.04200, as quoted in the README of github.com/valeoai/Maskgit-pytorch v1.0"
_XYFJASON = "README of github.com/xyfJASON/maskgit-pytorch"


def _metrics(fid: float, score: float, *others: float) -> dict[str, float]:
    names = ("precision", "recall", "density", "coverage")
    return {"fid": fid, "inception_score": score} | dict(zip(names, others, strict=False))


def _table_4(schedule: str, fid: float, score: float) -> Published:
    settings = BEST_512 | {"steps": 12, "schedule": schedule}
    who = "Besnier & Chen 2023"
    return Published(who, 512, settings, _metrics(fid, score), _TABLE_4, _ASSUMED)


PUBLISHED: tuple[Published, ...] = (
    Published("Besnier & Chen 2023", 256, BEST_256,
              _metrics(6.80, 214.0, 0.82, 0.51, 1.25, 0.84), _REPORT),
    Published("Besnier & Chen 2023", 512, BEST_512,
              _metrics(7.26, 223.0, 0.85, 0.49, 1.33, 0.86), _REPORT),
    _table_4("root", 8.21, 252.96),
    _table_4("linear", 7.80, 238.21),
    _table_4("square", 7.50, 224.07),
    _table_4("cosine", 7.59, 229.42),
    _table_4("arccos", 7.65, 219.32),
    Published("Chang et al. 2022", 256, _official(8), _metrics(6.18, 182.1, 0.80, 0.51), _PAPER),
    Published("Chang et al. 2022", 512, _official(12), _metrics(7.32, 156.0, 0.78, 0.50), _PAPER),
    Published("Chang et al., released weights", 256, _official(8), {"fid": 6.06},
              "README of github.com/google-research/maskgit", _STEPS_ASSUMED),
    Published("xyfJASON 2024", 256, _official(8, 4.0), _metrics(7.25, 139.83), _XYFJASON),
    Published("xyfJASON 2024", 256,
              _official(8, 5.0, guidance=2.0, guidance_schedule="linear-r"),
              _metrics(5.22, 188.41), _XYFJASON),
    Published("xyfJASON 2024", 256,
              _official(8, 10.0, guidance=3.0, guidance_schedule="linear-r"),
              _metrics(4.86, 222.72), _XYFJASON),
    Published("Wang et al. 2025 (ReMDM), on Google's weights", 256, _REMDM, {"fid": 4.45},
              "arXiv 2503.00307"),
)  # fmt: skip


def published_curve(name: str, image_size: int) -> dict[Any, dict[str, float]]:
    """What the report itself published along a study: value of the axis -> metrics; {} for other sweeps.

    Only points whose numbers are in its text; the curves of its figures are not.
    """
    study = STUDIES.get(name)
    fixed, grid, _ = study.at(image_size) if study else ({}, {}, {})
    found = {}
    for axis, values in grid.items():
        for value in values:
            settings = resolve(fixed | {axis: value})
            for record in PUBLISHED:
                same = record.image_size == image_size and resolve(record.settings) == settings
                if same and record.who.startswith("Besnier"):
                    found[value] = record.metrics
    return found
