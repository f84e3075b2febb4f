"""The README.md that goes with converted weights."""

from convert import infer, rules
from convert.checkpoint import Checkpoint
from maskgit_pt.files import printable

_MASKGIT = ("MaskGIT", "https://arxiv.org/abs/2202.04200")
_BESNIER = ("MaskGIT as of Besnier & Chen 2023", "https://arxiv.org/abs/2310.14400")
# Types that are not Google's.
_OTHERS = {
    "besnier_transformer": _BESNIER,
    "taming_vqgan": _BESNIER,
    "halton_transformer": ("Halton-MaskGIT", "https://arxiv.org/abs/2503.17076"),
    "mage": ("MAGE", "https://arxiv.org/abs/2211.09117"),
    "self_guided_transformer": (
        "MaskGIT with self-guidance (UnlockMGM)",
        "https://arxiv.org/abs/2410.13136",
    ),
    "llamagen_vq": ("LlamaGen's VQ tokenizer", "https://arxiv.org/abs/2406.06525"),
}

_CARD = """\
---
library_name: maskgit_pt
tags:
- maskgit
- image-generation
---

# {model}: {class_name}

Weights of the `{class_name}` of [{model}]({paper}) for `maskgit_pt`, converted from `{source}`.
{remark}

| | |
|---|---|
| pixels | {resolution} |
| parameters | {parameters:,} |
| dtype | {dtype} |
| sha256 of the source | `{sha256}` |

```python
from {module} import {class_name}

{variable} = {class_name}.from_pretrained("FOLDER")
```

`maskgit-convert --input=FOLDER --output=OUTPUT --to={formats}` gives other formats, also the one it
was converted from.
The weights keep the licence of their source.
"""


def model_card(
    checkpoint: Checkpoint, source: str, dtype: str, sha256: str, writers: list[str]
) -> str:
    """Returns the text.

    Args:
      checkpoint: the weights.
      source: name of the file they were converted from.
      dtype: of the converted weights.
      sha256: of the source.
      writers: names of the formats that can hold the model.
    """
    cls = rules.MODEL_CLASSES[checkpoint.model_type]
    model, paper = _OTHERS.get(checkpoint.model_type, _MASKGIT)
    weights = checkpoint.config.get("vqvae", {}).get("weights")
    return _CARD.format(
        model=model,
        paper=paper,
        remark=f"\n**{printable(str(weights))}**\n" if weights else "",
        module=cls.__module__,
        formats="|".join(name for name in writers if name != "safetensors"),
        source=source.replace("`", "'"),
        resolution=printable(infer.resolution(checkpoint.model_type, checkpoint.config)),
        parameters=checkpoint.parameters,
        dtype=dtype,
        sha256=sha256,
        variable=cls.__name__.lower(),
        class_name=cls.__name__,
    )
