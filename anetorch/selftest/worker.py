"""The process that tries things: a request per line on stdin, an answer per line on stdout.

A program that ends or hangs the process costs one answer: the other side starts it again.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import anetorch
from anetorch import _core
from anetorch.kernels import packed
from anetorch.selftest.cases import CASES, measure
from anetorch.selftest.cliffs import CLIFFS, Trial

__all__ = ["KERNEL_CONFIG", "KERNEL_SEQ", "MARK", "TIMINGS", "answer", "compare_trial", "main",
           "sample", "unpack"]

MARK = "anetorch-selftest "             # before each answer: frameworks may print, too
SAMPLE = 8                              # elements of a result that an answer keeps

KERNEL_CONFIG = SimpleNamespace(hidden_size=256, intermediate_size=512, num_attention_heads=4,
                                num_key_value_heads=2, head_dim=64, rope_theta=10000.0)
KERNEL_SEQ = 64
TRAINING = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
            "max_position_embeddings": 64, "initializer_range": 0.05, "rms_norm_eps": 1e-5}
TIMINGS = {"smallest program": (1, 32, 1, 32), "2 MB in and out": (1, 1024, 1, 1024)}


def sample(a: np.ndarray) -> dict[str, Any]:
    """A few elements, evenly spread, with their bits: what a recorded answer keeps of a result."""
    flat = np.ascontiguousarray(a).reshape(-1)
    at = np.linspace(0, max(flat.size - 1, 0), min(SAMPLE, flat.size)).astype(np.int64)
    return {"shape": list(a.shape), "dtype": flat.dtype.name, "bits": flat[at].tobytes().hex()}


def unpack(kept: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(indices, values) of a sample."""
    values = np.frombuffer(bytes.fromhex(kept["bits"]), kept["dtype"])
    size = math.prod(kept["shape"])
    return np.linspace(0, max(size - 1, 0), len(values)).astype(np.int64), values


def digest(values: dict[str, np.ndarray]) -> int:
    """Of a case's inputs: a recording made with others says nothing."""
    return zlib.crc32(b"".join(np.ascontiguousarray(v).tobytes() for v in values.values()))


def _refusal(e: BaseException) -> dict[str, Any]:
    return {"outcome": "refused", "error": " ".join(f"{type(e).__name__}: {e}".split())[:500]}


def _call(kernel: anetorch.Kernel, values: dict[str, np.ndarray]) -> list[np.ndarray]:
    states = {p.name for p in kernel.inputs if p.state}
    out = kernel(**{k: anetorch.Tensor.from_numpy(v) if k in states else v for k, v in values.items()})
    return [np.asarray(t) for t in (out.values() if isinstance(out, dict) else [out])]


def _as_written(program: Any, device: str) -> anetorch.Kernel:
    """Never in another form than the program's own, which would hide what is refused."""
    return anetorch.compile(program, device=device, lowering="inputs" if device == "ane" else None)


# ---------------------------------------------------------------- operations

def operation(name: str, device: str) -> dict[str, Any]:
    case = CASES[name]
    values = case.values()
    result: dict[str, Any] = {"rule": case.rule, "inputs": digest(values)}
    try:
        began = time.perf_counter()
        kernel = _as_written(case.program(), device)
        compiled = time.perf_counter()
        got = _call(kernel, values)
        result["seconds"] = [round(compiled - began, 6), round(time.perf_counter() - compiled, 6)]
    except (ValueError, TypeError, RuntimeError, OSError, KeyError, IndexError) as e:
        return result | _refusal(e)
    ratio = measure(case, got)
    return result | {"outcome": "ok" if ratio <= 1 else "off", "ratio": ratio if math.isfinite(ratio) else None,
                     "sample": sample(got[0])}


# ---------------------------------------------------------------- cliffs

def compare_trial(want: list[np.ndarray], got: list[np.ndarray]) -> dict[str, Any]:
    """Same in every bit, or where the first difference is."""
    for i, (w, g) in enumerate(zip(want, got, strict=True)):
        if w.shape != g.shape or w.dtype != g.dtype:
            return {"outcome": "differs", "output": i, "got": f"{g.dtype}{list(g.shape)}",
                    "expected": f"{w.dtype}{list(w.shape)}"}
        same = (w == g) | ((w != w) & (g != g))
        if not same.all():
            at = np.unravel_index(int(np.argmin(same)), w.shape)
            return {"outcome": "differs", "output": i, "at": [int(k) for k in at], "got": float(g[at]),
                    "expected": float(w[at]), "count": int((~same).sum())}
    return {"outcome": "same"}


def trial(t: Trial, device: str) -> dict[str, Any]:
    names = {t.program.value_info(v)["name"]: None
             for v in t.program.block_info(t.program.functions()[0][2])["outputs"]}
    want = [np.asarray(v) for v in _core._testing.eval(t.program, t.values).values()][:len(names)]
    result: dict[str, Any] = {"label": t.label, "inputs": digest(t.values)}
    try:
        got = _call(_as_written(t.program, device), t.values)
    except (ValueError, TypeError, RuntimeError, OSError, KeyError, IndexError) as e:
        return result | _refusal(e)
    kept = np.ascontiguousarray(got[0]).reshape(-1)[:26]        # where the probes put their values
    return result | compare_trial(want, got) | {"first": [
        str(v) if isinstance(v, float) and not math.isfinite(v) else v for v in kept.tolist()]}


def cliff(name: str, device: str) -> dict[str, Any]:
    return {"trials": [trial(t, device) for t in CLIFFS[name].trials()]}


def budget(_: str, device: str) -> dict[str, Any]:
    """How many different programs one process may compile; up to a number that no report names.
    ANETORCH_COMPILE_BUDGET=0 is set by who starts this process."""
    from anetorch import mil

    kept, limit = [], 150
    for i in range(limit):
        program = mil.build(lambda x, i=i: x * (1.0 + i / 256), {"x": mil.spec((1, 32, 1, 64 + i), "fp16")})
        try:
            kept.append(anetorch.compile(program, device=device))
        except (ValueError, RuntimeError, OSError) as e:
            return {"compiled": i} | _refusal(e)
    return {"compiled": limit, "outcome": "ok"}


# ---------------------------------------------------------------- kernels, training, timings

def kernel(name: str, device: str) -> dict[str, Any]:
    program = packed.ALL[name](KERNEL_CONFIG, KERNEL_SEQ)
    (port,) = anetorch.compile(program).inputs
    from anetorch.selftest.cases import In

    x = In(-1.0, 1.0, port.shape).make(name)
    exact = np.asarray(next(iter(_core._testing.eval(program, {"x": x}, wide=True).values())), np.float64)

    def distance(a: np.ndarray) -> float:
        return float(np.linalg.norm(a.astype(np.float64) - exact) / np.linalg.norm(exact))

    ours = distance(_call(anetorch.compile(program), {"x": x})[0])
    result: dict[str, Any] = {"cpu": ours, "inputs": digest({"x": x})}
    try:
        k = anetorch.compile(program, device=device)
        request = k.bind({"x": anetorch.Tensor.from_numpy(x)})
        request.run()
    except (ValueError, TypeError, RuntimeError, OSError) as e:
        return result | _refusal(e)
    got = np.asarray(request.outputs["y"])
    far = distance(got)
    # Each operation rounds its result to fp16 once.
    bound = 2 * ours if device != "cpu" else len(program.block_info(program.functions()[0][2])["ops"]) * 2.0**-11
    return result | {"outcome": "ok" if far <= bound else "off", "error": far if math.isfinite(far) else None,
                     "bound": bound, "seconds": _median(request.run), "sample": sample(got)}


def _median(run: Callable[[], None], least: float = 0.2) -> float:
    times: list[float] = []
    run()
    until = time.perf_counter() + least
    while len(times) < 5 or began < until:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def training(_: str, device: str) -> dict[str, Any]:
    """100 optimizer steps of a small model on the device, and the same on the CPU."""
    from anetorch.data import Vocabulary, read_corpus
    from anetorch.nn.transformer import Config
    from anetorch.train import Options, Trainer

    words = [("quick", "fox"), ("slow", "ox"), ("red", "cat"), ("old", "hen")]
    text = "".join(f"The {a} {b} jumps over {i} lazy dogs.\n" for i, (a, b) in enumerate(words * 60))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(text)
        corpus = read_corpus([str(path)])
    vocabulary = Vocabulary.of(corpus)
    config = Config.from_dict(TRAINING | {"vocab_size": vocabulary.size})

    def run(on: str) -> tuple[list[float], float]:
        options = Options(model="tiny", steps=100, seq=32, batch=2, device=on).settled()
        began = time.perf_counter()
        trainer = Trainer(options, corpus, config, vocabulary)
        losses = [trainer.train_step().loss for _ in range(options.steps)]
        return losses, time.perf_counter() - began

    reference, cpu_seconds = run("cpu")
    try:
        losses, seconds = run(device)
    except (ValueError, TypeError, RuntimeError, OSError) as e:
        return {"cpu": reference[::10]} | _refusal(e)
    last, wanted = statistics.mean(losses[-10:]), statistics.mean(reference[-10:])
    # Two arithmetics part along the way; the last losses stay as near as batches differ by.
    spread = max(reference[-10:]) - min(reference[-10:])
    good = losses == reference if device == "cpu" else abs(last - wanted) <= spread
    return {"outcome": "ok" if good else "off", "losses": losses[::10] + [losses[-1]],
            "cpu": reference[::10] + [reference[-1]], "last": last, "cpu_last": wanted, "spread": spread,
            "seconds": seconds, "cpu_seconds": cpu_seconds}


def timing(name: str, device: str) -> dict[str, Any]:
    from anetorch import mil

    program = mil.build(lambda x: {"y": x * 2.0}, {"x": mil.spec(TIMINGS[name], "fp16")}, opset="ios18")
    try:
        k = anetorch.compile(program, device=device)
        request = k.bind({"x": anetorch.Tensor.from_numpy(np.ones(TIMINGS[name], np.float16))})
        return {"outcome": "ok", "seconds": _median(request.run)}
    except (ValueError, TypeError, RuntimeError, OSError) as e:
        return _refusal(e)


ANSWERS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "ops": operation, "cliffs": cliff, "budget": budget, "kernels": kernel, "training": training,
    "timings": timing,
}


def answer(section: str, name: str, device: str) -> dict[str, Any]:
    """One answer, in this process.

    >>> answer("ops", "relu", "cpu")["outcome"]
    'ok'
    """
    return {"name": name, **ANSWERS[section](name, device)}


def main() -> int:
    """Answers until stdin ends. Answers go to the stdout of the start; what anything prints later
    goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        result = answer(request["section"], request["name"], request["device"])
        out.write(MARK + json.dumps(result) + "\n")
        out.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
