"""Image tensors to and from Pillow, with the colour order right.

``Tensor.to_pil`` and ``Tensor.from_pil`` call this. Pillow is needed only here. YUV formats
are BT.601, video range (Y 16 to 235, U and V 16 to 240), chroma averaged over the pixels that
share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from anetorch._core import Tensor

__all__ = ["to_pil", "from_pil"]

# Rows: Y, U, V of R, G, B in 0..1; the usual BT.601 weights.
_KR, _KB = 0.299, 0.114
_KG = 1 - _KR - _KB


def _to_yuv(rgb: np.ndarray) -> np.ndarray:
    r, g, b = (rgb[..., i].astype(np.float32) / 255 for i in range(3))
    y = _KR * r + _KG * g + _KB * b
    u, v = (b - y) / (2 * (1 - _KB)), (r - y) / (2 * (1 - _KR))
    return np.stack([16 + 219 * y, 128 + 224 * u, 128 + 224 * v], axis=-1)


def _to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    y = (y.astype(np.float32) - 16) / 219
    u = (u.astype(np.float32) - 128) / 224
    v = (v.astype(np.float32) - 128) / 224
    r, b = y + 2 * (1 - _KR) * v, y + 2 * (1 - _KB) * u
    g = (y - _KR * r - _KB * b) / _KG
    return _byte(255 * np.stack([r, g, b], axis=-1))


def _byte(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def to_pil(t: Tensor) -> Image.Image:
    """A Pillow image with the tensor's pixels (a copy)."""
    from PIL import Image

    kind = t.format
    if kind is None:
        raise ValueError(f"[to_pil] {t!r} is no image; make it with Tensor.image or from_pil")
    with t.map("r") as m:
        a = np.array(m.numpy())
    if kind == "BGRA":
        a = a[..., [2, 1, 0, 3]]
    elif kind == "YUYV":
        y = a[..., 0]
        u, v = (np.repeat(a[:, i::2, 1], 2, axis=1) for i in (0, 1))
        a = _to_rgb(y, u, v)
    elif kind == "NV12":
        h = a.shape[0] * 2 // 3
        chroma = a[h:].reshape(h // 2, -1, 2).repeat(2, axis=0).repeat(2, axis=1)
        a = _to_rgb(a[:h], chroma[..., 0], chroma[..., 1])
    return Image.fromarray(np.ascontiguousarray(a))


def from_pil(cls: type[Tensor], image: Image.Image, format: str | None = None,
             mem: str | None = None, name: str | None = None) -> Tensor:
    """An image tensor with the Pillow image's pixels."""
    if format is None:
        format = {"L": "GREY", "RGB": "RGB"}.get(image.mode, "RGBA")
    t = cls.image(image.width, image.height, format, mem, name)
    mode = {"GREY": "L", "RGBA": "RGBA", "BGRA": "RGBA"}.get(format, "RGB")
    a = np.asarray(image.convert(mode))
    if format == "BGRA":
        a = a[..., [2, 1, 0, 3]]
    elif format == "YUYV":
        yuv = _to_yuv(a)
        pairs = yuv[..., 1:].reshape(yuv.shape[0], -1, 2, 2).mean(axis=2)
        a = _byte(np.stack([yuv[..., 0], pairs.reshape(yuv.shape[0], -1)], axis=-1))
    elif format == "NV12":
        yuv = _to_yuv(a)
        h, w = yuv.shape[:2]
        chroma = yuv[..., 1:].reshape(h // 2, 2, w // 2, 2, 2).mean(axis=(1, 3))
        a = _byte(np.concatenate([yuv[..., 0], chroma.reshape(h // 2, w)]))
    with t.map("w") as m:
        m.numpy()[...] = a
    return t
