"""Passes, fusion and placement: every program means the same with each of them off."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from oracle import NP, Approx, random_graph

import anetorch
from anetorch import _core, mil
from anetorch.kernels import packed
from anetorch.nn.config import Config

# What turns one optimisation off is swept by test_switches.py.
SWITCHES = [{}, {"ANETORCH_ISA": "scalar"}, {"ANETORCH_NUM_THREADS": "3"}]


def outputs(kernel: anetorch.Kernel, inputs: dict) -> dict[str, np.ndarray]:
    out = kernel(**inputs)
    if not isinstance(out, dict):
        out = {kernel.outputs[0].name: out}
    return {k: np.asarray(v).copy() for k, v in out.items()}


def check(got: np.ndarray, want: Approx, what: str) -> None:
    assert got.shape == want.v.shape
    error = np.atleast_1d(np.abs(got.astype(np.float64) - want.v))
    ratio = error / np.maximum(np.atleast_1d(want.e), 1e-300)
    ratio[error == 0] = 0
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    assert ratio[at] <= 1, f"{what} at {at}: error {error[at]}, error/bound {ratio[at]}"


def sweep(first: int, last: int) -> None:
    for seed in range(first, last):
        program, inputs, want = random_graph(seed)
        kernel = anetorch.compile(program)
        got = outputs(kernel, inputs)
        for name, approx in want.items():
            check(got[name], approx, f"seed {seed}, {name}")
        # The analysis and the double evaluator agree on the exact value.
        wide = _core._testing.eval(program, inputs, wide=True)
        for name, approx in want.items():
            scale = np.abs(approx.v) + approx.e / 2.0**-24
            assert (np.abs(np.asarray(wide[name]) - approx.v) <= 1e-9 * scale + 1e-300).all(), (seed, name)


def test_random_graphs_stay_inside_the_bound() -> None:
    sweep(0, 150)


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda s: ",".join(f"{k[9:]}={v}" for k, v in s.items()) or "all")
def test_random_graphs_with_each_switch(switch: dict[str, str], root) -> None:
    code = "import test_passes; test_passes.sweep(200, 245)"
    env = os.environ | switch | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.slow
def test_many_random_graphs() -> None:
    sweep(1000, 9000)


def kernel_of(body: str, params: str, returns: str) -> anetorch.Kernel:
    return anetorch.compile(
        f"program(1.3)\n{{ func main<ios18>({params}) {{ {body} }} -> ({returns}); }}")


def steps(kernel: anetorch.Kernel) -> list[str]:
    return [s["op"] for s in kernel.report()]



CHAIN_OF_EVERYTHING = """
    tensor<fp16, [3, 70, 50]> a0 = mul(x = x, y = fp16(1.5))[name = string("a0")];
    tensor<fp16, [3, 70, 50]> a1 = add(x = a0, y = row)[name = string("a1")];
    tensor<fp16, [3, 70, 50]> a2 = relu(x = a1)[name = string("a2")];
    tensor<fp16, [3, 70, 50]> a3 = silu(x = a2)[name = string("a3")];
    tensor<fp16, [3, 70, 50]> a4 = sub(x = x, y = a3)[name = string("a4")];
    tensor<fp32, [3, 70, 50]> a5 = cast(x = a4, dtype = string("fp32"))[name = string("a5")];
    tensor<fp32, [3, 70, 50]> a6 = mul(x = a5, y = wide)[name = string("a6")];
    tensor<fp32, [3, 70, 50]> a7 = maximum(x = wide, y = a6)[name = string("a7")];
    tensor<fp32, [3, 70, 50]> a8 = real_div(x = fp32(1), y = a7)[name = string("a8")];
    tensor<fp32, [3, 70, 50]> a9 = mul(x = a8, y = a8)[name = string("a9")];
    tensor<fp32, [3, 70, 50]> b0 = minimum(x = a9, y = fp32(3))[name = string("b0")];
    tensor<fp32, [3, 70, 50]> b1 = sub(x = fp32(0.5), y = b0)[name = string("b1")];"""


def chain_bits() -> dict[str, bytes]:
    """Results of chains with several stores, broadcast rows, views, in-place and large ones."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3, 70, 50)).astype(np.float16)
    row = rng.standard_normal((1, 1, 50)).astype(np.float16)
    wide = rng.standard_normal((3, 70, 50)).astype(np.float32)
    out = {}
    k = kernel_of(CHAIN_OF_EVERYTHING,
                  "tensor<fp16, [3, 70, 50]> x, tensor<fp16, [1, 1, 50]> row, "
                  "tensor<fp32, [3, 70, 50]> wide", "a2, a4, b1")
    for name, array in k(x, row, wide).items():
        out[name] = np.asarray(array).tobytes()
    # A strided input, whose rows the run cannot read as they are.
    t = anetorch.Tensor.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1))).permute(0, 2, 1)
    for name, array in k(t, row, wide).items():
        assert np.asarray(array).tobytes() == out[name]
    # In place: the output is the input's memory.
    n = 40_003
    k = kernel_of(f"""tensor<fp16, [{n}]> a = mul(x = x, y = fp16(0.5))[name = string("a")];
        tensor<fp16, [{n}]> b = add(x = a, y = x)[name = string("b")];
        tensor<fp16, [{n}]> c = minimum(x = b, y = x)[name = string("c")];""",
                  f"tensor<fp16, [{n}]> x", "c")
    t = anetorch.Tensor.from_numpy(rng.standard_normal(n).astype(np.float16))
    out["apart"] = np.asarray(k(t)).tobytes()
    k.bind({"x": t}, {"c": t}).run()
    out["in place"] = t.numpy().tobytes()
    assert out["in place"] == out["apart"]
    # Beyond the caches, where stores bypass them; the tail is no whole block.
    n = (9 << 20) // 2 + 13
    k = kernel_of(f"""tensor<fp16, [{n}]> a = mul(x = x, y = fp16(0.5))[name = string("a")];
        tensor<fp16, [{n}]> b = add(x = a, y = fp16(-1))[name = string("b")];""",
                  f"tensor<fp16, [{n}]> x", "b")
    x = rng.standard_normal(n).astype(np.float16)
    y = np.asarray(k(x))
    assert (y == (x.astype(np.float32) * 0.5 - 1).astype(np.float16)).all()
    out["large"] = y.tobytes()
    return out


def test_runs_in_registers_change_no_bit(root) -> None:
    code = ("import hashlib, test_passes\n"
            "for k, v in sorted(test_passes.chain_bits().items()):\n"
            "    print(k, hashlib.sha256(v).hexdigest())")
    texts = []
    for off in ("", "steps", "chain"):
        env = os.environ | {"ANETORCH_NO_FUSE": off,
                            "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
        texts.append(run.stdout)
    assert texts[0] == texts[1] and texts[0].count("\n") == 6
    # Op by op, values round between: other bits, or the chain was none to begin with.
    assert texts[2] != texts[0]


BOOL = 'bool no = const()[name = string("no"), val = bool(false)];'


def test_a_product_takes_bias_activation_and_residual() -> None:
    k = kernel_of(
        BOOL + """tensor<fp16, [4, 6]> m = matmul(x = a, y = b, transpose_x = no, transpose_y = no);
        tensor<fp16, [4, 6]> n = add(x = m, y = c); tensor<fp16, [4, 6]> r = relu(x = n);
        tensor<fp16, [4, 6]> y = add(x = d, y = r);""",
        "tensor<fp16, [4, 5]> a, tensor<fp16, [5, 6]> b, tensor<fp16, [6]> c, tensor<fp16, [4, 6]> d", "y")
    assert steps(k) == ["matmul+add+relu+add"]
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.standard_normal(s).astype(np.float16) for s in [(4, 5), (5, 6), (6,), (4, 6)])
    x = [Approx.exact(v, "fp16") for v in (a, b, c, d)]
    want = x[3].binary("add", x[0].matmul(x[1], False, False).binary("add", x[2]).unary("relu"))
    check(np.asarray(k(a, b, c, d)), want, "product")


def test_a_chain_is_one_step_and_keeps_fp32_inside() -> None:
    k = kernel_of(
        """tensor<fp16, [300]> b = mul(x = x, y = x); tensor<fp16, [300]> c = mul(x = b, y = x);
        tensor<fp16, [300]> y = real_div(x = c, y = x);""", "tensor<fp16, [300]> x", "y")
    assert steps(k) == ["mul+mul+real_div"]
    x = np.full(300, 200, np.float16)           # x*x*x is beyond fp16, the result is not
    assert (np.asarray(k(x)) == np.float16(40000)).all()


def test_views_and_concat_move_nothing() -> None:
    k = kernel_of(
        BOOL + """int32 ax = const()[name = string("ax"), val = int32(1)];
        tensor<int32, [4]> p = const()[name = string("p"), val = tensor<int32, [4]>([0, 1, 3, 2])];
        tensor<int32, [2]> sz = const()[name = string("sz"), val = tensor<int32, [2]>([2, 3])];
        tensor<fp32, [1, 2, 1, 7]> a, tensor<fp32, [1, 3, 1, 7]> b = split(x = x, split_sizes = sz, axis = ax);
        tensor<fp32, [1, 2, 1, 7]> ra = relu(x = a); tensor<fp32, [1, 3, 1, 7]> tb = tanh(x = b);
        tensor<fp32, [1, 5, 1, 7]> y = concat(values = (tb, ra), axis = ax, interleave = no);""".replace("[0, 1, 3, 2]", "[0, 1, 2, 3]"),
        "tensor<fp32, [1, 5, 1, 7]> x", "y")
    assert sorted(steps(k)) == ["relu", "tanh"]
    x = np.random.default_rng(1).standard_normal((1, 5, 1, 7)).astype(np.float32)
    got = np.asarray(k(x))
    np.testing.assert_array_equal(got[:, 3:], np.maximum(x[:, :2], 0))
    np.testing.assert_allclose(got[:, :3], np.tanh(x[:, 2:]), rtol=8 * 2.0**-24)


@pytest.mark.parametrize("shape, axis", [((1, 65536), 1), ((3, 151936), 1), ((15, 65537), -1), ((151936, 2), 0),
                                         ((2, 70000, 3), 1)])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_softmax_of_long_rows(shape: tuple[int, ...], axis: int, dtype: str) -> None:
    p = mil.build(lambda x: mil.ops.softmax(x=x, axis=axis), {"x": mil.spec(shape, dtype)})
    x = np.random.default_rng(3).standard_normal(shape).astype(NP[dtype])
    want = Approx.exact(x, dtype).softmax(axis)
    # Sums go in chains: their error does not grow with the whole row.
    n = shape[axis]
    want.e -= (n - (64 + n / 64)) * 2.0**-24 * want.v
    check(np.asarray(anetorch.compile(p)(x)), want, f"softmax {shape} along {axis}")


def test_softmax_takes_scale_and_mask() -> None:
    k = kernel_of(
        """fp32 s = const()[name = string("s"), val = fp32(0.5)];
        int32 ax = const()[name = string("ax"), val = int32(-1)];
        tensor<fp32, [2, 5, 7]> a = mul(x = x, y = s); tensor<fp32, [2, 5, 7]> b = add(x = a, y = m);
        tensor<fp32, [2, 5, 7]> y = softmax(x = b, axis = ax);""",
        "tensor<fp32, [2, 5, 7]> x, tensor<fp32, [1, 5, 7]> m", "y")
    assert steps(k) == ["mul+add+softmax"]
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 5, 7)).astype(np.float32)
    m = np.where(np.tri(5, 7, dtype=bool), 0, -np.inf).astype(np.float32)[None]
    e = np.exp(0.5 * x.astype(np.float64) + m)
    np.testing.assert_allclose(np.asarray(k(x, m)), e / e.sum(-1, keepdims=True), rtol=1e-6)


def test_a_norm_is_one_reduction_and_one_chain() -> None:
    k = kernel_of(
        """tensor<int32, [1]> ax = const()[name = string("ax"), val = tensor<int32, [1]>([1])];
        bool keep = const()[name = string("keep"), val = bool(true)];
        fp32 eps = const()[name = string("eps"), val = fp32(1e-5)];
        tensor<fp32, [1, 8, 1, 5]> q = mul(x = x, y = x);
        tensor<fp32, [1, 1, 1, 5]> m = reduce_mean(x = q, axes = ax, keep_dims = keep);
        tensor<fp32, [1, 1, 1, 5]> r = rsqrt(x = m, epsilon = eps);
        tensor<fp32, [1, 8, 1, 5]> n = mul(x = x, y = r); tensor<fp32, [1, 8, 1, 5]> y = mul(x = n, y = g);""",
        "tensor<fp32, [1, 8, 1, 5]> x, tensor<fp32, [1, 8, 1, 1]> g", "y")
    assert steps(k) == ["mul+reduce_mean", "rsqrt", "mul+mul"]
    rng = np.random.default_rng(3)
    x, g = (rng.standard_normal(s).astype(np.float32) for s in [(1, 8, 1, 5), (1, 8, 1, 1)])
    want = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5) * g
    np.testing.assert_allclose(np.asarray(k(x, g)), want, rtol=2e-6)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(("shape", "axis", "n"), [((7, 5), 0, 3), ((4, 6, 3), 1, 9), ((2, 3, 300), 0, 40), ((9,), 0, 5)])
def test_gather_and_scatter_along_an_axis(dtype: str, shape: tuple[int, ...], axis: int, n: int) -> None:
    rng = np.random.default_rng(len(shape) + n)
    x = rng.standard_normal(shape).astype(NP[dtype])
    idx = rng.integers(-shape[axis], shape[axis], n).astype(np.int32)
    rows = shape[:axis] + (n,) + shape[axis + 1:]
    u = rng.standard_normal(rows).astype(NP[dtype])
    along = rng.integers(0, shape[axis], rows).astype(np.int32)
    params = (f"tensor<{dtype}, {list(shape)}> x, tensor<int32, [{n}]> i, tensor<{dtype}, {list(rows)}> u, "
              f"tensor<int32, {list(rows)}> a")
    body = f'''int32 ax = const()[name = string("ax"), val = int32({axis})];
        string add = const()[name = string("add"), val = string("add")];
        string put = const()[name = string("put"), val = string("update")];
        {BOOL}
        tensor<{dtype}, {list(rows)}> g = gather(x = x, indices = i, axis = ax, batch_dims = zero, validate_indices = no);
        tensor<{dtype}, {list(rows)}> ga = gather_along_axis(x = x, indices = a, axis = ax, validate_indices = no);
        tensor<{dtype}, {list(shape)}> s = scatter(data = x, indices = i, updates = u, axis = ax, mode = add, validate_indices = no);
        tensor<{dtype}, {list(shape)}> p = scatter(data = x, indices = i, updates = u, axis = ax, mode = put, validate_indices = no);
        tensor<{dtype}, {list(shape)}> sa = scatter_along_axis(data = x, indices = a, updates = u, axis = ax, mode = add, validate_indices = no);'''
    body = 'int32 zero = const()[name = string("zero"), val = int32(0)]; ' + body
    k = kernel_of(body, params, "g, ga, s, p, sa")
    req = k.bind([x, idx, u, along])
    assert not any(s["kernel"] == "reference" for s in req.profile())
    got = {name: np.asarray(t) for name, t in req.outputs.items()}
    np.testing.assert_array_equal(got["g"], np.take(x, idx, axis))
    np.testing.assert_array_equal(got["ga"], np.take_along_axis(x, along, axis))
    put, add = x.copy(), x.astype(np.float64)
    mag = np.abs(add)
    for j, i in enumerate(idx):
        at = (slice(None),) * axis
        put[at + (i,)] = u[at + (j,)]
        add[at + (i,)] += u[at + (j,)]
        mag[at + (i,)] += np.abs(u[at + (j,)].astype(np.float64))
    np.testing.assert_array_equal(got["p"], put)
    unit = 2.0**-11 if dtype == "fp16" else 2.0**-24
    assert (np.abs(got["s"] - add) <= (n + 1) * unit * mag).all()      # one rounding per update
    add, mag = x.astype(np.float64), np.abs(x.astype(np.float64))
    for at in np.ndindex(*rows):
        to = at[:axis] + (int(along[at]),) + at[axis + 1:]
        add[to] += float(u[at])
        mag[to] += abs(float(u[at]))
    assert (np.abs(got["sa"] - add) <= (n + 1) * unit * mag).all()


def test_an_index_out_of_range_raises_and_invalidates() -> None:
    k = kernel_of(
        BOOL + """int32 ax = const()[name = string("ax"), val = int32(0)];
        bool yes = const()[name = string("yes"), val = bool(true)];
        tensor<fp32, [2]> y = gather(x = x, indices = i, axis = ax, batch_dims = ax, validate_indices = yes);""",
        "tensor<fp32, [4]> x, tensor<int32, [2]> i", "y")
    i = np.array([3, 4], np.int32)
    req = k.bind([np.arange(4, dtype=np.float32), i])
    with pytest.raises(IndexError, match="index 4 is out of range for a dimension of 4"):
        req.run()
    with pytest.raises(RuntimeError):
        req.outputs["y"].numpy()
    i[1] = 0
    req.run()
    np.testing.assert_array_equal(req.outputs["y"].numpy(), [3, 0])


def test_scattering_into_an_accumulator_copies_nothing() -> None:
    k = kernel_of(
        BOOL + """int32 ax = const()[name = string("ax"), val = int32(0)];
        string add = const()[name = string("add"), val = string("add")];
        tensor<fp32, [50, 3]> y = scatter(data = d, indices = i, updates = u, axis = ax, mode = add, validate_indices = no);""",
        "tensor<fp32, [50, 3]> d, tensor<int32, [4]> i, tensor<fp32, [4, 3]> u", "y")
    d = anetorch.Tensor((50, 3))
    req = k.bind([d, np.array([7, 0, 7, 49], np.int32), np.ones((4, 3), np.float32)], d)
    for n in (1, 2):
        req.run()
        want = np.zeros((50, 3))
        want[[0, 49]], want[7] = n, 2 * n
        np.testing.assert_array_equal(d.numpy(), want)
    assert req.memory()["scratch"] == 0


def test_constants_are_folded_and_fills_spread() -> None:
    k = kernel_of(
        """tensor<fp32, [3]> c = const()[name = string("c"), val = tensor<fp32, [3]>([1, 4, 9])];
        tensor<fp32, [3]> r = sqrt(x = c); tensor<int32, [2]> n = const()[name = string("n"), val = tensor<int32, [2]>([2, 1])];
        fp32 v = const()[name = string("v"), val = fp32(0.5)];
        tensor<int32, [2]> s = const()[name = string("s"), val = tensor<int32, [2]>([4, 3])];
        tensor<fp32, [4, 3]> f = fill(shape = s, value = v);
        tensor<fp32, [4, 3]> t = tile(x = x, reps = n); tensor<fp32, [4, 3]> a = mul(x = t, y = r);
        tensor<fp32, [4, 3]> y = add(x = a, y = f);""", "tensor<fp32, [2, 3]> x", "y")
    assert steps(k) == ["copy", "mul+add"]
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(np.asarray(k(x)), np.tile(x, (2, 1)) * [1, 2, 3] + 0.5)


@pytest.mark.parametrize("shape", [(1, 1), (33, 65), (200, 3), (3, 5, 70), (64, 2, 40)])
@pytest.mark.parametrize("dtype", ["fp16", "fp32", "int32", "bool"])
def test_transposed_copies(dtype: str, shape: tuple[int, ...]) -> None:
    perm = tuple(range(len(shape)))[::-1]
    k = kernel_of(
        f"""tensor<int32, [{len(shape)}]> p = const()[name = string("p"), val = tensor<int32, [{len(shape)}]>({list(perm)})];
        tensor<{dtype}, {list(shape[::-1])}> y = transpose(x = x, perm = p);""", f"tensor<{dtype}, {list(shape)}> x", "y")
    x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 1000, shape)
    x = x.astype({"int32": np.int32, "bool": np.bool_, **NP}[dtype])
    np.testing.assert_array_equal(np.asarray(k(x)), x.transpose(perm))


@pytest.mark.parametrize("prepack", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(40, 30, 50), (1, 30, 50), (40, 30, 1)])
def test_constant_weights_are_packed_once(m: int, k: int, n: int, prepack: bool) -> None:
    rng = np.random.default_rng(m + n)
    w, x = (rng.standard_normal(s).astype(np.float32) for s in [(m, k), (k, n)])
    p = _core.Program("1.3")
    block, (xid,) = p.add_function("main", "ios18", [("x", ("tensor", "fp32", (k, n)))])
    no = p.add_const(block, False)
    y = p.add_op(block, "matmul", {"x": p.add_const(block, w), "y": xid, "transpose_x": no, "transpose_y": no})[1]
    p.set_outputs(block, y)
    kernel = anetorch.compile(p, prepack=prepack)
    req = kernel.bind(x)
    packs = m > 1 and n > 1
    assert (req.memory()["packed"] > 0) == (packs and prepack)
    want = Approx.exact(w, "fp32").matmul(Approx.exact(x, "fp32"), False, False)
    plain = anetorch.compile(f"""program(1.3)
    {{ func main<ios18>(tensor<fp32, [{m}, {k}]> w, tensor<fp32, [{k}, {n}]> x) {{ {BOOL}
        tensor<fp32, [{m}, {n}]> y = matmul(x = w, y = x, transpose_x = no, transpose_y = no); }} -> (y); }}""")
    for _ in range(2):
        req.run()
        (got,) = req.outputs.values()
        check(got.numpy(), want, "packed")
        np.testing.assert_array_equal(got.numpy(), np.asarray(plain(w, x)))    # the very same bits
    assert (req.memory()["packed"] > 0) == packs


def test_scratch_is_reused() -> None:
    body = "".join(f"tensor<fp32, [64, 64]> v{i + 1} = matmul(x = v{i}, y = v{i}, transpose_x = no, "
                   "transpose_y = no);" for i in range(10))
    k = kernel_of(BOOL + body, "tensor<fp32, [64, 64]> v0", "v10")
    memory = k.memory()
    assert memory["values"] == 9 * 64 * 64 * 4
    assert memory["scratch"] == 2 * 64 * 64 * 4


def test_dead_ops_are_gone() -> None:
    k = kernel_of("tensor<fp32, [4]> a = exp(x = x); tensor<fp32, [4]> y = relu(x = x);",
                  "tensor<fp32, [4]> x", "y")
    assert steps(k) == ["relu"]


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_infinities_and_nan_as_ieee_says(dtype: str) -> None:
    params = f"tensor<{dtype}, [8]> x"
    t = f"tensor<{dtype}, [8]>"
    k = kernel_of(
        f"""int32 ax = const()[name = string("ax"), val = int32(0)];
        {t} r = relu(x = x); {t} e = exp(x = x); {t} s = softmax(x = x, axis = ax);
        {t} m = maximum(x = x, y = x); {t} a = abs(x = x);""", params, "r, e, s, m, a")
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1, -1, 65504], NP[dtype])
    out = {n: np.asarray(v) for n, v in k(x).items()}
    assert np.isnan(out["r"][0]) and out["r"][1] == np.inf and out["r"][2] == 0
    assert np.isnan(out["e"][0]) and out["e"][1] == np.inf and out["e"][2] == 0
    assert np.isnan(out["s"]).all() and np.isnan(out["m"][0])
    assert out["a"][2] == np.inf


def test_a_dead_op_takes_its_constants_written_in_place_along():
    text = """program(1.3)
{
    func main<ios17>(tensor<fp32, [3]> x) {
        tensor<fp32, [3]> dead = clip(x = x, alpha = fp32(0.5), beta = fp32(1.5))[name = string("dead")];
        tensor<fp32, [3]> y = relu(x = x)[name = string("y")];
    } -> (y);
}"""
    x = np.float32([-1, 2, 3])
    np.testing.assert_array_equal(np.asarray(anetorch.compile(text)(x)), [0, 2, 3])


@pytest.mark.parametrize("name", sorted(packed.ALL))
def test_packed_surfaces_are_read_where_they_lie(name: str) -> None:
    """No kernel copies a weight: only sdpaFwd moves anything, its own input to its output."""
    config = Config.preset("tiny")
    kernel = anetorch.compile(packed.ALL[name](config, 32))
    copies = [s for s in kernel.report() if s["op"] == "copy"]
    assert len(copies) == (name == "sdpaFwd"), copies
