"""What goes in and out of a Core ML model: arrays and images, as its description declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Feature"]

# ImageFeatureType.ColorSpace
GRAYSCALE, RGB, BGR, GRAYSCALE_FLOAT16 = 10, 20, 30, 40
_PIL_MODE = {GRAYSCALE: "L", RGB: "RGB", BGR: "RGB", GRAYSCALE_FLOAT16: "F"}


@dataclass(frozen=True)
class Feature:
    """One input, output or state of a model, as its description declares it.

    ``kind`` is ``"array"``, ``"image"``, ``"state"``, ``"dict"``, ``"int64"``, ``"double"``,
    ``"string"`` or ``"sequence"``. ``shape`` is the default shape of an array, ``(height,
    width)`` of an image. ``enumerated`` lists the shapes that are allowed instead, ``ranges``
    a ``(low, high)`` pair per dimension (``high`` None: unbounded).
    """

    name: str
    kind: str
    dtype: str | None = None
    shape: tuple[int, ...] = ()
    enumerated: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    optional: bool = False
    default: float | None = None
    color: int = 0
    doc: str = ""

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array (or an image's height and width) may have this shape."""
        if self.enumerated:
            return shape in self.enumerated or shape == self.shape
        if self.ranges:
            return len(shape) == len(self.ranges) and all(
                low <= n and (high is None or n <= high)
                for n, (low, high) in zip(shape, self.ranges)
            )
        return shape == self.shape

    @property
    def image_mode(self) -> str | None:
        """Pillow's mode of an image; None for other kinds."""
        return _PIL_MODE.get(self.color)

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Why :meth:`accepts` said no: what is expected, and in Core ML's words what is wrong."""
        text = f"expected shape {self.shapes_text()}, got {shape}"
        if self.enumerated:
            size = " x ".join(map(str, shape))
            return f"{text}: MultiArray Shape ({size}) was not in enumerated set of allowed shapes"
        if self.ranges and len(shape) == len(self.ranges):
            i, n, (low, high) = next(
                (i, n, r) for i, (n, r) in enumerate(zip(shape, self.ranges))
                if n < r[0] or r[1] is not None and n > r[1])
            return (f"{text}: Size ({n}) of dimension ({i}) is not in allowed range "
                    f"({low}..{'' if high is None else high})")
        return text

    def shapes_text(self) -> str:
        """The shapes that are allowed, for messages."""
        if self.enumerated:
            return "one of " + ", ".join(map(str, self.enumerated))
        if self.ranges:
            return "x".join(
                str(a) if a == b else f"{a}..{'' if b is None else b}" for a, b in self.ranges
            )
        return str(self.shape)


def feature_of(d: Mapping[str, Any]) -> Feature:
    ranges = tuple((a, None if b < 0 else b) for a, b in d.get("ranges", ()))
    return Feature(
        name=d["name"], kind=d["kind"], dtype=d.get("dtype"), shape=tuple(d.get("shape", ())),
        enumerated=tuple(map(tuple, d.get("enumerated", ()))), ranges=ranges,
        optional=d["optional"], default=d.get("default"), color=d.get("color", 0), doc=d["doc"],
    )


def image_to_array(feature: Feature, image: Any, dtype: str) -> np.ndarray:
    """A PIL image as ``[1, C, H, W]`` pixels, 0..255 (any value for fp16 greyscale)."""
    if isinstance(image, np.ndarray):
        raise TypeError(
            f"[predict] '{feature.name}' is an image; pass a PIL image "
            "(PIL.Image.fromarray(array))"
        )
    if not hasattr(image, "convert") or not hasattr(image, "size"):
        raise TypeError(
            f"[predict] '{feature.name}': expected a PIL image, got {type(image).__name__}"
        )
    width, height = image.size
    if not feature.accepts((height, width)):
        raise ValueError(
            f"[predict] '{feature.name}': expected an image of height x width "
            f"{feature.shapes_text()}, got {(height, width)}"
        )
    mode = _PIL_MODE.get(feature.color)
    if mode is None:
        raise ValueError(f"[predict] '{feature.name}': unknown colour layout {feature.color}")
    if image.mode != mode and not (mode == "RGB" and image.mode in ("RGBA", "RGBX")):
        raise ValueError(
            f"[predict] '{feature.name}': expected an image of mode {mode}, got {image.mode} "
            f"(image.convert({mode!r}))"
        )
    a = np.asarray(image)
    if mode == "RGB":
        a = a[:, :, :3]
        if feature.color == BGR:
            a = a[:, :, ::-1]
        a = a.transpose(2, 0, 1)
    else:
        a = a[None]
        if feature.color == GRAYSCALE_FLOAT16:
            a = a.astype(np.float16)
    return np.ascontiguousarray(a[None], dtype=dtype)


def array_to_image(feature: Feature, a: np.ndarray) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            f"[predict] output '{feature.name}' is an image: pip install pillow"
        ) from None
    a = a.reshape(a.shape[-3:])
    if feature.color == GRAYSCALE_FLOAT16:
        return Image.fromarray(a[0].astype(np.float16).astype(np.float32), mode="F")
    pixels = np.clip(np.rint(a.astype(np.float64)), 0, 255).astype(np.uint8)
    if feature.color == GRAYSCALE:
        return Image.fromarray(pixels[0], mode="L")
    if feature.color == BGR:
        pixels = pixels[::-1]
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)), mode="RGB")
