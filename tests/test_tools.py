"""The commands about one program: what they print, write, refuse and exit with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import anetorch as command
from command import one_line
from test_report import check_trace

import anetorch
from anetorch import mil
from anetorch.cli import main
from anetorch.costs import costs
from anetorch.mil import ops


def build(scale: float = 1.0) -> mil.Program:
    w = np.arange(64 * 64, dtype=np.float16).reshape(64, 64) / 4096

    def forward(x: mil.Value) -> dict[str, mil.Value]:
        h = ops.matmul(x=x, y=mil.const(w, name="w"), name="h")
        return {"y": ops.mul(x=ops.relu(x=h, name="r"), y=scale)}

    return mil.build(forward, {"x": mil.spec((2, 64), "fp16")})


GELU = """program(1.3) {
  func main<ios18>(tensor<fp16, [1, 64, 1, 512]> x) {
    tensor<fp16, [1, 64, 1, 512]> y = gelu(x = x, mode = string("EXACT"));
  } -> (y);
}
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saving waits for the disk: once for all tests."""
    folder = tmp_path_factory.mktemp("saved")
    build().save(folder / "m.mlpackage")
    build(2.0).save(folder / "two.mlpackage")
    shutil.copytree(folder / "m.mlpackage", folder / "lost.mlpackage")
    (file,) = (folder / "lost.mlpackage").rglob("weight.bin")
    file.unlink()
    (folder / "gelu.mil").write_text(GELU)
    np.save(folder / "x.npy", np.linspace(-1, 1, 128, dtype=np.float16).reshape(2, 64))
    return folder


@pytest.fixture
def work(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(args)
    out, err = capsys.readouterr()
    return code, out, err


# ---------------------------------------------------------------- Program.save

@pytest.mark.parametrize("name", ["p.mlpackage", "p.mil"])
def test_save_and_read_back(name: str, tmp_path: Path) -> None:
    p = build()
    for _ in range(2):                          # a second save replaces the first
        p.save(tmp_path / name)
    assert [f.name for f in tmp_path.iterdir()] == [name]
    q, description = anetorch.coreml.read(tmp_path / name)
    assert (description is None) == name.endswith(".mil")
    if description is None:
        assert q == p
        return
    # A package gives every operation a name, and its weights a file.
    x = np.linspace(-1, 1, 128, dtype=np.float16).reshape(2, 64)
    np.testing.assert_array_equal(anetorch.compile(q)(x), anetorch.compile(p)(x))
    q.save(tmp_path / "q.mlpackage")
    assert anetorch.coreml.read(tmp_path / "q.mlpackage")[0] == q


def test_save_wants_a_known_ending(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.mlpackage or \.mil"):
        build().save(tmp_path / "p.txt")
    with pytest.raises(FileNotFoundError):
        build().save(tmp_path / "nowhere" / "p.mil")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- run

def test_run(work: Path) -> None:
    """As a user starts it, in a process of its own."""
    done = command("run", "m.mlpackage", "--input", "x=x.npy", "--output", "out.npz", cwd=work)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith("y: float16[2, 64], 0")
    with np.load("out.npz") as out:
        want = anetorch.load("m.mlpackage").predict({"x": np.load("x.npy")})["y"]
        np.testing.assert_array_equal(out["y"], want)
    assert not list(work.glob("*.tmp"))


MISTAKES = {
    "missing input": (["run", "m.mlpackage"], r"missing --input x=FILE: m\.mlpackage takes x: "
                      r"float16\[2, 64\]"),
    "unknown input": (["run", "m.mlpackage", "--input", "z=x.npy"], r"missing --input x=FILE, "
                      "unknown input z"),
    "no file name": (["run", "m.mlpackage", "--input", "x"], "expected NAME=FILE"),
    "twice": (["run", "m.mlpackage", "--input", "x=x.npy", "--input", "x=x.npy"], "given twice"),
    "no such array": (["run", "m.mlpackage", "--input", "x=no.npy"], "no.npy: No such file"),
    "no array": (["run", "m.mlpackage", "--input", "x=gelu.mil"],
                 "gelu.mil: not an .npy file, and 'x' takes an array"),
    "no specification": (["show", "x.npy"], r"not a Core ML specification.*: x\.npy: byte 2: "),
    "wrong shape": (["run", "m.mlpackage", "--input", "x=small.npy"],
                    r"m\.mlpackage: .*'x': expected shape \(2, 64\), got \(3,\)"),
    "output's ending": (["run", "m.mlpackage", "--output", "y.npy"], r"must end in \.npz"),
    "no function": (["run", "m.mlpackage", "--function", "f", "--input", "x=x.npy"],
                    "no function 'f'"),
    "no device": (["run", "m.mlpackage", "--device", "gpu", "--input", "x=x.npy"],
                  r'm\.mlpackage: .*unknown device "gpu"; expected "cpu"'),
    "no model": (["run", "none.mlpackage"], "none.mlpackage: no such file or folder"),
    "no package": (["show", "empty"], "empty: neither a .mlpackage"),
    "malformed text": (["show", "bad.mil"], r"bad\.mil:2: expected"),
    "malformed package": (["show", "bad.mlmodel"], r"bad\.mlmodel"),
    "show's function": (["show", "gelu.mil", "--function", "f"], "no function f; there is main"),
    "unknown chip": (["lint", "gelu.mil", "--target", "m99"], "gelu.mil: .*m99"),
    "unknown rule": (["lint", "gelu.mil", "--ignore", "ANE99"], "no rule 'ANE99'"),
    "fix of two": (["lint", "gelu.mil", "m.mlpackage", "--fix", "o.mil"], "takes one file, not 2"),
    "fix's ending": (["lint", "gelu.mil", "--fix", "o.txt"], "must end in"),
    "bad format": (["lint", "gelu.mil", "--format", "xml"], "invalid choice: 'xml'"),
    "no weights": (["bench", "lost.mlpackage"], "weight.bin"),
    "other inputs": (["compare", "m.mlpackage", "gelu.mil"], "only programs with equal inputs"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, expected = MISTAKES[name]
    np.save("small.npy", np.zeros(3))
    (work / "empty").mkdir()
    (work / "bad.mil").write_text("program(1.3) {\nfunk")
    (work / "bad.mlmodel").write_bytes(b"\x08\x06\xb2")
    before = sorted(work.rglob("*"))
    code, out, err = call(capsys, *args)
    assert code == 2 and out == "", (code, out)
    assert err.count("\n") == 1 and re.search(expected, err), err
    assert sorted(work.rglob("*")) == before


def test_a_mistake_in_a_process(work: Path) -> None:
    one_line(command("run", "m.mlpackage", cwd=work), "missing --input x=FILE")


def test_run_a_text_with_a_state(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.mil").write_text("""program(1.3) {
      func main<ios18>(tensor<fp16, [2]> x, state<tensor<fp16, [2]>> s) {
        tensor<fp16, [2]> r = read_state(input = s);
        tensor<fp16, [2]> y = add(x = r, y = x);
        write_state(input = s, data = y);
      } -> (y); }""")
    np.save("v.npy", np.float16([3, 4]))
    assert call(capsys, "run", "s.mil", "--input", "x=v.npy") == (
        0, "y: float16[2], 3 to 4\n", "")
    code, out, _ = call(capsys, "compare", "s.mil", "s.mil", "--input", "x=v.npy")
    assert code == 0 and "no value" in out      # each begins with a state of its own


def test_run_with_an_image(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow reads image files")
    ct = pytest.importorskip("coremltools", reason="writes the package")
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 4, 6))])
    def program(x):
        return mb.relu(x=x, name="y")

    ct.convert(program, inputs=[ct.ImageType(name="x", shape=(1, 3, 4, 6), color_layout="BGR")],
               minimum_deployment_target=ct.target.iOS15, compute_precision=ct.precision.FLOAT32,
               ).save("i.mlpackage")
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    image.fromarray(pixels).convert("RGBA").save("p.png")
    code, _, err = call(capsys, "run", "i.mlpackage", "--input", "x=p.png", "--output", "o.npz")
    assert code == 0, err
    with np.load("o.npz") as out:
        np.testing.assert_array_equal(out["y"][0], pixels[:, :, ::-1].transpose(2, 0, 1))


# ---------------------------------------------------------------- show

def test_show_counts(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "show", "m.mlpackage")
    assert code == 0 and "tensor<fp16, [2, 64]> h = matmul" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(
        ("matmul", "relu", "mul", "total"))}
    # 2 x 64 results of 64 products; x, w and h of two bytes an element.
    assert rows["matmul"][-2:] == ["16,384", f"{2 * (128 + 4096 + 128):,}"]
    assert rows["relu"][-2:] == ["128", "512"]
    assert rows["total"][-2] == "16,640"
    code, short, _ = call(capsys, "show", "m.mlpackage", "--no-text")
    assert code == 0 and "tensor<" not in short and short.strip() in out


def test_show_without_weight_files(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, whole, _ = call(capsys, "show", "m.mlpackage", "--no-text")
    code, out, err = call(capsys, "show", "lost.mlpackage")
    assert code == 0 and err == "" and whole.strip() in out


def one(fn: object, **shapes: tuple[int | None, ...]) -> int | None:
    p = mil.build(fn, {k: mil.spec(s, "fp32") for k, s in shapes.items()})     # type: ignore
    return sum(c.flops for c in costs(p.function))      # type: ignore[misc]


def test_flops_of_the_families() -> None:
    w = np.zeros((8, 2, 3, 3), np.float32)
    conv = dict(strides=[2, 2], pad_type="valid", groups=2)
    # 8 x 3 x 3 results of 2 x 3 x 3 products.
    assert one(lambda x: {"y": ops.conv(x=x, weight=w, **conv)}, x=(1, 4, 7, 7)) == 2 * 72 * 18
    # 4 x 5 x 5 inputs that each meet 3 x 2 x 2 weights.
    t = np.zeros((4, 3, 2, 2), np.float32)
    assert one(lambda x: {"y": ops.conv_transpose(x=x, weight=t)}, x=(1, 4, 5, 5)) == 2 * 100 * 12
    assert one(lambda x: {"y": ops.linear(x=x, weight=np.zeros((5, 7), np.float32),
                                          bias=np.zeros(5, np.float32))}, x=(3, 7)) == 2 * 105 + 15
    assert one(lambda x: {"y": ops.transpose(x=x, perm=[1, 0])}, x=(3, 7)) == 0
    assert one(lambda x: {"y": ops.reduce_sum(x=x, axes=[0], keep_dims=False)}, x=(3, 7)) == 21
    assert one(lambda a, b: {"y": ops.einsum(values=(a, b), equation="bnhd,bdhm->bnhm")},
               a=(2, 3, 4, 5), b=(2, 5, 4, 6)) == 2 * 2 * 3 * 4 * 5 * 6
    # Scores of 6 x 7, each of 8 products in and 9 out, and five steps of softmax and scale.
    assert one(lambda q, k, v: {"y": ops.scaled_dot_product_attention(query=q, key=k, value=v)},
               q=(1, 2, 6, 8), k=(1, 2, 7, 8), v=(1, 2, 7, 9)) == 2 * 42 * (16 + 18 + 5)


def test_open_shapes_have_no_count(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mil.build(lambda x: {"y": x * 2.0}, {"x": mil.spec((None, 4), "fp16")}).save("f.mil")
    code, out, _ = call(capsys, "show", "f.mil", "--no-text")
    assert code == 0 and out.splitlines()[-2].split()[-2:] == ["?", "?"]
    assert out.splitlines()[-1].split()[-2:] == ["0+", "0+"]


def test_flexible_shapes_count_at_their_default(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "f.mil").write_text("""program(1.3) { func main<ios17>(tensor<fp16, [?, 4]> x)
        [FlexibleShapeInformation = tuple<tuple<string, dict<string, tensor<int32, [?]>>>>((
            ("DefaultShapes", {{"x", [6, 4]}})))]
        { tensor<fp16, [?, 4]> y = exp(x = x); } -> (y); }""")
    code, out, _ = call(capsys, "show", "f.mil", "--no-text")
    assert code == 0 and "main, with x[6, 4]:" in out
    assert out.splitlines()[-2].split() == ["exp", "y", "fp16[6,", "4]", "24", "96"]


# ---------------------------------------------------------------- lint

def test_lint_exit_codes_and_forms(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "lint", "gelu.mil", "--target", "m4")
    assert code == 1 and "gelu.mil:3:" in out and "ANE12" in out
    ignored = ["--ignore", "ANE12", "--ignore", "ANE13"]
    code, out, _ = call(capsys, "lint", "gelu.mil", "--target", "m4", *ignored)
    assert code == 0 and "ANE12" not in out
    code, out, _ = call(capsys, "lint", "gelu.mil", "m.mlpackage", "--format", "json")
    found = json.loads(out)
    assert code == 1 and {f["file"] for f in found} <= {"gelu.mil", "m.mlpackage"}
    assert "ANE12" in {f["rule"]["id"] for f in found}
    code, out, _ = call(capsys, "lint", "gelu.mil", "gelu.mil", "--format", "sarif")
    document = json.loads(out)
    assert code == 1 and document["version"] == "2.1.0" and len(document["runs"]) == 2


def test_lint_fixes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "lint", "gelu.mil", "--target", "m4", "--fix", "fixed.mil")
    assert "ANE12" not in out and code == int(" error: " in out)
    assert code == 0, out
    x = np.linspace(-3, 3, 64 * 512).astype(np.float16).reshape(1, 64, 1, 512)
    a, b = (anetorch.load(f).predict({"x": x})["y"].astype(float) for f in ("gelu.mil", "fixed.mil"))
    # Four fp16 roundings after the first, each of at most half an ulp of a value below 2|x|.
    assert np.abs(a - b).max() <= 5 * 2.0**-11 * 6


def test_the_hook_names_a_command_that_exists() -> None:
    text = (Path(__file__).parents[1] / ".pre-commit-hooks.yaml").read_text()
    assert "entry: anetorch lint\n" in text and "- id: anetorch-lint\n" in text


def test_every_project_of_the_evidence_is_named() -> None:
    from anetorch.lint import rules

    page = (Path(__file__).parents[1] / "docs" / "lint.md").read_text()
    listed = set(re.findall(r"^\| (\w\w) \|", page, re.M))
    words = set(re.findall(r"\b(?:[A-Z]{2}|H3)\b", " ".join(r.evidence for r in rules().values())))
    assert words - {"ML"} and words - {"ML"} <= listed


# ---------------------------------------------------------------- bench, compare

def test_bench(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "bench", "m.mlpackage", "--repeat", "7")
    assert code == 0 and out.startswith("main on cpu: median ") and "7 runs" in out
    code, out, _ = call(capsys, "bench", "m.mlpackage", "--repeat", "6", "--json", "--input",
                        "x=x.npy")
    row = json.loads(out)
    assert code == 0 and row["runs"] == 6 and row["min_ms"] <= row["median_ms"] <= row["max_ms"]
    assert row["gflops"] == pytest.approx(row["flops"] / row["median_ms"] * 1e-6)
    assert row["flops"] >= 16384
    code, out, _ = call(capsys, "bench", "m.mlpackage", "--repeat", "2", "--trace", "t.json")
    trace = json.loads(Path("t.json").read_text())
    check_trace(trace)
    steps = [e for e in trace["traceEvents"] if e.get("cat") == "step"]
    assert code == 0 and steps and any("matmul" in e["name"] for e in steps)
    assert "m.mlpackage: main on cpu" in trace["traceEvents"][0]["args"]["name"]
    code, _, err = call(capsys, "bench", "m.mlpackage", "--repeat", "2", "--trace", "no/t.json")
    assert code == 2 and err.count("\n") == 1 and "No such file or directory" in err


def test_compare(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = call(capsys, "compare", "m.mlpackage", "m.mlpackage", "--input", "x=x.npy")
    assert same == (0, "no value of the same name differs\n", "")
    code, out, _ = call(capsys, "compare", "m.mlpackage", "two.mlpackage", "--input", "x=x.npy")
    assert code == 1 and out.startswith("first difference: y[")
    code, out, _ = call(capsys, "compare", "m.mlpackage", "two.mlpackage")
    assert code == 1 and out.startswith("first difference: y[")
