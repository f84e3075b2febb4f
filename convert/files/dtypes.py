"""Element types by name: NumPy's, PyTorch's and safetensors' words for the same bytes.

NumPy has no bfloat16. Such arrays have the dtype `BFLOAT16` here: one unsigned 16-bit field, so
that shapes, transposes and comparisons work, while arithmetic on the bare bits raises TypeError
instead of giving nonsense. `array["bfloat16"]` gives the bits; `to_tensor` gives a tensor.
"""

import numpy as np
import torch

BFLOAT16 = np.dtype([("bfloat16", "<u2")])

# Name (Flax's, and PyTorch's: getattr(torch, name)) -> safetensors' name; None where it has none.
_SAFETENSORS_NAMES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "complex128": None,
}
NAMES = tuple(_SAFETENSORS_NAMES)
FLOATS = ("float16", "bfloat16", "float32", "float64")


def numpy_dtype(name: str) -> np.dtype:
    """Returns the little-endian NumPy dtype of a name; ValueError if it is not in `NAMES`."""
    if name not in _SAFETENSORS_NAMES:
        raise ValueError(f"dtype {name!r} is not supported; accepted: {', '.join(NAMES)}")
    return BFLOAT16 if name == "bfloat16" else np.dtype(name).newbyteorder("<")


def name_of(dtype: np.dtype) -> str:
    """Returns the name of a NumPy dtype, `BFLOAT16` and that of ml_dtypes (JAX's) included.

    Raises:
      ValueError: objects, strings, structures, big-endian or extended numbers.
    """
    name = "bfloat16" if dtype == BFLOAT16 else dtype.name
    if name not in _SAFETENSORS_NAMES or not dtype.isnative:
        raise ValueError(f"dtype {dtype} is not supported; accepted: {', '.join(NAMES)}")
    return name


def itemsize(name: str) -> int:
    """Bytes per element."""
    return numpy_dtype(name).itemsize


def torch_dtype(name: str) -> torch.dtype:
    """Returns PyTorch's dtype of a name."""
    return getattr(torch, name)


def name_of_torch(dtype: torch.dtype) -> str:
    """Returns the name of a PyTorch dtype."""
    return str(dtype).removeprefix("torch.")


def safetensors_name(name: str) -> str:
    """Returns safetensors' name; ValueError where that format has none."""
    found = _SAFETENSORS_NAMES[name]
    if found is None:
        raise ValueError(f"dtype {name} cannot be stored as safetensors")
    return found


def from_safetensors_name(name: str) -> str:
    """The inverse of `safetensors_name`; ValueError for an unknown name."""
    for ours, theirs in _SAFETENSORS_NAMES.items():
        if name == theirs:
            return ours
    accepted = ", ".join(filter(None, _SAFETENSORS_NAMES.values()))
    raise ValueError(f"dtype {name!r} is not supported; accepted: {accepted}")


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Returns a tensor with the array's values; it shares memory with a writable array."""
    name = name_of(array.dtype)
    if not array.flags.writeable:  # PyTorch has no read-only tensors
        array = array.copy()
    if name != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The inverse of `to_tensor`; shares memory with a tensor on the CPU."""
    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    return tensor.view(torch.int16).numpy().view(BFLOAT16)
