"""The wheel holds everything that the packages need, by what setup.cfg tells setuptools."""

import importlib
from pathlib import Path

import pytest

setuptools = pytest.importorskip("setuptools")

ROOT = Path(__file__).parent.parent
PACKAGES = ("maskgit_pt", "convert", "parity", "train")


@pytest.fixture
def distribution(monkeypatch):
    """What setup.cfg says."""
    monkeypatch.chdir(ROOT)
    found = setuptools.Distribution({"script_name": "setup.py"})
    found.parse_config_files()
    return found


def needed() -> set[str]:
    """Code and data of the packages, as paths from the repository's root."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    return {
        str(path.relative_to(ROOT))
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def held(distribution) -> set[str]:
    """Code and data that the wheel will hold."""
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    data = {f"{source}/{name}" for _, source, _, names in command.data_files for name in names}
    modules = ((ROOT / path).resolve() for *_, path in command.find_all_modules())
    return data | {str(path.relative_to(ROOT)) for path in modules}


def test_the_wheel_holds_all_files(distribution):
    found = held(distribution)
    assert sorted(needed() - found) == []
    assert "maskgit_pt/imagenet_classes.txt" in found


def test_a_file_that_would_be_left_out_is_noticed(distribution):
    distribution.package_data = {"": ["*.txt"]}
    assert any(name.endswith("style.css") for name in needed() - held(distribution))


def test_the_commands_are_there(distribution):
    for line in distribution.entry_points["console_scripts"]:
        module, _, function = line.partition("=")[2].strip().partition(":")
        assert callable(getattr(importlib.import_module(module), function)), line
