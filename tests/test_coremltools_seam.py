"""anetorch.coreml.install(): coremltools' own MLModel predicts on this machine."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ct = pytest.importorskip("coremltools", reason="the seam is into coremltools "
                         "(pip install '.[oracle]')")
from coremltools.converters.mil import Builder as mb  # noqa: E402

import anetorch.coreml  # noqa: E402

pytestmark = pytest.mark.oracle


@pytest.fixture
def installed():
    anetorch.coreml.install()
    yield
    anetorch.coreml.uninstall()


def small():
    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 3))])
    def program(x):
        return mb.add(x=x, y=np.float32(1), name="y")

    return ct.convert(program, convert_to="mlprogram", compute_precision=ct.precision.FLOAT32,
                      minimum_deployment_target=ct.target.iOS16)


def test_predict_runs_only_while_installed(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = str(tmp_path / "m.mlpackage")
    small().save(path)
    with pytest.raises(Exception, match="Core ?ML.framework|only supported on macOS"):
        ct.models.MLModel(path).predict({"x": x})
    anetorch.coreml.install()
    try:
        np.testing.assert_array_equal(ct.models.MLModel(path).predict({"x": x})["y"], x + 1)
    finally:
        anetorch.coreml.uninstall()
    with pytest.raises(Exception, match="Core ?ML.framework|only supported on macOS"):
        ct.models.MLModel(path).predict({"x": x})


def test_converted_model_predicts_at_once(installed):
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(small().predict({"x": x})["y"], x + 1)


def test_compiled_model(installed, tmp_path):
    model = small()
    compiled = ct.models.CompiledMLModel(model.get_compiled_model_path())
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(compiled.predict({"x": x})["y"], x + 1)


def test_a_compiled_model_has_a_text(installed, tmp_path):
    """Core ML's compiled models do, and scripts look into it; what it names is beside it."""
    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 30))])
    def program(x):
        return mb.linear(x=x, weight=np.ones((30, 30), np.float32), name="y")

    model = ct.convert(program, convert_to="mlprogram", compute_precision=ct.precision.FLOAT32,
                       minimum_deployment_target=ct.target.iOS18)
    folder = Path(model.get_compiled_model_path())
    text = (folder / "model.mil").read_text()
    assert 'BLOBFILE(path = string("@model_path/weights/weight.bin"), offset = uint64(64))' in text
    x = np.eye(2, 30, dtype=np.float32)
    for path in (folder, folder / "model.mil"):
        np.testing.assert_array_equal(anetorch.load(path).predict({"x": x})["y"],
                                      np.ones((2, 30)))
    # A copy is whole: compile_model moves the folder to where it is asked for.
    shutil.move(folder, tmp_path / "kept.mlmodelc")
    assert anetorch.load(tmp_path / "kept.mlmodelc" / "model.mil").predict({"x": x})["y"].any()


def test_install_twice_uninstall_once(installed):
    anetorch.coreml.install()
    anetorch.coreml.uninstall()
    from coremltools.models import model as module
    assert module._MLModelProxy is None


# A script as coremltools' guide has them; not a word of it is about anetorch.
SCRIPT = '''
import numpy as np, torch, coremltools as ct

class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(4, dtype=torch.float16))
    def forward(self, x):
        self.total.add_(x)
        return self.total * 2

traced = torch.jit.trace(Counter().eval(), torch.zeros(4))
model = ct.convert(
    traced, inputs=[ct.TensorType(name="x", shape=(4,))], outputs=[ct.TensorType(name="y")],
    states=[ct.StateType(wrapped_type=ct.TensorType(shape=(4,), dtype=np.float16), name="total")],
    minimum_deployment_target=ct.target.iOS18)
x = np.float32([1, 2, 3, 4])
state = model.make_state()
for n in (1, 2, 3):
    np.testing.assert_array_equal(model.predict({"x": x}, state)["y"], 2 * n * x)
np.testing.assert_array_equal(state.read_state("total"), 3 * x)
state.write_state("total", np.zeros(4, np.float16))
np.testing.assert_array_equal(model.predict({"x": x}, state)["y"], 2 * x)
np.testing.assert_array_equal(model.predict({"x": x})["y"], 2 * x)      # a state of its own

model.save("counter.mlpackage")
again = ct.models.MLModel("counter.mlpackage", compute_units=ct.ComputeUnit.CPU_ONLY)
np.testing.assert_array_equal(again.predict({"x": x}, again.make_state())["y"], 2 * x)
compiled = ct.models.CompiledMLModel(again.get_compiled_model_path())
state = compiled.make_state()
compiled.predict({"x": x}, state=state)
np.testing.assert_array_equal(compiled.predict({"x": x}, state=state)["y"], 4 * x)

path = ct.utils.compile_model("counter.mlpackage", "kept.mlmodelc")
assert path == "kept.mlmodelc"
ct.models.CompiledMLModel(path).predict({"x": x})
try:
    again.predict({"z": x})
except KeyError as e:
    assert "z" in str(e)
else:
    raise SystemExit("an unknown input was taken")
print("done")
'''


def test_an_unchanged_script(tmp_path):
    """As `python -c "import anetorch.coreml; install(); runpy..."`: the way of the docs."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import runpy, anetorch.coreml; "
         "anetorch.coreml.install(); runpy.run_path('script.py', run_name='__main__')"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "done"


def test_compiled_from_a_specification(installed, tmp_path):
    path = ct.utils.compile_model(small().get_spec())
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(ct.models.CompiledMLModel(path).predict({"x": x})["y"], x + 1)


def test_assets(installed, tmp_path):
    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 30))])
    def program(x):
        return mb.linear(x=x, weight=np.arange(900, dtype=np.float32).reshape(30, 30), name="y")

    model = ct.convert(program, convert_to="mlprogram", compute_precision=ct.precision.FLOAT32,
                       minimum_deployment_target=ct.target.iOS16)
    model.save(str(tmp_path / "m.mlpackage"))
    x = np.eye(2, 30, dtype=np.float32)
    expected = np.arange(900, dtype=np.float32).reshape(30, 30).T[:2]
    weights = (tmp_path / "m.mlpackage/Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    spec = model.get_spec().SerializeToString()
    asset = ct.models.model.MLModelAsset
    for made in (asset.from_memory(spec, {"weights/weight.bin": weights}),
                 asset.from_path(model.get_compiled_model_path())):
        loaded = ct.models.CompiledMLModel.from_asset(made)
        np.testing.assert_array_equal(loaded.predict({"x": x})["y"], expected)
        again = ct.models.CompiledMLModel(loaded._proxy.get_compiled_model_path())
        np.testing.assert_array_equal(again.predict({"x": x})["y"], expected)
    with pytest.raises(RuntimeError, match="leaves the model's folder"):
        asset.from_memory(spec, {"../weight.bin": weights})


def test_a_batch_and_its_time(installed):
    model = small()
    assert model.last_predict_duration_in_nano_seconds is None
    assert model.load_duration_in_nano_seconds > 0
    xs = [np.full((2, 3), i, np.float32) for i in range(3)]
    for x, out in zip(xs, model.predict([{"x": x} for x in xs])):
        np.testing.assert_array_equal(out["y"], x + 1)
    assert model.last_predict_duration_in_nano_seconds > 0


def test_functions_of_a_model(installed, tmp_path):
    path = str(tmp_path / "one.mlpackage")
    small().save(path)
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name in ("a", "b"):
        descriptor.add_function(path, "main", name)
    descriptor.default_function_name = "b"
    both = str(tmp_path / "both.mlpackage")
    ct.utils.save_multifunction(descriptor, both)
    x = np.ones((2, 3), np.float32)
    for name in ("a", "b"):
        model = ct.models.MLModel(both, function_name=name)
        np.testing.assert_array_equal(model.predict({"x": x})["y"], x + 1)
        compiled = ct.models.CompiledMLModel(model.get_compiled_model_path(), function_name=name)
        np.testing.assert_array_equal(compiled.predict({"x": x})["y"], x + 1)


def test_devices(installed):
    from coremltools.models.compute_device import MLComputeDevice, MLCPUComputeDevice

    for found in (MLComputeDevice.get_all_compute_devices(),
                  ct.models.MLModel.get_available_compute_devices()):
        assert [type(d) for d in found] == [MLCPUComputeDevice]


def test_structure(installed):
    from coremltools.models.compute_plan import MLModelStructure

    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 3)), mb.TensorSpec(shape=(1,))])
    def program(x, p):
        both = mb.concat(values=[x, x], axis=0, name="both")
        positive = mb.squeeze(x=mb.greater(x=p, y=np.float32(0)), name="positive")
        return mb.cond(pred=positive, _true_fn=lambda: mb.exp(x=both, name="e"),
                       _false_fn=lambda: mb.relu(x=both, name="r"), name="y")

    model = ct.convert(program, convert_to="mlprogram", compute_precision=ct.precision.FLOAT32)
    found = MLModelStructure.load_from_path(model.get_compiled_model_path())
    assert found.neuralnetwork is None and found.pipeline is None
    main = found.program.functions["main"]
    assert [v.name for v in main.inputs] == ["x", "p"]
    assert main.block.output_names == ["y"]
    ops = {op.operator_name: op for op in main.block.operations}
    assert [b.name for b in ops["concat"].inputs["values"].bindings] == ["x", "x"]
    assert [v.name for v in ops["cond"].outputs] == ["y"]
    for inner, kind in zip(ops["cond"].blocks, ("exp", "relu")):
        assert [op.operator_name for op in inner.operations] == [kind]
        assert inner.output_names == [inner.operations[0].outputs[0].name]
    # An argument is a name, or a constant that has none.
    for b in (b for op in ops.values() for a in op.inputs.values() for b in a.bindings):
        assert (b.name is None) == (b.value is not None)


def plan_of(program):
    from coremltools.models.compute_plan import MLComputePlan

    model = ct.convert(program, convert_to="mlprogram", compute_precision=ct.precision.FLOAT32)
    plan = MLComputePlan.load_from_path(model.get_compiled_model_path(),
                                        compute_units=ct.ComputeUnit.CPU_AND_NE)
    return plan, plan.model_structure.program.functions["main"].block.operations


def test_compute_plan(installed):
    from coremltools.models.compute_device import MLCPUComputeDevice

    @mb.program(input_specs=[mb.TensorSpec(shape=(256, 256))])
    def program(x):
        y = mb.matmul(x=x, y=x, name="heavy")
        y = mb.add(x=y, y=y, name="light")
        return mb.add(x=y, y=x, name="three")

    plan, ops = plan_of(program)
    weights = {}
    for op in ops:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
        cost = plan.get_estimated_cost_for_mlprogram_operation(op)
        if op.operator_name == "const":
            assert usage is None and cost is None
            continue
        assert isinstance(usage.preferred_compute_device, MLCPUComputeDevice)
        assert len(usage.supported_compute_devices) == 1
        weights[op.outputs[0].name] = cost.weight
    assert sum(weights.values()) == pytest.approx(1)
    # 2*256^3 FLOPs at 16 to a byte against two and three matrices moved.
    assert weights["heavy"] / weights["light"] == pytest.approx(2 * 256**3 / 16 / (2 * 4 * 256**2))
    assert weights["three"] / weights["light"] == pytest.approx(3 / 2)
    other, _ = plan_of(program)
    assert other.get_estimated_cost_for_mlprogram_operation(ops[-1]) is None


def test_compute_plan_of_flexible_shapes(installed):
    """Weighed at the default shapes."""
    from coremltools.converters.mil.mil import get_new_symbol

    @mb.program(input_specs=[mb.TensorSpec(shape=(2, get_new_symbol()))])
    def program(x):
        y = mb.add(x=mb.exp(x=x, name="e"), y=x, name="y")
        return mb.non_zero(x=y, name="n")

    plan, ops = plan_of(program)
    weights = {}
    for op in ops:
        if op.operator_name == "const":
            continue
        assert plan.get_compute_device_usage_for_mlprogram_operation(op) is not None
        cost = plan.get_estimated_cost_for_mlprogram_operation(op)
        weights[op.operator_name] = cost and cost.weight
    assert weights == {"exp": pytest.approx(2 / 5), "add": pytest.approx(3 / 5), "non_zero": None}


def test_uninstall_restores_everything():
    from coremltools import _deps
    from coremltools.models import _compiled_model, compute_device, compute_plan, model, utils

    modules = (_deps, _compiled_model, compute_device, compute_plan, model, utils)
    before = [dict(vars(m)) for m in modules], dict(sys.modules)
    anetorch.coreml.install()
    assert vars(model)["_MLModelProxy"] is not None
    assert sys.modules["coremltools.libcoremlpython"]._MLModelProxy is model._MLModelProxy
    anetorch.coreml.uninstall()
    assert [dict(vars(m)) for m in modules] == before[0]
    assert "coremltools.libcoremlpython" not in sys.modules or (
        sys.modules["coremltools.libcoremlpython"] is before[1]["coremltools.libcoremlpython"])
    anetorch.coreml.uninstall()                         # once more is nothing
