"""The README.md that goes with converted weights."""

from convert import infer, rules
from convert.checkpoint import Checkpoint

_CARD = """\
---
library_name: maskgit_pt
tags:
- maskgit
- image-generation
---

# MaskGIT {kind}

Weights of the {kind} of [MaskGIT](https://arxiv.org/abs/2202.04200) for `maskgit_pt`, converted
from `{source}`.

| | |
|---|---|
| pixels | {resolution} |
| parameters | {parameters:,} |
| dtype | {dtype} |
| sha256 of the source | `{sha256}` |

```python
import maskgit_pt

{variable} = maskgit_pt.{class_name}.from_pretrained("FOLDER")
```

`python -m convert --input=FOLDER --output=FILE --to=flax` gives the Flax file back.
The weights keep the licence of their source.
"""


def model_card(checkpoint: Checkpoint, source: str, dtype: str, sha256: str) -> str:
    """Returns the text.

    Args:
      checkpoint: the weights.
      source: name of the file they were converted from.
      dtype: of the converted weights.
      sha256: of the source.
    """
    return _CARD.format(
        kind=checkpoint.kind,
        source=source.replace("`", "'"),
        resolution=infer.resolution(checkpoint.kind, checkpoint.config),
        parameters=checkpoint.parameters,
        dtype=dtype,
        sha256=sha256,
        variable=checkpoint.kind,
        class_name=rules.MODEL_CLASSES[checkpoint.kind].__name__,
    )
