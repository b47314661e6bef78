"""Convolutional networks: ResNet-50 and MobileNetV2 as ML Programs, batch 1, fp32, beside ONNX
Runtime and OpenVINO.

    python benchmarks/bench_convnets.py                     # both networks
    python benchmarks/bench_convnets.py --net mobilenet_v2 --repeats 40 --json results.jsonl
    python benchmarks/bench_convnets.py --int8              # quantised; our fp32 beside them

`--int8`: every convolution and the classifier take 8-bit operands (quantize and dequantize in
front of them, weights with a scale per output channel), for the peers as QDQ nodes; scales are
those of one calibration run. Results are then compared with our own fp32 network by their
correlation, since roundings of 8-bit values near a tie differ.

The weights are random; batch normalisation is folded into the convolutions, as every converter
does. All run the same network with the same weights at the same thread count, in turn, and the
results are compared before anything is timed. `ratio` is the faster peer's median over ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Report, arguments, summary

import anetorch
import anetorch.mil as mil

RESNET50 = [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]
MOBILENET_V2 = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                (6, 160, 3, 2), (6, 320, 1, 1)]


class Net:
    """A network as a list of nodes ``(op, name, inputs, attributes)``; written once, built for
    every runtime from that."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[tuple[str, str, list[str], dict[str, Any]]] = []
        self.weights: dict[str, np.ndarray] = {}
        self.channels = {"x": 3}
        self.flops = 0.0
        self.size = {"x": 224}
        self._rng = np.random.default_rng(seed)

    def _add(self, op: str, inputs: list[str], channels: int, size: int, **attrs: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append((op, name, inputs, attrs))
        self.channels[name], self.size[name] = channels, size
        return name

    def _weight(self, *shape: int) -> str:
        name = f"w_{len(self.weights)}"
        fan = int(np.prod(shape[1:])) or 1
        self.weights[name] = (self._rng.standard_normal(shape) / fan**0.5).astype(np.float32)
        return name

    def conv(self, x: str, cout: int, k: int, stride: int = 1, groups: int = 1,
             act: str | None = "relu") -> str:
        cin, size = self.channels[x], (self.size[x] - 1) // stride + 1
        w = self._weight(cout, cin // groups, k, k)
        b = self._weight(cout)
        self.flops += 2.0 * cout * cin // groups * k * k * size * size
        y = self._add("conv", [x, w, b], cout, size, stride=stride, groups=groups, pad=k // 2, k=k)
        return self._add(act, [y], cout, size) if act else y

    def add(self, x: str, y: str) -> str:
        return self._add("add", [x, y], self.channels[x], self.size[x])

    def relu(self, x: str) -> str:
        return self._add("relu", [x], self.channels[x], self.size[x])

    def max_pool(self, x: str) -> str:
        return self._add("max_pool", [x], self.channels[x], (self.size[x] - 1) // 2 + 1)

    def head(self, x: str, classes: int = 1000) -> str:
        w, b = self._weight(classes, self.channels[x]), self._weight(classes)
        self.flops += 2.0 * classes * self.channels[x]
        return self._add("linear", [self._add("mean", [x], self.channels[x], 1), w, b], classes, 1)


def resnet50() -> Net:
    net = Net()
    x = net.max_pool(net.conv("x", 64, 7, 2))
    for width, blocks, stride in RESNET50:
        for i in range(blocks):
            s = stride if i == 0 else 1
            y = net.conv(net.conv(net.conv(x, width, 1), width, 3, s), width * 4, 1, act=None)
            if i == 0:
                x = net.conv(x, width * 4, 1, s, act=None)
            x = net.relu(net.add(y, x))
    net.head(x)
    return net


def mobilenet_v2() -> Net:
    net = Net()
    x = net.conv("x", 32, 3, 2, act="relu6")
    for expand, cout, blocks, stride in MOBILENET_V2:
        for i in range(blocks):
            s, cin = stride if i == 0 else 1, net.channels[x]
            y = net.conv(x, cin * expand, 1, act="relu6") if expand > 1 else x
            y = net.conv(y, cin * expand, 3, s, cin * expand, act="relu6")
            y = net.conv(y, cout, 1, act=None)
            x = net.add(x, y) if s == 1 and cin == cout else y
    net.head(net.conv(x, 1280, 1, act="relu6"))
    return net


PRODUCTS = ("conv", "linear")


def ranges(net: Net, x: np.ndarray) -> dict[str, float]:
    """Largest magnitude of every value that a product reads, for one input."""
    names = {"x"} | {inputs[0] for op, _, inputs, _ in net.nodes if op in PRODUCTS}
    names.discard("x")
    order = sorted(names)
    kernel = anetorch.compile(program(net, outputs=order))
    values = kernel(x)
    found = {n: float(np.abs(values[f"v_{i}"]).max()) for i, n in enumerate(order)}
    return {**found, "x": float(np.abs(x).max())}


def quantised(net: Net, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights as int8 and the scale of each output channel."""
    w = net.weights[name]
    scale = (np.abs(w).reshape(len(w), -1).max(1) / 127).astype(np.float32)
    return np.round(w / scale.reshape(-1, *[1] * (w.ndim - 1))).astype(np.int8), scale


def program(net: Net, peak: dict[str, float] | None = None,
            outputs: list[str] | None = None) -> mil.Program:
    """The network as an ML Program; `peak`: quantised, with these largest magnitudes."""
    def body(x: Any) -> Any:
        v: dict[str, Any] = {"x": x, **net.weights}
        eight: dict[str, Any] = {}
        for op, name, inputs, a in net.nodes:
            args = [v[i] for i in inputs]
            if peak and op in PRODUCTS:
                scale = np.float32(peak[inputs[0]] / 127)
                if inputs[0] not in eight:
                    eight[inputs[0]] = mil.ops.dequantize(mil.ops.quantize(
                        args[0], scale=scale, zero_point=np.int8(0), output_dtype="int8"),
                        scale=scale, zero_point=np.int8(0))
                args[0] = eight[inputs[0]]
                w, scales = quantised(net, inputs[1])
                args[1] = mil.ops.constexpr_affine_dequantize(
                    quantized_data=w, zero_point=np.int8(0), scale=scales, axis=np.int32(0))
            if op == "conv":
                v[name] = mil.ops.conv(args[0], args[1], bias=args[2], strides=[a["stride"]] * 2,
                                       pad_type="custom", pad=[a["pad"]] * 4, groups=a["groups"])
            elif op == "max_pool":
                v[name] = mil.ops.max_pool(args[0], kernel_sizes=[3, 3], strides=[2, 2],
                                           pad_type="custom", pad=[1] * 4)
            elif op == "mean":
                v[name] = mil.ops.reshape(
                    mil.ops.reduce_mean(args[0], axes=[2, 3], keep_dims=True), shape=[1, -1])
            elif op == "linear":
                v[name] = mil.ops.linear(args[0], args[1], bias=args[2])
            else:
                v[name] = getattr(mil.ops, op)(*args)
        if outputs is not None:
            return {f"v_{i}": v[n] for i, n in enumerate(outputs)}
        return v[net.nodes[-1][1]]

    return mil.build(body, {"x": mil.spec((1, 3, 224, 224), "fp32")}, opset="ios17")


def onnx_bytes(net: Net, peak: dict[str, float] | None = None) -> bytes:
    """The network as an ONNX model; `peak`: with QDQ nodes around every product."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, consts, made8 = [], [], set()
    used = {inputs[1] for op, _, inputs, _ in net.nodes if op in PRODUCTS} if peak else set()

    def constant(name: str, value: Any) -> str:
        consts.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    for n, w in net.weights.items():
        if n not in used:
            constant(n, w)
            continue
        w8, scale = quantised(net, n)
        constant(n + "_8", w8)
        constant(n + "_s", scale)
        constant(n + "_z", np.zeros(len(scale), np.int8))
        nodes.append(helper.make_node("DequantizeLinear", [n + "_8", n + "_s", n + "_z"], [n],
                                      axis=0))
    if any(op == "relu6" for op, *_ in net.nodes):
        constant("low", np.float32(0))
        constant("high", np.float32(6))
    for op, name, inputs, a in net.nodes:
        if peak and op in PRODUCTS:
            x = inputs[0]
            inputs = [x + "_dq", *inputs[1:]]
            if x not in made8:
                made8.add(x)
                qp = [constant(x + "_s", np.float32(peak[x] / 127)), constant(x + "_z", np.int8(0))]
                nodes.append(helper.make_node("QuantizeLinear", [x, *qp], [x + "_q"]))
                nodes.append(helper.make_node("DequantizeLinear", [x + "_q", *qp], [x + "_dq"]))
        if op == "conv":
            made = helper.make_node("Conv", inputs, [name], strides=[a["stride"]] * 2,
                                    pads=[a["pad"]] * 4, group=a["groups"],
                                    kernel_shape=[a["k"]] * 2)
        elif op == "max_pool":
            made = helper.make_node("MaxPool", inputs, [name], kernel_shape=[3, 3],
                                    strides=[2, 2], pads=[1] * 4)
        elif op == "mean":
            nodes.append(helper.make_node("GlobalAveragePool", inputs, [name + "_"]))
            made = helper.make_node("Flatten", [name + "_"], [name])
        elif op == "linear":
            made = helper.make_node("Gemm", inputs, [name], transB=1)
        elif op == "relu6":
            made = helper.make_node("Clip", [*inputs, "low", "high"], [name])
        else:
            made = helper.make_node(op.capitalize(), inputs, [name])
        nodes.append(made)
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info(net.nodes[-1][1], TensorProto.FLOAT, [1, 1000])], consts)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)],
                             ir_version=9).SerializeToString()


def ours(net: Net, x: np.ndarray, peak: dict[str, float] | None = None) -> tuple[Callable[[], object], Callable[[], np.ndarray], Any]:
    kernel = anetorch.compile(program(net, peak))
    source, result = anetorch.Tensor((1, 3, 224, 224), "float32"), anetorch.Tensor((1, 1000), "float32")
    np.asarray(source)[...] = x
    request = kernel.bind(source, result)
    return request.run, lambda: np.array(result), request


def peers(model: bytes, x: np.ndarray, threads: int) -> dict[str, Callable[[], np.ndarray]]:
    """A call that runs the network, for every peer that is installed."""
    found: dict[str, Callable[[], np.ndarray]] = {}
    try:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        found["onnxruntime"] = lambda: session.run(None, {"x": x})[0]
    except ImportError:
        pass
    try:
        import openvino as ov

        core = ov.Core()
        compiled = core.compile_model(core.read_model(model), "CPU", {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32"})
        request = compiled.create_infer_request()
        found["openvino"] = lambda: request.infer({"x": x}, share_inputs=True)[0]
    except ImportError:
        pass
    return found


def alike(net: str, who: str, a: np.ndarray, b: np.ndarray) -> None:
    """Quantised logits follow the fp32 ones, or the scales went wrong somewhere."""
    r = float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    if not r > 0.9:
        raise SystemExit(f"{net}: {who} correlates with fp32 by {r:.3g} only")


def main() -> None:
    p = arguments(__doc__)
    p.add_argument("--net", choices=["resnet50", "mobilenet_v2"], action="append")
    p.add_argument("--steps", action="store_true", help="what each of our steps took")
    p.add_argument("--int8", action="store_true", help="quantised networks")
    p.add_argument("--alone", action="store_true", help="without peers")
    args = p.parse_args()
    if args.threads:
        anetorch.set_num_threads(args.threads)
    threads = anetorch.num_threads()
    report = Report("bench_convnets", args.json)
    for name in args.net or ["resnet50", "mobilenet_v2"]:
        net = {"resnet50": resnet50, "mobilenet_v2": mobilenet_v2}[name]()
        x = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)
        peak = ranges(net, x) if args.int8 else None
        run, result, request = ours(net, x, peak)
        run()
        mine = result()
        calls: dict[str, Callable[[], object]] = {"anetorch": run}
        if args.int8:
            calls["anetorch fp32"], wide, keep = ours(net, x)
            calls["anetorch fp32"]()
            alike(name, "int8", mine, wide())
        for peer, call in ({} if args.alone else peers(onnx_bytes(net, peak), x, threads)).items():
            theirs = np.asarray(call())
            if args.int8:
                alike(name, peer, theirs, wide())
            else:
                # Two fp32 evaluations: far closer than this, or one of them is wrong.
                gap = float(np.abs(theirs - mine).max() / np.abs(theirs).max())
                if not gap < 1e-4:
                    raise SystemExit(f"{name}: {peer} differs from anetorch by {gap:.3g}")
            calls[peer] = call
        times: dict[str, list[float]] = {c: [] for c in calls}
        for i in range(-3, args.repeats):
            for c, call in calls.items():
                time.sleep(0.05)       # idle workers of the one before go to sleep
                call()                  # and the caches hold this one's data again
                start = time.perf_counter()
                call()
                if i >= 0:
                    times[c].append(time.perf_counter() - start)
        sums = {c: summary(t) for c, t in times.items()}
        best = min((s["median"] for c, s in sums.items() if "anetorch" not in c), default=0.0)
        for c, s in sums.items():
            facts: dict[str, Any] = {"gflops": net.flops / s["median"] / 1e9}
            if c == "anetorch" and best:
                facts["ratio"] = best / s["median"]
            report.add(f"{name} {c}", s, net=name + (" int8" if args.int8 else ""), peer=c, threads=threads, **facts)
        if args.steps:
            total: dict[str, list[float]] = {}
            for step in request.profile():
                t = step["seconds"]
                print(f"  {t * 1e6:8.1f} us  {step['flops'] / max(t, 1e-9) / 1e9:7.1f} GF/s  "
                      f"{step['kernel']:20} {step['op']:40} {step['name']}")
                total.setdefault(step["kernel"], []).append(t)
            for kernel, t in total.items():
                print(f"  {sum(t) * 1e3:8.3f} ms  {len(t):3}  {kernel}")


if __name__ == "__main__":
    main()
