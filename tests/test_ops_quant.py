"""quantize, dequantize and every constexpr op: ios16's attributes, ios18's arguments."""

from __future__ import annotations

import numpy as np
import pytest

import anetorch.mil as mil
import opcase
from anetorch import _core
from opcase import F, rounded, run, same


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("to", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("zero", [False, True])
def test_quantize_and_back(dtype, to, axis, zero):
    x = opcase.data((3, 4, 5), dtype, low=-40, high=40)
    shape = () if axis is None else (x.shape[axis],)
    wide = [1, 1, 1]
    if axis is not None:
        wide[axis] = -1
    s = np.asarray(opcase.data(shape, dtype, 1, 0.1, 0.5))
    z = np.asarray(opcase.data(shape, to, 2, -20, 20))
    kw = {} if axis is None else {"axis": axis}
    if zero:
        kw["zero_point"] = z
    s64, z64 = s.astype("f8").reshape(wide), (z.astype("f8") if zero else 0 * z.astype("f8")).reshape(wide)
    info = np.iinfo(to)
    q = np.clip(np.rint(x.astype("f8") / s64) + z64, info.min, info.max).astype(to)
    same(run("quantize", {"input": x}, scale=s, output_dtype=to, **kw), q)
    rounded(run("dequantize", {"input": q}, scale=s, **kw), s64 * (q.astype("f8") - z64), "dequantize")


def test_quantize_rounds_halves_to_even_and_saturates():
    x = np.float16([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300, np.inf, -np.inf])
    same(run("quantize", {"input": x}, scale=np.float16(1), output_dtype="int8"),
         np.int8([0, 2, 2, 0, -2, 127, -128, 127, -128]))


@pytest.mark.parametrize("kw, message", [
    ({"scale": np.ones(3, "f4")}, "'axis' is required"), ({"scale": np.float32(1), "axis": 0}, "must be absent"),
    ({"scale": np.ones(3, "f4"), "axis": 1}, "'scale' must have 4 elements"), ({"scale": np.float32(0)}, "'scale' is 0"),
    ({"scale": np.float32(1), "zero_point": np.uint8(1)}, "'zero_point' must be int8"),
    ({"scale": np.ones(3, "f4"), "axis": 0, "zero_point": np.int8(0)}, "both be scalars or both be vectors")])
def test_quantize_errors(kw, message):
    with pytest.raises((ValueError, TypeError), match=f"quantize.*{message}"):
        run("quantize", {"input": np.zeros((3, 4), "f4")}, output_dtype="int8", **kw)


# ------------------------------------------------------------------ constexpr, from text

HEAD16 = "program(1.0)\n{\nfunc main<ios16>(tensor<fp32, [1]> x) {\n"


def lit(a):
    a = np.asarray(a)
    if a.ndim:
        return "[" + ", ".join(lit(v) for v in a) + "]"
    return str(float(a)) if a.dtype.kind == "f" else str(int(a))


def typed(a, dtype):
    a = np.asarray(a)
    return f"tensor<{dtype}, [{', '.join(map(str, a.shape))}]>({lit(a)})"


def constexpr16(op, result, **attrs):
    text = (HEAD16 + f"{result} w = {op}()[" + ", ".join(f"{k} = {v}" for k, v in attrs.items())
            + ", name = tensor<string, []>(\"w\")];\n} -> (w);\n}")
    p = _core.Program.parse(text)
    return _core._testing.eval(p, {"x": np.zeros(1)})["w"]


def constexpr18(op, results, **args):
    text = ("program(1.3)\n{\nfunc main<ios18>(tensor<fp32, [1]> x) {\n"
            + ", ".join(f"{t} r{i}" for i, t in enumerate(results)) + f" = {op}("
            + ", ".join(f"{k} = {v}" for k, v in args.items()) + ")[name = string(\"w\")];\n} -> ("
            + ", ".join(f"r{i}" for i in range(len(results))) + ");\n}")
    out = _core._testing.eval(_core.Program.parse(text), {"x": np.zeros(1)})
    return [out[f"r{i}"] for i in range(len(results))]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_affine_dequantize(axis):
    q = opcase.data((3, 4), "int8", low=-100, high=100)
    n = q.shape[axis]
    s, z = opcase.data((n,), "float16", 1, 0.1, 1), opcase.data((n,), "int8", 2, -5, 5)
    wide = [1, 1]
    wide[axis] = -1
    got = constexpr16("constexpr_affine_dequantize", "tensor<fp16, [3, 4]>", axis=f"tensor<int32, []>({axis})",
                      quantized_data=typed(q, "int8"), scale=typed(s, "fp16"), zero_point=typed(z, "int8"))
    rounded(got, s.astype("f8").reshape(wide) * (q - z.astype("f8").reshape(wide)), "affine")
    got = constexpr16("constexpr_affine_dequantize", "tensor<fp32, [3, 4]>", axis="tensor<int32, []>(0)",
                      quantized_data=typed(q, "int8"), scale="tensor<fp32, []>(0.5)",
                      zero_point="tensor<fp32, []>(1.5)")
    same(got, (0.5 * (q - 1.5)).astype("f4"))


def test_cast():
    v = opcase.data((2, 3), "float16")
    same(constexpr16("constexpr_cast", "tensor<fp32, [2, 3]>", source_val=typed(v, "fp16"),
                     output_dtype='tensor<string, []>("fp32")'), v.astype("f4"))
    same(constexpr18("constexpr_cast", ["tensor<fp32, [2, 3]>"], source_val=typed(v, "fp16"),
                     output_dtype='string("fp32")')[0], v.astype("f4"))


def pack(values, bits):
    """Least significant bits first."""
    stream = [(int(v) >> b) & 1 for v in values for b in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return np.array([sum(b << i for i, b in enumerate(stream[k:k + 8])) for k in range(0, len(stream), 8)], np.uint8)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_lut_to_dense_16(bits):
    idx = np.random.default_rng(bits).integers(0, 2**bits, 15)
    lut = opcase.data((2**bits,), "float16")
    got = constexpr16("constexpr_lut_to_dense", "tensor<fp16, [3, 5]>", indices=typed(pack(idx, bits), "uint8"),
                      lut=typed(lut, "fp16"), shape="tensor<uint32, [2]>([3, 5])")
    same(got, lut[idx].reshape(3, 5))


def test_sparse_to_dense_16():
    mask = np.random.default_rng(0).random(15) < 0.5
    v = opcase.data((int(mask.sum()),), "float32")
    ref = np.zeros(15, "f4")
    ref[mask] = v
    kw = dict(mask=typed(pack(mask, 1), "uint8"), shape="tensor<uint32, [2]>([3, 5])")
    same(constexpr16("constexpr_sparse_to_dense", "tensor<fp32, [3, 5]>", nonzero_data=typed(v, "fp32"), **kw),
         ref.reshape(3, 5))
    with pytest.raises(ValueError, match="constexpr_sparse_to_dense.*ones"):
        constexpr16("constexpr_sparse_to_dense", "tensor<fp32, [3, 5]>", nonzero_data=typed(v[:-1], "fp32"), **kw)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (1, 5), (4, 5)])
def test_lut_to_dense_18(bits, groups):
    idx = np.random.default_rng(bits).integers(0, 2**bits, (4, 5))
    lut = opcase.data((*groups, 2**bits, 1), "float16")
    got = constexpr18("constexpr_lut_to_dense", ["tensor<fp16, [4, 5]>"], indices=typed(idx, f"uint{bits}"),
                      lut=typed(lut, "fp16"))[0]
    i, j = np.indices((4, 5))
    same(got, lut[i * groups[0] // 4, j * groups[1] // 5, idx, 0])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_lut_vectors(axis):
    idx = np.random.default_rng(1).integers(0, 4, (2, 3, 4))
    lut = opcase.data((1, 3, 1, 4, 3), "int8")
    shape = [2, 3, 4]
    shape[axis] *= 3
    got = constexpr18("constexpr_lut_to_dense", [f"tensor<int8, {shape}>"], indices=typed(idx, "uint2"),
                      lut=typed(lut, "int8"), vector_axis=f"int32({axis})")[0]
    j = np.indices(idx.shape)[1]
    values = lut[0, j, 0, idx]                      # [2, 3, 4, vector]
    a = axis % 3
    same(got, np.moveaxis(values, -1, a + 1).reshape(shape))
    with pytest.raises(SyntaxError, match="constexpr_lut_to_dense.*needs 'vector_axis'"):
        constexpr18("constexpr_lut_to_dense", [f"tensor<int8, {shape}>"], indices=typed(idx, "uint2"),
                    lut=typed(lut, "int8"))


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8", "fp16"])
@pytest.mark.parametrize("blocks", [(1, 1), (2, 3), (4, 6), (1, 6)])
@pytest.mark.parametrize("offset", [False, True])
def test_blockwise_shift_scale(dtype, blocks, offset):
    low, high = (0, 16) if dtype == "uint4" else (-8, 8) if dtype == "int4" else (0, 100)
    x = np.random.default_rng(0).integers(low, high, (4, 6))
    o = np.random.default_rng(1).integers(low, high, blocks)
    s = opcase.data(blocks, "float16", 2, 0.1, 1)
    if dtype == "fp16":
        x, o = x.astype("f2"), o.astype("f2")
    kw = {"offset": typed(o, dtype)} if offset else {}
    got = constexpr18("constexpr_blockwise_shift_scale", ["tensor<fp16, [4, 6]>"], data=typed(x, dtype),
                      scale=typed(s, "fp16"), **kw)[0]

    def full(a):
        return np.repeat(np.repeat(a.astype("f8"), 4 // blocks[0], 0), 6 // blocks[1], 1)

    rounded(got, full(s) * (x.astype("f8") - (full(o) if offset else 0)), "blockwise")


def test_sparse_18():
    mask = np.random.default_rng(0).integers(0, 2, (4, 6))
    n = int(mask.sum())
    v = np.random.default_rng(1).integers(-8, 8, n)
    ref = np.zeros((4, 6), "i1")
    ref[mask != 0] = v
    same(constexpr18("constexpr_sparse_to_dense", ["tensor<int4, [4, 6]>"], nonzero_data=typed(v, "int4"),
                     mask=typed(mask, "uint1"))[0], ref)
    s, o = opcase.data((1, 6), "float16", 2, 0.1, 1), np.random.default_rng(2).integers(-8, 8, (1, 6))
    m, d = constexpr18("constexpr_sparse_blockwise_shift_scale",
                       ["tensor<uint1, [4, 6]>", f"tensor<fp16, [{n}]>"], data_mask=typed(mask, "uint1"),
                       nonzero_data=typed(v, "int4"), scale=typed(s, "fp16"), offset=typed(o, "int4"))
    same(m, mask.astype("u1"))
    rounded(d, (s.astype("f8") * (ref - o))[mask != 0], "sparse blockwise")


@pytest.mark.parametrize("axis", [0, 1])
def test_lut_to_sparse(axis):
    """The example of the op's documentation, with vectors of two."""
    mask = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]])
    idx = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1])
    lut = np.float16([[[[2.0, 5.0], [3.0, 7.0]]]])
    shape = [8, 6] if axis == 0 else [4, 12]
    m, v = constexpr18("constexpr_lut_to_sparse", [f"tensor<uint1, {shape}>", "tensor<fp16, [18]>"],
                       indices_mask=typed(mask, "uint1"), indices_nonzero_data=typed(idx, "uint1"),
                       lut=typed(lut, "fp16"), vector_axis=f"int32({axis})")
    dense = np.zeros((4, 6), int)
    dense[mask != 0] = idx
    full = np.moveaxis(lut[0, 0][dense], -1, axis + 1).reshape(shape)
    wide = np.repeat(mask, 2, axis)
    same(m, wide.astype("u1"))
    same(v, full[wide != 0])


@pytest.mark.parametrize("op, results, args, message", [
    ("constexpr_lut_to_dense", ["tensor<fp16, [4]>"], {"indices": "tensor<uint2, [4]>([0, 1, 2, 3])",
     "lut": "tensor<fp16, [1, 2, 1]>([[[1], [2]]])"}, "'lut' must have 4 entries for uint2 indices, got 2"),
    ("constexpr_blockwise_shift_scale", ["tensor<fp16, [4]>"], {"data": "tensor<int4, [4]>([0, 1, 2, 3])",
     "scale": "tensor<fp16, [3]>([1, 2, 3])"}, "'scale' must divide"),
    ("constexpr_blockwise_shift_scale", ["tensor<fp16, [4]>"], {"data": "tensor<int4, [4]>([0, 1, 2, 3])",
     "scale": "tensor<fp16, [2]>([1, 2])", "offset": "tensor<int8, [2]>([1, 2])"}, "'offset' must be float or int4"),
    ("constexpr_blockwise_shift_scale", ["tensor<fp16, [4]>"], {"data": "tensor<int4, [4]>([0, 1, 2, 3])",
     "scale": "tensor<fp16, [2]>([1, 2])", "offset": "tensor<int4, [1]>([1])"}, "shape of 'scale'")])
def test_constexpr_errors(op, results, args, message):
    # The parser reports them at the statement's place, with the text of the check.
    with pytest.raises(SyntaxError, match=f"{op}.*{message}"):
        constexpr18(op, results, **args)


def test_a_constexpr_is_a_constant_to_what_takes_one():
    p = mil.build(lambda x: mil.ops.linear(x=x, weight=mil.ops.constexpr_cast(
        source_val=np.ones((3, 5), "f2"), output_dtype="fp32")), {"x": mil.spec((2, 5), "fp32")})
    x = opcase.data((2, 5))
    rounded(next(iter(_core._testing.eval(p, {"x": x}).values())),
            np.repeat(x.astype("f8").sum(1, keepdims=True), 3, 1), "linear", 2.0**-48)
