"""Weight files and the optimizer: opening a large file, reading, writing, AdamW.

    python benchmarks/bench_weights.py [--quick] [--folder DIR] [--json FILE]

The large file is sparse: its header is real, its data are holes. Writing goes to --folder and
includes fsync, so it measures the disk as well; a copy of the same bytes with fsync stands
beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

from anetorch import _core
from anetorch.weights import WeightBuffer, WeightFile, save_file


def sparse(path: Path, tensors: int, total: int) -> None:
    """A safetensors file of about `total` bytes of data in `tensors` tensors, all holes."""
    each = total // tensors // 2048 * 2048
    head = json.dumps({f"model.layers.{i}.self_attn.q_proj.weight": {
        "dtype": "F16", "shape": [each // 2048, 1024],
        "data_offsets": [i * each, (i + 1) * each]} for i in range(tensors)}).encode()
    head += b" " * (-(len(head) + 8) % 16384)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        f.truncate(8 + len(head) + each * tensors)


def copy_sync(src: Path, dst: Path) -> None:
    shutil.copyfile(src, dst)
    with open(dst, "rb+") as f:
        os.fsync(f.fileno())


def files(report: common.Report, folder: Path, repeats: int, n: int) -> None:
    big = folder / "big.safetensors"
    for tensors in (310, 20_000):
        sparse(big, tensors, 10 << 30)
        report.add("open 10 GiB (sparse)", common.measure(
            lambda: WeightFile.open(big).close(), repeats=10 * repeats), tensors=tensors)
    sparse(big, 310, 10 << 30)
    with WeightFile.open(big) as w:
        name = list(w)[200]
        b = WeightBuffer.wrap(w)
        report.add("w[name] x 1000", common.measure(
            lambda: [w[name] for _ in range(1000)], repeats=repeats))
        report.add("buffer.offset(name) x 1000", common.measure(
            lambda: [b.offset(name) for _ in range(1000)], repeats=repeats))
    big.unlink()

    a = np.arange(n, dtype="f4")
    out = np.empty_like(a)
    x = folder / "x.safetensors"

    def read() -> None:
        with WeightFile.open(x) as f:
            f.read_into("a", out)

    def add(name: str, run: Callable[[], Any]) -> None:
        times = common.measure(run, 1, repeats)
        report.add(name, times, gb_per_s=a.nbytes / times["median"] / 1e9)
    add("save_file with fsync", lambda: save_file({"a": a}, x))
    add("  file copy with fsync", lambda: copy_sync(x, folder / "y"))
    add("open and read_into, cached", read)
    add("  memcpy", lambda: np.copyto(out, a))


def optimizer(report: common.Report, repeats: int, n: int) -> None:
    p, g, m, v = (np.full(n, 0.5, "f4") for _ in range(4))
    half = np.zeros(n, "f2")
    before = _core.num_threads()

    def step(staged: np.ndarray | None) -> None:
        norm, _ = _core.grad_norm(g)
        _core.adamw_step(p, g, m, v, staged, lr=1e-4, step=3, weight_decay=0.1,
                         scale=_core.clip_factor(norm, 1.0))
    for threads in sorted({1, before}):
        _core.set_num_threads(threads)
        runs = {"norm, clip, AdamW": lambda: step(None), "  with a float16 copy":
                lambda: step(half), **peer(p, g, threads)}
        for name, times in common.interleave(runs, 2 * repeats).items():
            report.add(name, common.summary(times), parameters=n, threads=threads)
    _core.set_num_threads(before)


def peer(p: np.ndarray, g: np.ndarray, threads: int) -> dict[str, Callable[[], Any]]:
    """PyTorch's fused AdamW with clip_grad_norm_, where it is installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(threads)
    q = torch.nn.Parameter(torch.from_numpy(p.copy()))
    q.grad = torch.from_numpy(g.copy())
    opt = torch.optim.AdamW([q], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_([q], 1.0)
        opt.step()
    return {f"  torch {torch.__version__}, fused": step}


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="small files, few parameters")
    parser.add_argument("--folder", help="where files are written (default: a temporary one)")
    args = parser.parse_args()
    if args.threads:
        _core.set_num_threads(args.threads)
    report = common.Report("bench_weights", args.json)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        files(report, Path(folder), args.repeats, 4_000_000 if args.quick else 64_000_000)
    optimizer(report, args.repeats, 1_000_000 if args.quick else 16_000_000)


if __name__ == "__main__":
    main()
