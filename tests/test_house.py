"""Imports run one way: between the packages, and between their files."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "maskgit_pt": set(),
    "convert": {"maskgit_pt"},
    "train": {"maskgit_pt", "convert"},
    "parity": {"maskgit_pt", "convert", "train"},
}


def imports() -> dict[str, set[str]]:
    """Module -> the modules of the project that it imports anywhere, also for types alone."""
    files = [file for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py")]
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    modules = {name.removesuffix(".__init__"): file for name, file in modules.items()}
    found = {}
    for module, file in modules.items():
        names = set()
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                of = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in modules else node.module for name in of}
        found[module] = (names & modules.keys()) - {module}
    return found


def test_files_import_in_no_circle():
    graph = {module: {name for name in names if "." in name} for module, names in imports().items()}
    assert len(graph) > 200
    TopologicalSorter(graph).prepare()  # names the circle


def test_packages_import_one_way():
    for module, names in imports().items():
        package = module.partition(".")[0]
        wrong = {
            name for name in names if name.partition(".")[0] not in MAY_IMPORT[package] | {package}
        }
        assert not wrong, f"{module} imports {wrong}"
