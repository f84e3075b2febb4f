"""The formats of weights, one file each; `format` describes what a format is and how to add one.

`recognise` tells the format of a file from its content and opens it.
"""

from convert.formats import (
    besnier,
    flax,
    halton,
    hmorimitsu,
    llamagen,
    mage,
    mage_transformer,
    maskbit,
    onnx_folder,
    open_muse,
    orbax,
    safetensors,
    taming,
    unlockmgm,
)
from convert.formats import titok as titok_format
from convert.formats.format import Format

# Of formats that fit a file equally well, the first is taken.
FORMATS: tuple[Format, ...] = (
    safetensors.FORMAT,
    flax.FORMAT,
    hmorimitsu.FORMAT,
    open_muse.FORMAT,
    unlockmgm.FORMAT,
    titok_format.FORMAT,
    maskbit.FORMAT,
    mage.FORMAT,
    mage_transformer.FORMAT,
    besnier.FORMAT,
    taming.FORMAT,
    halton.FORMAT,
    llamagen.FORMAT,
    orbax.FORMAT,
    onnx_folder.FORMAT,
)
BY_NAME = {form.NAME: form for form in FORMATS}
