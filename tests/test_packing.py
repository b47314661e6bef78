"""The packed form: one surface a side, the same values to the bit."""

from __future__ import annotations

import numpy as np
import pytest

import anetorch
from anetorch import _core, kernels, mil
from anetorch.nn.config import Config

F16 = np.float16
RNG = np.random.default_rng(11)


def values(program):
    kinds = {"fp16": F16, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}
    return {v.name: (RNG.integers(0, 2, v.shape) if v.dtype == "bool" else
                     RNG.standard_normal(v.shape) * 2).astype(kinds[v.dtype])
            for v in program.inputs}


def same(program, **options):
    """Runs both forms; returns the packed one."""
    packed = mil.pack(program)
    packed.program.verify()
    again = mil.Program.parse(packed.program.text())
    assert again.same_as(packed.program)
    given = values(program)
    want = anetorch.compile(program, **options)(**given)
    want = want if isinstance(want, dict) else {program.outputs[0].name: want}
    got = packed.split(anetorch.compile(packed.program, **options)(packed.stage(**given)))
    assert list(got) == list(want)
    for name in want:
        w = np.asarray(want[name])
        assert got[name].shape == w.shape and got[name].dtype == w.dtype
        np.testing.assert_array_equal(got[name], w, err_msg=name)
    return packed


def build(fn, dtype="fp16", **shapes):
    return mil.build(fn, {k: mil.spec(s, dtype) for k, s in shapes.items()}, opset="ios18")


PROGRAMS = {
    "linear": lambda: build(lambda x, w: mil.ops.matmul(x=w, y=x, transpose_x=True), x=(16, 5), w=(16, 7)),
    "fp32": lambda: build(lambda x, w: mil.ops.matmul(x=w, y=x), "fp32", x=(16, 5), w=(7, 16)),
    "outputs": lambda: build(lambda x: {"s": x + 1.0, "b": mil.ops.reduce_sum(x=x, axes=[1], keep_dims=True),
                                        "a": mil.ops.transpose(x=x, perm=[0, 3, 2, 1])}, x=(1, 6, 1, 4)),
    "ragged": lambda: build(lambda a, b, c, d: {"y": a * b + c, "z": mil.ops.relu(x=d)},
                            a=(3, 4), b=(4,), c=(), d=(2, 3, 5)),
    "scalars": lambda: build(lambda a, b: {"y": a + b, "z": a * b}, a=(), b=()),
    "same twice": lambda: build(lambda a, b: {"y": a, "z": b}, a=(2, 8), b=(2, 8)),
    "primes": lambda: build(lambda a, b: {"y": mil.ops.relu(x=a), "z": mil.ops.relu(x=b)}, a=(7, 11), b=(5, 13)),
    "one input": lambda: build(lambda x: {"y": x * 2.0, "z": x - 1.0}, x=(4, 4)),
    "one output": lambda: build(lambda x, y: x * y, x=(1, 8, 2, 4), y=(1, 8, 2, 4)),
    "booleans": lambda: build(lambda a, b: mil.ops.logical_and(x=a, y=b), "bool", a=(3, 5), b=(3, 1)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_same_values(name):
    same(PROGRAMS[name]())


@pytest.mark.parametrize("name", PROGRAMS)
def test_slots_partition_the_surface(name):
    """Every port has room for its elements, and no two share one."""
    p = PROGRAMS[name]()
    packed = mil.pack(p)
    for port, slots, ports in [(packed.input, packed.inputs, p.inputs), (packed.output, packed.outputs, p.outputs)]:
        assert [s.name for s in slots] == [v.name for v in ports]
        if port is None:
            continue
        side = packed.program.inputs if port == packed.input else packed.program.outputs
        seen = np.zeros(side[0].shape, int)
        for s in slots:
            area = s._area(seen)
            assert area.size == s.rows * s.columns >= np.prod(s.shape, dtype=int)
            area += 1
        assert seen.max() == 1


def test_the_engines_own_form():
    """Activations first, then weights, channels as rows: the layouts of the ten kernels."""
    cfg, seq = Config.preset("stories15m"), 32
    dim, hidden = cfg.hidden_size, cfg.intermediate_size
    p = build(lambda x, w: mil.ops.matmul(x=w, y=mil.ops.reshape(x=x, shape=[dim, seq]), transpose_x=True),
              x=(1, dim, 1, seq), w=(dim, hidden))
    packed = same(p)
    assert packed.shape == kernels.packed.ffn_bwd_w2t(cfg, seq).inputs[0].shape
    assert [(s.row, s.column, s.rows, s.columns) for s in packed.inputs] == [
        (0, 0, dim, seq), (0, seq, dim, hidden)]
    both = build(lambda dh1, dh3, w1, w3: {"dx": dh1 * 1.0, "k": mil.ops.relu(x=w1), "l": dh3 + 1.0, "m": w3 * 2.0},
                 dh1=(1, hidden, 1, seq), dh3=(1, hidden, 1, seq), w1=(hidden, dim), w3=(hidden, dim))
    packed = same(both)
    assert packed.shape == kernels.packed.ffn_bwd_w13t(cfg, seq).inputs[0].shape
    assert [s.column for s in packed.inputs] == [0, seq, 2 * seq, 2 * seq + dim]


def test_a_layer_and_its_gradient():
    """Weights as inputs, forward and backward, several results."""
    dim, hidden, seq = 32, 48, 16
    fwd = build(lambda x, w1, w3: {"h1": kernels.linear(x, w1), "h3": kernels.linear(x, w3)},
                x=(1, dim, 1, seq), w1=(hidden, dim), w3=(hidden, dim))
    same(fwd)
    same(kernels.backward(fwd, wrt=["x"]))


def test_numerics_of_the_engine():
    """Where values stay below the slice's clamp the packed form changes nothing; above it the
    packing itself clamps, on M1: that is what the engine would do."""
    same(PROGRAMS["linear"](), numerics="ane", target="m1")
    p = build(lambda x, y: x + y, x=(1, 8, 1, 4), y=(1, 8, 1, 4))
    packed = mil.pack(p)
    big = np.full((1, 8, 1, 4), 5000, F16)
    out = anetorch.compile(packed.program, numerics="ane", target="m1")(packed.stage(big, -big))
    assert np.isnan(np.asarray(out)).all()
    assert (np.asarray(anetorch.compile(p, numerics="ane", target="m1")(big, -big)) == 0).all()


def test_names_stay_and_none_is_taken_twice():
    """A program that uses the names the packing would choose."""
    def program(packed_in_0, pack_0):
        pack_1 = packed_in_0 * pack_0
        return {"packed_out_0": pack_1 + 1.0, "pack_2": pack_1}

    p = build(program, packed_in_0=(4, 4), pack_0=(4, 4))
    packed = same(p)
    names = [v.name for op in packed.program.function.body.ops for v in op.results]
    assert {"packed_in_0", "pack_0", "packed_out_0", "pack_2"} <= set(names)


def test_refuses():
    mixed = mil.build(lambda x, y: {"a": x, "b": mil.ops.cast(x=y, dtype="fp16")},
                      {"x": mil.spec((2,), "fp16"), "y": mil.spec((2,), "fp32")}, opset="ios18")
    with pytest.raises(NotImplementedError, match="input x is fp16 and y is fp32"):
        mil.pack(mixed)
    with pytest.raises(NotImplementedError, match="one input and one output already"):
        mil.pack(build(lambda x: x + 1.0, x=(2,)))
    with pytest.raises(NotImplementedError, match="known, non-zero size"):
        mil.pack(build(lambda x, y: x + y, x=(None, 2), y=(1, 2)))
    with pytest.raises(NotImplementedError, match="known, non-zero size"):
        mil.pack(build(lambda x, y: {"a": x * 1.0, "b": y * 1.0}, x=(0, 2), y=(1, 2)))
    with pytest.raises(KeyError, match='no function "other"'):
        mil.pack(PROGRAMS["linear"](), "other")
    packed = mil.pack(PROGRAMS["linear"]())
    with pytest.raises(ValueError, match="expected w, x; got x"):
        packed.stage(x=np.zeros((16, 5), F16))
    with pytest.raises(ValueError, match=r"w has shape \(16, 7\), got \(7, 16\)"):
        packed.stage(np.zeros((16, 5), F16), np.zeros((7, 16), F16))


@pytest.mark.parametrize("sticky", [False, True])
def test_every_allocation_may_fail(sticky):
    p = PROGRAMS["ragged"]()
    text, failures = p.text(), 0
    want = p.pack()[0].text()
    for n in range(1, 2000):
        _core._testing.fail_after(n, sticky)
        try:
            got = p.pack()[0]
        except MemoryError:
            failures += 1
            continue
        finally:
            _core._testing.fail_after(0)
        assert got.text() == want
        break
    else:
        pytest.fail("no attempt came through")
    assert failures > 5 and p.text() == text
