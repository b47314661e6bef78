"""Core ML models anywhere: load, predict, and the seam into coremltools.

:func:`load` takes what Core ML's tools write (``.mlpackage``, ``.mlmodelc``, ``.mlmodel``
holding an ML Program) and ``.mil`` texts. :func:`install` lets a script that calls
coremltools' ``MLModel.predict`` run unchanged on machines without Core ML.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anetorch import _core
from anetorch.dtypes import DTYPES, canonical
from anetorch.mil import Program
from anetorch.package import save_package
from anetorch.runtime import compile as compile_program

__all__ = ["Feature", "Model", "State", "install", "load", "read", "uninstall"]

# ImageFeatureType.ColorSpace
GRAYSCALE, RGB, BGR, GRAYSCALE_FLOAT16 = 10, 20, 30, 40
# MIL's names of the types an array may have; sub-byte integers and bfloat16 it may not.
_NUMPY_HAS = {mil for name, (mil, _, _) in DTYPES.items() if name != "bfloat16"}
_PIL_MODE = {GRAYSCALE: "L", RGB: "RGB", BGR: "RGB", GRAYSCALE_FLOAT16: "F"}


@dataclass(frozen=True)
class Feature:
    """One input, output or state of a model, as its description declares it.

    ``kind`` is ``"array"``, ``"image"``, ``"state"``, ``"dict"``, ``"int64"``, ``"double"``,
    ``"string"`` or ``"sequence"``. ``shape`` is the default shape of an array, ``(height,
    width)`` of an image. ``enumerated`` lists the shapes that are allowed instead, ``ranges``
    a ``(low, high)`` pair per dimension (``high`` None: unbounded).
    """

    name: str
    kind: str
    dtype: str | None = None
    shape: tuple[int, ...] = ()
    enumerated: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    optional: bool = False
    default: float | None = None
    color: int = 0
    doc: str = ""

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array (or an image's height and width) may have this shape."""
        if self.enumerated:
            return shape in self.enumerated or shape == self.shape
        if self.ranges:
            return len(shape) == len(self.ranges) and all(
                low <= n and (high is None or n <= high)
                for n, (low, high) in zip(shape, self.ranges)
            )
        return shape == self.shape

    @property
    def image_mode(self) -> str | None:
        """Pillow's mode of an image; None for other kinds."""
        return _PIL_MODE.get(self.color)

    def shapes_text(self) -> str:
        """The shapes that are allowed, for messages."""
        if self.enumerated:
            return "one of " + ", ".join(map(str, self.enumerated))
        if self.ranges:
            return "x".join(
                str(a) if a == b else f"{a}..{'' if b is None else b}" for a, b in self.ranges
            )
        return str(self.shape)


def _feature(d: Mapping[str, Any]) -> Feature:
    ranges = tuple((a, None if b < 0 else b) for a, b in d.get("ranges", ()))
    return Feature(
        name=d["name"], kind=d["kind"], dtype=d.get("dtype"), shape=tuple(d.get("shape", ())),
        enumerated=tuple(map(tuple, d.get("enumerated", ()))), ranges=ranges,
        optional=d["optional"], default=d.get("default"), color=d.get("color", 0), doc=d["doc"],
    )


class State:
    """The mutable state of one use of a model, made by :meth:`Model.make_state`.

    ``state["kv"]`` is a Tensor; it starts as zeros and each ``predict(..., state)`` updates it.

    >>> s = model.make_state()                                          # doctest: +SKIP
    >>> model.predict({"x": x}, s)                                      # doctest: +SKIP
    """

    def __init__(self, tensors: dict[str, _core.Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> _core.Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise KeyError(f"no state '{name}'; the model has {sorted(self._tensors)}") from None

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}: {t.dtype}{list(t.shape)}" for k, t in self._tensors.items())
        return f"State({inner})"

    # coremltools' MLState reaches these through its proxy.
    def read_state(self, name: str) -> np.ndarray:
        """A copy of one state's content."""
        try:
            return np.array(self[name])
        except KeyError as e:
            raise RuntimeError(e.args[0]) from None

    def write_state(self, name: str, value: np.ndarray) -> None:
        """Replaces one state's content; the shape must be equal, the dtype is converted."""
        try:
            t = self[name]
        except KeyError as e:
            raise RuntimeError(e.args[0]) from None
        a = np.asarray(value)
        if a.shape != tuple(t.shape):
            raise RuntimeError(f"state '{name}' has shape {tuple(t.shape)}, got {a.shape}")
        t.copy_from(np.ascontiguousarray(a.astype(t.dtype)))


# ------------------------------------------------------------------ finding the files


def _package_root(path: Path) -> Path:
    """The specification file inside a .mlpackage."""
    manifest = path / "Manifest.json"
    try:
        entry = json.loads(manifest.read_text("utf-8"))
        item = entry["itemInfoEntries"][entry["rootModelIdentifier"]]
        spec = (path / "Data" / item["path"]).resolve()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no Manifest.json; not a .mlpackage?") from None
    except (KeyError, TypeError, ValueError) as e:
        raise _core.MILError(f"{manifest}: malformed manifest ({e})") from None
    if not spec.is_relative_to(path.resolve()):
        raise _core.MILError(f"{manifest}: the model's path leaves the package")
    if not spec.is_file():
        raise FileNotFoundError(f"{manifest}: names {spec}, which does not exist")
    return spec


def read(
    path: str | os.PathLike[str], allow_missing: bool = False
) -> tuple[Program, dict[str, Any] | None]:
    """The program of a ``.mlpackage``, ``.mlmodelc``, ``.mlmodel`` or ``.mil`` file, and the
    description around it (None for a text). With ``allow_missing``, constants whose weight
    file is absent stay without data: the program can be looked at, not run.

    >>> program, description = anetorch.coreml.read("model.mlpackage")  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"[load] {path}: no such file or folder")
    if path.is_dir():
        if (path / "model.mil").is_file():                      # .mlmodelc
            return _read_text(path / "model.mil", allow_missing)
        if (path / "Manifest.json").is_file() or path.suffix == ".mlpackage":
            spec = _package_root(path)
            return _read_spec(spec, allow_missing)
        raise ValueError(
            f"{path}: neither a .mlpackage (Manifest.json) nor a .mlmodelc with an ML Program "
            "(model.mil); an old neural network must be converted again with "
            'convert_to="mlprogram"'
        )
    if path.suffix == ".mil":
        return _read_text(path, allow_missing)
    return _read_spec(path, allow_missing)


def _read_text(path: Path, allow_missing: bool) -> tuple[Program, None]:
    return Program.parse(path.read_bytes(), filename=str(path), weights=str(path.parent),
                         allow_missing=allow_missing), None


def _read_spec(spec: Path, allow_missing: bool) -> tuple[Program, dict[str, Any]]:
    handle, description = _core.coreml_read(
        spec.read_bytes(), filename=str(spec), weights=str(spec.parent),
        allow_missing=allow_missing, program_type=Program,
    )
    return handle, description


def load(path: str | os.PathLike[str], *, function: str | None = None, **options: Any) -> Model:
    """Loads a ``.mlpackage``, ``.mlmodelc``, ``.mlmodel`` (ML Program) or ``.mil`` file.

    Weight files are mapped, not read. ``function`` picks one of several functions (default:
    the model's own default, or ``main``); other keywords go to :func:`anetorch.compile`
    (``device``, ``numerics``, ``target``, ``precision``).

    Raises FileNotFoundError; MILError for a malformed file (file, and byte or line);
    NotImplementedError for a model that is not an ML Program.

    >>> model = anetorch.load("model.mlpackage")                        # doctest: +SKIP
    >>> model.predict({"x": x})["y"]                                    # doctest: +SKIP
    """
    program, description = read(path)
    return Model(program, description, path=Path(path).expanduser(), function=function, **options)


# ------------------------------------------------------------------ the model


class Model:
    """A Core ML ML Program with its interface: ``predict(dict) -> dict``.

    ``inputs``, ``outputs`` and ``states`` are :class:`Feature` by name; ``program`` is the
    :class:`anetorch.mil.Program`; ``functions`` lists the functions it holds; ``metadata`` has
    author, license, version and the user's own keys.

    >>> model = Model(program)                  # a mil.Program     # doctest: +SKIP
    >>> model.predict({"x": x})["y"]                                # doctest: +SKIP
    >>> model.save("model.mlpackage")                               # doctest: +SKIP
    """

    def __init__(
        self,
        program: Program,
        description: Mapping[str, Any] | None = None,
        *,
        path: Path | None = None,
        function: str | None = None,
        **options: Any,
    ) -> None:
        self.program = program
        self.path = path
        self._description = description
        self._options = options
        self.functions = tuple(f[0] for f in program.functions())
        faces = {f["function"]: f for f in (description or {}).get("functions", ())}
        default = (description or {}).get("default_function") or (
            "main" if "main" in self.functions else self.functions[0]
        )
        self.function = function or default
        if self.function not in self.functions:
            raise ValueError(
                f"[load] no function '{self.function}'; the model has {list(self.functions)}"
            )
        self.metadata: dict[str, Any] = dict((description or {}).get("metadata", {}))
        face = faces.get(self.function) or self._own_interface()
        self.inputs = {f["name"]: _feature(f) for f in face["inputs"]}
        self.outputs = {f["name"]: _feature(f) for f in face["outputs"]}
        self.states = {f["name"]: _feature(f) for f in face["states"]}
        self._classifier = self._find_classifier()
        self._kernel: Any = None

    def _own_interface(self) -> dict[str, Any]:
        """Features straight from the function's types, for texts without a description."""
        _, _, block, params = next(f for f in self.program.functions() if f[0] == self.function)

        def feature(value: int, flexible: bool) -> dict[str, Any]:
            info = self.program.value_info(value)
            kind, *rest = info["type"]
            state = kind == "state"
            if state:
                kind, *rest = rest[0]
            if kind != "tensor":
                return {"name": info["name"], "kind": kind, "optional": False, "doc": ""}
            dims = rest[1]
            dtype = canonical(rest[0]) if rest[0] in _NUMPY_HAS else None
            d = {
                "name": info["name"], "kind": "state" if state else "array", "optional": False,
                "doc": "", "dtype": dtype, "shape": [1 if n is None else n for n in dims],
            }
            if flexible and any(n is None for n in dims):
                d["ranges"] = [(1, -1) if n is None else (n, n) for n in dims]
            return d

        made = [feature(v, True) for v in params]
        outs = [feature(v, False) for v in self.program.block_info(block)["outputs"]]
        return {
            "inputs": [f for f in made if f["kind"] != "state"],
            "states": [f for f in made if f["kind"] == "state"],
            "outputs": outs,
        }

    # -- classifiers: the op gives a label and a dictionary; the kernel gives probabilities

    def _find_classifier(self) -> tuple[str, str, list[Any], int] | None:
        _, _, block, _ = next(f for f in self.program.functions() if f[0] == self.function)
        for v in self.program.block_info(block)["outputs"]:
            op = self.program.value_info(v).get("op")
            if op is None:
                continue
            info = self.program.op_info(op)
            if info["op"] == "classify":
                label, probabilities = (
                    self.program.value_info(r)["name"] for r in info["results"]
                )
                names = self.program.const_value(info["args"]["classes"])
                return label, probabilities, np.asarray(names).tolist(), info["args"]["probabilities"]
        return None

    @property
    def kernel(self) -> Any:
        """The compiled :class:`anetorch.Kernel` behind :meth:`predict`."""
        if self._kernel is None:
            program = self.program
            if self._classifier is not None:
                program = program.clone()
                _, _, block, _ = next(f for f in program.functions() if f[0] == self.function)
                label, table, _, source = self._classifier
                keep = [
                    v for v in program.block_info(block)["outputs"]
                    if program.value_info(v)["name"] not in (label, table)
                ]
                program.set_outputs(block, [*keep, source])
            self._kernel = compile_program(program, function=self.function, **self._options)
        return self._kernel

    def make_state(self) -> State:
        """Fresh zeros for every state of the model (an empty State where it has none)."""
        return State({
            name: _core.Tensor(f.shape, f.dtype) for name, f in self.states.items()
        })

    def predict(
        self, data: Mapping[str, Any] | Sequence[Mapping[str, Any]], state: State | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Runs the model: a dict by input name, or a list of such dicts as a batch.

        Arrays are anything NumPy takes and are converted to the declared dtype; images are
        PIL images of the declared size. Optional inputs may be left out. Outputs are NumPy
        arrays, PIL images, or for a classifier the label and a dict of probabilities.

        Raises ValueError for missing, unknown or misshapen inputs, naming each.
        """
        if isinstance(data, Mapping):
            return self._predict_one(data, state)
        if isinstance(data, Sequence) and all(isinstance(d, Mapping) for d in data):
            if state is not None:
                raise ValueError("[predict] a state serves one prediction, not a batch")
            return [self._predict_one(d, None) for d in data]
        raise TypeError(
            f"[predict] expected a dict or a list of dicts, got {type(data).__name__}"
        )

    __call__ = predict

    def arguments(self, data: Mapping[str, Any], state: State | None = None) -> dict[str, Any]:
        """What :attr:`kernel` takes, by name, for what :meth:`predict` takes.

        >>> model.kernel.trace(**model.arguments({"x": x}))              # doctest: +SKIP
        """
        unknown = sorted(set(data) - set(self.inputs))
        missing = sorted(
            n for n, f in self.inputs.items() if n not in data and not f.optional
        )
        if unknown or missing:
            what = [f"missing {missing}"] * bool(missing) + [f"unknown {unknown}"] * bool(unknown)
            raise ValueError(
                f"[predict] {' and '.join(what)}; the model takes {sorted(self.inputs)}"
            )
        if self.states and state is None:
            raise ValueError(
                f"[predict] the model has states {sorted(self.states)}; pass make_state()'s result"
            )
        kernel = self.kernel
        args: dict[str, Any] = {}
        for port in kernel.inputs:
            if port.name in self.states:
                assert state is not None
                args[port.name] = state[port.name]
            else:
                args[port.name] = self._input(self.inputs[port.name], port, data)
        return args

    def _predict_one(self, data: Mapping[str, Any], state: State | None) -> dict[str, Any]:
        args, kernel = self.arguments(data, state), self.kernel
        result = kernel(**args)
        if not isinstance(result, Mapping):
            result = {kernel.outputs[0].name: result}
        return self._outputs(result)

    def _input(self, feature: Feature, port: Any, data: Mapping[str, Any]) -> np.ndarray:
        if feature.name not in data:
            return np.full(feature.shape, feature.default or 0, port.dtype)
        value = data[feature.name]
        if feature.kind == "image":
            return _image_to_array(feature, value, port.dtype)
        a = np.asarray(value)
        if a.dtype == object:
            raise TypeError(f"[predict] '{feature.name}': expected numbers, got {value!r:.60}")
        if a.dtype.kind == "c":
            raise TypeError(f"[predict] '{feature.name}': complex numbers are not supported")
        want = tuple(port.shape)
        if a.shape == () and want == (1,) or a.shape == (1,) and want == ():
            a = a.reshape(want)
        if feature.kind in ("array", "state") and not feature.accepts(a.shape):
            if a.shape not in ((), (1,)) or want not in ((), (1,)):
                raise ValueError(
                    f"[predict] '{feature.name}': expected shape {feature.shapes_text()}, "
                    f"got {a.shape}"
                )
        # Through the declared dtype first: that is what crosses the model's boundary.
        if feature.dtype and a.dtype != np.dtype(feature.dtype):
            a = a.astype(feature.dtype)
        return np.ascontiguousarray(a.astype(port.dtype, copy=False))

    def _outputs(self, result: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if self._classifier is not None:
            label, table, classes, source = self._classifier
            name = self.program.value_info(source)["name"]
            p = np.asarray(result[name]).reshape(-1)
            if len(p) != len(classes):
                raise ValueError(
                    f"[predict] {len(p)} probabilities for {len(classes)} classes"
                )
            out[label] = classes[int(np.argmax(p))]     # a str or int, as Core ML's
            out[table] = {c: float(x) for c, x in zip(classes, p)}
        for name, value in result.items():
            if name not in self.outputs:
                continue
            feature = self.outputs[name]
            a = np.asarray(value)
            if feature.kind == "image":
                out[name] = _array_to_image(feature, a)
                continue
            if feature.dtype and a.dtype != np.dtype(feature.dtype):
                a = a.astype(feature.dtype)
            out[name] = a.reshape(1) if a.shape == () else a
        return out

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a ``.mlpackage`` that coremltools reads back equal. Atomic: an existing
        package is replaced only when the new one is complete."""
        save_package(self.program, path, self._description)

    def __repr__(self) -> str:
        def text(features: Mapping[str, Feature]) -> str:
            return ", ".join(
                f"{f.name}: {f.dtype or f.kind}{list(f.shape)}" for f in features.values()
            )

        states = f", states ({text(self.states)})" if self.states else ""
        return (
            f"Model({str(self.path) if self.path else '<program>'}, {self.function}: "
            f"({text(self.inputs)}) -> ({text(self.outputs)}){states})"
        )


# ------------------------------------------------------------------ images


def _image_to_array(feature: Feature, image: Any, dtype: str) -> np.ndarray:
    """A PIL image as ``[1, C, H, W]`` pixels, 0..255 (any value for fp16 greyscale)."""
    if isinstance(image, np.ndarray):
        raise TypeError(
            f"[predict] '{feature.name}' is an image; pass a PIL image "
            "(PIL.Image.fromarray(array))"
        )
    if not hasattr(image, "convert") or not hasattr(image, "size"):
        raise TypeError(
            f"[predict] '{feature.name}': expected a PIL image, got {type(image).__name__}"
        )
    width, height = image.size
    if not feature.accepts((height, width)):
        raise ValueError(
            f"[predict] '{feature.name}': expected an image of height x width "
            f"{feature.shapes_text()}, got {(height, width)}"
        )
    mode = _PIL_MODE.get(feature.color)
    if mode is None:
        raise ValueError(f"[predict] '{feature.name}': unknown colour layout {feature.color}")
    if image.mode != mode and not (mode == "RGB" and image.mode in ("RGBA", "RGBX")):
        raise ValueError(
            f"[predict] '{feature.name}': expected an image of mode {mode}, got {image.mode} "
            f"(image.convert({mode!r}))"
        )
    a = np.asarray(image)
    if mode == "RGB":
        a = a[:, :, :3]
        if feature.color == BGR:
            a = a[:, :, ::-1]
        a = a.transpose(2, 0, 1)
    else:
        a = a[None]
        if feature.color == GRAYSCALE_FLOAT16:
            a = a.astype(np.float16)
    return np.ascontiguousarray(a[None], dtype=dtype)


def _array_to_image(feature: Feature, a: np.ndarray) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            f"[predict] output '{feature.name}' is an image: pip install pillow"
        ) from None
    a = a.reshape(a.shape[-3:])
    if feature.color == GRAYSCALE_FLOAT16:
        return Image.fromarray(a[0].astype(np.float16).astype(np.float32), mode="F")
    pixels = np.clip(np.rint(a.astype(np.float64)), 0, 255).astype(np.uint8)
    if feature.color == GRAYSCALE:
        return Image.fromarray(pixels[0], mode="L")
    if feature.color == BGR:
        pixels = pixels[::-1]
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)), mode="RGB")


# ------------------------------------------------------------------ coremltools


class _Asset:
    """coremltools' ``_MLModelAssetProxy``: a compiled model by path, or a specification and
    its weight files in memory, which then lie in a folder of their own."""

    def __init__(self, path: str, folder: Any = None) -> None:
        self.path, self._folder = path, folder


@functools.cache
def _compiled_root() -> tempfile.TemporaryDirectory[str]:
    """Where compiled models go; removed when the interpreter ends."""
    return tempfile.TemporaryDirectory(prefix="anetorch-")


class _Proxy:
    """What coremltools calls through ``_MLModelProxy``, computed by anetorch."""

    def __init__(self, path, compute_units, function_name, hints, asset=None) -> None:
        begin = time.perf_counter_ns()
        self._path = path if asset is None else asset.path
        self._asset = asset
        self._compiled: str | None = None
        self._last: int | None = None
        try:
            self._model = load(self._path, function=function_name or None)
        except (OSError, ValueError, NotImplementedError, SyntaxError) as e:
            raise RuntimeError(f"anetorch cannot load this model: {e}") from e
        self._loaded = time.perf_counter_ns() - begin

    @staticmethod
    def maximum_supported_specification_version() -> int:
        return 10

    @staticmethod
    def auto_set_specification_version(spec):
        return spec

    @staticmethod
    def compileModel(path: str) -> str:  # noqa: N802 (coremltools' name)
        """Core ML compiles into a folder; ours is the package itself, copied."""
        try:
            read(path, allow_missing=True)
        except (OSError, ValueError, NotImplementedError, SyntaxError) as e:
            raise RuntimeError(f"Error compiling model: {e}") from e
        path = os.path.abspath(path)
        own = tempfile.mkdtemp(dir=_compiled_root().name)
        folder = Path(own) / (Path(path).stem + ".mlmodelc")
        if Path(path).is_dir():
            shutil.copytree(path, folder)
        else:
            data = folder / "Data"
            data.mkdir(parents=True)
            shutil.copy2(path, data / "model.mlmodel")
            (folder / "Manifest.json").write_text(json.dumps({
                "rootModelIdentifier": "model",
                "itemInfoEntries": {"model": {"path": "model.mlmodel"}},
            }))
        return str(folder)

    @staticmethod
    def create_model_asset_from_path(path: str) -> Any:
        from coremltools.models.model import MLModelAsset

        return MLModelAsset(_Asset(path))

    @staticmethod
    def create_model_asset_from_memory(spec: bytes, blobs: Mapping[str, bytes]) -> Any:
        from coremltools.models.model import MLModelAsset

        folder = tempfile.TemporaryDirectory(prefix="anetorch-")
        root = Path(folder.name).resolve()
        for name, data in {"model.mlmodel": spec, **blobs}.items():
            file = (root / str(name).removeprefix("@model_path/")).resolve()
            if not file.is_relative_to(root):
                raise RuntimeError(f"anetorch: weight file {name!r} leaves the model's folder")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return MLModelAsset(_Asset(str(root / "model.mlmodel"), folder))

    def get_compiled_model_path(self) -> str:
        if self._compiled is None:
            self._compiled = self.compileModel(self._path)
        return self._compiled

    def get_load_duration_in_nano_seconds(self) -> int:
        return self._loaded

    def get_last_predict_duration_in_nano_seconds(self) -> int | None:
        return self._last

    def newState(self) -> State:  # noqa: N802
        return self._model.make_state()

    def predict(self, data, state=None):
        if self._model.states and state is None:
            state = self._model.make_state()
        begin = time.perf_counter_ns()
        try:
            return self._model.predict(data, state)
        except Exception as e:          # Core ML knows one kind of failure, in these words
            raise RuntimeError(
                f"Unable to compute the prediction using ML Program: {e}"
            ) from e
        finally:
            self._last = time.perf_counter_ns() - begin

    def batchPredict(self, data):  # noqa: N802
        begin = time.perf_counter_ns()
        results = [self.predict(d) for d in data]
        self._last = time.perf_counter_ns() - begin
        return results


_saved: list[tuple[Any, str, Any]] = []


def install(macos_version: tuple[int, ...] = (15, 5)) -> None:
    """Makes coremltools predict with anetorch.

    After this call ``coremltools.models.MLModel.predict``, ``make_state``, ``CompiledMLModel``,
    ``MLModelAsset`` and ``compile_model`` work on this machine; coremltools is told that it
    runs on macOS ``macos_version``, because it refuses by platform. :func:`uninstall` restores
    everything. Idempotent. Raises ImportError without coremltools (``pip install anetorch[oracle]``).

    >>> import coremltools as ct, anetorch                              # doctest: +SKIP
    >>> anetorch.coreml.install()                                       # doctest: +SKIP
    >>> ct.models.MLModel("m.mlpackage").predict({"x": x})              # doctest: +SKIP
    """
    if _saved:
        return

    def put(module: str, **names: Any) -> None:
        m = importlib.import_module(module)
        for name, value in names.items():
            if hasattr(m, name):
                _saved.append((m, name, getattr(m, name)))
                setattr(m, name, value)

    def is_macos() -> bool:
        return True

    def version() -> tuple[int, ...]:
        return tuple(macos_version)

    platform = {"_is_macos": is_macos, "_macos_version": version}
    put("coremltools._deps", _IS_MACOS=True)
    # The extension that Macs have; compile_model imports it by name.
    native = types.ModuleType("coremltools.libcoremlpython")
    native.__dict__.update(_MLModelProxy=_Proxy, _MLModelAssetProxy=_Asset)
    _saved.append((sys.modules, native.__name__, sys.modules.get(native.__name__)))
    sys.modules[native.__name__] = native
    put("coremltools.models.utils", **platform)
    put("coremltools.models.model", _MLModelProxy=_Proxy, _MLModelAssetProxy=_Asset, **platform)
    put("coremltools.models._compiled_model", _MLModelProxy=_Proxy, **platform)


def uninstall() -> None:
    """Undoes :func:`install`; does nothing when it was not called.

    >>> anetorch.coreml.uninstall()                                     # doctest: +SKIP
    """
    while _saved:
        holder, name, value = _saved.pop()
        if holder is not sys.modules:
            setattr(holder, name, value)
        elif value is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = value
