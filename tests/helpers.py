"""What several test modules share: compilations, torchvision without CUDA, and comparisons."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

counting: list[Counter] = []


def listen(event, *_, fun_name=None, **__):
    if "backend_compile" in event:
        for counts in counting:
            counts[fun_name] += 1


# Registered for good: jax 0.7.2 has no public function that takes a listener off again.
jax.monitoring.register_event_duration_secs_listener(listen)


@contextlib.contextmanager
def compilations() -> Iterator[Counter]:
    """Counts what XLA compiles inside, by function."""
    counting.append(Counter())
    try:
        yield counting[-1]
    finally:
        counting.pop()


def import_torchvision() -> ModuleType:
    """Imports torchvision, also where its wheel's C++ operators cannot be loaded.

    The wheel links CUDA; beside a CPU-only torch its operator library stays unloaded, and the
    Python part then asks for two operators' schemas at import. Neither is called by a classifier.
    """
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision._schemas = library  # type: ignore[attr-defined]  # else they are dropped again
    return torchvision


def relative_error(actual: object, expected: object) -> float:
    """Largest absolute difference over the largest expected magnitude."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def weights_of(result):
    """Small integers, by which a function's result is weighted to a number with gradients."""
    return (np.arange(result.size) % 5 - 2).astype(result.dtype).reshape(result.shape)


def value_and_gradients(fn, *args):
    """A function's value, and its gradients for all arguments."""

    def weighted(*args):
        result = fn(*args)
        return jnp.vdot(weights_of(result), result), result

    (_, result), gradients = jax.value_and_grad(weighted, range(len(args)), has_aux=True)(*args)
    return result, *gradients
