"""Whole PyTorch models, random weights, converted by coremltools and predicted by anetorch.

The reference is PyTorch in float64. No closed bound for a deep model is of use, so each model
says itself how rounding travels through it: every operation of the float64 model is disturbed,
in a random direction, by up to one unit roundoff of its largest output, several times, and the
largest deviation of the output is what roundings of that size may do. The program rounds at
other places (it splits, fuses and folds) and all at once: eight times that. A wrong operation
is off by the size of the output, and the test demands that the bound is far below it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anetorch

ct = pytest.importorskip("coremltools", reason="coremltools (pip install '.[oracle]') converts")
torch = pytest.importorskip("torch", reason="torch (pip install '.[oracle]') is the reference")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_map  # noqa: E402

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
UNIT = {"fp32": 2.0**-24, "fp16": 2.0**-11}
MARGIN, RUNS = 8, 4


class Disturb(TorchDispatchMode):
    """Adds noise of up to u times the largest element to every floating-point result."""

    def __init__(self, u: float, seed: int) -> None:
        super().__init__()
        self.u, self.generator = u, torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if func.is_view or name.startswith(("aten.detach", "aten.copy_")):
            return out

        def noisy(t: Any) -> Any:
            if not isinstance(t, torch.Tensor) or t.dtype != torch.float64 or not t.numel():
                return t
            finite = t[torch.isfinite(t)]
            if not finite.numel():
                return t
            delta = torch.rand(t.shape, generator=self.generator, dtype=t.dtype) * 2 - 1
            return t + delta * self.u * finite.abs().max()

        return tree_map(noisy, out)


# ------------------------------------------------------------------ the models


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in "ab")
        self.na, self.nb = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(x + self.nb(self.b(F.relu(self.na(self.a(x))))))


class Convnet(nn.Module):
    shapes = ((1, 3, 24, 24),)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16)
        self.one, self.two = Block(16), Block(16)
        self.depth = nn.Conv2d(16, 32, 3, groups=16, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 3, stride=2, padding=1)
        x = F.silu(self.depth(self.two(self.one(x))))
        return self.head(F.avg_pool2d(x, 2).mean((2, 3)))


class Layer(nn.Module):
    """A transformer layer written out: what exporters trace."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x, mask=None):
        b, t, d = map(int, x.shape)         # traced as constants
        q, k, v = (y.reshape(b, t, self.heads, d // self.heads).transpose(1, 2)
                   for y in self.qkv(self.n1(x)).chunk(3, -1))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Vision(nn.Module):
    shapes = ((1, 3, 32, 32),)

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, stride=8)
        self.cls = nn.Parameter(torch.randn(1, 1, 32))
        self.position = nn.Parameter(torch.randn(1, 17, 32))
        self.layers = nn.ModuleList(Layer(32, 4) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls, x], 1) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class Text(nn.Module):
    shapes = ((2, 12),)
    tokens = 50

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(self.tokens, 32)
        self.position = nn.Parameter(torch.randn(1, 12, 32))
        self.layers = nn.ModuleList(Layer(32, 4) for _ in range(2))
        self.norm = nn.LayerNorm(32)

    def forward(self, ids):
        x = self.embed(ids) + self.position
        for layer in self.layers:
            x = layer(x)
        return torch.tanh(self.norm(x).mean(1))


class Recurrent(nn.Module):
    shapes = ((2, 9, 16),)

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, 8)

    def forward(self, x):
        y, _ = self.lstm(x)
        return self.head(y)


class Unet(nn.Module):
    shapes = ((1, 3, 16, 16),)

    def __init__(self) -> None:
        super().__init__()
        def conv(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(4, b), nn.SiLU())

        self.d1, self.d2, self.mid = conv(3, 8), conv(8, 16), conv(16, 16)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.u2, self.u1, self.out = conv(32, 8), conv(16, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        a = self.d1(x)
        b = self.d2(F.avg_pool2d(a, 2))
        m = self.mid(F.max_pool2d(b, 2))
        c = self.u2(torch.cat([self.up(m), b], 1))
        c = F.interpolate(c, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.out(self.u1(torch.cat([c, a], 1))))


class Speech(nn.Module):
    shapes = ((1, 1, 400),)

    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Conv1d(1, 32, 25, stride=10, bias=False)     # a learned filter bank
        self.a = nn.Conv1d(16, 32, 3, padding=2, dilation=2)
        self.b = nn.Conv1d(32, 32, 3, stride=2, padding=1, groups=4)
        self.layer = Layer(32, 4)

    def forward(self, x):
        re, im = self.wave(x).chunk(2, 1)
        x = torch.log(re * re + im * im + 1e-2)
        x = (x - x.mean(2, keepdim=True)) / (x.std(2, keepdim=True) + 1e-2)
        return self.layer(F.gelu(self.b(F.gelu(self.a(x)))).transpose(1, 2))


class Decoder(nn.Module):
    """One token a call; keys and values of the last eight are states."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(30, 32), nn.Linear(32, 96)
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 30)
        self.register_buffer("k", torch.zeros(1, 4, 8, 8))
        self.register_buffer("v", torch.zeros(1, 4, 8, 8))

    def forward(self, ids, mask):
        x = self.embed(ids)
        q, k, v = (y.reshape(1, 1, 4, 8).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        k, v = torch.cat([self.k[:, :, 1:], k], 2), torch.cat([self.v[:, :, 1:], v], 2)
        self.k[:] = k
        self.v[:] = v
        a = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5 + mask, -1) @ v
        return self.head(x + self.out(a.transpose(1, 2).reshape(1, 1, 32)))


MODELS = {"convnet": Convnet, "vision transformer": Vision, "text encoder": Text,
          "lstm": Recurrent, "u-net": Unet, "speech": Speech}


# ------------------------------------------------------------------ machinery


def make(kind: type[nn.Module], half: bool) -> nn.Module:
    torch.manual_seed(1)
    model = kind().eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):       # statistics as after training
            m.running_mean.uniform_(-0.2, 0.2)
            m.running_var.uniform_(0.5, 1.5)
    return round_weights(model) if half else model


def round_weights(model: nn.Module) -> nn.Module:
    """The weights that an fp16 package holds: rounding them is the conversion's business."""
    with torch.no_grad():
        for p in [*model.parameters(), *model.buffers()]:
            if p.is_floating_point():
                p.copy_(p.half().float())
    return model


def inputs_of(kind: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    if hasattr(kind, "tokens"):
        return [rng.integers(0, kind.tokens, s).astype(np.int32) for s in kind.shapes]
    return [rng.uniform(-1, 1, s).astype(np.float16).astype(np.float32) for s in kind.shapes]


def convert(model: nn.Module, xs: list[np.ndarray], precision: str, path: Path, **kwargs: Any) -> Any:
    example = tuple(torch.from_numpy(x) for x in xs)
    traced = torch.jit.trace(model, example, check_trace=False)
    converted = ct.convert(
        traced, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18,
        inputs=[ct.TensorType(name=f"x{i}", shape=x.shape, dtype=x.dtype.type)
                for i, x in enumerate(xs)],
        outputs=[ct.TensorType(name="y", dtype=np.float32)],
        compute_precision=getattr(ct.precision, {"fp32": "FLOAT32", "fp16": "FLOAT16"}[precision]),
        skip_model_load=True, **kwargs)
    converted.save(str(path))
    return converted


def reference(run: Callable[[], torch.Tensor], u: float) -> tuple[np.ndarray, float]:
    """float64 result and bound."""
    with torch.no_grad():
        exact = run().numpy().copy()
        worst = 0.0
        for seed in range(RUNS):
            with Disturb(u, seed):
                worst = max(worst, float(np.abs(run().numpy() - exact).max()))
    assert worst > 0
    return exact, MARGIN * worst


def check(got: np.ndarray, exact: np.ndarray, bound: float, what: str) -> None:
    assert got.shape == exact.shape and exact.std() > 0
    error = float(np.abs(got.astype(np.float64) - exact).max())
    assert bound < exact.std() / 4, f"{what}: bound {bound:.3g} is no test of {exact.std():.3g}"
    assert error <= bound, f"{what}: off by {error:.3g}, bound {bound:.3g}"


# ------------------------------------------------------------------ tests


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_pytorch(name: str, precision: str, tmp_path: Path) -> None:
    kind = MODELS[name]
    model, xs = make(kind, precision == "fp16"), inputs_of(kind)
    convert(model, xs, precision, tmp_path / "m.mlpackage")
    got = anetorch.load(tmp_path / "m.mlpackage").predict({f"x{i}": x for i, x in enumerate(xs)})["y"]
    model = model.double()
    wide = [torch.from_numpy(x) for x in xs]
    wide = [x.double() if x.is_floating_point() else x for x in wide]
    exact, bound = reference(lambda: model(*wide), UNIT[precision])
    check(got, exact, bound, f"{name} {precision}")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_decoder_with_states(precision: str, tmp_path: Path) -> None:
    """Twelve tokens over a cache of eight; Core ML states are fp16, whatever computes, so that
    fp16's rounding is what the bound is made of either way."""
    model = make(Decoder, True)
    ids = np.random.default_rng(3).integers(0, 30, (12, 1, 1)).astype(np.int32)
    masks = np.zeros((12, 1, 1, 1, 8), np.float32)
    for i in range(12):
        masks[i, ..., :max(0, 7 - i)] = -16     # 1e-7 of a token's weight, and no larger noise
    states = [ct.StateType(wrapped_type=ct.TensorType(shape=(1, 4, 8, 8), dtype=np.float16), name=n)
              for n in "kv"]
    convert(model, [ids[0], masks[0]], precision, tmp_path / "m.mlpackage", states=states)
    loaded = anetorch.load(tmp_path / "m.mlpackage")
    state, other = loaded.make_state(), loaded.make_state()
    steps = [loaded.predict({"x0": i, "x1": m}, state)["y"] for i, m in zip(ids, masks)]
    again = loaded.predict({"x0": ids[0], "x1": masks[0]}, other)["y"]
    np.testing.assert_array_equal(again, steps[0])      # a state of its own
    model = model.double()

    def run() -> torch.Tensor:
        model.k.zero_()
        model.v.zero_()
        return torch.stack([model(torch.from_numpy(i), torch.from_numpy(m).double())
                            for i, m in zip(ids, masks)])

    exact, bound = reference(run, UNIT["fp16"])
    check(np.stack(steps), exact, bound, "decoder")
    for name, tensor in (("k", model.k), ("v", model.v)):
        held = np.asarray(state[name]).astype(np.float64)
        np.testing.assert_allclose(held, tensor.detach().numpy(), rtol=0, atol=bound)


@pytest.mark.parametrize("how, name, precision", [
    ("int8 linear", "vision transformer", "fp32"), ("int8 linear", "text encoder", "fp16"),
    ("int8 per block", "vision transformer", "fp32"), ("int8 per block", "speech", "fp32"),
    ("palette of 16", "vision transformer", "fp32"), ("palette of 16", "text encoder", "fp16"),
    ("palette of 256", "text encoder", "fp32"),
])
def test_compressed_weights(how: str, name: str, precision: str, tmp_path: Path) -> None:
    """Against PyTorch with the weights that coremltools itself decompresses."""
    opt = ct.optimize.coreml
    kind = MODELS[name]
    model, xs = make(kind, precision == "fp16"), inputs_of(kind)
    converted = convert(model, xs, precision, tmp_path / "plain.mlpackage")
    levels = {"palette of 16": 16, "palette of 256": 256}.get(how, 255)
    if "palette" in how:
        op = opt.OpPalettizerConfig(mode="uniform", nbits=levels.bit_length() - 1,
                                    weight_threshold=0)
        small = opt.palettize_weights(converted, opt.OptimizationConfig(global_config=op))
    else:
        more = dict(granularity="per_block", block_size=8) if "block" in how else {}
        op = opt.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8",
                                         weight_threshold=0, **more)
        small = opt.linear_quantize_weights(converted, opt.OptimizationConfig(global_config=op))
    small.save(str(tmp_path / "small.mlpackage"))
    loaded = anetorch.load(tmp_path / "small.mlpackage")
    used = {op.type for op in loaded.program.function.body.ops}
    assert any(t.startswith("constexpr_") for t in used), used
    opt.decompress_weights(small).save(str(tmp_path / "wide.mlpackage"))
    program, _ = anetorch.coreml.read(tmp_path / "wide.mlpackage")
    assert not any(op.type.startswith("constexpr_") for op in program.function.body.ops)
    arrays = [a for op in program.function.body.ops if op.type == "const"
              if isinstance(a := op.results[0].const, np.ndarray) and a.dtype.kind == "f"]
    changed = 0
    with torch.no_grad():
        for p in model.parameters():
            same = [a for a in arrays if a.shape == tuple(p.shape)]
            if not same:
                continue
            nearest = min(same, key=lambda a: float(np.abs(a - p.numpy()).mean()))
            # So many levels of a range are at most this far apart; symmetric ones cover twice
            # the larger half of it. Scales and palettes are rounded to fp16 there.
            apart = 2 * np.abs(p.numpy()).max() / (levels - 1)
            assert np.abs(nearest - p.numpy()).max() <= apart * (1 + 2.0**-8)
            changed += not np.array_equal(nearest, p.numpy())
            p.copy_(torch.from_numpy(np.array(nearest)))
    assert changed >= {"vision transformer": 8, "text encoder": 8, "speech": 4}[name]
    got = loaded.predict({"x0": xs[0]})["y"]
    model, wide = model.double(), torch.from_numpy(xs[0])
    wide = wide.double() if wide.is_floating_point() else wide
    exact, bound = reference(lambda: model(wide), UNIT[precision])
    check(got, exact, bound, how)
