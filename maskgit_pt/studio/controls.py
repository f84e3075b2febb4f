"""Controls that several tabs share: the search for a class, and a sampler with only its own settings."""

from typing import Any

import gradio as gr

from maskgit_pt import imagenet, samplers
from maskgit_pt.classes import Classes
from maskgit_pt.decoding import Decoding, Settings
from maskgit_pt.settings import fields, plain_type

_OF_ALL = ("guidance", "guidance_schedule", "softmax_temperature")  # shown for every sampler


def class_choices(classes: Classes) -> list[tuple[str, int]]:
    """What the class search looks through: id and names, and ImageNet's WordNet ids."""
    if classes.count == 0:
        return [("this model has no classes", 0)]
    return [(line, label) for label, line in enumerate(classes.choices())]


def class_search(classes: Classes, label: str = "Class", **options: Any) -> gr.Dropdown:
    """A list of all classes that narrows while one types."""
    value = 90 if classes.count == imagenet.NUM_CLASSES else 0
    options |= {"filterable": True, "interactive": classes.count > 0}
    return gr.Dropdown(class_choices(classes), value=value, label=label, **options)


class SamplerControls:
    """A sampler and its settings; those that the chosen sampler does not have are hidden.

    Args:
      name: tells the elements of one from those of another: in ids of the page.
      max_steps: the most steps that the model allows.
      editing: whether the defaults are those of editing.
      sampler: the one that is chosen at first.

    Attributes:
      components: to be listed among an event's inputs; `settings` takes their values.
    """

    def __init__(self, name: str, max_steps: int, editing: bool = False, sampler: str = "official"):
        self._max_steps = max_steps
        self._steps = 12 if editing else None
        self.names = list(
            dict.fromkeys(
                [name for cls in samplers.SAMPLERS.values() for name in fields(cls)] + list(_OF_ALL)
            )
        )
        self.sampler = gr.Dropdown(
            list(samplers.SAMPLERS), value=sampler, label="Sampler", elem_id=f"{name}-sampler"
        )
        with gr.Accordion("Settings of the sampler", open=False):
            self.settings_of = [self._component(name, setting, sampler) for setting in self.names]
        self.components = [self.sampler, *self.settings_of]
        self.sampler.change(
            self._show, self.sampler, self.settings_of, show_progress="hidden", api_name=False,
            queue=False,
        )  # fmt: skip

    def settings(self, sampler: str, *values: Any) -> Settings:
        """The settings of `MaskGIT.decoding` from the values of `components`; defaults are left out."""
        found: Settings = {"sampler": sampler}
        for name, value in zip(self.names, values, strict=True):
            owner = self._owner(name, sampler)
            if owner is None or value in (None, ""):
                continue
            kind = plain_type(owner, name)
            try:
                value = kind(value)
            except (TypeError, ValueError):
                raise ValueError(f"{name} is {value!r}; accepted: {kind.__name__}") from None
            if value != self._default(name, owner):
                found[name] = value
        if "steps" in self.names and "steps" not in found:
            found["steps"] = self._default("steps", samplers.SAMPLERS[sampler])
        return found

    def _show(self, sampler: str) -> list[Any]:
        updates = []
        for name in self.names:
            owner = self._owner(name, sampler)
            if owner is None:
                updates.append(gr.update(visible=False))
            else:
                updates.append(gr.update(visible=True, value=self._default(name, owner)))
        return updates

    def _component(self, prefix: str, name: str, sampler: str) -> Any:
        owner = self._owner(name, sampler)
        known = owner or next(cls for cls in samplers.SAMPLERS.values() if name in fields(cls))
        field = fields(known)[name]
        options = {
            "label": name.replace("_", " "),
            "info": field.metadata["help"],
            "visible": owner is not None,
            "elem_id": f"{prefix}-{name}",
        }
        value, kind = self._default(name, known), plain_type(known, name)
        if field.metadata["choices"]:
            return gr.Dropdown(list(field.metadata["choices"]), value=value, **options)
        if kind is bool:
            return gr.Checkbox(value=value, **options)
        if name == "steps":
            most = max(self._max_steps, 1)
            return gr.Slider(1, most, value=min(value, most), step=1, **options)
        if kind in (int, float):
            precision = 0 if kind is int else None
            least = field.metadata["least"]
            return gr.Number(value=value, precision=precision, minimum=least, **options)
        return gr.Textbox(value="" if value is None else str(value), **options)

    def _default(self, name: str, owner: type) -> Any:
        value = fields(owner)[name].default
        if name == "steps":
            return min(self._steps or value, self._max_steps)
        return value

    @staticmethod
    def _owner(name: str, sampler: str) -> type | None:
        """Whose setting this is: the sampler's, or `Decoding`'s; None if this sampler has no such."""
        for cls in (samplers.SAMPLERS[sampler], Decoding):
            if name in fields(cls):
                return cls
        return None
