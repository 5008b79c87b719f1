"""What torch's names in a pickle stand for: functions that describe tensors, and dtypes.

Nothing of torch is imported or called. The functions take exactly the arguments that torch writes:
with `*_`, a hostile file could have one long tuple copied again and again.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from importers.placeholders import (
    Foreign,
    Storage,
    Tensor,
    Unreadable,
    natural,
    shape_of,
)

__all__ = [
    "DTYPES",
    "META",
    "NESTED",
    "OLD_VIEW",
    "QUANTIZED",
    "SPARSE",
    "TORCH",
    "UNINITIALIZED",
    "WRAPPED",
]

OLD_VIEW = Unreadable(
    "a view of a storage, as torch wrote before version 0.4",
    "Load it with a newer torch, and save it again.",
)
SPARSE = Unreadable("a sparse tensor", "Use tensor.to_dense().")
QUANTIZED = Unreadable("a quantized tensor", "Use tensor.dequantize(), or the float model.")
NESTED = Unreadable("a nested tensor", "Use the tensors of tensor.unbind().")
META = Unreadable("a tensor on the meta device, without values", "Use one of a real device.")
DEVICE = Unreadable("a tensor as another device saved it", "Use tensor.cpu().")
WRAPPED = Unreadable("a wrapped tensor, such as a DTensor", "Use tensor.full_tensor().")
PICKLED = Unreadable("a tensor that pickle wrote", "Save the state dict with torch.save.")
UNINITIALIZED = Unreadable("an uninitialized parameter", "Run the model once before you save it.")
# Read as they lie in the file, their values would have the wrong sign.
FLIPPED = Unreadable(
    "a conjugated or negated view", "Use tensor.resolve_conj().resolve_neg().contiguous()."
)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Any:
    if isinstance(storage, Foreign | Unreadable):
        return storage
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    shape, strides = shape_of(shape), shape_of(strides)
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of {len(shape)} axes and {len(strides)} strides")
    return Tensor(storage, natural(offset), shape, strides)


def _tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, flags: Any = None
) -> Any:
    return FLIPPED if flags else _tensor(storage, offset, shape, strides)


def _tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    flags: Any = None,
) -> Any:
    """A tensor of one of the newer dtypes, whose storage counts bytes."""
    if isinstance(dtype, Foreign):
        return Unreadable(f"a tensor of dtype {dtype}", "Use tensor.float().")
    if not isinstance(dtype, np.dtype):
        raise ValueError("a tensor without a dtype")
    if isinstance(storage, Storage):
        count = storage.count * storage.dtype.itemsize // dtype.itemsize
        storage = Storage(storage.key, dtype, count)
    return _tensor_v2(storage, offset, shape, strides, grad, hooks, flags)


def _parameter(tensor: Any, grad: Any, hooks: Any, state: Any = None) -> Any:
    if not isinstance(tensor, Tensor | Foreign | Unreadable):
        raise ValueError("a parameter that is not a tensor")
    return tensor


def _from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor of a subclass, or one with attributes."""
    if isinstance(function, Foreign):
        return function
    # Not itself: a long chain of calls could be made again and again.
    if not isinstance(function, types.FunctionType) or function is _from_type:
        raise ValueError("a tensor of no known function")
    if isinstance(kind, Foreign) and (kind.module, kind.name) not in PLAIN:
        return kind  # which may give its values another meaning
    return function(*arguments)


def _from_device(tensor: Any, dtype: Any, device: Any, grad: Any) -> Any:
    """A tensor that was copied to the CPU to save it; its dtype there may be another one."""
    same = isinstance(tensor, Tensor) and tensor.storage.dtype is dtype
    return tensor if same else DEVICE


def _always(kind: Unreadable, fewest: int, most: int) -> Callable[..., Unreadable]:
    """A function that takes so many arguments and makes nothing of them."""

    def rebuild(*arguments: Any) -> Unreadable:
        if not fewest <= len(arguments) <= most:
            raise ValueError(f"{kind.what} of {len(arguments)} parts")
        return kind

    return rebuild


PLAIN = {
    ("torch", "Tensor"),
    ("torch.nn.parameter", "Buffer"),
    ("torch.nn.parameter", "Parameter"),
}
DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
}
STORAGES = {
    "DoubleStorage": DTYPES["float64"],
    "FloatStorage": DTYPES["float32"],
    "HalfStorage": DTYPES["float16"],
    "BFloat16Storage": DTYPES["bfloat16"],
    "ComplexDoubleStorage": DTYPES["complex128"],
    "ComplexFloatStorage": DTYPES["complex64"],
    "LongStorage": DTYPES["int64"],
    "IntStorage": DTYPES["int32"],
    "ShortStorage": DTYPES["int16"],
    "CharStorage": DTYPES["int8"],
    "ByteStorage": DTYPES["uint8"],
    "BoolStorage": DTYPES["bool"],
    # Only their sizes matter, to find what follows them in an old file.
    "QInt8Storage": np.dtype("V1"),
    "QUInt8Storage": np.dtype("V1"),
    "QUInt4x2Storage": np.dtype("V1"),
    "QUInt2x4Storage": np.dtype("V1"),
    "QInt32Storage": np.dtype("V4"),
}
REBUILDERS = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor_v2,
    "_rebuild_tensor_v3": _tensor_v3,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "_rebuild_device_tensor_from_cpu_tensor": _from_device,
    "_rebuild_device_tensor_from_numpy": _always(DEVICE, 4, 4),
    "_rebuild_xla_tensor": _always(DEVICE, 4, 4),
    "_rebuild_meta_tensor_no_storage": _always(META, 4, 4),
    "_rebuild_nested_tensor": _always(NESTED, 3, 4),
    "_rebuild_qtensor": _always(QUANTIZED, 7, 7),
    "_rebuild_sparse_tensor": _always(SPARSE, 2, 2),
    "_rebuild_sparse_csr_tensor": _always(SPARSE, 2, 2),
    "_rebuild_wrapper_subclass": _always(WRAPPED, 7, 8),
}
TORCH: Mapping[tuple[str, str], Any] = types.MappingProxyType(
    {
        ("torch._tensor", "_rebuild_from_type"): _from_type,
        ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
        ("torch.nn.parameter", "UninitializedBuffer"): _always(UNINITIALIZED, 0, 3),
        ("torch.nn.parameter", "UninitializedParameter"): _always(UNINITIALIZED, 0, 3),
        ("torch.storage", "UntypedStorage"): DTYPES["uint8"],
        ("torch.storage", "_load_from_bytes"): _always(PICKLED, 1, 1),
        **{("torch._utils", name): function for name, function in REBUILDERS.items()},
        **{("torch", name): dtype for name, dtype in (STORAGES | DTYPES).items()},
    }
)
"""What each of torch's names stands for."""
