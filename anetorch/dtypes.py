"""Element types: names, sizes and what NumPy calls them.

Everywhere in anetorch a dtype may be written as NumPy's name (``"float16"``), MIL's
(``"fp16"``), the short one (``"f16"``) or as a NumPy dtype; what comes back is NumPy's name.
"""

from __future__ import annotations

import numpy as np

__all__ = ["DTYPES", "canonical", "itemsize", "numpy_dtype", "mil_name", "is_float"]

# NumPy's name -> (MIL's name, short name, bytes)
DTYPES: dict[str, tuple[str, str, int]] = {
    "float16": ("fp16", "f16", 2), "float32": ("fp32", "f32", 4), "float64": ("fp64", "f64", 8),
    "bfloat16": ("bf16", "bf16", 2), "bool": ("bool", "b1", 1),
    "int8": ("int8", "i8", 1), "int16": ("int16", "i16", 2), "int32": ("int32", "i32", 4),
    "int64": ("int64", "i64", 8), "uint8": ("uint8", "u8", 1), "uint16": ("uint16", "u16", 2),
    "uint32": ("uint32", "u32", 4), "uint64": ("uint64", "u64", 8),
}

_NAMES = {alias: name for name, (mil, short, _) in DTYPES.items() for alias in (name, mil, short)}


def canonical(dtype: object) -> str:
    """NumPy's name of any spelling.

    >>> canonical("fp16"), canonical(np.int8), canonical("bf16")
    ('float16', 'int8', 'bfloat16')
    """
    if isinstance(dtype, str) and dtype in _NAMES:
        return _NAMES[dtype]
    try:
        name = np.dtype(dtype).name  # type: ignore[call-overload]
    except TypeError:
        name = None
    if name not in DTYPES:
        raise TypeError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    return name


def itemsize(dtype: object) -> int:
    """Bytes per element.

    >>> itemsize("bf16")
    2
    """
    return DTYPES[canonical(dtype)][2]


def mil_name(dtype: object) -> str:
    """MIL's name.

    >>> mil_name("float16")
    'fp16'
    """
    return DTYPES[canonical(dtype)][0]


def is_float(dtype: object) -> bool:
    """Whether the type is one of the floating-point ones.

    >>> is_float("f16"), is_float("int8")
    (True, False)
    """
    return canonical(dtype) in ("float16", "float32", "float64", "bfloat16")


def numpy_dtype(dtype: object) -> np.dtype:
    """The NumPy dtype; bfloat16 needs ml_dtypes.

    >>> numpy_dtype("fp16")
    dtype('float16')
    """
    name = canonical(dtype)
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError("NumPy has no bfloat16; install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)
