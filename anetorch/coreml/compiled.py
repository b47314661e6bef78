"""The interface of a compiled model (``.mlmodelc``) as far as its ``metadata.json`` tells.

The binary description beside it is not documented. The text gives the types; this file says
which inputs are images, of what sizes and layout, and which shapes are allowed. It has no
default values and no bytes of a description, so saving such a model describes plain arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anetorch import _core
from anetorch.coreml.feature import BGR, GRAYSCALE, GRAYSCALE_FLOAT16, RGB
from anetorch.mil import Program

__all__ = ["description"]

_MOST_BYTES = 1 << 24
_DTYPES = {"Float16": "float16", "Float32": "float32", "Double": "float64", "Int32": "int32",
           "Int8": "int8"}
_COLORS = {"RGB": RGB, "BGR": BGR, "Grayscale": GRAYSCALE}
_KINDS = {"MultiArray": "array", "Image": "image", "State": "state", "Dictionary": "dict",
          "String": "string", "Int64": "int64", "Double": "double", "Sequence": "sequence"}
_ROLES = {"inputs": "inputSchema", "outputs": "outputSchema", "states": "stateSchema"}


def _numbers(text: str, depth: int) -> Any:
    """``"[1, 3]"`` (depth 1) or ``"[[1, 3], [1, 5]]"`` (depth 2) as tuples of int."""
    def checked(v: Any, left: int) -> Any:
        if not left and isinstance(v, int) and not isinstance(v, bool):
            return v
        if not left or not isinstance(v, list):
            raise ValueError(f"{text!r} is no list of sizes")
        return tuple(checked(x, left - 1) for x in v)

    return checked(json.loads(text), depth)


def _feature(d: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of a schema; every value in it is a string."""
    kind = _KINDS[d["type"]]
    made: dict[str, Any] = {"name": str(d["name"]), "kind": kind,
                            "optional": d.get("isOptional") == "1",
                            "doc": str(d.get("shortDescription", ""))}
    if kind in ("array", "state"):
        made["dtype"] = _DTYPES[d["dataType"]]
        made["shape"] = _numbers(d["shape"], 1)
        if "shapeRange" in d:
            made["ranges"] = _numbers(d["shapeRange"], 2)
        if "enumeratedShapes" in d:
            made["enumerated"] = _numbers(d["enumeratedShapes"], 2)
    elif kind == "image":               # width before height, everywhere
        made["shape"] = (int(d["height"]), int(d["width"]))
        made["color"] = _COLORS.get(d["colorspace"], GRAYSCALE_FLOAT16)
        if "sizeRange" in d:
            made["ranges"] = _numbers(d["sizeRange"], 2)[::-1]
        if "enumeratedSizes" in d:
            made["enumerated"] = tuple(size[::-1] for size in _numbers(d["enumeratedSizes"], 2))
    return made


def description(folder: Path, program: Program) -> dict[str, Any] | None:
    """What ``metadata.json`` says, in the form of a package's description; None without the
    file. Raises MILError where it is malformed or speaks of other inputs than the text."""
    path = folder / "metadata.json"
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        entry = json.loads(path.read_text("utf-8"))
        entry = entry[0] if isinstance(entry, list) else entry
        name = "main" if "main" in program.functions else next(iter(program.functions))
        faces = []
        for face in entry.get("functions") or [{**entry, "name": name}]:
            made: dict[str, Any] = {"function": str(face["name"])}
            for role, key in _ROLES.items():
                made[role] = [_feature(d) for d in face.get(key) or ()]
            faces.append(made)
            _compare(made, program)
        return {"functions": faces, "default_function": "", "metadata": {
            "author": entry.get("author", ""), "license": entry.get("license", ""),
            "version": entry.get("version", ""),
            "short_description": entry.get("shortDescription", ""),
            "specification_version": entry.get("specificationVersion", 0),
            "user": dict(entry.get("userDefinedMetadata") or {}),
        }}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as e:
        what = f"no {e}" if isinstance(e, KeyError) else str(e)
        raise _core.MILError(f"{path}: malformed metadata ({what})") from None


def _compare(face: Mapping[str, Any], program: Program) -> None:
    name = face["function"]
    if name not in program.functions:
        raise ValueError(f"the text has no function {name!r}")
    said = sorted(f["name"] for role in ("inputs", "states") for f in face[role])
    has = sorted(v.name for v in program.functions[name].inputs)
    if said != has:
        raise ValueError(f"it describes the inputs {said}, {name} has {has}")
