"""From torch's tensors in memory to arrays, without importing torch."""

from typing import Any

import numpy as np

from importers.placeholders import Unreadable
from importers.torch_names import (
    DTYPES,
    META,
    NESTED,
    QUANTIZED,
    SPARSE,
    UNINITIALIZED,
    WRAPPED,
)

__all__ = ["array_of", "kind_without_values"]


def array_of(tensor: Any) -> np.ndarray | Unreadable:
    """Reads a tensor, which may be on a device, require a gradient, or have a dtype of ml_dtypes.

    Args:
      tensor: a `torch.Tensor`.

    Returns:
      An array, or what the tensor is if NumPy has no such arrays.
    """
    if kind := kind_without_values(tensor):
        return kind
    tensor, name = tensor.detach().cpu(), str(tensor.dtype).removeprefix("torch.")
    try:
        # NumPy has none of these that torch could export to; float32 holds their values exactly.
        if name.startswith(("bfloat", "float8")) and name in DTYPES:
            with np.errstate(invalid="ignore"):  # they may be NaN
                return tensor.float().numpy().astype(DTYPES[name])
        return tensor.resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError):
        return Unreadable(
            f"a {type(tensor).__name__} of dtype {name}", "Use tensor.float(), as a plain tensor."
        )


def kind_without_values(tensor: Any) -> Unreadable | None:
    """The kind of a tensor whose values do not lie in memory one by one, if it is of one.

    Some of them have not even a shape.

    Args:
      tensor: a `torch.Tensor`.
    """
    kinds = {
        UNINITIALIZED: type(tensor).__name__.startswith("Uninitialized"),
        WRAPPED: hasattr(tensor, "full_tensor"),
        NESTED: tensor.is_nested,
        QUANTIZED: tensor.is_quantized,
        META: tensor.is_meta,
        SPARSE: str(tensor.layout) != "torch.strided",
    }
    return next((kind for kind, applies in kinds.items() if applies), None)
