"""Image layouts, colours through Pillow, dtypes module."""

import numpy as np
import pytest

import anetorch
from anetorch import Tensor, dtypes


@pytest.mark.parametrize("format, w, h, shape, strides, fourcc", [
    ("YUYV", 34, 3, (3, 34, 2), (128, 2, 1), b"2C08"),
    ("NV12", 66, 4, (6, 66), (128, 1), b"420v"),
    ("RGBA", 17, 5, (5, 17, 4), (128, 4, 1), b"RGBA"),
    ("BGRA", 16, 5, (5, 16, 4), (64, 4, 1), b"BGRA"),
    ("RGB", 30, 2, (2, 30, 3), (128, 3, 1), b"\0\0\0\x18"),
    ("GREY", 64, 1, (1, 64), (64, 1), b"L008"),
])
def test_layouts(format, w, h, shape, strides, fourcc):
    t = Tensor.image(w, h, format)
    assert (t.shape, t.strides, t.dtype, t.format) == (shape, strides, "uint8", format)
    assert t.fourcc == int.from_bytes(fourcc, "big")
    assert t.capacity_bytes == strides[0] * shape[0] and t[0].format is None
    t.numpy()[...] = 255
    gaps = t.view(0, (shape[0], strides[0])).numpy()[:, w * (shape[2] if len(shape) > 2 else 1):]
    assert not gaps.any()


@pytest.mark.parametrize("args, error, match", [
    ((3, 2, "YUYV"), ValueError, "3 x 2 is no size for YUYV: width must be a positive multiple of 2"),
    ((4, 3, "NV12"), ValueError, "height of 2"),
    ((0, 3, "RGBA"), ValueError, "0 x 3"),
    ((1 << 62, 1 << 40, "RGBA"), ValueError, "overflow"),
    ((4, 4, "CMYK"), NotImplementedError, "none of YUYV"),
])
def test_bad_images(args, error, match):
    with pytest.raises(error, match=match):
        Tensor.image(*args)


def picture(mode, w=38, h=10, seed=0):
    Image = pytest.importorskip("PIL.Image", reason="Pillow")
    depth = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    a = np.random.default_rng(seed).integers(0, 256, (h, w, *depth), dtype=np.uint8)
    return Image.fromarray(a), a


@pytest.mark.parametrize("mode, format", [("L", None), ("RGB", None), ("RGBA", None),
                                          ("RGBA", "BGRA"), ("RGB", "RGB"), ("L", "GREY")])
def test_pillow_exact(mode, format):
    image, a = picture(mode)
    t = Tensor.from_pil(image, format)
    assert t.format == (format or {"L": "GREY"}.get(mode, mode))
    got = t.to_pil()
    assert got.size == image.size and got.mode == mode
    np.testing.assert_array_equal(np.asarray(got), a)


def test_channel_order_in_memory():
    Image = pytest.importorskip("PIL.Image", reason="Pillow")
    image = Image.new("RGBA", (2, 2), (1, 2, 3, 4))
    assert Tensor.from_pil(image, "RGBA")[0, 0].tolist() == [1, 2, 3, 4]
    assert Tensor.from_pil(image, "BGRA")[0, 0].tolist() == [3, 2, 1, 4]
    assert Tensor.from_pil(image, "RGB")[0, 0].tolist() == [1, 2, 3]


# BT.601, video range, rounded: from the standard's table of colour bars.
BARS = {(255, 255, 255): (235, 128, 128), (0, 0, 0): (16, 128, 128), (255, 0, 0): (81, 90, 240),
        (0, 255, 0): (145, 54, 34), (0, 0, 255): (41, 240, 110)}


@pytest.mark.parametrize("colour", BARS)
def test_yuv_of_colour_bars(colour):
    Image = pytest.importorskip("PIL.Image", reason="Pillow")
    image, (y, u, v) = Image.new("RGB", (4, 2), colour), BARS[colour]
    t = Tensor.from_pil(image, "YUYV")
    assert t.numpy().reshape(2, -1).tolist() == [[y, u, y, v] * 2] * 2
    n = Tensor.from_pil(image, "NV12")
    assert n.tolist() == [[y] * 4] * 2 + [[u, v] * 2]
    # Half a step of Y, U, V each: 255/219/2 + 255/224/2 * 2*(1-kb), plus the last rounding.
    bound = 255 / 219 / 2 + 255 / 224 * 0.886 + 0.5 + 0.5
    for image in (t.to_pil(), n.to_pil()):
        assert np.abs(np.asarray(image).astype(int) - colour).max() <= bound


def test_to_pil_needs_an_image():
    pytest.importorskip("PIL.Image", reason="Pillow")
    with pytest.raises(ValueError, match="is no image"):
        Tensor((2, 2), "uint8").to_pil()


def test_dtypes_agree_with_the_core():
    for name, (mil, short, size) in dtypes.DTYPES.items():
        for spelling in (name, mil, short):
            assert dtypes.canonical(spelling) == name
            t = Tensor((2,), spelling)
            assert (t.dtype, t.itemsize) == (name, size) == (name, dtypes.itemsize(spelling))
    assert dtypes.canonical(np.dtype("float16")) == "float16" and dtypes.is_float("bf16")
    assert dtypes.numpy_dtype("i32") == np.int32 and dtypes.mil_name(np.float16) == "fp16"
    with pytest.raises(TypeError, match="is none of"):
        dtypes.canonical("complex64")


def test_probes_never_raise():
    for name in ("iosurface", "shm", "dma"):
        available = getattr(anetorch, f"is_{name}_available")()
        assert isinstance(available, bool)
        if not available:
            with pytest.raises(NotImplementedError, match="not available on this machine"):
                Tensor((2,), mem=name)
