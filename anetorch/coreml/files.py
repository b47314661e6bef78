"""Reading the files of a Core ML model, whichever of its four forms it has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from anetorch import _core
from anetorch.coreml.compiled import description
from anetorch.mil import Program

__all__ = ["read"]


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
    description around it (None for a text; of a compiled model, what its ``metadata.json``
    tells). With ``allow_missing``, constants whose weight file is absent stay without data: the
    program can be looked at, not run.

    >>> program, description = anetorch.coreml.read("model.mlpackage")  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"[load] {path}: no such file or folder")
    if path.is_dir():
        # A model that coremltools compiled with us has both; the package says more.
        if (path / "Manifest.json").is_file() or path.suffix == ".mlpackage":
            spec = _package_root(path)
            return _read_spec(spec, allow_missing)
        if (path / "model.mil").is_file():                      # .mlmodelc
            program, _ = _read_text(path / "model.mil", allow_missing)
            return program, description(path, program)
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
