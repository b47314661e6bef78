"""Writes every malformed input of the tests into a folder, as seeds for a fuzzer.

    python tests/fuzz/malformed.py mil FOLDER           # the rows of test_mil_errors.py
    python tests/fuzz/malformed.py package FOLDER       # the rows of test_package_errors.py
"""

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
rows = import_module({"mil": "test_mil_errors", "package": "test_package_errors"}[sys.argv[1]]).ROWS
folder = Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
for i, (data, *_) in enumerate(rows.values()):
    (folder / f"malformed{i}").write_bytes(data if isinstance(data, bytes) else data.encode())
