"""Pipelines: several requests in one C call, and their evaluation in doubles."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import anetorch
from anetorch import Pipeline, Tensor, _core

NO = 'bool no = const()[name = string("no"), val = bool(false)];'


def kernel_of(body: str, params: str, returns: str = "y") -> anetorch.Kernel:
    return anetorch.compile(
        f"program(1.3)\n{{ func main<ios18>({params}) {{ {NO} {body} }} -> ({returns}); }}")


def square() -> anetorch.Kernel:
    return kernel_of("tensor<fp16, [3]> y = square(x = x);", "tensor<fp16, [3]> x")


def test_requests_run_in_order_over_shared_tensors() -> None:
    k = square()
    a, b, c = (Tensor((3,), "float16") for _ in range(3))
    pipe = Pipeline([k.bind(a, b), k.bind(b, c)])
    assert len(pipe) == 2 and pipe.requests[1].inputs["x"] is b
    for v in (2, 3):
        a.copy_from(np.full(3, v, np.float16))
        pipe.run()
        assert (c.numpy() == v**4).all()


def test_the_same_request_may_appear_twice() -> None:
    a = Tensor.from_numpy(np.full(3, 2, np.float16))
    req = square().bind(a, a)
    Pipeline([req, req]).run()
    assert (a.numpy() == 16).all()


def test_an_empty_pipeline_and_wrong_items() -> None:
    Pipeline([]).run()
    with pytest.raises(TypeError, match="item 0: expected a Request"):
        Pipeline([square()])
    with pytest.raises(TypeError):
        Pipeline(5)


def test_a_failure_invalidates_that_request_and_all_later_ones() -> None:
    sums = kernel_of("""int32 ax = const()[name = string("ax"), val = int32(0)];
        tensor<fp16, [3]> y = cumsum(x = x, axis = ax, exclusive = no, reverse = no);""",
                     "tensor<fp16, [3]> x")
    a, b, c, d = (Tensor.from_numpy(np.ones(3, np.float16)) for _ in range(4))
    pipe = Pipeline([square().bind(a, b), sums.bind(b, c), square().bind(c, d)])
    pipe.run()
    _core._testing.fail_after(1)
    try:
        with pytest.raises(MemoryError, match="request 1 of 3"):
            pipe.run()
    finally:
        _core._testing.fail_after(0)
    assert (b.numpy() == 1).all()
    for t in (c, d):
        with pytest.raises(RuntimeError):
            t.numpy()
    pipe.run()
    np.testing.assert_array_equal(d.numpy(), [1, 4, 9])


def test_another_thread_advances_during_a_pipeline() -> None:
    n = 600
    k = kernel_of(f"tensor<fp32, [{n}, {n}]> y = matmul(x = x, y = x, transpose_x = no, transpose_y = no);",
                  f"tensor<fp32, [{n}, {n}]> x")
    a, b = Tensor((n, n)), Tensor((n, n))
    pipe = Pipeline([k.bind(a, b), k.bind(b, a)] * 10)
    count, stop = 0, threading.Event()

    def spin() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(0)

    t = threading.Thread(target=spin)
    t.start()
    try:
        pipe.run()
        seen = count
        pipe.run_async().result()
    finally:
        stop.set()
        t.join()
    assert seen > 10


def test_double_evaluation_keeps_doubles_between_requests() -> None:
    """1/3 squared three times: fp16 surfaces would round at every step."""
    k = square()
    a, b, c, d = (Tensor((3,), "float16") for _ in range(4))
    pipe = Pipeline([k.bind(a, b), k.bind(b, c), k.bind(c, d)])
    x = np.array([1 / 3, 0.1, -0.7])
    got_b, got_d = _core._testing.eval_pipeline(pipe, [(a, x)], [b, d])
    assert got_b.dtype == np.float64
    np.testing.assert_allclose(got_b, x**2, rtol=1e-15)
    np.testing.assert_allclose(got_d, x**8, rtol=1e-14)
    assert not d.numpy().any()                  # nothing is stored


def test_double_evaluation_of_accumulation_views_and_unwritten_inputs() -> None:
    k = kernel_of("tensor<fp32, [3]> y = add(x = acc, y = x);",
                  "tensor<fp32, [3]> acc, tensor<fp32, [3]> x")
    packed = Tensor.from_numpy(np.array([[1, 2, 3], [10, 20, 30]], np.float32))
    acc = Tensor.from_numpy(np.array([0.5, 0.5, 0.5], np.float32))
    pipe = Pipeline([k.bind({"acc": acc, "x": packed[i]}, {"y": acc}) for i in (0, 1, 0)])
    (got,) = _core._testing.eval_pipeline(pipe, [(packed[1], np.array([0.1, 0.2, 0.3]))], [acc])
    np.testing.assert_allclose(got, [2.6, 4.7, 6.8], rtol=1e-15)
    np.testing.assert_array_equal(acc.numpy(), [0.5, 0.5, 0.5])


def test_double_evaluation_refuses_wrong_sizes() -> None:
    a = Tensor((3,), "float16")
    pipe = Pipeline([square().bind(a)])
    with pytest.raises(ValueError, match="2 elements for a tensor of 3"):
        _core._testing.eval_pipeline(pipe, [(a, np.zeros(2))], [])
