"""Resizing and sampling against separable interpolation in NumPy, and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import opcase
from opcase import F, run, rounded, same

MODES = ["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"]


def grid(mode, xin, xout):
    i = np.arange(xout, dtype="f8")
    if mode == "ALIGN_CORNERS" and xout == 1:
        g = np.array([(xin - 1) / 2])
    elif mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        g = i * (xin - 1) / max(xout - 1, 1)
    elif mode == "DEFAULT":
        g = i * xin / xout
    elif mode == "OFFSET_CORNERS":
        g = (i + 0.5) * max(1, xin - 1) / xout
    else:
        g = (i + 0.5) * xin / xout - 0.5
    return np.clip(g, 0, xin - 1)


def linear(x, axis, g):
    lo = np.floor(g).astype(int)
    hi = np.minimum(lo + 1, x.shape[axis] - 1)
    f = (g - lo).reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])
    return np.take(x, lo, axis) * (1 - f) + np.take(x, hi, axis) * f


@pytest.mark.parametrize("mode, five", [
    ("UNALIGN_CORNERS", [0, 0.1, 0.5, 0.9, 1]), ("STRICT_ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
    ("DEFAULT", [0, 0.4, 0.8, 1, 1]), ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9])])
def test_the_documented_example(mode, five):
    """Xin = 2 to Xout = 5: the values are the grid points themselves."""
    x = np.float32([[[0, 1], [0, 1]]])
    got = run("resize_bilinear", {"x": x}, target_size_height=2, target_size_width=5, sampling_mode=mode)
    rounded(got[0, 0], five, mode, 2.0**-50)


SIZES = [((2, 3, 4, 5), 7, 3), ((3, 4, 5), 4, 10), ((1, 1, 1), 3, 1), ((2, 2, 7, 1), 1, 4), ((2, 5, 6), 5, 6)]


@pytest.mark.parametrize("shape, h, w", SIZES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", F)
def test_resize_bilinear(shape, h, w, mode, dtype):
    x = opcase.data(shape, dtype)
    v = linear(linear(x.astype("f8"), -1, grid(mode, shape[-1], w)), -2, grid(mode, shape[-2], h))
    rounded(run("resize_bilinear", {"x": x}, target_size_height=h, target_size_width=w, sampling_mode=mode), v,
            mode, 2.0**-47)
    got = run("resize", {"x": x}, shape=[9, h, w], resized_dims=np.uint32(2), sampling_mode=mode)
    rounded(got, v, mode, 2.0**-47)


def test_resize_takes_dims_from_the_end():
    x = opcase.data((2, 3, 4, 5))
    assert run("resize", {"x": x}, shape=[1, 6, 8], resized_dims=np.uint32(2)).shape == (2, 3, 6, 8)
    assert run("resize", {"x": x}, shape=[7, 0, 8], resized_dims=np.uint32(3)).shape == (2, 7, 4, 8)
    same(run("resize", {"x": x}, shape=[0, 0], resized_dims=np.uint32(2)), x)
    same(run("resize", {"x": x, "shape": np.int32([8, 0])}, resized_dims=np.uint32(1)), x)
    with pytest.raises(ValueError, match="resize.*'resized_dims' is 3, 'shape' has 2"):
        run("resize", {"x": x}, shape=[6, 8], resized_dims=np.uint32(3))


@pytest.mark.parametrize("shape, h, w", SIZES)
def test_nearest(shape, h, w):
    """floor((i + 1/2) * Xin / Xout): coremltools lowers TensorFlow's half-pixel centres to these."""
    x = opcase.data(shape)
    ref = x[..., (2 * np.arange(h) + 1) * shape[-2] // (2 * h), :][
        ..., (2 * np.arange(w) + 1) * shape[-1] // (2 * w)]
    same(run("resize_nearest_neighbor", {"x": x}, target_size_height=h, target_size_width=w), ref)
    for mode in ("DEFAULT", "UNALIGN_CORNERS"):
        same(run("resize", {"x": x}, shape=[h, w], resized_dims=np.uint32(2), sampling_mode=mode,
                 interpolation_mode="NEAREST_NEIGHBOR"), ref)


@pytest.mark.parametrize("fh, fw", [(2, 3), (np.float32(1.5), np.float32(2.25)), (1, 1)])
def test_upsample(fh, fw):
    x = opcase.data((2, 3, 4))
    h, w = int(3 * float(fh)), int(4 * float(fw))
    kw = {"scale_factor_height": fh, "scale_factor_width": fw}
    same(run("upsample_nearest_neighbor", {"x": x}, **kw),
         x[..., np.arange(h) * 3 // h, :][..., np.arange(w) * 4 // w])
    for opset, extra, mode in (("ios15", {}, "STRICT_ALIGN_CORNERS"),
                               ("ios15", {"align_corners": False}, "UNALIGN_CORNERS"),
                               ("ios16", {"align_corners": False}, "UNALIGN_CORNERS"),
                               ("ios16", {"align_corners": False, "half_pixel_centers": False}, "DEFAULT")):
        v = linear(linear(x.astype("f8"), -1, grid(mode, 4, w)), -2, grid(mode, 3, h))
        rounded(run("upsample_bilinear", {"x": x}, opset, **kw, **extra), v, mode, 2.0**-47)


@pytest.mark.parametrize("op, kw, message", [
    ("resize_bilinear", {"target_size_height": 0}, "'target_size_height' must be 1 or more, got 0"),
    ("resize_bilinear", {"sampling_mode": "CUBIC"}, 'got "CUBIC"'),
    ("upsample_nearest_neighbor", {"scale_factor_height": np.float32(0.1)}, "makes 0 of 3"),
    ("upsample_bilinear", {"scale_factor_width": np.float32(1e30)}, "makes"),
    ("resize", {"shape": [-1], "resized_dims": np.uint32(1)}, r"shape\[0\] is -1")])
def test_errors(op, kw, message):
    with pytest.raises(ValueError, match=f"{op}.*{message}"):
        run(op, {"x": np.zeros((2, 3, 4), "f4")}, **kw)
    with pytest.raises(ValueError, match="resize_bilinear.*rank 3 or more"):
        run("resize_bilinear", {"x": np.zeros((3, 4), "f4")})


# ------------------------------------------------------------------ crop_resize


def crop(x, box, h, w, mode, pad):
    """box: (h0, w0, h1, w1) in pixels of one image [C, H, W]."""
    def points(lo, hi, n):
        i, m, span = np.arange(n, dtype="f8"), n, hi - lo
        if mode == "ALIGN_CORNERS" and n == 1:
            return np.array([(lo + hi) / 2])
        if "ALIGN_CORNERS" in mode and mode != "UNALIGN_CORNERS":
            return lo + i * span / max(m - 1, 1)
        if mode == "OFFSET_CORNERS":
            return lo + (i + 0.5) * max(1, span) / m
        return lo + (i + 0.5) * (span + 1) / m - 0.5 if mode == "UNALIGN_CORNERS" else lo + i * (span + 1) / m

    gy, gx = points(box[0], box[2], h), points(box[1], box[3], w)
    v = linear(linear(x.astype("f8"), -1, np.clip(gx, 0, x.shape[-1] - 1)), -2, np.clip(gy, 0, x.shape[-2] - 1))
    if pad is not None:
        out = ((gy < 0) | (gy > x.shape[-2] - 1))[:, None] | ((gx < 0) | (gx > x.shape[-1] - 1))[None]
        v = np.where(out, pad, v)
    return v


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST",
                                  "CENTER_SIZE_WIDTH_FIRST"])
@pytest.mark.parametrize("normal", [False, True])
def test_crop_resize(mode, form, normal):
    x = opcase.data((2, 3, 6, 9))
    corners = np.array([[0, 1, 4, 6], [1.5, 0.25, 5, 8], [-1, 2, 7, 10]])
    size = np.array([5, 8, 5, 8]) if normal else 1
    boxes = corners / size
    if "CENTER" in form:
        boxes = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    if "WIDTH_FIRST" in form:
        boxes = boxes[:, [1, 0, 3, 2]]
    boxes = boxes.astype(np.float32)
    kw = dict(target_height=3, target_width=5, normalized_coordinates=normal, box_coordinate_mode=form,
              sampling_mode=mode)
    slack = 2.0**-14            # the boxes are rounded to fp32, values move by |slope| times that
    index = np.int32([1, 0, 1])
    got = run("crop_resize", {"x": x, "boxes": boxes, "box_indices": index}, pad_value=np.float32(7), **kw)
    ref = np.stack([crop(x[b], c, 3, 5, mode, 7.0) for b, c in zip(index, corners)])
    near = np.isclose(ref, 7.0) != np.isclose(got, 7.0)         # a point on the very border
    rounded(np.where(near, np.float32(0), got), np.where(near, 0, ref), "crop_resize", slack)
    assert near.mean() < 0.35
    roi = boxes.reshape(3, 1, 4, 1, 1)
    got = run("crop_resize", {"x": x, "roi": roi}, "ios15", **kw)
    ref = np.stack([[crop(x[b], c, 3, 5, mode, None) for b in range(2)] for c in corners])
    rounded(got, ref, "crop_resize", slack)
    five = np.concatenate([index.astype("f4")[:, None], boxes], 1).reshape(3, 1, 5, 1, 1)
    got = run("crop_resize", {"x": x, "roi": five}, "ios15", **kw)
    rounded(got, np.stack([[crop(x[b], c, 3, 5, mode, None)] for b, c in zip(index, corners)]), "crop_resize", slack)


def test_crop_resize_scale_and_errors():
    x, b = opcase.data((2, 3, 6, 9)), np.float32([[0, 0, 8, 12]])
    kw = dict(target_height=2, target_width=2, sampling_mode="STRICT_ALIGN_CORNERS")
    same(run("crop_resize", {"x": x, "boxes": b}, spatial_scale=np.float32(0.5), **kw),
         run("crop_resize", {"x": x, "boxes": b / 2}, **kw))
    with pytest.raises(IndexError, match="crop_resize.*box 0 names image 5 of 2"):
        run("crop_resize", {"x": x, "boxes": b, "box_indices": np.int32([5])}, **kw)
    with pytest.raises(ValueError, match="crop_resize.*3 boxes for a batch of 2"):
        run("crop_resize", {"x": x, "boxes": np.zeros((3, 4), "f4")}, **kw)
    with pytest.raises(ValueError, match=r"crop_resize.*'roi' must be \[N, 1, 4 or 5, 1, 1\]"):
        run("crop_resize", {"x": x, "roi": np.zeros((3, 4, 1, 1, 1), "f4")}, "ios15", **kw)
    with pytest.raises(TypeError, match="crop_resize.*normalized.*fp16 or fp32"):
        run("crop_resize", {"x": x, "boxes": np.zeros((1, 4), np.uint16)}, normalized_coordinates=True, **kw)


# ------------------------------------------------------------------ resample, affine

COMMON = dict(padding_value=np.float32(0))


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("pad, torch_pad", [("constant", "zeros"), ("border", "border"), ("reflection", "reflection"),
                                            ("symmetric", "reflection")])
@pytest.mark.parametrize("how", ["bilinear", "nearest"])
@pytest.mark.oracle
def test_resample_as_pytorch(corners, pad, torch_pad, how):
    if (pad == "reflection") != corners and pad in ("reflection", "symmetric"):
        return              # PyTorch reflects at the centres with align_corners, at the edges without
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x, g = opcase.data((2, 3, 5, 7)), opcase.data((2, 4, 6, 2), seed=1, low=-2.2, high=2.2)
    ref = torch.nn.functional.grid_sample(torch.from_numpy(x).double(), torch.from_numpy(g).double(), how,
                                          torch_pad, corners).numpy()
    kw = dict(sampling_mode=how, padding_mode=pad, align_corners=corners, **COMMON)
    rounded(run("resample", {"x": x, "coordinates": g}, coordinates_mode="normalized_minus_one_to_one", **kw), ref,
            "resample", 2.0**-44)
    rounded(run("resample", {"x": x, "coordinates": (g + 1) / 2}, coordinates_mode="normalized_zero_to_one", **kw)
            if how == "bilinear" else np.float32(ref), ref, "resample", 2.0**-16)
    size = np.float64([7, 5])
    pixels = (g.astype("f8") + 1) / 2 * (size - 1) if corners else ((g.astype("f8") + 1) * size - 1) / 2
    if how == "bilinear":
        rounded(run("resample", {"x": x, "coordinates": pixels.astype("f4")}, coordinates_mode="unnormalized", **kw),
                ref, "resample", 2.0**-16)


def test_resample_integer_coordinates_and_padding_value():
    x = opcase.data((1, 2, 4, 5))
    g = np.int32([[[[0, 0], [4, 3], [5, 3], [-1, 0]]]])
    got = run("resample", {"x": x, "coordinates": g}, sampling_mode="nearest", padding_mode="constant",
              padding_value=np.float32(9), coordinates_mode="unnormalized", align_corners=True)
    same(got[0, :, 0], np.stack([x[0, :, 0, 0], x[0, :, 3, 4], np.float32([9, 9]), np.float32([9, 9])], 1))
    with pytest.raises(ValueError, match=r"resample.*'coordinates' must be \[1, H, W, 2\]"):
        run("resample", {"x": x, "coordinates": g[..., :1].copy()}, sampling_mode="nearest", padding_mode="constant",
            coordinates_mode="unnormalized", align_corners=True, **COMMON)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Since version 1.3.0")
@pytest.mark.parametrize("h, w", [(4, 6), (1, 5), (5, 7)])
def test_affine_as_pytorch(h, w):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x = opcase.data((2, 3, 5, 7))
    kw = dict(output_height=h, output_width=w, sampling_mode="bilinear", padding_mode="constant",
              coordinates_mode="normalized_minus_one_to_one", align_corners=True, **COMMON)
    for n in (2, 1):
        m = opcase.data((n, 6), low=-1, high=1)
        t = torch.from_numpy(np.repeat(m, 2 // n, 0).reshape(2, 2, 3)).double()
        g = torch.nn.functional.affine_grid(t, (2, 3, h, w), True)
        ref = torch.nn.functional.grid_sample(torch.from_numpy(x).double(), g, "bilinear", "zeros", True).numpy()
        rounded(run("affine", {"x": x, "transform_matrix": m}, **kw), ref, "affine", 2.0**-44)
    with pytest.raises(ValueError, match=r"affine.*\[2 or 1, 6\]"):
        run("affine", {"x": x, "transform_matrix": np.zeros((3, 6), "f4")}, **kw)
