"""Programs of every kind, and what a run of each takes of memory, measured: run as a script by
test_memory.py. Each case runs in a forked child of a process that has run nothing, in a thread
of its own, so that nobody's blocks are there yet. Prints one JSON object per case."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import test_passes

import anetorch
import anetorch.mil as mil
from anetorch import Tensor, _core, kernels

T = _core._testing
o = mil.ops
CASES: dict[str, Callable[[], mil.Program]] = {}
#: What compile takes besides.
HOW: dict[str, dict[str, Any]] = {}


def case(name: str, body: Callable[..., Any], how: dict[str, Any] | None = None, **inputs: mil.Spec) -> None:
    CASES[name] = lambda: mil.build(body, inputs)
    HOW[name] = how or {}


def randoms(shape: tuple[int, ...], dtype: str = "f4") -> np.ndarray:
    rng = np.random.default_rng(1)
    if np.dtype(dtype).kind == "f":
        return (rng.standard_normal(shape) / 4).astype(dtype)
    return rng.integers(0, 4, shape).astype(dtype)


# ------------------------------------------------------------------ products

SHAPES = [(5, 7, 9, 1), (1, 768, 3000, 1), (256, 768, 768, 1), (768, 256, 2048, 1), (3000, 768, 256, 1),
          (256, 9000, 256, 1), (200, 300, 9000, 1), (64, 64, 64, 24), (3, 4, 5, 7), (256, 64, 300, 3),
          (2048, 512, 1111, 2), (3, 64, 1000, 1), (700, 0, 800, 1), (1300, 2500, 1300, 1)]
for m, k, n, b in SHAPES:
    for dtype in ("fp32", "fp16"):
        case(f"matmul {m}x{k}x{n}x{b} {dtype}", lambda x, y: o.matmul(x=x, y=y),
             x=mil.spec((b, m, k), dtype), y=mil.spec((b, k, n), dtype))
for precision in ("high", "medium"):
    case(f"matmul {precision}", lambda x, y: o.matmul(x=x, y=y), {"precision": precision},
         x=mil.spec((100, 300), "fp32"), y=mil.spec((300, 500), "fp32"))
for m, n in ((1, 1000), (4, 1000), (300, 500), (2000, 64)):
    case(f"linear constant {m}x{n}", lambda x, n=n: o.relu(o.linear(x, randoms((n, 320)), bias=randoms((n,)))),
         x=mil.spec((m, 320), "fp32"))
    case(f"linear prepacked {m}x{n}", lambda x, n=n: o.linear(x, randoms((n, 320)), bias=randoms((n,))),
         {"prepack": True}, x=mil.spec((m, 320), "fp32"))
case("linear long", lambda x: o.linear(x, randoms((300, 5000))), x=mil.spec((200, 5000), "fp16"))
case("product and what follows", lambda x, w, r: o.softmax(o.add(o.gelu(o.matmul(x, w, transpose_y=True)), r), axis=-1),
     x=mil.spec((70, 90), "fp16"), w=mil.spec((110, 90), "fp16"), r=mil.spec((70, 110), "fp16"))
case("residual", lambda x, w, r: o.add(o.matmul(x, w), r),
     x=mil.spec((300, 400), "fp32"), w=mil.spec((400, 500), "fp32"), r=mil.spec((300, 500), "fp32"))
case("batches that step apart", lambda x, y: o.matmul(x=o.transpose(x, perm=[0, 2, 1, 3]), y=y),
     x=mil.spec((3, 40, 5, 60), "fp32"), y=mil.spec((3, 5, 60, 70), "fp32"))

# ------------------------------------------------------------------ convolutions

#: input, weight, and what conv takes besides
CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "implicit": ((2, 24, 31, 29), (40, 24, 3, 3), {"pad_type": "same"}),
    "strided": ((1, 24, 31, 29), (40, 24, 3, 3), {"strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1]}),
    "dilated": ((1, 24, 31, 29), (40, 24, 3, 3), {"dilations": [2, 2], "pad_type": "same"}),
    "grouped": ((1, 24, 20, 20), (36, 6, 3, 3), {"groups": 4, "pad_type": "same"}),
    "few channels": ((1, 3, 64, 64), (32, 3, 7, 7), {"strides": [2, 2], "pad_type": "same"}),
    "1x1": ((2, 48, 30, 30), (64, 48, 1, 1), {}),
    "1x1 long": ((1, 320, 1, 700), (600, 320, 1, 1), {}),
    "1x1 one": ((1, 320, 1, 1), (600, 320, 1, 1), {}),
    "1x1 strided": ((1, 48, 30, 30), (64, 48, 1, 1), {"strides": [2, 2]}),
    "depthwise": ((2, 48, 33, 35), (48, 1, 3, 3), {"groups": 48, "pad_type": "same"}),
    "depthwise strided": ((1, 48, 33, 35), (48, 1, 5, 5), {"groups": 48, "strides": [2, 2], "pad_type": "same"}),
    "three dims": ((1, 5, 6, 7, 8), (9, 5, 3, 3, 3), {"pad_type": "same"}),
    "one dim": ((1, 16, 500), (24, 16, 9), {"pad_type": "same"}),
    "wide": ((1, 512, 14, 14), (512, 512, 3, 3), {"pad_type": "same"}),
}
for name, (xs, ws, how) in CONVS.items():
    for dtype in ("fp32", "fp16"):
        w = randoms(ws, "f4" if dtype == "fp32" else "f2")
        case(f"conv {name} {dtype}", lambda x, w=w, how=how: o.relu(o.conv(x, w, **how)), x=mil.spec(xs, dtype))
    if name == "dilated":               # MIL wants their weights constant
        continue
    case(f"conv {name} bound", lambda x, w, how=how: o.conv(x, w, **how), x=mil.spec(xs, "fp32"),
         w=mil.spec(ws, "fp32"))
case("conv bound bias", lambda x, b: o.conv(x, randoms((40, 24, 3, 3)), bias=b, pad_type="same"),
     x=mil.spec((1, 24, 31, 29), "fp32"), b=mil.spec((40,), "fp32"))
case("conv residual", lambda x, r: o.relu(o.add(o.conv(x, randoms((40, 24, 3, 3)), pad_type="same"), r)),
     x=mil.spec((1, 24, 31, 29), "fp32"), r=mil.spec((1, 40, 31, 29), "fp32"))
case("conv_transpose", lambda x: o.conv_transpose(x, randoms((24, 10, 4, 4)), strides=[2, 2], pad_type="same"),
     x=mil.spec((1, 24, 17, 15), "fp32"))
case("conv_transpose depthwise", lambda x: o.conv_transpose(x, randoms((24, 1, 4, 4)), strides=[2, 3], groups=24),
     x=mil.spec((1, 24, 17, 15), "fp32"))


def int8(x: Any, w: np.ndarray, op: str, **how: Any) -> Any:
    q = o.quantize(x, scale=np.float32(0.02), zero_point=np.int8(3), output_dtype="int8")
    d = o.dequantize(q, scale=np.float32(0.02), zero_point=np.int8(3))
    v = o.constexpr_affine_dequantize(quantized_data=w, zero_point=np.int8(0), axis=np.int32(0),
                                      scale=np.full(len(w), 0.01, np.float32))
    return getattr(o, op)(d, v, **how)


case("int8 conv", lambda x: int8(x, randoms((40, 24, 3, 3), "i1"), "conv", pad_type="same"),
     x=mil.spec((1, 24, 31, 29), "fp32"))
case("int8 linear", lambda x: int8(x, randoms((300, 200), "i1"), "linear"), x=mil.spec((70, 200), "fp32"))
case("int8 conv and quantize", lambda x: o.dequantize(o.quantize(o.relu(int8(
    int8(x, randoms((40, 24, 3, 3), "i1"), "conv", pad_type="same"), randoms((16, 40, 3, 3), "i1"), "conv")),
    scale=np.float32(0.5), zero_point=np.int8(0), output_dtype="int8"), scale=np.float32(0.5), zero_point=np.int8(0)),
    x=mil.spec((1, 24, 31, 29), "fp32"))
for kind in ("max_pool", "avg_pool", "l2_pool"):
    for dtype in ("fp32", "fp16"):
        case(f"{kind} {dtype}", lambda x, kind=kind: getattr(o, kind)(x, kernel_sizes=[3, 3], strides=[2, 2],
             pad_type="same"), x=mil.spec((2, 24, 33, 31), dtype))
case("pool of a convolution", lambda x: o.max_pool(o.relu(o.conv(x, randoms((40, 24, 3, 3)), pad_type="same")),
     kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"), x=mil.spec((1, 24, 32, 32), "fp32"))

# ------------------------------------------------------------------ rows, chains, attention

for shape, axis in (((300, 1000), -1), ((1000, 300), 0), ((2, 30, 40, 50), 1), ((1, 400000), -1), ((7, 3), -1)):
    for dtype in ("fp32", "fp16"):
        s = mil.spec(shape, dtype)
        case(f"softmax {shape} {axis} {dtype}", lambda x, a=axis: o.softmax(o.mul(x, np.float32(0.5).astype(
            "f4" if x.dtype == "fp32" else "f2")), axis=a), x=s)
        for kind in ("sum", "max", "log_sum_exp", "l1_norm"):
            case(f"{kind} {shape} {axis} {dtype}", lambda x, a=axis, kind=kind: getattr(o, "reduce_" + kind)(
                o.square(x), axes=[a], keep_dims=False), x=s)
        case(f"layer_norm {shape} {axis} {dtype}", lambda x, a=axis: o.layer_norm(x, axes=[a]), x=s)
case("instance_norm", lambda x: o.instance_norm(x), x=mil.spec((2, 30, 40, 50), "fp32"))
case("l2_norm", lambda x: o.l2_norm(x), x=mil.spec((2, 30, 40, 50), "fp16"))
for count in (40, 3000, 1 << 20):
    case(f"chain {count}", lambda x, y: o.relu(o.add(o.mul(o.sigmoid(x), y), o.tanh(x))),
         x=mil.spec((count,), "fp16"), y=mil.spec((count,), "fp16"))
case("target", lambda x, y: o.softmax(o.relu(o.matmul(x, y)), axis=-1), {"numerics": "ane"},
     x=mil.spec((60, 70), "fp16"), y=mil.spec((70, 80), "fp16"))
case("few rows", lambda x, w, v: o.matmul(o.relu(o.matmul(x, w)), v, transpose_y=True), x=mil.spec((5, 300), "fp32"),
     w=mil.spec((300, 900), "fp32"), v=mil.spec((400, 900), "fp32"))
case("chain broadcast", lambda x, y: o.exp(o.sub(x, y)), x=mil.spec((300, 200), "fp32"), y=mil.spec((300, 1), "fp32"))
case("moves", lambda x: o.concat([o.transpose(x, perm=[1, 0]), o.tile(o.transpose(x, perm=[1, 0]), reps=[1, 3])], axis=1),
     x=mil.spec((300, 200), "fp32"))


def core(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    s = o.mul(o.matmul(q, k, transpose_y=True), np.float32(0.125))
    return o.matmul(o.softmax(s if mask is None else o.add(s, mask), axis=-1), v)


for t in (1, 3, 64, 500):
    causal = np.where(np.tril(np.ones((t, 500), bool), 500 - t), 0, -1e9).astype("f4")
    heads = {"q": mil.spec((1, 6, t, 64), "fp32"), "k": mil.spec((1, 6, 500, 64), "fp32"),
             "v": mil.spec((1, 6, 500, 64), "fp32")}
    case(f"attention {t}", core, **heads)
    case(f"attention causal {t}", lambda q, k, v, m=causal: core(q, k, v, m), **heads)
    case(f"attention mask {t}", core, **heads, mask=mil.spec((1, 1, t, 500), "fp32"))
    CASES[f"attention backward {t}"] = lambda heads=heads, m=causal: kernels.backward(
        mil.build(lambda q, k, v: {"y": core(q, k, v, m)}, heads), wrt=["q", "k", "v"])
case("attention one dim", lambda q, k, v: core(q, k, v), q=mil.spec((40, 300, 8), "fp32"),
     k=mil.spec((40, 300, 8), "fp32"), v=mil.spec((40, 300, 8), "fp32"))

# ------------------------------------------------------------------ whole layers and networks

C, H, F, S = 768, 12, 2048, 256


def layer(x, g1, wq, wk, wv, wo, g2, w1, w2, w3):
    h = kernels.rms_norm(x, g1, 1e-5)
    cos, sin = kernels.tables(S, C // H, 10000.0)
    q, k = (kernels.rope(kernels.linear(h, w), cos, sin, C // H) for w in (wq, wk))
    a = kernels.attention(q, k, kernels.linear(h, wv), C // H)
    x = o.add(x, kernels.linear(a, wo))
    h = kernels.rms_norm(x, g2, 1e-5)
    return {"y": o.add(x, kernels.linear(kernels.swiglu(kernels.linear(h, w1), kernels.linear(h, w3)), w2))}


LAYER = {"x": (1, C, 1, S), "g1": (C,), "wq": (C, C), "wk": (C, C), "wv": (C, C), "wo": (C, C), "g2": (C,),
         "w1": (F, C), "w2": (C, F), "w3": (F, C)}
for dtype in ("fp16", "fp32"):
    specs = {n: mil.spec(s, dtype) for n, s in LAYER.items()}
    case(f"Stories110M layer {dtype}", layer, **specs)
    CASES[f"Stories110M layer backward {dtype}"] = lambda specs=specs: kernels.backward(
        mil.build(layer, specs), wrt=list(LAYER))


def residual_net(x: Any) -> Any:
    """A small ResNet: 7x7 first, pooling, bottlenecks with a stride, depthwise, a classifier."""
    def conv(x: Any, cin: int, cout: int, k: int, stride: int = 1, groups: int = 1) -> Any:
        return o.conv(x, randoms((cout, cin // groups, k, k)), bias=randoms((cout,)), strides=[stride] * 2,
                      pad_type="custom", pad=[k // 2] * 4, groups=groups)
    x = o.max_pool(o.relu(conv(x, 3, 64, 7, 2)), kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1] * 4)
    for cin, width, stride in ((64, 32, 1), (128, 64, 2)):
        y = o.relu(conv(o.relu(conv(x, cin, width, 1)), width, width, 3, stride))
        x = o.relu(o.add(conv(y, width, width * 4, 1), conv(x, cin, width * 4, 1, stride)))
        cin = width * 4
    x = o.relu6(conv(x, 256, 256, 3, 1, 256))
    x = o.reshape(o.reduce_mean(x, axes=[2, 3], keep_dims=True), shape=[1, -1])
    return o.softmax(o.linear(x, randoms((1000, 256)), bias=randoms((1000,))), axis=-1)


case("residual net", residual_net, x=mil.spec((1, 3, 112, 112), "fp32"))

for seed in range(60):
    CASES[f"random graph {seed}"] = lambda seed=seed: test_passes.random_graph(seed)[0]

# ------------------------------------------------------------------ evaluated plainly

#: Cases whose steps are (in part) the reference evaluator's.
PLAIN: set[str] = set()


def plain(name: str, body: Callable[..., Any], **inputs: mil.Spec) -> None:
    case(name, body, **inputs)
    PLAIN.add(name)


plain("cumsum", lambda x: o.cumsum(x, axis=0, exclusive=False, reverse=False), x=mil.spec((500, 30), "fp32"))
plain("cumsum between", lambda x: o.softmax(o.cumsum(o.square(x), axis=0, exclusive=False, reverse=False), axis=-1),
      x=mil.spec((500, 30), "fp32"))
plain("topk", lambda x: o.topk(x, k=5, axis=-1), x=mil.spec((100, 300), "fp32"))
plain("resize", lambda x: o.resize_bilinear(x, target_size_height=40, target_size_width=60),
      x=mil.spec((1, 6, 20, 20), "fp32"))
plain("non_zero", lambda x: o.non_zero(x), x=mil.spec((300, 40), "fp32"))
plain("non_zero and more", lambda x: {"i": o.non_zero(o.relu(x)), "y": o.softmax(x, axis=-1)},
      x=mil.spec((300, 40), "fp32"))
plain("cond", lambda c, x: o.cond(pred=c, true_fn=lambda: o.add(x=x, y=x), false_fn=lambda: o.relu(x=x)),
      c=mil.spec((), "bool"), x=mil.spec((300, 40), "fp32"))
plain("while_loop", lambda n, x: o.while_loop(
    cond=lambda i, s: o.greater(x=i, y=0), body=lambda i, s: (o.sub(x=i, y=1), o.add(x=s, y=s)), loop_vars=(n, x))[1],
      n=mil.spec((), "int32"), x=mil.spec((300, 40), "fp32"))
plain("lstm", lambda x: o.lstm(x, initial_h=np.zeros((2, 16), "f4"), initial_c=np.zeros((2, 16), "f4"),
      weight_ih=randoms((64, 24)), weight_hh=randoms((64, 16)))[0], x=mil.spec((10, 2, 24), "fp32"))


# ------------------------------------------------------------------ measuring

def values(k: anetorch.Kernel) -> list[Tensor]:
    found = []
    for p in k.inputs:
        a = randoms(p.shape, p.dtype) if p.dtype != "bool" else np.ones(p.shape, bool)
        t = Tensor(p.shape, p.dtype, mem="heap")
        t.copy_from(np.where(a > 0, a, 0).astype(p.dtype) if p.dtype != "bool" else a)
        found.append(t)
    return found


def measure(name: str, threads: int) -> dict[str, Any]:
    program, how = CASES[name](), HOW.get(name, {})
    k = anetorch.compile(program, **how)
    inputs = values(k)
    T.mem_watch(True)
    said = dict(k.memory(*inputs))
    computed = T.mem_watched()[0][0]
    buffers = k.memory(*inputs).buffers
    known = [p for p in k.outputs if p.dtype != "str" and all(isinstance(d, int) and d >= 0 for d in p.shape)]
    outputs = {p.name: Tensor(p.shape, p.dtype, mem="heap") for p in known}
    T.mem_watch(True)
    request = k.bind(dict(zip([p.name for p in k.inputs], inputs)), outputs)
    request.run()
    (_, most, _), (_, other, blocks) = T.mem_watched()
    T.fail_after(0)
    for _ in range(5):
        request.run()
    later = T.fail_after(0)
    (now, most_later, _), _ = T.mem_watched()
    T.mem_watch(False)
    found = {"said": said, "computed": computed, "most": most, "later": most_later, "other": other, "blocks": blocks, "allocations": later,
             "used": T.scratch_used(), "ran": dict(request.memory()),
             "made": sum(t.nbytes for n, t in request.outputs.items() if n not in outputs),
             "bytes": [sum(t.nbytes for t in inputs), sum(t.nbytes for t in outputs.values())],
             "rows": sum(b["bytes"] for b in buffers if b["kind"] == "thread")}
    # What is kept is given up where the limit has no room for it.
    least = anetorch.compile(program, memory_limit=1, **how).memory(*inputs)
    found["least"] = dict(least)
    found["limit"] = limited(program, how, inputs, outputs,
                             least["total"] + request.memory()["total"] - said["total"])
    return found


KEYS = ("inputs", "outputs", "constants", "packed", "kept", "scratch", "threads", "reference", "rounding")


def limited(program: mil.Program, how: dict[str, Any], inputs: list[Tensor], outputs: dict[str, Tensor],
            total: int) -> dict[str, Any]:
    """What becomes of a run whose limit is `total`, and one byte less."""
    names = [p.name for p in anetorch.compile(program).inputs]
    found: dict[str, Any] = {"total": total}
    for key, limit in (("fits", total), ("short", total - 1)):
        if limit < 1:
            continue
        k = anetorch.compile(program, memory_limit=limit, **how)
        k.memory(*inputs)               # the plan itself, with the constants that it computes once
        T.mem_watch(True)
        try:
            k.bind(dict(zip(names, inputs)), outputs).run()
            found[key] = ""
        except MemoryError as e:
            found[key] = str(e)
        found[key + " took"] = T.mem_watched()[0][1]
        T.mem_watch(False)
    return found


def child(name: str, threads: int) -> None:
    record: dict[str, Any] = {"name": name}

    def run() -> None:
        try:
            record.update(measure(name, threads))
        except BaseException:
            record["error"] = traceback.format_exc()

    t = threading.Thread(target=run)
    t.start()
    t.join()
    print(json.dumps(record), flush=True)


def main() -> None:
    threads, wanted = anetorch.get_num_threads(), sys.argv[1:] or list(CASES)
    for name in wanted:
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            child(name, threads)
            os._exit(0)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
