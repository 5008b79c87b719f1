import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE_MAY_IMPORT = {"jax", "numpy", "tlv_jax"}
OPTIONAL = {
    "tlv_jax/plots.py": {"matplotlib"},
    "tlv_jax/matching.py": {"scipy"},  # of which JAX itself consists in part
    "importers/commands.py": {"torchvision"},
}
FORBIDDEN = {
    "tlv_jax/models": {"importers", "train", "torch", "torchvision", "optax"},
    "importers": {"train", "torchvision", "optax", "orbax"},
    "train": {"torch", "torchvision"},
}


def imported_roots(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tlv_jax").glob("*.py")), ids=lambda path: path.name
)
def test_the_core_imports_jax_and_numpy_alone(path):
    allowed = CORE_MAY_IMPORT | sys.stdlib_module_names
    allowed |= OPTIONAL.get(str(path.relative_to(ROOT)), set())
    assert set(imported_roots(path)) <= allowed


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_what_lies_below_them(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        wrong = set(imported_roots(path)) & FORBIDDEN[package]
        wrong -= OPTIONAL.get(str(path.relative_to(ROOT)), set())
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("module", ["tlv_jax", "tlv_jax.models", "importers", "train.__main__"])
def test_torch_is_never_imported(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_importing_the_core_brings_no_flax():
    code = "import sys, tlv_jax; sys.exit('flax' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("package", ["tlv_jax", "importers", "train"])
def test_files_are_of_readable_length(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        assert len(path.read_text().splitlines()) <= 400, path
