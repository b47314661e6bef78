"""Host arrays in and out of the engine's surfaces, layout ``[1, C, 1, S]``.

A surface is a contiguous float16 :class:`~anetorch.Tensor` seen as flat elements: element
``(c, s)`` is number ``c*S + s``, and offsets count channels of ``S`` elements. Host arrays are
float32 ``[C, S]`` (or ``[1, C, 1, S]``). Values are rounded to nearest even on the way in and
exact on the way out; every region is checked against the tensor before a byte moves.

>>> from anetorch import surface_io
>>> t = anetorch.Tensor((1, 8, 1, 32), "float16")
>>> surface_io.write_at(t, 4, np.ones((2, 32), np.float32))
>>> surface_io.read(t, 4, 2).shape
(2, 32)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anetorch import _core

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from anetorch._core import Tensor

__all__ = ["write", "write_at", "read", "copy", "write_dyn", "read_dyn"]


def write(t: Tensor, x: ArrayLike) -> None:
    """Converts ``x`` ``[C, S]`` into the surface from channel 0 on.

    >>> t = anetorch.Tensor((1, 2, 1, 3), "float16")
    >>> write(t, np.float32([[1, 2, 3], [4, 5, 6]]))
    >>> t.numpy()[0, 1, 0].tolist()
    [4.0, 5.0, 6.0]
    """
    _core.io_write(t, 0, x)


def write_at(t: Tensor, channel: int, x: ArrayLike) -> None:
    """Converts ``x`` ``[C, S]`` into the surface from ``channel`` on.

    >>> t = anetorch.Tensor((1, 2, 1, 3), "float16")
    >>> write_at(t, 1, np.float32([[4, 5, 6]]))
    >>> t.numpy()[0, :, 0].tolist()
    [[0.0, 0.0, 0.0], [4.0, 5.0, 6.0]]
    """
    _core.io_write(t, channel, x)


def read(t: Tensor, channel: int = 0, channels: int | None = None, seq: int | None = None,
         out: np.ndarray | None = None) -> np.ndarray:
    """Float32 ``[channels, seq]`` from ``channel`` on.

    ``seq`` defaults to the tensor's last dimension, ``channels`` to all that follow.

    >>> read(anetorch.Tensor((1, 4, 1, 3), "float16"), 1, 2).shape
    (2, 3)
    """
    s = _last(t) if seq is None else seq
    if channels is None:
        channels = (t.size // s if s > 0 else 0) - channel
    return _core.io_read(t, channel, channels, s, out)


def copy(dst: Tensor, dst_channel: int, src: Tensor, src_channel: int, channels: int,
         seq: int | None = None) -> None:
    """Moves float16 bits of ``channels`` channels between surfaces, without conversion.

    ``seq`` defaults to the source's last dimension. Inside one surface the regions may
    overlap; two threads may copy in opposite directions.

    >>> a = anetorch.Tensor.from_numpy(np.ones((1, 4, 1, 3), np.float16))
    >>> b = anetorch.Tensor((1, 2, 1, 3), "float16")
    >>> copy(b, 1, a, 0, channels=1)
    >>> b.numpy()[0, :, 0, 0].tolist()
    [0.0, 1.0]
    """
    s = _last(src) if seq is None else seq
    _core.io_copy(dst, dst_channel, src, src_channel, channels, s)


def write_dyn(t: Tensor, act: ArrayLike, w: ArrayLike) -> None:
    """Packs a dynamic matmul's input: ``act`` ``[IC, S]`` beside ``w`` ``[IC, OC]``.

    Row ``d`` of pitch ``S + OC`` is ``act[d, :]`` then ``w[d, :]``.

    >>> t = anetorch.Tensor((1, 2, 1, 3 + 4), "float16")
    >>> write_dyn(t, np.ones((2, 3), np.float32), np.full((2, 4), 5, np.float32))
    >>> t.numpy()[0, 0, 0].tolist()
    [1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0]
    """
    _core.io_write_dyn(t, act, w)


def read_dyn(t: Tensor, channels: int, seq: int | None = None,
             out: np.ndarray | None = None) -> np.ndarray:
    """A dynamic matmul's result ``[OC, S]`` in float32.

    >>> read_dyn(anetorch.Tensor((1, 4, 1, 3), "float16"), 4).shape
    (4, 3)
    """
    return _core.io_read(t, 0, channels, _last(t) if seq is None else seq, out)


def _last(t: Tensor) -> int:
    if not isinstance(t, _core.Tensor):
        raise TypeError(f"[surface_io] expected a Tensor, got {type(t)!r}")
    return t.shape[-1] if t.shape else 1
