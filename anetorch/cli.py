"""The command ``anetorch``: arguments only, no logic.

Exit codes: 0 done, 1 a difference (compare) or an error found (lint), 2 unusable input (one
line on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from anetorch.env import InputError, traceback_wanted

__all__ = ["main", "parser"]


class _Parser(argparse.ArgumentParser):
    """One line on a mistake, with what was probably meant."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(allow_abbrev=False, **kwargs)      # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message} (see {self.prog} --help)\n")
        raise SystemExit(2)

    def unknown(self, args: Sequence[str]) -> NoReturn:
        """For what parse_known_args left over."""
        first = args[0]
        near = difflib.get_close_matches(first.split("=")[0], self._option_string_actions, 1, 0.7)
        hint = f": did you mean {near[0]}?" if near else ""
        self.error(f"unknown argument {first}{hint}")


def _number(kind: Callable[[str], float], low: float, high: float,
            what: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:            # NaN too
            most = f" and at most {high}" if value > high and "at most" not in what else ""
            raise argparse.ArgumentTypeError(f"expected {what}{most}, got {text!r}")
        return value
    return convert


_POSITIVE = _number(int, 1, 2**62, "a whole number of at least 1")
_COUNT = _number(int, 0, 2**62, "a whole number of at least 0")
_RATE = _number(float, sys.float_info.min, 1e3, "a number above 0")
_TEMPERATURE = _number(float, 0, 1e3, "a number of at least 0")
_FRACTION = _number(float, sys.float_info.min, 1, "a number above 0 and at most 1")


def parser() -> _Parser:
    """The command line's description: every flag there is.

    >>> parser().parse_args(["train", "--steps", "3"]).steps
    3
    """
    from anetorch import __version__

    top = _Parser(prog="anetorch", description="Apple Neural Engine programs and training on them, "
                                               "on any machine.")
    top.add_argument("--version", action="version", version=f"anetorch {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    t = commands.add_parser("train", help="train a language model on text",
                            description="Trains a language model on text files (default: the "
                                        "documentation that Python brings along).")
    t.add_argument("files", nargs="*", metavar="FILE", help="UTF-8 text to learn")
    t.add_argument("--model", metavar="PRESET|config.json",
                   help="tiny (default), stories15m, stories110m, qwen3-0.6b, or a Hugging Face "
                        "config.json of a Llama or Qwen3 model")
    t.add_argument("--steps", type=_POSITIVE, metavar="N", help="optimizer steps")
    t.add_argument("--seq", type=_POSITIVE, metavar="N", help="bytes of text a window")
    t.add_argument("--batch", type=_POSITIVE, metavar="N", help="windows run together")
    t.add_argument("--accum", type=_POSITIVE, metavar="N", help="batches an optimizer step")
    t.add_argument("--lr", type=_RATE, metavar="RATE", help="peak learning rate")
    t.add_argument("--out", metavar="DIR", help="folder of the run (default: the next number "
                                                "below anetorch-runs)")
    t.add_argument("--save-every", type=_POSITIVE, metavar="N", help="steps between checkpoints")
    t.add_argument("--resume", action="store_true",
                   help="continue from the newest checkpoint; start where there is none")
    t.add_argument("--overwrite", action="store_true", help="replace an earlier run in --out")
    t.add_argument("--device", metavar="NAME", help="cpu (default) or ane")
    t.add_argument("--seed", type=_COUNT, metavar="N", help="same seed, same bits (default 0)")
    t.set_defaults(run=_train)

    g = commands.add_parser("generate", help="let a trained model write",
                            description="Continues a text with a trained model.")
    g.add_argument("--from", dest="source", metavar="DIR",
                   help="folder of the run (default: the newest below anetorch-runs)")
    g.add_argument("--prompt", default="", metavar="TEXT", help="text to continue")
    g.add_argument("--temperature", type=_TEMPERATURE, default=0.8, metavar="X",
                   help="0: always the most probable byte (default 0.8)")
    g.add_argument("--top-p", type=_FRACTION, default=0.9, metavar="P",
                   help="keep the most probable bytes up to this probability (default 0.9)")
    g.add_argument("--max-tokens", type=_COUNT, default=256, metavar="N",
                   help="bytes to write (default 256)")
    g.add_argument("--seed", type=_COUNT, default=42, metavar="N", help="(default 42)")
    g.set_defaults(run=_generate)

    i = commands.add_parser("info", help="devices, CPU, kernel tables, versions",
                            description="What this installation has and chose.")
    i.set_defaults(run=_info)
    m = commands.add_parser("cache", help="what the engine has compiled before",
                            description="State of the compile cache's index.")
    m.add_argument("--clear", action="store_true", help="forget every entry")
    m.set_defaults(run=_cache)
    _add_tools(commands)

    s = commands.add_parser("selftest", help="what this machine's engine does with everything",
                            description="Tries every operation, the known cliffs of the engine, the "
                                        "ten training kernels and 100 training steps on a device, in "
                                        "under five minutes, and prints a table. Exit code 1 when a "
                                        "result was wrong.")
    s.add_argument("--device", metavar="NAME", help="ane or cpu (default: ane where there is one)")
    s.add_argument("--json", metavar="FILE", help="where the recording goes")
    s.add_argument("--replay", metavar="FILE", help="read a recording and hold it against this version "
                                                    "instead; exit code 1 when they contradict")
    s.set_defaults(run=_selftest)
    return top


_FILE = "a .mlpackage, .mlmodelc, .mlmodel (ML Program) or .mil"


def _selftest(args: argparse.Namespace) -> int:
    from anetorch import selftest, tools

    if args.replay is not None:
        if args.device or args.json:
            raise InputError("[selftest] --replay reads a recording: leave --device and --json out")
        made = selftest.load(args.replay)
        for line in selftest.lines(made):
            _say(line)
        problems = selftest.replay(made, _say)
        for line in problems:
            _say(f"contradiction: {line}")
        return int(bool(problems))
    if args.json is not None:
        tools.check_writable(args.json)
    made = selftest.record(args.device, _say)
    for line in selftest.lines(made):
        _say(line)
    if args.json is not None:
        selftest.save(made, args.json)
        _say(f"recorded in {args.json}")
    return selftest.exit_code(made)


def _add_tools(commands: argparse._SubParsersAction[_Parser]) -> None:
    """Commands about one program; tools.py has them."""
    def model(p: _Parser, *names: str) -> None:
        for name in names:
            p.add_argument(name, metavar=name.upper(), help=_FILE)
        p.add_argument("--input", action="append", default=[], metavar="NAME=FILE",
                       help="an .npy array, or an image file for an image input; repeatable")
        p.add_argument("--function", metavar="NAME", help="(default: the model's own)")
        p.add_argument("--device", metavar="NAME", help="cpu (default) or ane")

    r = commands.add_parser("run", help="predict with a Core ML model",
                            description="Predicts once and prints a line for each output.")
    model(r, "file")
    r.add_argument("--output", metavar="FILE.npz", help="where the outputs go")
    r.set_defaults(run=_run)

    s = commands.add_parser("show", help="print a program with shapes and costs",
                            description="Prints a program's text and, for each operation, its "
                                        "FLOPs and bytes. Weight files may be absent.")
    s.add_argument("file", metavar="FILE", help=_FILE)
    s.add_argument("--function", metavar="NAME", help="costs of this function only")
    s.add_argument("--no-text", action="store_true", help="the cost table alone")
    s.set_defaults(run=_show)

    c = commands.add_parser("lint", help="what the engine is known to refuse or get wrong",
                            description="Lists what is likely to go wrong with a program on the "
                                        "engine. Exit code 1 when there are errors.")
    c.add_argument("file", nargs="+", metavar="FILE", help=_FILE)
    c.add_argument("--target", metavar="CHIP", help="m1 to m5 or a14 to a19 (default: all)")
    c.add_argument("--route", choices=["inmemory", "coreml"],
                   help="which compiler (default: coreml for packages, inmemory for texts)")
    c.add_argument("--format", choices=["text", "json", "sarif"], default="text")
    c.add_argument("--fix", metavar="OUT.mil", help="write the program with every mechanical "
                                                    "rewrite applied; the report is about it")
    c.add_argument("--ignore", action="append", default=[], metavar="RULE",
                   help="id or name of a rule; repeatable")
    c.set_defaults(run=_lint)

    b = commands.add_parser("bench", help="time a model",
                            description="Median time of a run; inputs that are not given are "
                                        "made up.")
    model(b, "file")
    b.add_argument("--repeat", type=_POSITIVE, metavar="N", help="runs (default: one second)")
    b.add_argument("--json", action="store_true", help="one JSON object a line")
    b.add_argument("--trace", metavar="OUT.json",
                   help="one run, step by step and thread by thread, for chrome://tracing or "
                        "Perfetto")
    b.set_defaults(run=_bench)

    d = commands.add_parser("compare", help="where two models begin to differ",
                            description="Prints the first intermediate value whose bits differ, "
                                        "by name. Exit code 1 when one does.")
    model(d, "a", "b")
    d.set_defaults(run=_compare)


def _say(line: str) -> None:
    print(line, flush=True)


def _train(args: argparse.Namespace) -> int:
    from anetorch.train import Options, train

    if args.resume and args.overwrite:
        raise InputError("[train] --resume continues a run and --overwrite replaces it: give one")
    outcome = train(Options(
        files=tuple(args.files), model=args.model, steps=args.steps, seq=args.seq,
        batch=args.batch, accum=args.accum, lr=args.lr, seed=args.seed, out=args.out,
        save_every=args.save_every, resume=args.resume, overwrite=args.overwrite,
        device=args.device), _say)
    return 130 if outcome.interrupted else 0


def _generate(args: argparse.Namespace) -> int:
    from anetorch.generate import generate

    before = args.prompt        # shown with the first piece: what cannot be continued is not

    def emit(piece: str) -> None:
        nonlocal before
        sys.stdout.write(before + piece)
        sys.stdout.flush()
        before = ""

    generate(args.source, args.prompt, args.max_tokens, args.temperature, args.top_p, args.seed,
             emit)
    emit("\n")
    return 0


def _info(args: argparse.Namespace) -> int:
    from anetorch.info import lines

    for line in lines():
        _say(line)
    return 0


def _cache(args: argparse.Namespace) -> int:
    from anetorch.info import cache_lines

    for line in cache_lines(clear=args.clear):
        _say(line)
    return 0


def _run(args: argparse.Namespace) -> int:
    from anetorch.tools import run

    run(args.file, args.input, _say, function=args.function, device=args.device,
        output=args.output)
    return 0


def _show(args: argparse.Namespace) -> int:
    from anetorch.tools import show

    show(args.file, _say, function=args.function, text=not args.no_text)
    return 0


def _lint(args: argparse.Namespace) -> int:
    from anetorch.tools import lint

    return int(lint(args.file, _say, target=args.target, route=args.route, form=args.format,
                    fix=args.fix, ignore=args.ignore))


def _bench(args: argparse.Namespace) -> int:
    from anetorch.tools import bench

    bench(args.file, _say, inputs=args.input, function=args.function, device=args.device,
          repeat=args.repeat, as_json=args.json, trace=args.trace)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from anetorch.tools import compare

    return int(not compare(args.a, args.b, _say, inputs=args.input, function=args.function,
                           device=args.device))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    >>> main(["train", "--steps", "0"])                                 # doctest: +SKIP
    2
    """
    args, format_before = None, warnings.formatwarning
    warnings.formatwarning = functools.partial(_format_warning, format_before)
    try:
        top = parser()
        args, rest = top.parse_known_args(argv)
        if rest:
            _sub(top, args.command).unknown(rest)
        return args.run(args)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 0 if e.code is None else 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:             # the reader of our output has gone: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError, MemoryError, FloatingPointError) as e:
        if traceback_wanted():
            raise
        sys.stderr.write(f"anetorch: {_one_line(e)}\n")
        return 2
    except RuntimeError as e:           # what an engine says; anywhere else it is a fault of ours
        if traceback_wanted() or getattr(args, "device", None) in (None, "cpu"):
            raise
        sys.stderr.write(f"anetorch: {_one_line(e)}\n")
        return 2
    finally:
        warnings.formatwarning = format_before


def _format_warning(other: Callable[..., str], message: Warning | str, category: type[Warning],
                    filename: str, lineno: int, line: str | None = None) -> str:
    """Ours are one line for whoever typed a command; others show where they come from."""
    if traceback_wanted() or not Path(filename).is_relative_to(Path(__file__).parent):
        return other(message, category, filename, lineno, line)
    return f"anetorch: warning: {' '.join(str(message).split())}\n"


def _sub(top: argparse.ArgumentParser, command: str) -> _Parser:
    action = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices[command]


def _one_line(e: BaseException) -> str:
    if isinstance(e, OSError) and e.strerror:
        text = f"{e.filename}: {e.strerror}" if e.filename else e.strerror
    elif isinstance(e, MemoryError):
        text = f"out of memory{f' ({e})' if str(e) else ''}: use a smaller model, batch or seq"
    else:
        text = str(e)
    return " ".join(text.split())
