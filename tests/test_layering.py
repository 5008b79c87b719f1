"""What imports what: core <- models <- importers <- train, and the rooms within the core."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONAL = {
    "importers/commands.py": {"torch", "torchvision"},
    "importers/exporting.py": {"torch"},
}
ABOVE = {  # what each package must not import
    "tlv_jax": {"flax", "optax", "orbax", "torch", "torchvision", "importers", "train"},
    "tlv_jax/models": {"optax", "orbax", "torch", "torchvision", "importers", "train"},
    "importers": {"optax", "orbax", "torch", "torchvision", "train"},
    "train": {"torch", "torchvision"},
}
CORE = {"jax", "numpy", "scipy", "tlv_jax"}
OF_PLOTS = {"matplotlib"}  # optional, and imported late: see the list of what is not loaded
PLAIN = {"types", "errors"}  # of the core, which any room may import
ROOMS = {  # of the core, and what else of it each may import
    "layers": {"layers"},
    "matching": {"layers", "matching"},
    "rules": {"arrays", "rules"},
    "consistent": {"arrays", "consistent", "layers", "rules"},
    "convolutions": {"convolutions"},
    "fitting": {"apply", "arrays", "cpu_convolutions", "fitting", "layers", "methods", "network"},
    "pages": {"fit", "network", "pages", "plan", "plots", "report"},
    "plots": {
        *("apply", "arrays", "fit", "layers", "matching", "network", "plan", "planning"),
        *("plots", "report", "rules"),
    },
    "models": {"models"},
}
LOADED = """
import importlib, json, sys
loaded = {}
for name in ["tlv_jax", "tlv_jax.models", "importers.loading", "train.loop", "train.__main__"]:
    importlib.import_module(name)
    loaded[name] = list(sys.modules)
print(json.dumps(loaded))
"""


def files_of(package):
    files = sorted((ROOT / package).rglob("*.py"))
    if package == "tlv_jax":
        files = [path for path in files if path.parent.name != "models"]
    return files


def imported(path):
    """The modules that a file imports, with their packages, wherever in it they are imported."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def roots_of(path):
    return {name.split(".")[0] for name in imported(path)}


def test_the_core_imports_jax_numpy_and_scipy_alone():
    for path in files_of("tlv_jax"):
        optional = OF_PLOTS if path.parent.name in ("pages", "plots") else set()
        assert roots_of(path) <= CORE | optional | sys.stdlib_module_names, path
        assert "tlv_jax.models" not in set(imported(path)), path


@pytest.mark.parametrize("package", ABOVE)
def test_packages_import_only_what_lies_below_them(package):
    for path in files_of(package):
        wrong = roots_of(path) & ABOVE[package]
        wrong -= OPTIONAL.get(str(path.relative_to(ROOT)), set())
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_the_core_imports_only_those_below_it(room):
    for path in sorted((ROOT / "tlv_jax" / room).glob("*.py")):
        used = {name.split(".")[1] for name in imported(path) if name.startswith("tlv_jax.")}
        assert used <= ROOMS[room] | PLAIN, path


@pytest.fixture(scope="module")
def loaded():
    """The modules that are loaded after the import of each package, one after the other."""
    command = [sys.executable, "-c", LOADED]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return {name: set(modules) for name, modules in json.loads(run.stdout).items()}


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        (
            "tlv_jax",
            {"flax", "optax", "orbax", "torch", "matplotlib", "tlv_jax.models", "importers"},
        ),
        ("tlv_jax.models", {"optax", "orbax", "torch", "matplotlib", "importers", "train"}),
        ("importers.loading", {"optax", "orbax", "torch", "torchvision", "matplotlib", "train"}),
        ("train.loop", {"torch", "torchvision", "matplotlib"}),
        ("train.__main__", {"torch", "torchvision", "matplotlib"}),
    ],
)
def test_importing_a_package_loads_nothing_that_it_can_do_without(loaded, package, absent):
    assert package in loaded[package]
    assert not loaded[package] & absent


@pytest.mark.parametrize("package", ["tlv_jax", "importers", "train"])
def test_files_are_of_readable_length(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        assert len(path.read_text().splitlines()) <= 400, path
