"""What the commands run, show, lint, bench and compare do.

Each function takes file names and writes lines through ``say``; whatever is wrong with what
the user gave becomes an :class:`anetorch.env.InputError` of one line.
"""

from __future__ import annotations

import errno
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from anetorch import _core
from anetorch.coreml import Feature, Model, load, read
from anetorch.costs import costs, table
from anetorch.env import InputError
from anetorch.lint import fix as fix_program
from anetorch.lint import lint as find
from anetorch.lint import report
from anetorch.mil import Program
from anetorch.report import trace_events
from anetorch.runtime import compare as compare_kernels

__all__ = ["bench", "compare", "lint", "run", "show"]

Say = Callable[[str], None]


@contextmanager
def _plain(what: str) -> Iterator[None]:
    """What a file or an argument makes fail becomes an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except _core.MILError as e:
        place = f"{e.filename or what}:{e.lineno}: " if e.lineno else ""
        raise InputError(f"{place}{e.msg}") from e
    except (ValueError, TypeError, KeyError, IndexError, NotImplementedError, RuntimeError,
            ImportError) as e:
        text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
        raise InputError(text if what in text else f"{what}: {text}") from e


def _load(path: str, function: str | None, device: str | None) -> Model:
    with _plain(path):
        model = load(path, function=function, device=device)
        model.kernel                    # a missing weight or device shows here
        return model


def _pairs(inputs: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in inputs:
        name, mark, path = text.partition("=")
        if not (mark and name and path):
            raise InputError(f"--input {text}: expected NAME=FILE, such as x=x.npy")
        if name in pairs:
            raise InputError(f"--input {name} is given twice")
        pairs[name] = path
    return pairs


def _value(feature: Feature | None, path: str) -> Any:
    """An .npy array, or the image an image input takes, brought to its colour layout."""
    if feature is not None and feature.kind == "image" and not path.endswith(".npy"):
        try:
            from PIL import Image
        except ImportError:
            raise InputError(f"{path}: reading an image needs Pillow (pip install pillow)") from None
        with Image.open(path) as image:
            return image.convert(feature.image_mode)
    with open(path, "rb") as f:
        if f.read(6) not in (b"\x93NUMPY", b"PK\x03\x04\x14\0", b"PK\x03\x04-\0"):
            raise InputError(f"{path}: not an .npy file" + (
                "" if feature is None else f", and '{feature.name}' takes an array"))
        f.seek(0)
        value = np.load(f, allow_pickle=False)
    if not isinstance(value, np.ndarray):
        raise InputError(f"{path}: holds several arrays; give an .npy file")
    if feature is not None and feature.kind == "image":
        from PIL import Image

        return Image.fromarray(value)
    return value


def _inputs(model: Model, pairs: Mapping[str, str]) -> dict[str, Any]:
    unknown = sorted(set(pairs) - set(model.inputs))
    missing = sorted(n for n, f in model.inputs.items() if n not in pairs and not f.optional)
    if unknown or missing:
        what = [f"missing --input {n}=FILE" for n in missing] + [f"unknown input {n}" for n in unknown]
        raise InputError(f"{', '.join(what)}: {model.path} takes {_signature(model)}")
    data = {}
    for name, path in pairs.items():
        with _plain(f"--input {name}={path}"):
            data[name] = _value(model.inputs[name], path)
    return data


def _signature(model: Model) -> str:
    return ", ".join(f"{f.name}: {f.dtype or f.kind}{list(f.shape)}"
                     f"{' (optional)' if f.optional else ''}" for f in model.inputs.values()) or "none"


def _made_up(model: Model) -> dict[str, Any]:
    """Seeded arguments of the kernel in default shapes: floats of [-1, 1), zeros for integers,
    which may be indices. States are zeros."""
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for port in model.kernel.inputs:
        feature = model.inputs.get(port.name) or model.states.get(port.name)
        shape = port.shape
        if None in shape:
            shape = feature.shape if feature and len(feature.shape) == len(shape) else tuple(
                1 if n is None else n for n in shape)
        if port.state or np.dtype(port.dtype).kind != "f":
            made[port.name] = np.zeros(shape, port.dtype)
        else:
            made[port.name] = rng.uniform(-1, 1, shape).astype(port.dtype)
    return made


# ------------------------------------------------------------------ run


def run(path: str, inputs: Sequence[str], say: Say, *, function: str | None = None,
        device: str | None = None, output: str | None = None) -> None:
    """Predicts once and says what came out; ``output`` takes the arrays as .npz.

    >>> run("m.mlpackage", ["x=x.npy"], print, output="out.npz")        # doctest: +SKIP
    y: float32[1, 10], -1.25 to 3.5
    """
    pairs = _pairs(inputs)
    if output is not None and not output.endswith(".npz"):
        raise InputError(f"--output {output}: the name must end in .npz")
    model = _load(path, function, device)
    data = _inputs(model, pairs)
    with _plain(path):
        result = model.predict(data, model.make_state() if model.states else None)
    arrays: dict[str, np.ndarray] = {}
    for name, value in result.items():
        if isinstance(value, Mapping):          # a classifier's probabilities, by class
            best = sorted(value.items(), key=lambda kv: -kv[1])[:5]
            say(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in best))
            arrays[f"{name}_classes"] = np.array(list(value))
            arrays[name] = np.array(list(value.values()))
            continue
        a = arrays[name] = np.asarray(value)
        if a.dtype.kind in "US" or not a.size:
            say(f"{name}: {value}")
        else:
            say(f"{name}: {a.dtype}{list(a.shape)}, {a.min():.6g} to {a.max():.6g}")
    if output is not None:
        data = io.BytesIO()
        np.savez(data, **arrays)            # type: ignore[arg-type]
        write_whole(output, data.getbuffer())


def write_whole(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Writes a file beside the target first: a failed write leaves what was there. A pipe or a
    device is written as it is."""
    if os.path.exists(path) and not os.path.isfile(path):
        Path(path).write_bytes(data)
        return
    work = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        Path(work).write_bytes(data)
        os.replace(work, path)
    finally:
        Path(work).unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """OSError where `write_whole` would fail, before what is to be written has been made.

    >>> check_writable("/nowhere/out.json")                             # doctest: +SKIP
    """
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if os.path.isfile(path) or not os.path.exists(path):
            work = f"{os.fspath(path)}.{os.getpid()}.tmp"
            try:
                Path(work).touch()
            finally:
                Path(work).unlink(missing_ok=True)
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as e:
        e.filename = os.fspath(path)
        raise


# ------------------------------------------------------------------ show


def show(path: str, say: Say, *, function: str | None = None, text: bool = True) -> None:
    """The program with its shapes, and what each operation costs; weight files may be absent.

    >>> show("m.mlpackage", print)                                      # doctest: +SKIP
    """
    with _plain(path):
        program, description = read(path, allow_missing=True)
        if function is not None and function not in program.functions:
            raise InputError(f"{path}: no function {function}; there is "
                             f"{', '.join(program.functions)}")
        if text:
            say(program.text().rstrip("\n"))
        for name in [function] if function else program.functions:
            say("")
            fixed, shapes = _at_default_shapes(Model(program, description, function=name))
            say(f"{name}, with {shapes}:" if shapes else f"{name}:")
            for line in table(costs(fixed.functions[name])):
                say(line)


def _at_default_shapes(model: Model) -> tuple[Program, str]:
    """The program with known shapes, and the ones that were chosen; as it is where none is
    unknown or none is declared."""
    inputs = model.program.functions[model.function].inputs
    chosen = [v.name for v in inputs if v.type[0] == "tensor" and None in v.shape]
    if chosen:
        try:
            fixed = model.at_default_shapes()
        except (ValueError, NotImplementedError):
            return model.program, ""
        types = {v.name: list(v.shape) for v in fixed.functions[model.function].inputs
                 if v.type[0] == "tensor"}
        return fixed, ", ".join(f"{name}{types[name]}" for name in chosen)
    return model.program, ""


# ------------------------------------------------------------------ lint


def _is_text(path: str) -> bool:
    return Path(path).suffix in (".mil", ".mlmodelc")


def lint(paths: Sequence[str], say: Say, *, target: str | None = None, route: str | None = None,
         form: str = "text", fix: str | None = None, ignore: Sequence[str] = ()) -> bool:
    """Findings of every file in one report; True when one is an error. ``route`` None: Core
    ML's for packages, the in-memory compiler's for texts. ``fix`` writes the corrected
    program of the one file and the report is about that.

    >>> lint(["m.mil"], print, target="m4")                             # doctest: +SKIP
    """
    if fix is not None and len(paths) != 1:
        raise InputError(f"--fix takes one file, not {len(paths)}")
    if fix is not None and not fix.endswith((".mil", ".mlpackage")):
        raise InputError(f"--fix {fix}: the name must end in .mil or .mlpackage")
    found, reports = [], []
    for path in paths:
        way = route or ("inmemory" if _is_text(path) else "coreml")
        with _plain(path):
            program, _ = read(path, allow_missing=True)
            if fix is not None:
                program = fix_program(program, target, way, ignore)
                program.save(fix)
                program, _ = read(fix, allow_missing=True)      # findings with its own lines
            these = find(program, target, way, ignore)
        name = path if fix is None else fix
        found += these
        if form == "text":
            say(report(these, "text", name))
        else:
            reports.append((name, json.loads(report(these, form, name))))
    if form == "json":
        say(json.dumps([{"file": name, **f} for name, fs in reports for f in fs], indent=2))
    elif form == "sarif":
        document = reports[0][1]
        document["runs"] = [r for _, d in reports for r in d["runs"]]
        say(json.dumps(document, indent=2))
    return any(f.severity == "error" for f in found)


# ------------------------------------------------------------------ bench, compare


def bench(path: str, say: Say, *, inputs: Sequence[str] = (), function: str | None = None,
          device: str | None = None, repeat: int | None = None, as_json: bool = False,
          trace: str | None = None) -> None:
    """Median time of a run of the bound request. Without inputs they are made up. ``trace``
    takes one warm run as a trace for chrome://tracing or Perfetto: its steps, and what every
    thread did in each.

    >>> bench("m.mlpackage", print)                                     # doctest: +SKIP
    main on cpu: median 1.204 ms (min 1.190, max 1.412, 100 runs), 85.1 GFLOP/s, 12.3 GB/s
    """
    pairs = _pairs(inputs)
    model = _load(path, function, device)
    with _plain(path):
        if pairs:
            args = model.arguments(_inputs(model, pairs),
                                   model.make_state() if model.states else None)
        else:
            args = _made_up(model)
        request = model.kernel.bind(args)
        request.run()                       # packs constants, touches memory
        steps = request.profile()
        seconds: list[float] = []
        end = time.perf_counter() + 1
        while len(seconds) < (repeat or 5) or (repeat is None and time.perf_counter() < end):
            start = time.perf_counter()
            request.run()
            seconds.append(time.perf_counter() - start)
        if trace is not None:
            steps = request.profile()
            title = f"{path}: {model.function} on {device or 'cpu'}, {_core.num_threads()} threads"
            write_whole(trace, json.dumps(trace_events(steps, request.threads(), title)).encode())
    median = statistics.median(seconds)
    flops, moved = (sum(s[k] for s in steps) for k in ("flops", "bytes"))
    if as_json:
        say(json.dumps({
            "file": path, "function": model.function, "device": device or "cpu",
            "runs": len(seconds), "median_ms": median * 1e3, "min_ms": min(seconds) * 1e3,
            "max_ms": max(seconds) * 1e3, "flops": flops, "bytes": moved,
            "gflops": flops / median * 1e-9, "gb_s": moved / median * 1e-9,
            "threads": _core.num_threads(),
        }))
        return
    say(f"{model.function} on {device or 'cpu'}: median {median * 1e3:.3f} ms (min "
        f"{min(seconds) * 1e3:.3f}, max {max(seconds) * 1e3:.3f}, {len(seconds)} runs), "
        f"{flops / median * 1e-9:.1f} GFLOP/s, {moved / median * 1e-9:.1f} GB/s")


def compare(a: str, b: str, say: Say, *, inputs: Sequence[str] = (), function: str | None = None,
            device: str | None = None) -> bool:
    """Says the first value in which two models differ, in program order; True: none does.
    Without inputs they are made up.

    >>> compare("a.mlpackage", "b.mlpackage", print, inputs=["x=x.npy"])    # doctest: +SKIP
    """
    pairs = _pairs(inputs)
    one, two = _load(a, function, device), _load(b, function, device)
    theirs = {p.name: tuple(p.shape) for p in two.kernel.inputs}
    mine = {p.name: tuple(p.shape) for p in one.kernel.inputs}
    if mine != theirs:
        raise InputError(f"{a} takes {_signature(one)} and {b} takes {_signature(two)}: "
                         "only programs with equal inputs can be compared")
    with _plain(a):
        if pairs:
            args = one.arguments(_inputs(one, pairs), one.make_state() if one.states else None)
        else:
            args = _made_up(one)
        difference = compare_kernels(one.kernel, two.kernel, **args)
    if difference is None:
        say("no value of the same name differs")
        return True
    d = difference
    say(f"first difference: {d.name}{list(d.index)}: {d.a!r} in {a}, {d.b!r} in {b} "
        f"(largest in this value: {d.max_abs:.6g})")
    return False
