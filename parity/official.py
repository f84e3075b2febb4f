"""Loads Google's own code from a checkout of google-research/maskgit, as it lies there.

It was written for the JAX of 2022; what today's JAX or the machine lacks is supplied while the
modules load, and is gone from the process afterwards:

- `jax.numpy.DeviceArray`, a type annotation in parallel_decode.py, is `jax.Array`;
- the released nets/discriminator.py ends in a stray unfinished line and cannot be imported: it is
  left out in memory, the file stays as it is;
- tensorflow, requests and matplotlib, imported for reading and showing files, are empty modules
  where they are not installed.

The modules' own names (`maskgit.*`) are taken out of `sys.modules` again, so that nothing collides.
"""

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp

from parity.jax_code import MODULES, JaxCode

# In order of import: each needs only those before it.
_FILES = (
    "libml.losses",
    "libml.mask_schedule",
    "libml.parallel_decode",
    "nets.layers",
    "nets.maskgit_transformer",
    "nets.vqgan_tokenizer",
    "nets.discriminator",
    "configs.base_config",
    "configs.vqgan_config",
    "configs.maskgit_class_cond_config",
    "utils",
    "inference",
)
_STRAY_LINE = "def squared_euclidean_distance"
_SHOWING_AND_READING = {
    "tensorflow": ("tensorflow", "tensorflow.compat", "tensorflow.compat.v1"),
    "requests": ("requests",),
    "matplotlib": ("matplotlib", "matplotlib.pyplot", "matplotlib.patches"),
}


def load(checkout: str | Path) -> JaxCode:
    """The official modules of `checkout`.

    Raises:
      ValueError: the folder is not a checkout of google-research/maskgit.
    """
    sources = _read_sources(Path(checkout))
    notes: list[str] = []
    sources["nets.discriminator"] = _without_stray_line(sources["nets.discriminator"], notes)
    with _temporary_modules(), _device_array(notes):
        _stub_missing(notes)
        loaded = {path: _execute(path, sources[path], Path(checkout)) for path in _FILES}
    digest = hashlib.sha256("".join(sources[path] for path in _FILES).encode()).hexdigest()
    return JaxCode(
        title=f"official code (google-research/maskgit, sources' sha256 {digest[:12]})",
        official=True,
        notes=tuple(notes),
        configs={path.rpartition(".")[2]: loaded[path] for path in loaded if "configs." in path},
        **{path.rpartition(".")[2]: loaded[path] for path in MODULES},
    )


def _read_sources(checkout: Path) -> dict[str, str]:
    sources = {}
    for path in _FILES:
        file = checkout / "maskgit" / f"{path.replace('.', '/')}.py"
        if not file.is_file():
            raise ValueError(
                f"{checkout}: no checkout of google-research/maskgit: {file.relative_to(checkout)} "
                "is missing (accepted: the folder that contains maskgit/nets, maskgit/libml, ...)"
            )
        sources[path] = file.read_text(encoding="utf-8")
    return sources


def _without_stray_line(source: str, notes: list[str]) -> str:
    lines = source.rstrip().splitlines()
    if lines[-1].strip() != _STRAY_LINE:
        return source
    notes.append("nets/discriminator.py: the stray last line left out (in memory)")
    return "\n".join(lines[:-1]) + "\n"


def _execute(path: str, source: str, checkout: Path) -> ModuleType:
    """Runs one file as the module maskgit.<path>, where the next files' imports find it."""
    name = f"maskgit.{path}"
    parent = name.rpartition(".")[0]
    for package in {"maskgit", parent}:
        if package not in sys.modules:
            sys.modules[package] = ModuleType(package)
            sys.modules[package].__path__ = []
    module = ModuleType(name)
    module.__file__ = str(checkout / f"{name.replace('.', '/')}.py")
    sys.modules[name] = module
    setattr(sys.modules[parent], name.rpartition(".")[2], module)
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    return module


@contextlib.contextmanager
def _temporary_modules() -> Iterator[None]:
    """Takes `maskgit` and stubs out of `sys.modules` again; an own `maskgit` package comes back."""
    names = ("maskgit", *_SHOWING_AND_READING)

    def concerned() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in names]

    before = {name: sys.modules[name] for name in concerned()}
    for name in before:
        if name.partition(".")[0] == "maskgit":
            del sys.modules[name]
    try:
        yield
    finally:
        for name in concerned():
            if name.startswith("maskgit") or isinstance(sys.modules[name], _Stub):
                del sys.modules[name]
        sys.modules.update(before)


class _Stub(ModuleType):
    """Stands in for a package that only the official code's file reading and drawing would use."""


def _stub_missing(notes: list[str]) -> None:
    for package, names in _SHOWING_AND_READING.items():
        if package in sys.modules or importlib.util.find_spec(package) is not None:
            continue
        notes.append(f"{package}: not installed, an empty module while loading")
        for name in names:
            sys.modules[name] = _Stub(name)
            sys.modules[name].__path__ = []
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])


@contextlib.contextmanager
def _device_array(notes: list[str]) -> Iterator[None]:
    if hasattr(jnp, "DeviceArray"):
        yield
        return
    notes.append("jax.numpy.DeviceArray: given back as jax.Array while loading")
    jnp.DeviceArray = jax.Array
    try:
        yield
    finally:
        del jnp.DeviceArray
