import importlib
import inspect

import pytest

PACKAGES = ["tlv_jax", "tlv_jax.models", "importers", "train"]


def public_things():
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            yield pytest.param(getattr(module, name), id=f"{package}.{name}")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_public_names_are_unique_and_exist(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("thing", list(public_things()))
def test_everything_public_is_annotated_and_documented(thing):
    assert inspect.getdoc(thing)
    if not inspect.isfunction(thing):
        return
    signature = inspect.signature(thing)
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty, parameter


@pytest.mark.parametrize("module", ["rules", "selection", "kernels", "heads", "matching"])
def test_every_module_function_is_annotated_and_documented(module):
    module = importlib.import_module(f"tlv_jax.{module}")
    for name in module.__all__:
        thing = getattr(module, name)
        assert name in ("RANKS", "SELECTIONS", "Match") or thing.__doc__, name
