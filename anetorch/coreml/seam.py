"""The seam into coremltools: :func:`install` lets a script that calls coremltools'
``MLModel.predict`` run unchanged on machines without Core ML."""

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anetorch.coreml.files import read
from anetorch.coreml.model import State, load
from anetorch.coreml.plan import (
    ComputePlan,
    CPUDevice,
    GPUDevice,
    NeuralEngineDevice,
    devices,
    structure,
)
from anetorch.mil import Program

__all__ = ["install", "uninstall"]


class _Asset:
    """coremltools' ``_MLModelAssetProxy``: a compiled model by path, or a specification and
    its weight files in memory, which then lie in a folder of their own."""

    def __init__(self, path: str, folder: Any = None) -> None:
        self.path, self._folder = path, folder


@functools.cache
def _compiled_root() -> tempfile.TemporaryDirectory[str]:
    """Where compiled models go; removed when the interpreter ends."""
    return tempfile.TemporaryDirectory(prefix="anetorch-")


def _read(
    path: str, what: str = "anetorch cannot load this model"
) -> tuple[Program, dict[str, Any] | None]:
    """Program and description, compiling nothing; Core ML knows one kind of failure."""
    try:
        return read(path, allow_missing=True)
    except (OSError, ValueError, NotImplementedError, SyntaxError) as e:
        raise RuntimeError(f"{what}: {e}") from e


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
        """Core ML compiles into a folder; ours is the package itself, copied, and the text
        that Core ML's has, which scripts look into."""
        program, _ = _read(path, "Error compiling model")
        path = os.path.abspath(path)
        own = tempfile.mkdtemp(dir=_compiled_root().name)
        folder = Path(own) / (Path(path).stem + ".mlmodelc")
        if Path(path).is_dir():
            shutil.copytree(path, folder)
        else:
            data = folder / "Data"
            data.mkdir(parents=True)
            shutil.copy2(path, data / "model.mlmodel")
            weights = Path(path).parent / "weights"         # of an asset made from memory
            if weights.is_dir():
                shutil.copytree(weights, data / "weights")
            (folder / "Manifest.json").write_text(json.dumps({
                "rootModelIdentifier": "model",
                "itemInfoEntries": {"model": {"path": "model.mlmodel"}},
            }))
        if (folder / "model.mil").exists():                     # it was compiled already
            return str(folder)
        (folder / "model.mil").write_text(program.text(), "utf-8")
        for weights in folder.glob("Data/**/weights"):          # as the text names them
            (folder / "weights").symlink_to(weights.relative_to(folder))
            break
        return str(folder)

    @staticmethod
    def get_all_compute_devices() -> list[Any]:
        return devices()

    get_available_compute_devices = get_all_compute_devices

    @staticmethod
    def get_model_structure(path: str) -> Any:
        return structure(_read(path)[0])

    @staticmethod
    def get_compute_plan(path: str, compute_units: str) -> Any:
        """The plan of predictions here: the CPU, whichever units are asked for."""
        from coremltools.models.compute_plan import MLComputePlan

        return MLComputePlan(ComputePlan(*_read(path)))

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
    ``MLModelAsset``, ``compile_model``, ``MLModelStructure``, ``MLComputePlan`` and
    ``MLComputeDevice`` work on this machine; coremltools is told that it
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
    proxies = {
        "_MLModelProxy": _Proxy, "_MLModelAssetProxy": _Asset,
        "_MLComputePlanProxy": ComputePlan, "_MLCPUComputeDeviceProxy": CPUDevice,
        "_MLGPUComputeDeviceProxy": GPUDevice,
        "_MLNeuralEngineComputeDeviceProxy": NeuralEngineDevice,
    }
    put("coremltools._deps", _IS_MACOS=True)
    # The extension that Macs have; compile_model imports it by name.
    native = types.ModuleType("coremltools.libcoremlpython")
    native.__dict__.update(proxies)
    _saved.append((sys.modules, native.__name__, sys.modules.get(native.__name__)))
    sys.modules[native.__name__] = native
    put("coremltools.models.utils", **platform)
    for module in ("model", "_compiled_model", "compute_plan", "compute_device"):
        put(f"coremltools.models.{module}", **proxies, **platform)


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
