"""Every derivative rule against central differences in the double evaluator.

A case is a function of Values and the shapes of its float inputs, all rectangular and
random, so that swapped operands or axes fail. The bound is the difference quotient's own
error: its truncation, estimated from two step widths, plus rounding over the step, plus
2**-22 of the gradient's scale for the handful of constants that a rule holds in fp32.
"""

from __future__ import annotations

import numpy as np
import pytest

from anetorch import _core, mil
from anetorch.mil import ops
from anetorch.mil.rules import RULES

evaluate = _core._testing.eval

IDS = np.array([2, 0, 2, 4], np.int32)
_F = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32)    # constants
_P = np.linspace(0.5, 2.0, 6, dtype=np.float32)


def _product(a, b):
    return a * b


def unary(name, low=-2.0, high=2.0, shape=(3, 5), **params):
    return name, lambda x: getattr(ops, name)(x=x, **params), {"x": (shape, low, high)}


def binary(name, x=(-2.0, 2.0), y=(-2.0, 2.0)):
    return name, lambda a, b: getattr(ops, name)(x=a, y=b), {"a": ((3, 1, 4), *x), "b": ((2, 4), *y)}


def nary(name, fn, **shapes):
    return name, fn, {k: (s, -2.0, 2.0) for k, s in shapes.items()}


CASES = [
    # two operands, both broadcast
    *[binary(n) for n in ("add", "sub", "mul", "maximum", "minimum")],
    binary("real_div", y=(0.5, 2.0)),
    binary("pow", x=(0.3, 2.0)),
    binary("mod", x=(0.1, 0.9), y=(1.0, 2.0)),
    nary("select", lambda a, b: ops.select(cond=ops.less(x=a, y=b), a=a * a, b=b * 3.0), a=(3, 4), b=(4,)),
    # one operand
    *[unary(n) for n in ("abs", "square", "exp", "exp2", "erf", "sin", "cos", "atan", "sinh", "cosh", "tanh")],
    *[unary(n, 0.3, 2.0) for n in ("sqrt", "rsqrt", "log", "inverse")],
    unary("rsqrt", 0.3, 2.0, epsilon=0.25),
    unary("log", 0.3, 2.0, epsilon=0.25),
    *[unary(n, -0.8, 0.8) for n in ("asin", "acos", "atanh", "tan")],
    unary("threshold", alpha=0.3),
    unary("clip", alpha=-0.7, beta=0.9),
    unary("identity"),
    ("cast", lambda x: ops.cast(x=ops.cast(x=x, dtype="fp16") * 2.0, dtype="fp32"), {"x": ((3, 5), -2.0, 2.0)}),
    # activations
    *[unary(n) for n in ("relu", "sigmoid", "silu", "softsign", "softplus")],
    unary("relu6", -3.0, 9.0),
    *[unary("gelu", mode=m) for m in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")],
    unary("elu", alpha=0.7),
    unary("leaky_relu", alpha=0.2),
    unary("thresholded_relu", alpha=0.4),
    unary("clamped_relu", alpha=0.2, beta=1.1),
    unary("linear_activation", alpha=0.3, beta=0.2),
    unary("scaled_tanh", alpha=0.7, beta=1.3),
    unary("sigmoid_hard", alpha=0.4, beta=0.5),
    unary("prelu", shape=(2, 3, 2, 2), alpha=np.array([0.1, 0.2, 0.3], np.float32)),
    unary("softplus_parametric", shape=(2, 3, 4), alpha=np.array([0.5, 1.0, 2.0], np.float32),
          beta=np.array([1.5, 0.7, 0.3], np.float32)),
    unary("softmax", shape=(3, 5, 2), axis=1),
    unary("softmax", shape=(3, 5), axis=-1),
    # products
    nary("matmul", lambda x, y: ops.matmul(x=x, y=y), x=(3, 4), y=(4, 5)),
    nary("matmul", lambda x, y: ops.matmul(x=x, y=y, transpose_x=True), x=(4, 3), y=(4, 5)),
    nary("matmul", lambda x, y: ops.matmul(x=x, y=y, transpose_y=True), x=(3, 4), y=(5, 4)),
    nary("matmul", lambda x, y: ops.matmul(x=x, y=y, transpose_x=True, transpose_y=True), x=(4, 3), y=(5, 4)),
    nary("matmul", lambda x, y: ops.matmul(x=x, y=y), x=(2, 1, 3, 4), y=(5, 4, 2)),
    nary("matmul", lambda x, y: ops.matmul(x=x, y=y), x=(4,), y=(2, 4, 3)),
    nary("matmul", lambda x, y: ops.matmul(x=x, y=y, transpose_x=True), x=(2, 4, 3), y=(4,)),
    ("linear", lambda x: ops.linear(x=x, weight=_F[:3, :4], bias=_F[0, :3]), {"x": ((2, 5, 4), -2.0, 2.0)}),
    nary("einsum", lambda x, y: ops.einsum(values=(x, y), equation="bchw,bwhv->bchv"), x=(2, 3, 4, 5), y=(2, 5, 4, 3)),
    nary("einsum", lambda x, y: ops.einsum(values=(x, y), equation="chw,whv->chv"), x=(3, 4, 5), y=(5, 4, 2)),
    nary("scaled_dot_product_attention",
         lambda q, k, v: ops.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=_F[:3, :5]),
         q=(2, 3, 4), k=(2, 5, 4), v=(2, 5, 6)),
    # reductions
    *[unary(n, axes=[1], keep_dims=True, shape=(3, 4, 2)) for n in
      ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_sum_square", "reduce_l1_norm",
       "reduce_l2_norm", "reduce_log_sum_exp")],
    *[unary(n, axes=[-1, 0], keep_dims=False, shape=(3, 4, 2)) for n in ("reduce_sum", "reduce_mean", "reduce_log_sum_exp")],
    unary("reduce_log_sum", 0.3, 2.0, axes=[0], keep_dims=False),
    unary("reduce_prod", 0.3, 2.0, axes=[0], keep_dims=False),
    unary("reduce_sum", keep_dims=False),
    # normalisation
    unary("layer_norm", shape=(3, 4, 2), axes=[1, 2], gamma=None, beta=None, epsilon=1e-3),
    nary("layer_norm", lambda x: ops.layer_norm(x=x, axes=[-1], gamma=_F[0, :4], beta=_F[1, :4], epsilon=1e-3), x=(3, 4)),
    nary("batch_norm", lambda x: ops.batch_norm(x=x, mean=_F[0, :3], variance=_P[:3], gamma=_F[1, :3], beta=_F[2, :3]),
         x=(2, 3, 4)),
    nary("instance_norm", lambda x: ops.instance_norm(x=x, gamma=_F[1, :3], beta=_F[2, :3], epsilon=1e-3), x=(2, 3, 4)),
    unary("l2_norm", shape=(2, 3, 4, 2)),
    # moving data
    nary("reshape", lambda x: ops.reshape(x=x, shape=[2, 6]), x=(3, 4)),
    nary("reshape_like", lambda x, r: ops.reshape_like(x=x, ref_tensors=(r,), begins=(0,), ends=(2,), end_masks=(False,))
         * r, x=(3, 4), r=(2, 6)),
    nary("transpose", lambda x: ops.transpose(x=x, perm=[2, 0, -2]), x=(3, 4, 2)),
    unary("expand_dims", axes=[0, 2]),
    unary("squeeze", axes=[1], shape=(3, 1, 4)),
    unary("flatten2d", axis=2, shape=(3, 2, 4)),
    nary("slice_by_size", lambda x: ops.slice_by_size(x=x, begin=[1, 0], size=[2, 3]), x=(4, 5)),
    nary("slice_by_size", lambda x: ops.concat(
        values=(ops.slice_by_size(x=x, begin=[0, 2], size=[4, -1]) * 2.0, ops.slice_by_size(x=x, begin=[0, 0], size=[4, 2])),
        axis=1), x=(4, 5)),
    nary("slice_by_index", lambda x: ops.slice_by_index(x=x, begin=[1, -1, 2], end=[4, 0, 3], stride=[1, -2, 1],
         end_mask=[False, True, False], squeeze_mask=[False, False, True]), x=(5, 6, 4)),
    nary("slice_by_index", lambda x: ops.slice_by_index(x=x, begin=[0, 1], end=[0, -1], begin_mask=[True, False],
         end_mask=[True, False]), x=(3, 6)),
    nary("concat", lambda x, y: ops.concat(values=(x, y * y, x), axis=-1), x=(3, 2), y=(3, 4)),
    nary("concat", lambda x, y: ops.concat(values=(x, y * y), axis=1, interleave=True), x=(3, 2), y=(3, 2)),
    nary("stack", lambda x, y: ops.stack(values=(x, y * y), axis=1), x=(3, 2), y=(3, 2)),
    nary("split", lambda x: _product(*ops.split(x=x, num_splits=2, axis=1)), x=(3, 4)),
    nary("split", lambda x: ops.split(x=x, split_sizes=[1, 3], axis=1)[1] * 2.0, x=(3, 4)),
    unary("tile", reps=[2, 1, 3], shape=(2, 3, 2)),
    nary("pad", lambda x: ops.pad(x=x, pad=[1, 0, 2, 1], mode="constant", constant_val=0.5), x=(2, 3, 4)),
    unary("reverse", axes=[1], shape=(3, 4)),
    unary("band_part", lower=1, upper=0, shape=(3, 4)),
    unary("cumsum", axis=1, exclusive=True, shape=(3, 4)),
    unary("cumsum", axis=0, reverse=True, shape=(3, 4)),
    unary("depth_to_space", block_size=2, shape=(1, 8, 2, 3)),
    unary("space_to_depth", block_size=2, shape=(1, 2, 4, 6)),
    # gather, scatter
    nary("gather", lambda x: ops.gather(x=x, indices=IDS, axis=0), x=(5, 3)),
    nary("gather", lambda x: ops.gather(x=x, indices=IDS.reshape(2, 2), axis=1), x=(3, 5, 2)),
    nary("gather", lambda x: _product(ops.gather(x=x, indices=IDS, axis=0), ops.gather(x=x, indices=IDS[::-1].copy(), axis=0)),
         x=(5, 3)),
    nary("gather_along_axis", lambda x: ops.gather_along_axis(x=x, indices=IDS.reshape(4, 1), axis=1), x=(4, 5)),
    nary("gather_nd", lambda x: ops.gather_nd(x=x, indices=np.array([[1, 0], [2, 3], [1, 0]], np.int32)), x=(3, 4, 2)),
    nary("topk", lambda x: ops.topk(x=x, k=2, axis=1)[0], x=(3, 5)),
    *[nary("scatter", lambda d, u, m=m: ops.scatter(data=d, indices=np.array([3, 0], np.int32), updates=u, axis=0, mode=m),
           d=(4, 3), u=(2, 3)) for m in ("add", "update")],
    *[nary("scatter_along_axis", lambda d, u, m=m: ops.scatter_along_axis(
        data=d, indices=np.array([[3, 0, 1], [1, 2, 0]], np.int32), updates=u, axis=0, mode=m), d=(4, 3), u=(2, 3))
      for m in ("add", "update")],
    # convolution and pooling: strides that leave columns unread, dilation, groups, 1 to 3 dims
    nary("conv", lambda x, w, b: ops.conv(x=x, weight=w, bias=b, strides=[2, 1], pad_type="custom", pad=[1, 0, 2, 1]),
         x=(2, 3, 6, 5), w=(4, 3, 3, 2), b=(4,)),
    nary("conv", lambda x, w: ops.conv(x=x, weight=w, strides=[2, 3], pad_type="custom", pad=[1, 1, 2, 2]),
         x=(1, 2, 6, 6), w=(3, 2, 3, 2)),
    nary("conv", lambda x, w: ops.conv(x=x, weight=w, strides=[3], pad_type="valid"), x=(2, 3, 9), w=(4, 3, 2)),
    nary("conv", lambda x, w: ops.conv(x=x, weight=w, strides=[2, 2], pad_type="same", groups=2),
         x=(2, 4, 5, 6), w=(6, 2, 3, 3)),
    nary("conv", lambda x, w: ops.conv(x=x, weight=w, pad_type="same_lower"), x=(1, 2, 3, 4, 3), w=(3, 2, 2, 2, 2)),
    nary("conv", lambda x: ops.conv(x=x, weight=_F[:4, :4].reshape(4, 2, 2, 1), dilations=[2, 1], groups=2,
         pad_type="valid"), x=(2, 4, 5, 3)),
    *[nary("avg_pool", lambda x, e=e: ops.avg_pool(x=x, kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom",
           pad=[1, 1, 0, 1], exclude_padding_from_average=e), x=(2, 3, 6, 5)) for e in (False, True)],
    nary("crop", lambda x: ops.crop(x=x, crop_height=[1, 0], crop_width=[1, 2]), x=(1, 2, 4, 5)),
    nary("pixel_shuffle", lambda x: ops.pixel_shuffle(x=x, upscale_factor=2), x=(1, 8, 2, 3)),
    nary("pixel_unshuffle", lambda x: ops.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)), x=(1, 2, 4, 6)),
    nary("slice_update", lambda x, u: ops.slice_update(x=x, update=u, begin=[1, 0], end=[3, 4], stride=[1, 2]),
         x=(4, 5), u=(2, 2)),
]  # fmt: skip


def central(program, inputs, name, seed, h):
    """d sum(seed * z) / d inputs[name] by central differences."""
    x = inputs[name]
    out = np.empty(x.shape)
    for i in np.ndindex(*x.shape):
        sides = []
        for step in (h, -h):
            moved = x.copy()
            moved[i] += step
            z = evaluate(program, {**inputs, name: moved}, wide=True)["z"]
            sides.append((z * seed).sum())
        out[i] = (sides[0] - sides[1]) / (2 * h)
    return out


def check(program, back, inputs, seed, names):
    """Gradients from `back` against differences of `program`, within their own error."""
    given = {**inputs, "dz": seed, "z": evaluate(program, inputs, wide=True)["z"]}
    needed = [v.name for v in back.functions["main"].inputs]
    got = evaluate(back, {n: given[n] for n in needed}, wide=True)
    h = 2.0**-14
    scale = np.abs(given["z"] * seed).sum()
    for name in names:
        near, far = (central(program, inputs, name, seed, step) for step in (h, 2 * h))
        # Truncation is a h^2 + O(h^4): far - near is 3 a h^2, so near is off by a third of
        # it; the factor 2 pays for the O(h^4). Rounding: every evaluation is right to
        # about 64 roundings of 2^-53 of the terms' sum.
        bound = 2 / 3 * np.abs(far - near) + 64 * 2.0**-53 * (1 + scale) / h
        bound += 2.0**-22 * (np.abs(near) + np.abs(near).max())
        error = np.abs(got[f"d{name}"] - near)
        worst = np.unravel_index(np.argmax(error / bound), error.shape)
        assert (error <= bound).all(), (
            f"d{name}{list(worst)}: got {got[f'd{name}'][worst]!r}, difference {near[worst]!r}, "
            f"error/bound {error[worst] / bound[worst]:.3g}"
        )


@pytest.mark.parametrize(("name", "fn", "shapes"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_rule(name, fn, shapes):
    program = mil.build(lambda **v: {"z": fn(*v.values())}, {k: mil.spec(s[0], "fp32") for k, s in shapes.items()})
    rng = np.random.default_rng([ord(c) for c in name])
    inputs = {k: rng.uniform(lo, hi, s) for k, (s, lo, hi) in shapes.items()}
    # Away from the corners of piecewise functions: nothing lies within the step of a
    # multiple of 1/10 (every corner in the cases is one) or of another value.
    for k, x in inputs.items():
        grid = np.round(x * 10)
        inputs[k] = x + np.where(np.abs(x * 10 - grid) < 0.02, 0.005, 0.0)
    back = mil.grad(program)
    z = evaluate(program, inputs, wide=True)["z"]
    seed = rng.standard_normal(z.shape)
    check(program, back, inputs, seed, list(shapes))
    # The text of a derived program means the same program.
    assert _core.Program.parse(back.text()).text() == back.text()


def test_every_rule_has_a_case():
    tried = {c[0] for c in CASES}
    assert tried >= set(RULES), f"rules without a case: {sorted(set(RULES) - tried)}"


def spec32(*shape):
    return mil.spec(shape, "fp32")


def names(values):
    return [v.name for v in values]


def test_inputs_are_those_needed():
    p = mil.build(lambda x, w: {"y": ops.exp(x=ops.matmul(x=w, y=x))}, {"x": spec32(4, 5), "w": spec32(3, 4)})
    f = mil.grad(p, wrt=["x"]).functions["main"]
    assert names(f.inputs) == ["w", "y", "dy"]          # exp's rule takes the saved y
    assert names(f.outputs) == ["dx"]
    f = mil.grad(p, wrt=["x"], saved=()).functions["main"]
    assert names(f.inputs) == ["x", "w", "dy"]          # recomputed
    f = mil.grad(p, values=["y"]).functions["main"]
    assert names(f.inputs) == ["x", "w", "dy"] and names(f.outputs) == ["y", "dx", "dw"]


def test_nothing_dead_is_left():
    p = mil.build(
        lambda x, w: {"y": ops.tanh(x=ops.matmul(x=w, y=ops.sigmoid(x=x))), "z": ops.sin(x=x)},
        {"x": spec32(4, 5), "w": spec32(3, 4)},
    )
    back = mil.grad(p, wrt=["w"], seeds=["y"])
    live = set(names(back.functions["main"].outputs))
    for op in reversed(list(back.functions["main"].body.ops)):
        assert any(v.uses or v.name in live for v in op.results), f"{op.type} is dead"


def test_accumulate_is_fp32_and_adds():
    p = mil.build(
        lambda x, w: {"y": ops.matmul(x=ops.reshape(x=w, shape=[3, 4]), y=x)},
        {"x": mil.spec((4, 5), "fp16"), "w": mil.spec((12,), "fp16")},
    )
    back = mil.grad(p, wrt=["w"], accumulate=["w"])
    f = back.functions["main"]
    assert [(v.name, v.dtype) for v in f.inputs] == [("x", "fp16"), ("dy", "fp16"), ("dw_in", "fp32")]
    assert [(v.name, v.dtype) for v in f.outputs] == [("dw", "fp32")]
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(s).astype(np.float16) for s in ((4, 5), (3, 5)))
    dw_in = rng.standard_normal(12).astype(np.float32)
    got = evaluate(back, {"x": x, "dy": dy, "dw_in": dw_in}, wide=True)["dw"]
    want = dw_in + (dy.astype(float) @ x.astype(float).T).reshape(-1)
    np.testing.assert_allclose(got, want, rtol=2**-50, atol=2**-50)


def test_tiling_slices_join_without_padding():
    def halves(x):
        a = ops.slice_by_size(x=x, begin=[0, 0], size=[3, 2])
        b = ops.slice_by_size(x=x, begin=[0, 2], size=[3, 4])
        return {"y": ops.concat(values=(b, a * 2.0), axis=1)}

    back = mil.grad(mil.build(halves, {"x": spec32(3, 6)}))
    kinds = [op.type for op in back.functions["main"].body.ops]
    assert "pad" not in kinds and "concat" in kinds


def test_gather_adds_in_place():
    p = mil.build(
        lambda t, ids: {"y": ops.gather(x=t, indices=ids, axis=0)},
        {"t": spec32(7, 3), "ids": mil.spec((4,), "int32")},
    )
    back = mil.grad(p, accumulate=["t"])
    kinds = [op.type for op in back.functions["main"].body.ops if op.type != "const"]
    assert kinds[-1] == "scatter" and "add" not in kinds and "fill" not in kinds


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"wrt": ["z"]}, KeyError, "wrt names 'z'; the function's inputs are x, n"),
        ({"wrt": ["n"]}, TypeError, "input 'n' is int32, not a float"),
        ({"seeds": ["q"]}, KeyError, "seeds names 'q'; the function's outputs are y, c"),
        ({"seeds": ["c"]}, ValueError, "output 'c' does not depend on x"),
        ({"accumulate": ["n"]}, ValueError, "accumulate names 'n', which is not in wrt (x)"),
        ({"values": ["q"]}, KeyError, "values names 'q'"),
    ],
)
def test_refusals(how, error, message):
    p = mil.build(
        lambda x, n: {"y": x * 2.0, "c": ops.cast(x=n, dtype="fp32")},
        {"x": spec32(3), "n": mil.spec((3,), "int32")},
    )
    with pytest.raises(error) as e:
        mil.grad(p, **how)
    assert message in str(e.value) and "[grad]" in str(e.value)


def test_no_rule_names_the_op():
    p = mil.build(lambda x: {"y": ops.reverse_sequence(x=x, lengths=np.array([1, 2, 2], np.int32), seq_axis=1)},
                  {"x": spec32(3, 4)})  # fmt: skip
    with pytest.raises(NotImplementedError, match="no derivative rule for reverse_sequence"):
        mil.grad(p)


def test_open_shapes_and_states_are_refused():
    p = mil.build(lambda x: {"y": x * 2.0}, {"x": mil.spec((3, None), "fp32")})
    with pytest.raises(ValueError, match="'x' has the open shape"):
        mil.grad(p)
    p = mil.build(lambda s: {"y": ops.read_state(input=s) * 2.0}, {"s": mil.state((3,), "fp16")})
    with pytest.raises(NotImplementedError, match="'s' is a state"):
        mil.grad(p)
