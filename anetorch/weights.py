"""Weight files: reading them without a copy, writing them atomically.

    >>> save_file({"norm": np.ones((2, 3), "float32")}, "model.safetensors")
    >>> with WeightFile.open("model.safetensors") as w:     # or an index, GGUF, raw + manifest
    ...     w["norm"]                                       # a Tensor over the mapped file
    Tensor(shape=(2, 3), dtype='float32', memory='external', readonly)

A mapped file must not change while it is in use. Every call of anetorch checks that it was
not cut, rewritten or replaced since it was opened and raises RuntimeError naming file and
tensor. Code that is not anetorch's (a NumPy view) gets SIGBUS when it reads what is no longer
there, unless `guard(True)` was called: then it reads zeros, and the next call of anetorch
raises. A file that shrinks between a check and the read that follows is in the same case.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from anetorch import _core

__all__ = ["WeightBuffer", "WeightFile", "WeightWriter", "build_blob", "build_blob_fp16",
           "build_blob_int8", "guard", "quantize_int8", "save_file"]

WeightFile = _core.WeightFile
WeightBuffer = _core.WeightBuffer
guard = _core.weight_guard
build_blob = _core.build_blob
build_blob_fp16 = _core.build_blob_fp16
build_blob_int8 = _core.build_blob_int8
quantize_int8 = _core.quantize_int8

PIECE = 1 << 24     # bytes of a strided array that are made contiguous at a time


def _spec(name: str, x: Any) -> tuple[str, str, tuple[int, ...]]:
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise TypeError(f"[save_file] {name!r}: expected an array or a Tensor, got "
                        f"{type(x).__name__}")
    dtype = x.dtype
    return name, dtype if isinstance(dtype, str) else np.dtype(dtype).name, tuple(x.shape)


class WeightWriter:
    """Streams a safetensors file that appears at `path`, whole and durable, on success.

    Sizes are given first, bytes in any order of names and in pieces of any size, so a 10 GB
    file needs no 10 GB of memory. Equal contents give equal bytes.

    >>> with WeightWriter("a.safetensors", {"w": ("float32", (1000, 64))}) as out:
    ...     for _ in range(10):
    ...         out.write("w", np.zeros((100, 64), "float32"))
    """

    def __init__(self, path: str | os.PathLike[str],
                 tensors: Mapping[str, tuple[str, Iterable[int]]],
                 metadata: Mapping[str, str] | None = None) -> None:
        specs = [(name, dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()]
        self._index = {spec[0]: i for i, spec in enumerate(specs)}
        self._writer = _core.WeightWriter(path, specs, metadata)

    def write(self, name: str, data: Any) -> None:
        """Appends an array's or buffer's bytes to a tensor, in row-major order."""
        try:
            index = self._index[name]
        except KeyError:
            raise KeyError(f"[WeightWriter] {name!r} is not one of the tensors announced") from None
        if isinstance(data, np.ndarray):
            self._write_array(index, data)
        else:
            self._writer.append(index, data)

    def _write_array(self, index: int, a: np.ndarray) -> None:
        if a.dtype.byteorder == ">":
            a = a.astype(a.dtype.newbyteorder("<"))
        if a.flags.c_contiguous:
            # As bytes: dtypes outside the buffer protocol (ml_dtypes) are stored as well.
            self._writer.append(index, a.reshape(-1).view(np.uint8))
            return
        rows = max(1, PIECE // max(1, a.nbytes // max(1, a.shape[0])))
        for i in range(0, a.shape[0], rows):
            part = np.ascontiguousarray(a[i:i + rows])
            self._writer.append(index, part.reshape(-1).view(np.uint8))

    def commit(self) -> None:
        """Makes the file durable and visible; ValueError when a tensor is incomplete."""
        self._writer.commit()

    def abort(self) -> None:
        """Drops what was written; nothing appears at the path."""
        self._writer.abort()

    def __enter__(self) -> WeightWriter:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is None:
            try:
                self.commit()
            except BaseException:
                self.abort()
                raise
        else:
            self.abort()


def save_file(tensors: Mapping[str, Any], path: str | os.PathLike[str],
              metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays and Tensors as one safetensors file: atomically, page-aligned.

    `metadata` maps str to str. The file appears under its name only when all of it is on
    the disk; an older file of that name is whole until then. Equal contents are equal bytes.

    >>> save_file({"w": np.eye(3, dtype="float32")}, "w.safetensors", {"format": "pt"})
    >>> WeightFile.open("w.safetensors").metadata
    {'format': 'pt'}
    """
    specs = {name: _spec(name, x)[1:] for name, x in tensors.items()}
    with WeightWriter(path, specs, metadata) as out:
        for name, x in tensors.items():
            out.write(name, x)
