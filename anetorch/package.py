"""Writing ``.mlpackage`` folders and ``.mil`` texts, atomically."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anetorch import _core

__all__ = ["save_package", "save_text"]

_AUTHOR = "com.apple.CoreML"            # readers look entries up by this name
_WEIGHTS = "@model_path/weights/weight.bin"


def _identifier(what: str) -> str:
    """A UUID that depends on its role only: equal programs give equal packages."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"anetorch:{what}")).upper()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def save_package(
    program: _core.Program,
    path: str | os.PathLike[str],
    description: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``program`` as a Core ML package that coremltools reads back.

    Constants of ten elements and more go to ``weights/weight.bin`` (MILBlob v2). The package
    is built beside its target and renamed at the end, so a failure leaves what was there.

    Raises ValueError where ``path`` does not end in ``.mlpackage`` or a constant's weight file
    was missing when the program was loaded; TypeError for an input or output of a dtype that
    Core ML does not take; OSError.
    """
    target = Path(path).expanduser()
    if target.suffix != ".mlpackage":
        raise ValueError(f"[save] {target}: the name must end in .mlpackage")
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"[save] {target}: exists and is not a package")
    parent = target.absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"[save] {parent}: no such folder")
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=parent))
    try:
        os.chmod(work, 0o755)
        data = work / "Data" / _AUTHOR
        weights = data / "weights"
        weights.mkdir(parents=True)
        raw = (description or {}).get("raw")
        with open(weights / "weight.bin", "wb") as f:
            spec = _core.coreml_write(program, f.fileno(), _WEIGHTS, description=raw)
            f.flush()
            os.fsync(f.fileno())
            empty = f.seek(0, os.SEEK_END) == 0
        if empty:
            (weights / "weight.bin").unlink()
        with open(data / "model.mlmodel", "wb") as f:
            f.write(spec)
            f.flush()
            os.fsync(f.fileno())
        model, folder = _identifier("model"), _identifier("weights")
        manifest = {
            "fileFormatVersion": "1.0.0",
            "itemInfoEntries": {
                model: {
                    "author": _AUTHOR, "description": "CoreML Model Specification",
                    "name": "model.mlmodel", "path": f"{_AUTHOR}/model.mlmodel",
                },
                folder: {
                    "author": _AUTHOR, "description": "CoreML Model Weights",
                    "name": "weights", "path": f"{_AUTHOR}/weights",
                },
            },
            "rootModelIdentifier": model,
        }
        (work / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n", "utf-8")
        for folder_path in (weights, data, data.parent, work):
            _sync(folder_path)
        _replace(work, target)
        _sync(parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _replace(work: Path, target: Path) -> None:
    """A folder cannot be renamed over a full one: the old one steps aside first and comes
    back if the second rename fails."""
    if not target.exists():
        os.rename(work, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.absolute().parent))
    os.rename(target, aside / "old")
    try:
        os.rename(work, target)
    except BaseException:
        os.rename(aside / "old", target)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def save_text(program: _core.Program, path: str | os.PathLike[str]) -> None:
    """Writes ``program`` as MIL text; ValueError where ``path`` does not end in ``.mil``."""
    target = Path(path).expanduser()
    if target.suffix != ".mil":
        raise ValueError(f"[save] {target}: the name must end in .mlpackage or .mil")
    fd, work = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.absolute().parent)
    try:
        with open(fd, "wb") as f:
            f.write(program.text().encode())
            f.flush()
            os.fsync(f.fileno())
        os.chmod(work, 0o644)
        os.replace(work, target)
    except BaseException:
        os.unlink(work)
        raise
