"""predict() has coremltools' meaning: images, classifiers, shapes, functions, defaults, dtypes."""

import json

import numpy as np
import pytest

import anetorch

ct = pytest.importorskip("coremltools", reason="coremltools (pip install '.[oracle]') writes "
                         "the packages these tests read")
torch = pytest.importorskip("torch", reason="torch (pip install '.[oracle]') is the reference")
image = pytest.importorskip("PIL.Image", reason="Pillow (pip install '.[test]') makes images")

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
RNG = np.random.default_rng(20260102)


class Half(torch.nn.Module):
    def forward(self, x):
        return x * 0.5


class Weighted(torch.nn.Module):
    def forward(self, x, z):
        return x + 2 * z


def package(tmp_path, module, inputs, outputs=("y",), target=None, name="m", half=False, **kwargs):
    """The path of a converted module; inputs are coremltools' types."""
    shapes = [kwargs.pop("example", None) or tuple(i.shape.shape) for i in inputs]
    traced = torch.jit.trace(module.eval(), tuple(torch.zeros(s) for s in shapes))
    path = tmp_path / f"{name}.mlpackage"
    ct.convert(
        traced, convert_to="mlprogram", inputs=inputs, skip_model_load=True,
        outputs=[ct.TensorType(name=o) if isinstance(o, str) else o for o in outputs] or None,
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        minimum_deployment_target=target or ct.target.iOS16, **kwargs).save(str(path))
    return path


def array(name, *shape, **kwargs):
    return ct.TensorType(name=name, shape=shape, **kwargs)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


# ------------------------------------------------------------------ images


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_colour_images_in_and_out(layout, tmp_path):
    color = getattr(ct.colorlayout, layout)
    model = anetorch.load(package(
        tmp_path, Half(), [ct.ImageType(name="x", shape=(1, 3, 6, 5), color_layout=color)],
        [ct.ImageType(name="y", color_layout=color)]))
    a = pixels(6, 5, 3)
    y = model.predict({"x": image.fromarray(a)})["y"]
    assert (y.mode, y.size) == ("RGB", (5, 6))
    # Halves lie between two pixel values: to nearest, whichever neighbour.
    assert np.abs(np.asarray(y) - a / 2).max() <= 0.5
    assert model.outputs["y"].kind == "image"


def test_layouts_differ(tmp_path):
    """What the program sees of a BGR image is the reverse of what it sees of an RGB one."""
    a = image.fromarray(pixels(6, 5, 3))
    seen = {}
    for layout in ("RGB", "BGR"):
        color = getattr(ct.colorlayout, layout)
        path = package(tmp_path, Half(), name=layout,
                       inputs=[ct.ImageType(name="x", shape=(1, 3, 6, 5), color_layout=color)])
        seen[layout] = anetorch.load(path).predict({"x": a})["y"]
    np.testing.assert_array_equal(seen["RGB"], np.asarray(a).transpose(2, 0, 1)[None] / 2)
    np.testing.assert_array_equal(seen["BGR"], seen["RGB"][:, ::-1])


def test_scale_and_bias(tmp_path):
    model = anetorch.load(package(tmp_path, Half(), [ct.ImageType(
        name="x", shape=(1, 1, 6, 5), color_layout=ct.colorlayout.GRAYSCALE, scale=2, bias=4)],
        [ct.ImageType(name="y", color_layout=ct.colorlayout.GRAYSCALE)]))
    a = pixels(6, 5)
    y = model.predict({"x": image.fromarray(a)})["y"]
    assert y.mode == "L"
    np.testing.assert_array_equal(np.asarray(y), np.minimum(255, a.astype(int) + 2))
    with pytest.raises(ValueError, match=r"mode L, got RGB \(image.convert\('L'\)\)"):
        model.predict({"x": image.fromarray(pixels(6, 5, 3))})


def test_greyscale_of_halves(tmp_path):
    kind = dict(color_layout=ct.colorlayout.GRAYSCALE_FLOAT16)
    model = anetorch.load(package(
        tmp_path, Half(), [ct.ImageType(name="x", shape=(1, 1, 6, 5), **kind)],
        [ct.ImageType(name="y", **kind)], half=True))
    a = RNG.standard_normal((6, 5)).astype(np.float32)
    y = model.predict({"x": image.fromarray(a)})["y"]
    assert y.mode == "F"
    np.testing.assert_array_equal(np.asarray(y), a.astype(np.float16).astype(np.float32) / 2)


@pytest.mark.parametrize("shape, sizes, wrong, text", [
    (lambda: ct.EnumeratedShapes([(1, 3, 6, 5), (1, 3, 8, 9)], default=(1, 3, 6, 5)),
     [(6, 5), (8, 9)], (6, 9), r"one of \(6, 5\), \(8, 9\)"),
    (lambda: ct.Shape((1, 3, ct.RangeDim(2, 10, 6), ct.RangeDim(3, 12, 5))),
     [(6, 5), (2, 12), (10, 3)], (11, 3), r"2\.\.10x3\.\.12"),
], ids=["enumerated", "range"])
def test_image_sizes(shape, sizes, wrong, text, tmp_path):
    model = anetorch.load(package(tmp_path, Half(), [ct.ImageType(name="x", shape=shape())],
                                  example=(1, 3, 6, 5)))
    for size in sizes:
        a = pixels(*size, 3)
        y = model.predict({"x": image.fromarray(a)})["y"]
        np.testing.assert_array_equal(y, a.transpose(2, 0, 1)[None] / 2)
    with pytest.raises(ValueError, match=text):
        model.predict({"x": image.fromarray(pixels(*wrong, 3))})


# ------------------------------------------------------------------ shapes, dtypes, defaults


def test_enumerated_shapes(tmp_path):
    net = torch.nn.Conv2d(3, 4, 3, padding=1)
    shapes = [(1, 3, 8, 8), (1, 3, 16, 4), (2, 3, 5, 5)]
    model = anetorch.load(package(tmp_path, net, [ct.TensorType(
        name="x", shape=ct.EnumeratedShapes(shapes, default=shapes[1]))], example=shapes[1]))
    assert model.inputs["x"].shape == shapes[1] and set(model.inputs["x"].enumerated) == set(shapes)
    for shape in shapes:
        x = RNG.standard_normal(shape).astype(np.float32)
        with torch.no_grad():
            exact = net.double()(torch.from_numpy(x).double()).numpy()
            scale = torch.nn.functional.conv2d(
                torch.from_numpy(np.abs(x)).double(), net.weight.abs(), net.bias.abs(),
                padding=1).numpy()
        # 27 products and a bias summed in fp32, one rounding of the result.
        assert (np.abs(model.predict({"x": x})["y"] - exact) <= 30 * 2.0**-24 * scale).all()
    with pytest.raises(ValueError, match=r"one of .*\(1, 3, 8, 8\).* got \(1, 3, 8, 4\): MultiArray Shape "
                       r"\(1 x 3 x 8 x 4\) was not in enumerated set of allowed shapes"):
        model.predict({"x": np.zeros((1, 3, 8, 4))})


def test_flexible_shapes_of_a_text(tmp_path):
    """A compiled model says in its text what a package says in its description."""
    kind = ("tuple<tuple<string, dict<string, tensor<int32, [?]>>>, "
            "tuple<string, dict<string, list<tensor<int32, [2]>, ?>>>>")
    (tmp_path / "m.mil").write_text(f"""program(1.3) {{
    func main<ios17>(tensor<fp32, [?, 4]> x) [FlexibleShapeInformation = {kind}((
        ("DefaultShapes", {{{{"x", [2, 4]}}}}), ("RangeDims", {{{{"x", [[2, 8], [4, 4]]}}}})))] {{
        tensor<fp32, [?, 4]> y = relu(x = x);
    }} -> (y); }}""")
    model = anetorch.load(tmp_path / "m.mil")
    feature = model.inputs["x"]
    assert feature.shape == (2, 4) and feature.ranges == ((2, 8), (4, 4))
    assert model.predict({"x": np.ones((8, 4))})["y"].shape == (8, 4)
    for n in (1, 9):
        with pytest.raises(ValueError, match=rf"expected shape 2..8x4, got \({n}, 4\): Size "
                           rf"\({n}\) of dimension \(0\) is not in allowed range \(2..8\)"):
            model.predict({"x": np.ones((n, 4))})
    assert model.at_default_shapes().function.outputs[0].shape == (2, 4)


def compiled(tmp_path, text, metadata):
    folder = tmp_path / "m.mlmodelc"
    folder.mkdir(exist_ok=True)
    (folder / "model.mil").write_text(text)
    (folder / "metadata.json").write_text(metadata if isinstance(metadata, str)
                                          else json.dumps([metadata]))
    return folder


PICTURE = """program(1.3) { func main<ios17>(tensor<fp32, [1, 3, ?, ?]> image, tensor<fp32, [?, 4]> x) {
    tensor<fp32, [1, 3, ?, ?]> y = mul(x = image, y = fp32(0x1p-1));
    tensor<fp32, [?, 4]> z = relu(x = x); } -> (y, z); }"""
SCHEMA = {      # as Core ML's compiler writes it: strings, widths before heights
    "inputSchema": [
        {"name": "image", "type": "Image", "width": "6", "height": "4", "colorspace": "BGR",
         "isColor": "1", "isOptional": "0", "hasSizeFlexibility": "1",
         "sizeRange": "[[5, 8], [3, 4]]", "shortDescription": "a picture"},
        {"name": "x", "type": "MultiArray", "dataType": "Float32", "shape": "[2, 4]",
         "isOptional": "1", "hasShapeFlexibility": "1", "enumeratedShapes": "[[2, 4], [5, 4]]"}],
    "outputSchema": [
        {"name": "y", "type": "Image", "width": "6", "height": "4", "colorspace": "BGR",
         "isOptional": "0"},
        {"name": "z", "type": "MultiArray", "dataType": "Float32", "shape": "[]"}],
    "stateSchema": [], "specificationVersion": 8, "author": "me",
    "userDefinedMetadata": {"k": "v"}, "modelType": {"name": "MLModelType_mlProgram"},
}


def test_a_compiled_model_tells_its_interface(tmp_path):
    model = anetorch.load(compiled(tmp_path, PICTURE, SCHEMA))
    picture, x = model.inputs["image"], model.inputs["x"]
    assert picture.kind == "image" and picture.shape == (4, 6) and picture.doc == "a picture"
    assert picture.ranges == ((3, 4), (5, 8))           # height before width, as ours are
    assert x.enumerated == ((2, 4), (5, 4)) and x.optional
    assert model.metadata["author"] == "me" and model.metadata["user"] == {"k": "v"}
    a = pixels(4, 7, 3) & 0xFE
    out = model.predict({"image": image.fromarray(a)})
    np.testing.assert_array_equal(np.asarray(out["y"]), a // 2)
    assert out["z"].shape == (2, 4) and not out["z"].any()
    with pytest.raises(ValueError, match=r"height x width 3..4x5..8, got \(5, 7\)"):
        model.predict({"image": image.fromarray(pixels(5, 7, 3))})
    with pytest.raises(ValueError, match="enumerated set"):
        model.predict({"image": image.fromarray(a), "x": np.zeros((3, 4))})


@pytest.mark.parametrize(("change", "text"), [
    ("[{", "malformed metadata"), ("[]", "malformed metadata"), ("[" * 9999, "malformed metadata"),
    ("7", "malformed metadata"), ({"inputSchema": []}, r"describes the inputs \[\], main has"),
    ({"inputSchema": [{"name": "x"}]}, "no 'type'"),
    ({"inputSchema": [{"name": "x", "type": "Cube"}]}, "no 'Cube'"),
    ({"inputSchema": [{**SCHEMA["inputSchema"][1], "shape": "[[2, 4]]"}]}, "no list of sizes"),
    ({"functions": [{"name": "other"}]}, "no function 'other'"),
])
def test_metadata_of_a_compiled_model_is_not_trusted(change, text, tmp_path):
    folder = compiled(tmp_path, PICTURE, change if isinstance(change, str) else SCHEMA | change)
    with pytest.raises(anetorch.MILError, match=f"metadata.json: .*{text}"):
        anetorch.load(folder)


def test_optional_inputs_have_defaults(tmp_path):
    model = anetorch.load(package(tmp_path, Weighted(), [
        array("x", 2, 3), array("z", 2, 3, default_value=np.full((2, 3), 2.5, np.float32))]))
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    np.testing.assert_array_equal(model.predict({"x": x})["y"], x + np.float32(5))
    np.testing.assert_array_equal(model.predict({"x": x, "z": x})["y"], x + 2 * x)
    assert model.inputs["z"].optional and model.inputs["z"].default == 2.5
    with pytest.raises(ValueError, match=r"missing \['x'\]"):
        model.predict({"z": x})


@pytest.mark.parametrize("given", [
    np.float64([1, -2.5, 3]), np.float16([1, -2.5, 3]), np.int64([1, -2, 3]), np.uint8([1, 2, 3]),
    np.array([True, False, True]), [1, -2.5, 3], (1, 2, 3), np.float64([1, -2.5, 3])[::-1],
], ids=["float64", "float16", "int64", "uint8", "bool", "list", "tuple", "reversed"])
def test_any_number_is_taken(given, tmp_path):
    model = anetorch.load(package(tmp_path, Half(), [array("x", 3)]))
    y = model.predict({"x": given})["y"]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, np.asarray(given, np.float32) / 2)


def test_a_tensor_of_pytorch_is_taken(tmp_path):
    model = anetorch.load(package(tmp_path, Half(), [array("x", 3)]))
    for grad in (False, True):
        x = torch.tensor([1.0, 2.0, 4.0], requires_grad=grad)
        np.testing.assert_array_equal(model.predict({"x": x})["y"], [0.5, 1, 2])


def test_integers_are_cut_as_a_cast_does(tmp_path):
    class Widen(torch.nn.Module):
        def forward(self, x):
            return x.float() * 2

    model = anetorch.load(package(tmp_path, Widen(), [array("x", 3, dtype=np.int32)]))
    np.testing.assert_array_equal(model.predict({"x": np.float64([1.9, -1.9, 7])})["y"], [2, -2, 14])


def test_half_precision_at_the_boundary(tmp_path):
    """Inputs are rounded to the declared dtype, outputs have the declared one."""
    model = anetorch.load(package(
        tmp_path, Half(), [array("x", 4, dtype=np.float16)],
        [ct.TensorType(name="y", dtype=np.float16)], half=True))
    x = np.float64([1 / 3, 2049, 65519, 1e-8])
    y = model.predict({"x": x})["y"]
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, x.astype(np.float16) * np.float16(0.5))


def test_a_scalar_comes_as_one_element(tmp_path):
    class Total(torch.nn.Module):
        def forward(self, x):
            return x.sum()

    y = anetorch.load(package(tmp_path, Total(), [array("x", 3)])).predict({"x": [1, 2, 4]})["y"]
    assert y.shape in ((), (1,)) and float(y.reshape(())) == 7


# ------------------------------------------------------------------ classifiers, functions


@pytest.mark.parametrize("classes", [["cat", "dog", "cow"], [30, 10, 20]], ids=["names", "numbers"])
def test_classifier(classes, tmp_path):
    class Softmax(torch.nn.Module):
        def forward(self, x):
            return torch.softmax(x, 1)

    model = anetorch.load(package(
        tmp_path, Softmax(), [array("x", 1, 3)], outputs=(),
        classifier_config=ct.ClassifierConfig(classes, predicted_feature_name="best")))
    out = model.predict({"x": [[0, 2, 1]]})
    assert out["best"] == classes[1] and type(out["best"]) is type(classes[1])
    (table,) = (v for v in out.values() if isinstance(v, dict))
    assert [*table] == classes and {type(k) for k in table} == {type(classes[0])}
    e = np.exp([0.0, 2.0, 1.0])
    # Three exponentials and a quotient in fp32.
    np.testing.assert_allclose([*table.values()], e / e.sum(), rtol=8 * 2.0**-24)
    batch = model.predict([{"x": [[9, 0, 0]]}, {"x": [[0, 0, 9]]}])
    assert [b["best"] for b in batch] == [classes[0], classes[2]]


@pytest.fixture
def functions(tmp_path):
    """Functions "twice" and "thrice" (the default) over one weight."""
    descriptor = ct.utils.MultiFunctionDescriptor()
    weight = torch.from_numpy(RNG.standard_normal((40, 3)).astype(np.float32))
    for name, factor in (("twice", 2.0), ("thrice", 3.0)):
        net = torch.nn.Linear(3, 40, bias=False)
        with torch.no_grad():
            net.weight.copy_(weight * factor)
        package(tmp_path, net, [array("x", 2, 3)], target=ct.target.iOS18, name=name)
        descriptor.add_function(str(tmp_path / f"{name}.mlpackage"), "main", name)
    descriptor.default_function_name = "thrice"
    path = str(tmp_path / "functions.mlpackage")
    ct.utils.save_multifunction(descriptor, path)
    return path, weight.numpy()


def test_several_functions(functions):
    path, weight = functions
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    for name, factor in (("twice", 2), ("thrice", 3), (None, 3)):
        model = anetorch.load(path, function=name)
        assert set(model.functions) == {"twice", "thrice"}
        w = (weight * np.float32(factor)).astype(np.float64)
        exact, scale = x @ w.T, np.abs(x) @ np.abs(w.T)
        assert (np.abs(model.predict({"x": x})["y"] - exact) <= 5 * 2.0**-24 * scale).all()
    with pytest.raises(ValueError, match=r"no function 'main'; the model has"):
        anetorch.load(path, function="main")


def test_a_batch_with_states_is_refused(tmp_path):
    model = anetorch.load(package(tmp_path, Half(), [array("x", 3)]))
    with pytest.raises(ValueError, match="a state serves one prediction"):
        model.predict([{"x": [1, 2, 3]}], model.make_state())
    assert model.predict([]) == []


def test_a_state_of_another_model_is_refused(tmp_path):
    def read(s):
        return {"y": anetorch.mil.ops.read_state(input=s)}

    one, two = (anetorch.coreml.Model(anetorch.mil.build(
        lambda **s: read(*s.values()), {name: anetorch.mil.state((3,), "fp16")}))
        for name in ("a", "b"))
    assert not one.predict({}, one.make_state())["y"].any()
    for wrong in (two.make_state(), {"a": np.zeros(3, np.float16)}):
        with pytest.raises(TypeError, match=r"expected a state of this model \(\['a'\]\)"):
            one.predict({}, wrong)
