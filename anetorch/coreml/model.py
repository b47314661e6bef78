"""Core ML models anywhere: load and predict."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anetorch import _core
from anetorch.coreml.feature import Feature, array_to_image, feature_of, image_to_array
from anetorch.coreml.files import read
from anetorch.dtypes import DTYPES, canonical
from anetorch.mil import Program
from anetorch.package import save_package
from anetorch.runtime import compile as compile_program

__all__ = ["Model", "State", "load"]

# MIL's names of the types an array may have; sub-byte integers and bfloat16 it may not.
_NUMPY_HAS = {mil for name, (mil, _, _) in DTYPES.items() if name != "bfloat16"}


def _numbers(name: str, value: Any) -> np.ndarray:
    """What NumPy, or a tensor of PyTorch that may have a gradient, makes of an input."""
    try:
        a = np.asarray(value.detach() if hasattr(value, "detach") else value)
    except (ValueError, TypeError, RuntimeError) as e:
        raise TypeError(f"[predict] '{name}': expected an array of numbers: {e}") from e
    if a.dtype.kind == "c":
        raise TypeError(f"[predict] '{name}': complex numbers are not supported")
    if a.dtype.kind in "OSUMm":
        raise TypeError(f"[predict] '{name}': expected numbers, got {value!r:.60}")
    return a


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
        self.inputs = {f["name"]: feature_of(f) for f in face["inputs"]}
        self.outputs = {f["name"]: feature_of(f) for f in face["outputs"]}
        self.states = {f["name"]: feature_of(f) for f in face["states"]}
        self._classifier = self._find_classifier()
        self._kernel: Any = None

    def _own_interface(self) -> dict[str, Any]:
        """Features straight from the function's types, for texts without a description."""
        _, _, block, params = next(f for f in self.program.functions() if f[0] == self.function)
        defaults, limits = (self._flexible_shapes(k) for k in ("DefaultShapes", "RangeDims"))

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
                default, limit = (table.get(info["name"], ()) for table in (defaults, limits))
                if len(default) == len(dims):
                    d["shape"] = [int(a) if n is None else n for n, a in zip(dims, default)]
                if len(limit) != len(dims):
                    limit = [(1, -1)] * len(dims)
                d["ranges"] = [(int(a[0]), int(a[1])) if n is None else (n, n)
                               for n, a in zip(dims, limit)]
            return d

        made = [feature(v, True) for v in params]
        outs = [feature(v, False) for v in self.program.block_info(block)["outputs"]]
        return {
            "inputs": [f for f in made if f["kind"] != "state"],
            "states": [f for f in made if f["kind"] == "state"],
            "outputs": outs,
        }

    def _flexible_shapes(self, what: str) -> dict[str, Any]:
        """By input, what a text says about its shapes: a package's description says more."""
        said = self.program.attrs(self.function).get("FlexibleShapeInformation", ())
        return dict(said).get(what, {})

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

    def at_default_shapes(self) -> Program:
        """The program of this function with the default shapes of its inputs, so that every
        type is known as far as it depends on them; nothing is compiled. Raises ValueError
        where none is declared for an unknown dimension.

        >>> anetorch.load("flexible.mlpackage").at_default_shapes()      # doctest: +SKIP
        """
        shapes = {}
        for v in self.program.functions[self.function].inputs:
            feature = self.inputs.get(v.name)
            if feature is None or v.type[0] != "tensor" or None not in v.shape:
                continue
            if not self._description and v.name not in self._flexible_shapes("DefaultShapes"):
                raise ValueError(f"[at_default_shapes] {v!r} has no default shape")
            if feature.kind == "image":         # its height and width end [1, C, H, W]
                shapes[v.name] = (*v.shape[:-2], *feature.shape)
            else:
                shapes[v.name] = feature.shape
        return self.program.specialize(shapes, self.function)

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
            return self._batch(data)
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
        if state is not None and (not isinstance(state, State) or set(state) != set(self.states)):
            raise TypeError(
                f"[predict] expected a state of this model ({sorted(self.states)}), made by "
                f"make_state(); got {state!r:.200}"
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

    def _batch(self, data: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        results = []
        for i, d in enumerate(data):
            try:
                results.append(self._predict_one(d, None))
            except (ValueError, TypeError) as e:
                raise type(e)(f"{e} (item {i} of the batch)") from e
        return results

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
            return image_to_array(feature, value, port.dtype)
        a = _numbers(feature.name, value)
        want = tuple(port.shape)
        if a.shape == () and want == (1,) or a.shape == (1,) and want == ():
            a = a.reshape(want)
        if feature.kind in ("array", "state") and not feature.accepts(a.shape):
            if a.shape not in ((), (1,)) or want not in ((), (1,)):
                raise ValueError(f"[predict] '{feature.name}': {feature.refusal(a.shape)}")
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
                out[name] = array_to_image(feature, a)
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
