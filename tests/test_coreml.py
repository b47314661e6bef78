"""Core ML packages: loading, predicting, writing, and hostile specifications.

coremltools builds and writes the packages; NumPy or PyTorch say what is right.
"""

import json
import os
import struct

import numpy as np
import pytest

import anetorch
from anetorch import _core

ct = pytest.importorskip("coremltools", reason="coremltools (pip install '.[oracle]') writes "
                         "the packages these tests read")
from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402

pytestmark = pytest.mark.oracle
RNG = np.random.default_rng(20260101)


def convert(program, target=None, **kwargs):
    kwargs.setdefault("compute_precision", ct.precision.FLOAT32)
    return ct.convert(program, convert_to="mlprogram",
                      minimum_deployment_target=target or ct.target.iOS15, **kwargs)


@pytest.fixture
def linear_package(tmp_path):
    weight = RNG.standard_normal((5, 7)).astype(np.float32)
    bias = RNG.standard_normal(5).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=(3, 7))])
    def program(x):
        return mb.relu(x=mb.linear(x=x, weight=weight, bias=bias), name="y")

    path = tmp_path / "linear.mlpackage"
    convert(program).save(str(path))
    return path, weight, bias


def test_predict_equals_numpy(linear_package):
    path, weight, bias = linear_package
    model = anetorch.load(path)
    x = RNG.standard_normal((3, 7)).astype(np.float32)
    (y,) = model.predict({"x": x}).values()
    exact = np.maximum(x.astype(np.float64) @ weight.T.astype(np.float64) + bias, 0)
    scale = np.abs(x).astype(np.float64) @ np.abs(weight.T) + np.abs(bias)
    # 7 products and a bias summed in fp32, one rounding of the result.
    assert (np.abs(y - exact) <= 10 * 2.0**-24 * scale).all()
    assert y.dtype == np.float32
    assert "linear" in repr(model) and "x: float32[3, 7]" in repr(model)


def test_batch_is_a_list(linear_package):
    path, *_ = linear_package
    model = anetorch.load(path)
    xs = [RNG.standard_normal((3, 7)).astype(np.float32) for _ in range(3)]
    batch = model.predict([{"x": x} for x in xs])
    for x, one in zip(xs, batch):
        np.testing.assert_array_equal(one["y"], model.predict({"x": x})["y"])


@pytest.mark.parametrize("data, text", [
    ({}, "missing ['x']"),
    ({"x": np.zeros((3, 7)), "z": 1}, "unknown ['z']"),
    ({"x": np.zeros((7, 3))}, "expected shape (3, 7), got (7, 3)"),
    ({"x": np.zeros((3, 7), complex)}, "complex"),
    ({"x": "text"}, "'x': expected numbers"),
    ({"x": None}, "'x': expected numbers"),
    ({"x": [[1, 2], [3]]}, "'x': expected an array of numbers"),
    ([{"x": np.zeros((3, 7))}, {"x": np.zeros(3)}], "(3,) (item 1 of the batch)"),
])
def test_bad_input_names_the_input(linear_package, data, text):
    model = anetorch.load(linear_package[0])
    with pytest.raises((ValueError, TypeError)) as error:
        model.predict(data)
    assert text in str(error.value)


def test_not_a_dict(linear_package):
    with pytest.raises(TypeError, match="expected a dict or a list of dicts"):
        anetorch.load(linear_package[0]).predict(3)


def test_save_and_coremltools_reads_back(linear_package, tmp_path):
    path, *_ = linear_package
    model = anetorch.load(path)
    copy = tmp_path / "copy.mlpackage"
    model.save(copy)
    assert ct.utils.load_spec(str(copy)).description == ct.utils.load_spec(str(path)).description
    again = anetorch.load(copy)
    assert again.program.text() == model.program.text() or again.program == model.program
    x = RNG.standard_normal((3, 7)).astype(np.float32)
    np.testing.assert_array_equal(again.predict({"x": x})["y"], model.predict({"x": x})["y"])
    # coremltools loads the graph itself, weights included.
    from coremltools.converters.mil.frontend.milproto.load import load as milproto_load
    spec = ct.utils.load_spec(str(copy))
    loaded = milproto_load(spec, spec.specificationVersion,
                           str(copy / "Data/com.apple.CoreML/weights"))
    assert "main" in loaded.functions


def test_saving_twice_gives_equal_bytes(linear_package, tmp_path):
    model = anetorch.load(linear_package[0])
    model.save(tmp_path / "a.mlpackage")
    model.save(tmp_path / "b.mlpackage")
    for root, _, files in os.walk(tmp_path / "a.mlpackage"):
        for f in files:
            a = os.path.join(root, f)
            assert open(a, "rb").read() == open(a.replace("a.mlpackage", "b.mlpackage"),
                                                "rb").read()


@pytest.mark.parametrize("named", [False, True])
def test_a_built_program_of_compressed_weights_is_saved(named, tmp_path):
    """Their bytes are an attribute, also where the program has a name for them."""
    from coremltools.converters.mil.frontend.milproto.load import load as milproto_load
    o = anetorch.mil.ops
    data = RNG.integers(-100, 100, (24, 16)).astype(np.int8)
    scale = (2.0 ** RNG.integers(-8, -4, 24)).astype(np.float32)

    def body(x):
        held = [anetorch.mil.const(a) for a in (data, scale)] if named else [data, scale]
        w = o.constexpr_affine_dequantize(quantized_data=held[0], scale=held[1], zero_point=np.int8(3),
                                          axis=np.int32(0))
        return {"y": o.linear(x=x, weight=w, bias=scale)}

    program = anetorch.mil.build(body, {"x": anetorch.mil.spec((5, 16), "fp32")})
    if not named:
        assert "[quantized_data = " in str(program)
    path = tmp_path / "small.mlpackage"
    program.save(path)
    spec = ct.utils.load_spec(str(path))
    loaded = milproto_load(spec, spec.specificationVersion, str(path / "Data/com.apple.CoreML/weights"))
    (op,) = loaded.functions["main"].find_ops(op_type="constexpr_affine_dequantize")
    np.testing.assert_array_equal(op.quantized_data.val, data)
    x = RNG.integers(-3, 4, (5, 16)).astype(np.float32)
    want = x @ ((data.astype(np.float32) - 3) * scale[:, None]).T + scale     # whole multiples of 2**-8
    np.testing.assert_array_equal(anetorch.load(path).predict({"x": x})["y"], want)


def test_save_needs_the_suffix(linear_package, tmp_path):
    with pytest.raises(ValueError, match="must end in .mlpackage"):
        anetorch.load(linear_package[0]).save(tmp_path / "x.mlmodel")


def test_half_precision_and_cast_at_the_boundary(tmp_path):
    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 9), dtype=types.fp16)],
                opset_version=ct.target.iOS16)
    def program(x):
        return mb.mul(x=x, y=np.float16(1.5), name="y")

    path = tmp_path / "half.mlpackage"
    convert(program, ct.target.iOS16, compute_precision=ct.precision.FLOAT16).save(str(path))
    model = anetorch.load(path)
    x = RNG.standard_normal((2, 9))
    y = model.predict({"x": x})["y"]
    np.testing.assert_array_equal(y, (x.astype(np.float16) * np.float16(1.5)).astype(y.dtype))


def test_flexible_shapes(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU()).eval()
    traced = torch.jit.trace(net, torch.zeros(1, 3, 8, 8))
    shape = ct.Shape((1, 3, ct.RangeDim(4, 16, default=8), ct.RangeDim(4, 16, default=8)))
    path = tmp_path / "flex.mlpackage"
    convert(traced, inputs=[ct.TensorType(name="x", shape=shape)],
            outputs=[ct.TensorType(name="y")]).save(str(path))
    model = anetorch.load(path)
    for h, w in ((8, 8), (5, 16)):
        x = RNG.standard_normal((1, 3, h, w)).astype(np.float32)
        with torch.no_grad():
            exact = net.double()(torch.from_numpy(x).double()).numpy()
        net.float()
        np.testing.assert_allclose(model.predict({"x": x})["y"], exact, rtol=0,
                                   atol=40 * 2.0**-24 * np.abs(x).max() * 27)
    with pytest.raises(ValueError, match=r"expected shape 1x3x4..16x4..16"):
        model.predict({"x": np.zeros((1, 3, 3, 8), np.float32)})


def test_image_input(tmp_path):
    image = pytest.importorskip("PIL.Image")

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 6, 5))])
    def program(x):
        return mb.add(x=x, y=np.float32(0), name="y")

    path = tmp_path / "image.mlpackage"
    convert(program, inputs=[ct.ImageType(name="x", shape=(1, 3, 6, 5), scale=0.5,
                                          bias=[1.0, 2.0, 3.0])]).save(str(path))
    model = anetorch.load(path)
    pixels = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    y = model.predict({"x": image.fromarray(pixels)})["y"]
    expected = pixels.transpose(2, 0, 1)[None] * 0.5 + np.reshape([1.0, 2.0, 3.0], (1, 3, 1, 1))
    np.testing.assert_array_equal(y, expected.astype(np.float32))
    with pytest.raises(ValueError, match="height x width"):
        model.predict({"x": image.fromarray(pixels[:5])})
    with pytest.raises(TypeError, match="pass a PIL image"):
        model.predict({"x": pixels})


def test_classifier(tmp_path):
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3))])
    def program(x):
        return mb.softmax(x=x, axis=1, name="p")

    path = tmp_path / "classifier.mlpackage"
    convert(program, classifier_config=ct.ClassifierConfig(["cat", "dog", "cow"])).save(str(path))
    model = anetorch.load(path)
    out = model.predict({"x": np.float32([[0.0, 2.0, 1.0]])})
    assert out["classLabel"] == "dog"
    (table,) = (v for v in out.values() if isinstance(v, dict))
    e = np.exp([0.0, 2.0, 1.0])
    assert table.keys() == {"cat", "dog", "cow"}
    np.testing.assert_allclose([table["cat"], table["dog"], table["cow"]], e / e.sum(),
                               rtol=1e-6)


def test_state(tmp_path):
    torch = pytest.importorskip("torch")

    class Accumulator(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(4, dtype=torch.float16))

        def forward(self, x):
            self.total.add_(x)
            return self.total * 2

    traced = torch.jit.trace(Accumulator().eval(), torch.zeros(4))
    model = ct.convert(
        traced, inputs=[ct.TensorType(name="x", shape=(4,))], outputs=[ct.TensorType(name="y")],
        states=[ct.StateType(wrapped_type=ct.TensorType(shape=(4,)), name="total")],
        minimum_deployment_target=ct.target.iOS18)
    path = tmp_path / "state.mlpackage"
    model.save(str(path))
    ours = anetorch.load(path)
    x = np.float32([1, 2, 3, 4])
    with pytest.raises(ValueError, match="make_state"):
        ours.predict({"x": x})
    a, b = ours.make_state(), ours.make_state()
    np.testing.assert_array_equal(ours.predict({"x": x}, a)["y"], 2 * x)
    np.testing.assert_array_equal(ours.predict({"x": x}, a)["y"], 4 * x)
    np.testing.assert_array_equal(ours.predict({"x": x}, b)["y"], 2 * x)
    np.testing.assert_array_equal(a.read_state("total"), 2 * x)


# ------------------------------------------------------------------ errors and hostile input


def spec_bytes(path):
    return (path / "Data/com.apple.CoreML/model.mlmodel").read_bytes()


def test_old_neural_network_gets_one_clear_error(tmp_path):
    from coremltools.models.neural_network import NeuralNetworkBuilder
    from coremltools.models import datatypes

    builder = NeuralNetworkBuilder([("x", datatypes.Array(3))], [("y", None)])
    builder.add_activation("act", "RELU", "x", "y")
    path = tmp_path / "old.mlmodel"
    path.write_bytes(builder.spec.SerializeToString())
    with pytest.raises(NotImplementedError, match="neural network.*convert it again"):
        anetorch.load(path)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        anetorch.load(tmp_path / "none.mlpackage")
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(FileNotFoundError, match="Manifest.json"):
        anetorch.load(tmp_path / "empty.mlpackage")
    (tmp_path / "text.mlmodel").write_text("hello, this is not a model")
    with pytest.raises(SyntaxError):
        anetorch.load(tmp_path / "text.mlmodel")
    manifest = {"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../../x"}}}
    (tmp_path / "empty.mlpackage/Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises((SyntaxError, FileNotFoundError)):
        anetorch.load(tmp_path / "empty.mlpackage")


def test_missing_weights_name_the_file(linear_package):
    path, *_ = linear_package
    (path / "Data/com.apple.CoreML/weights/weight.bin").unlink()
    with pytest.raises(OSError, match="weight.bin"):
        anetorch.load(path)


def test_every_truncation_is_an_error(linear_package):
    data = spec_bytes(linear_package[0])
    weights = str(linear_package[0] / "Data/com.apple.CoreML")
    _core.coreml_read(data, weights=weights)
    for n in range(0, len(data), max(1, len(data) // 300)):
        with pytest.raises((SyntaxError, ValueError, NotImplementedError, KeyError, TypeError)):
            _core.coreml_read(data[:n], weights=weights)


def test_mutations_never_crash(linear_package):
    data = spec_bytes(linear_package[0])
    weights = str(linear_package[0] / "Data/com.apple.CoreML")
    rng = np.random.default_rng(7)
    survived = 0
    for _ in range(1500):
        a = bytearray(data)
        for at in rng.integers(0, len(a), rng.integers(1, 6)):
            a[at] = rng.integers(0, 256)
        try:
            _core.coreml_read(bytes(a), weights=weights)
            survived += 1
        except (SyntaxError, ValueError, NotImplementedError, KeyError, TypeError, OSError,
                MemoryError):
            pass
    assert 0 < survived < 1500          # some bytes are names, some are structure


def test_deep_nesting_is_refused():
    def message(field, inner):
        n, size = len(inner), b""
        while True:
            size += bytes([n & 0x7F | (0x80 if n > 0x7F else 0)])
            n >>= 7
            if not n:
                break
        tag, head = field << 3 | 2, b""
        while True:
            head += bytes([tag & 0x7F | (0x80 if tag > 0x7F else 0)])
            tag >>= 7
            if not tag:
                break
        return head + size + inner

    inner = b""
    for _ in range(300):
        inner = message(2, message(1, inner))      # list type of list type of ...
    value = message(2, inner)
    entry = message(4, message(1, b"k") + message(2, value))
    model = b"\x08\x09" + message(502, entry)
    with pytest.raises(SyntaxError, match="nest deeper"):
        _core.coreml_read(model)


def test_huge_length_is_refused():
    with pytest.raises(SyntaxError, match="claims"):
        _core.coreml_read(b"\x08\x09\x12\xff\xff\xff\xff\x0f")
    with pytest.raises(SyntaxError, match="no model"):
        _core.coreml_read(struct.pack("<B", 8) + b"\x09")
