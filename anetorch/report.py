"""What a kernel did and what it takes, for people: tables of a profiled run and of memory,
and traces that chrome://tracing and Perfetto open.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from anetorch import _core

__all__ = ["Memory", "Report", "trace_events"]


def _text(rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns side by side; the first ``left`` of them to the left."""
    width = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) if i < left else c.rjust(w)
                               for i, (c, w) in enumerate(zip(r, width, strict=True))).rstrip()
                     for r in rows)


def _html(rows: Sequence[Sequence[str]], left: int, caption: str) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(
            f'<{tag} style="text-align:{"left" if i < left else "right"}">{html.escape(c)}</{tag}>'
            for i, c in enumerate(row)) + "</tr>"

    return (f"<table><caption>{html.escape(caption)}</caption>{cells(rows[0], 'th')}"
            f"{''.join(cells(r, 'td') for r in rows[1:])}</table>")


class Report(list):
    """Steps of a profiled run: a list of dicts that prints as a table, in Jupyter too.

    Each step has ``op`` ("matmul+add+relu": what was fused), ``name`` (of the value it leaves),
    ``values`` (all that its ops make; those before the last exist in no memory), ``kernel``,
    ``packed`` ("constant" or "kept": an operand that was packed once, or once per write),
    ``isa`` ("" is plain C), ``begin`` and ``seconds``, ``flops``, ``bytes``, ``gflop_s``,
    ``gb_s``, and how near that is to what the machine can do: ``of_flops`` (of the FMA peak in
    that table's registers) and ``of_copy`` (of a copy that moves as many bytes), both measured
    right after the run, at the same thread count.

    Attributes:
        title: where it ran, and with whose arithmetic. threads: of the pool. flop_s: measured peak by table. copy_s: measured bytes/s by size.

    >>> report = anetorch.compile(program).report(x)                    # doctest: +SKIP
    >>> report[0]["op"], report[0]["kernel"]                            # doctest: +SKIP
    ('matmul+add', 'f32_6x16__avx2')
    """

    title = ""

    def __init__(self, steps: Iterable[dict[str, Any]] = (), measure: bool = True) -> None:
        super().__init__(dict(s) for s in steps)
        self.threads = _core.num_threads()
        self.flop_s: dict[str, float] = {}
        self.copy_s: dict[int, float] = {}
        for s in self:
            t = s["seconds"]
            s["gflop_s"] = s["flops"] / t * 1e-9 if t else 0.0
            s["gb_s"] = s["bytes"] / t * 1e-9 if t else 0.0
            s["of_flops"] = s["of_copy"] = None
            if not measure or not t:
                continue
            if s["flops"]:
                peak = self.flop_s.get(s["isa"]) or _core.measure_flops(s["isa"] or "scalar")
                self.flop_s[s["isa"]] = peak
                s["of_flops"] = s["flops"] / t / peak
            if s["bytes"] >= 4096:          # below, a call's own time is all there is
                # Sizes by powers of two: what fits a cache is compared with what fits it too.
                size = 1 << min(round(s["bytes"]).bit_length() - 1, 27)
                copy = self.copy_s.get(size) or _core.measure_copy(size)
                self.copy_s[size] = copy
                s["of_copy"] = s["bytes"] / t / copy

    def _rows(self) -> list[tuple[str, ...]]:
        total = sum(s["seconds"] for s in self) or 1.0
        rows = [("op", "value", "kernel", "isa", "us", "time", "GFLOP/s", "GB/s", "of FMA", "of copy")]
        for s in self:
            inside = [v for v in s["values"] if v != s["name"]]
            name = s["name"] + (f" ({', '.join(inside)} inside)" if inside else "")
            rows.append((
                s["op"], name, s["kernel"] + (", packed once" if s.get("packed") else ""), s["isa"] or "C", f"{s['seconds'] * 1e6:.1f}",
                f"{s['seconds'] / total:.0%}", f"{s['gflop_s']:.1f}" if s["flops"] else "",
                f"{s['gb_s']:.1f}" if s["gb_s"] else "",
                f"{s['of_flops']:.0%}" if s["of_flops"] is not None else "",
                f"{s['of_copy']:.0%}" if s["of_copy"] is not None else ""))
        return rows

    def _summary(self) -> str:
        total = sum(s["seconds"] for s in self)
        text = f"{len(self)} steps, {total * 1e6:.1f} us, {self.threads} threads"
        if self.flop_s:
            text += "; FMA peak " + ", ".join(f"{k or 'C'} {v * 1e-9:.1f} GFLOP/s"
                                              for k, v in self.flop_s.items())
        if self.copy_s:
            text += "; copies " + ", ".join(f"{k >> 10:,} KiB {v * 1e-9:.1f} GB/s"
                                            for k, v in sorted(self.copy_s.items()))
        return text

    def __str__(self) -> str:
        head = self.title + "\n" if self.title else ""
        return head + _text(self._rows(), 4) + "\n" + self._summary()

    def _repr_html_(self) -> str:
        head = self.title + ": " if self.title else ""
        return _html(self._rows(), 4, head + self._summary())

    def fused(self) -> dict[str, str]:
        """Value -> the value of the step that computes it: itself, or what it went into.

        >>> report.fused()                                              # doctest: +SKIP
        {'h': 'y', 'y': 'y'}
        """
        return {v: s["name"] for s in self for v in s["values"]}


class Memory(dict):
    """Bytes that a run needs, by purpose, and in ``buffers`` every buffer: name, kind, bytes,
    and for scratch the offset in the block and the first and last step that uses it. Prints as
    a table, in Jupyter too.

    >>> memory = anetorch.compile(program).memory(x)                    # doctest: +SKIP
    >>> memory["scratch"], memory["total"]                              # doctest: +SKIP
    (1024, 99328)
    """

    def __init__(self, totals: dict[str, int], buffers: Sequence[dict[str, Any]]) -> None:
        super().__init__(totals)
        self.buffers = list(buffers)

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [("kind", "value", "bytes", "offset", "steps")]
        for b in self.buffers:
            scratch = b["kind"] == "scratch"
            rows.append((b["kind"], b["name"] or "(temporary)", f"{b['bytes']:,}",
                         f"{b['offset']:,}" if scratch else "",
                         f"{b['first']}..{b['last']}" if scratch else ""))
        return rows

    def _summary(self) -> str:
        return (f"{self['total']:,} bytes: " + ", ".join(
            f"{k} {self[k]:,}" for k in ("inputs", "outputs", "constants", "packed", "kept", "scratch",
                                         "threads", "reference", "rounding") if self[k])
            + (f"; scratch without reuse would be {self['values']:,}" if self["values"] else ""))

    def __str__(self) -> str:
        return _text(self._rows(), 2) + "\n" + self._summary()

    def _repr_html_(self) -> str:
        return _html(self._rows(), 2, self._summary())


def trace_events(steps: Sequence[dict[str, Any]],
                 threads: Sequence[tuple[int, int, float, float]], title: str) -> dict[str, Any]:
    """A profiled run in the trace-event format of Chrome and Perfetto: one track of steps, and
    one track for each thread with its part of every step. Times are microseconds.

    >>> trace = trace_events(request.profile(), request.threads(), "m") # doctest: +SKIP
    >>> json.dump(trace, open("out.json", "w"))                         # doctest: +SKIP
    """
    def meta(kind: str, tid: int, **args: Any) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": 1, "tid": tid, "args": args}

    events = [meta("process_name", 0, name=title), meta("thread_name", 0, name="steps"),
              meta("thread_sort_index", 0, sort_index=0)]
    for n in sorted({t[0] for t in threads}):
        events += [meta("thread_name", n + 1, name=f"thread {n}" + (" (caller)" if not n else "")),
                   meta("thread_sort_index", n + 1, sort_index=n + 1)]
    for i, s in enumerate(steps):
        events.append({"ph": "X", "cat": "step", "name": f"{s['op']} {s['name']}".rstrip(), "pid": 1,
                       "tid": 0, "ts": s["begin"] * 1e6, "dur": s["seconds"] * 1e6,
                       "args": {"step": i, "kernel": s["kernel"], "isa": s["isa"],
                                "values": list(s["values"]), "flops": s["flops"],
                                "bytes": s["bytes"]}})
    for n, i, begin, seconds in threads:
        s = steps[i]
        events.append({"ph": "X", "cat": "thread", "name": f"{s['op']} {s['name']}".rstrip(), "pid": 1,
                       "tid": n + 1, "ts": begin * 1e6, "dur": seconds * 1e6, "args": {"step": i}})
    return {"traceEvents": events, "displayTimeUnit": "ns"}
