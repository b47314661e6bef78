"""anetorch.coreml.install(): coremltools' own MLModel predicts on this machine."""

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


def test_install_twice_uninstall_once(installed):
    anetorch.coreml.install()
    anetorch.coreml.uninstall()
    from coremltools.models import model as module
    assert module._MLModelProxy is None
