"""Two lowerings of a kernel for the engine, on the stand-in: many surfaces, or one a side."""

from __future__ import annotations

import pytest
from standin_run import run, stand_in  # noqa: F401

import anetorch
from anetorch import mil

SETUP = """
        import warnings
        def program(dtype="fp16"):
            @mil.program(x=mil.spec((1, 8, 1, 5), dtype), w=mil.spec((8, 12), dtype),
                         b=mil.spec((12,), dtype), k=mil.spec((), dtype), opset="ios18")
            def p(x, w, b, k):
                o = mil.ops
                y = o.matmul(x=w, y=o.reshape(x=x, shape=[8, 5]), transpose_x=True, transpose_y=False)
                y = y + o.reshape(x=b, shape=[12, 1])
                return {"y": y, "s": o.reduce_sum(x=y * k, axes=[0], keep_dims=True),
                        "z": o.transpose(x=y, perm=[1, 0])}
            return p
        def values(p):
            kind = {"fp16": np.float16, "fp32": np.float32}
            return {v.name: np.asarray(rng.standard_normal(v.shape), kind[v.dtype]) for v in p.inputs}
        def want_packed(p, given):
            packed = mil.pack(p)
            return packed.split(cpu(packed.program)(packed.stage(**given)))
        def quiet(p, **options):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                k = anetorch.compile(p, device="ane", **options)
            return k, [str(w.message) for w in seen if w.category is anetorch.EngineWarning]
"""


def go(run, code, **env):  # noqa: F811
    import textwrap
    return run(textwrap.dedent(SETUP) + textwrap.dedent(code), **env)


def test_the_caller_chooses(run):  # noqa: F811
    go(run, """
        for dtype in ("fp16", "fp32"):
            p = program(dtype)
            given = values(p)
            k, said = quiet(p, lowering="inputs")
            assert (k.lowering, k.lowering_reason, said) == ("inputs", "", [])
            same(k(**given), cpu(p)(**given))
            k, said = quiet(p, lowering="packed")
            assert (k.lowering, k.lowering_reason, said) == ("packed", "", [])
            assert [i.name for i in k.inputs] == ["x", "w", "b", "k"]
            assert [i.shape for i in k.outputs] == [(12, 5), (1, 5), (5, 12)]
            same(k(**given), want_packed(p, given))
            same(k(**given), cpu(p)(**given))           # nothing overflows: the very same values
            del k
            assert left() == NOTHING, left()
        k, said = quiet(program())
        assert (k.lowering, said) == ("inputs", [])
        one, _ = quiet(mil.build(lambda x: x + 1.0, {"x": mil.spec((2, 3), "fp16")}), lowering="packed")
        assert one.lowering == "inputs"                 # there is nothing to pack
        same(one(np.ones((2, 3))), np.full((2, 3), 2, np.float16))
    """)


def test_a_refused_program_is_packed(run):  # noqa: F811
    go(run, """
        knobs(single_input=1)
        p = program()
        given = values(p)
        k, said = quiet(p)
        assert k.lowering == "packed" and "CompilationFailure" in k.lowering_reason
        assert len(said) == 1 and "packed into one surface, as its own ports were refused" in said[0]
        assert anetorch.compile_budget().used == 2      # the refusal counts
        same(k(**given), want_packed(p, given))
        report = str(k.report(**given))
        assert "packed_in_0" in report and "packed_out_0" in report
        t = k.trace(**given)                            # its own outputs, packed as well
        same({n: t[n] for n in ("y", "s", "z")}, cpu(p)(**given))
        try: anetorch.compile(p, device="ane", lowering="inputs")
        except RuntimeError as e: assert "CompilationFailure" in str(e) and "packed" not in str(e), e
        else: raise AssertionError
        mixed = mil.build(lambda x, y: mil.ops.cast(x=y, dtype="fp16") * x,
                          {"x": mil.spec((4,), "fp16"), "y": mil.spec((4,), "fp32")}, opset="ios18")
        try: anetorch.compile(mixed, device="ane")
        except RuntimeError as e:
            assert "CompilationFailure" in str(e) and "packed: [pack] input x is fp16 and y is fp32" in str(e), e
        else: raise AssertionError
        del k, t
        assert left() == NOTHING, left()
    """)


def test_both_refused(run):  # noqa: F811
    go(run, """
        knobs(fail_compile=2)
        try: anetorch.compile(program(), device="ane")
        except RuntimeError as e:
            assert str(e).count("CompilationFailure") == 2 and "; packed: " in str(e), e
        else: raise AssertionError
        assert left() == NOTHING, left()
    """)


def test_views_of_every_kind(run):  # noqa: F811
    """Slots that are strided views, that a row's end cuts in the middle of a dimension, and
    that only an element-wise copy reaches; operands strided, reversed, transposed, shared."""
    go(run, """
        shapes = {"plain": [(1, 8, 1, 5), (8, 3)], "cut": [(4, 6), (2, 12), (3, 8)],
                  "ragged": [(7, 11), (5, 13), (3,)], "tiny": [(), (1,), (1, 1, 1, 1)],
                  "wide": [(2, 3, 4, 5), (6, 20), (24,)]}
        for name, dims in shapes.items():
            specs = {f"p{i}": mil.spec(d, "fp16") for i, d in enumerate(dims)}
            p = mil.build(lambda **v: {"r" + n: x * 2.0 for n, x in v.items()}, specs, opset="ios18")
            k, _ = quiet(p, lowering="packed")
            assert k.lowering == "packed"
            for style in ("plain", "strided", "reversed", "fortran"):
                given = {}
                for i, d in enumerate(dims):
                    a = data(*d)
                    if style == "strided" and d: a = np.repeat(a, 3, axis=-1)[..., ::3]
                    if style == "reversed" and d: a = a[::-1]
                    if style == "fortran" and d: a = np.asfortranarray(a)
                    given[f"p{i}"] = a
                got = k(**given)
                for n, a in given.items():
                    np.testing.assert_array_equal(np.asarray(got["r" + n]), a * np.float16(2), err_msg=name)
        # An output over an input, and two outputs in one surface.
        p = mil.build(lambda a, b: {"c": a + b, "d": a - b}, {n: mil.spec((4, 6), "fp16") for n in "ab"})
        k, _ = quiet(p, lowering="packed")
        x, y = data(4, 6), data(4, 6)
        a, pair = Tensor.from_numpy(x), Tensor((2, 4, 6), "float16")
        r = k.bind([a, y], [a, Tensor((4, 6), "float16")])
        r.run()
        np.testing.assert_array_equal(a.numpy(), x + y)
        r = k.bind([x, y], [pair[0], pair[1]])
        r.run()
        np.testing.assert_array_equal(pair.numpy(), np.stack([x + y, x - y]))
        del r, k
        assert left() == NOTHING, left()
    """)


def test_failure_at_every_step(run):  # noqa: F811
    """As for own ports: an error, nothing left, the outputs as they were, the next one right."""
    out = go(run, """
        p = program()
        given = values(p)
        want = want_packed(p, given)
        def cycle(outs):
            k, _ = quiet(p, lowering="packed")
            r = k.bind(given, outs)
            r.run()
        for knob, times in {"fail_describe": 1, "fail_compile": 1, "fail_load": 2, "fail_attributes": 1,
                            "fail_surface": 1, "fail_wrap": 1, "fail_request": 1, "fail_lock": 1,
                            "fail_base": 1, "fail_unlock": 1, "fail_evaluate": 1}.items():
            failures = 0
            for nth in range(40):
                where = (knob, nth)
                outs = [np.full(v.shape, 7, np.float16) for v in want.values()]
                knobs(compile_budget=1000, forget_cache=1, fault_after=nth, **{knob: times})
                try: cycle(outs)
                except Exception:
                    failures += 1
                    assert all((o == 7).all() for o in outs) or knob == "fail_unlock", where
                    passed = False
                else:
                    same(dict(zip(want, outs)), want)
                    passed = get(knob) == times
                lib.standin_reset()
                knobs(compile_budget=1000)
                assert left() == NOTHING, (where, left())
                outs = [np.zeros(v.shape, np.float16) for v in want.values()]
                cycle(outs)
                same(dict(zip(want, outs)), want)
                if passed: break
            print(knob, failures)
    """, ANETORCH_COMPILE_BUDGET="0")
    reached = {k: int(n) for k, n in (line.split() for line in out.splitlines())}
    assert len(reached) == 11 and all(reached.values()), reached
    assert reached["fail_surface"] == reached["fail_wrap"] == 2, reached        # one a side


def test_refused_at_the_first_evaluation(run):  # noqa: F811
    """Status 0x1d, as one account has it for every program of more than one input: the packed form,
    once for the kernel, for requests that were bound before it as well."""
    go(run, """
        knobs(single_surface=1)
        p = program()
        given = values(p)
        want = want_packed(p, given)
        k, said = quiet(p)
        assert (k.lowering, k.lowering_reason, said) == ("inputs", "", [])
        def requests():
            outs = [np.full(v.shape, 7, np.float16) for v in want.values()]
            return k.bind(given, outs), outs
        (early, early_outs), (late, late_outs), (piped, piped_outs) = requests(), requests(), requests()
        def told(f):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                result = f()
            assert all(w.category is anetorch.EngineWarning for w in seen), seen
            return result, [(str(w.message), w.filename) for w in seen]
        result, said = told(early.run)
        same(dict(zip(want, early_outs)), want)
        (text, where), = said
        assert text.startswith("[run] packed into one surface, as its own ports were refused: [run] ")
        assert "status=0x1d" in text and where == "<string>", said
        assert k.lowering == "packed" and k.lowering_reason in text
        assert anetorch.compile_budget().used == 2
        # The other requests, a call, a pipeline: packed, and silent.
        late.run()
        same(dict(zip(want, late_outs)), want)
        _, said = told(anetorch.Pipeline([piped, early]).run)
        same(dict(zip(want, piped_outs)), want)
        result, more = told(lambda: k(**given))
        same(result, want)
        assert said == more == [] and anetorch.compile_budget().used == 2
        early.run()                                     # again and again
        given["x"][...] = 2
        early.run()
        same(dict(zip(want, early_outs)), want_packed(p, given))
        assert {"packed_in_0", "packed_out_0"} <= {s["name"] for s in early.profile()}
        assert early.memory()["scratch"] > 0
        again, said = quiet(p)                          # another kernel of the same program
        (_, one), (_, two) = told(lambda: again(**given)), told(lambda: again(**given))
        assert len(one) == 1 and two == [] and anetorch.compile_budget().used == 2
        try: anetorch.Kernel(p, device="ane", donor=k, exchange="patch")
        except NotImplementedError as e: assert "the donor is packed" in str(e), e
        else: raise AssertionError
        del early, late, piped, k, again
        assert left() == NOTHING, left()
    """, ANETORCH_EXPERIMENTS="patch")


def test_other_refusals_at_a_run_stand(run):  # noqa: F811
    """Another status; a lowering that the caller chose; nothing to pack; after a run that succeeded,
    when the surfaces cannot be what is wrong. Outputs then have no values, old or new."""
    go(run, """
        p = program()
        given = values(p)
        one = mil.build(lambda x: x + 1.0, {"x": mil.spec((2, 3), "fp16")})
        def refused(k, given, status="0x1d"):
            outs = [Tensor(v.shape, v.dtype) for v in k.outputs]
            for o in outs: o.fill_(7)
            before = anetorch.compile_budget().used
            try: k.bind(given, outs).run()
            except RuntimeError as e: assert f"status={status} " in str(e) and "packed" not in str(e), e
            else: raise AssertionError
            for o in outs:
                try: o.item() if o.size == 1 else o.tolist()
                except RuntimeError as e: assert f"status={status} " in str(e)
                else: raise AssertionError
            assert k.lowering == "inputs" and anetorch.compile_budget().used == before
        knobs(fail_evaluate=1, evaluate_status=0xe)
        refused(anetorch.compile(p, device="ane"), given, "0xe")
        knobs(evaluate_status=0x1d, single_surface=1)
        refused(anetorch.compile(p, device="ane", lowering="inputs"), given)
        knobs(fail_evaluate=1)
        refused(anetorch.compile(one, device="ane"), [np.ones((2, 3), np.float16)])
        knobs(single_surface=0)
        k = anetorch.compile(p, device="ane")
        k(**given)
        knobs(single_surface=1)
        refused(k, given)
        refused(k, given)
        knobs(single_surface=0)
        same(k(**given), cpu(p)(**given))
        del k
        assert left() == NOTHING, left()
    """)


def test_the_packed_form_is_refused_as_well(run):  # noqa: F811
    """Both reasons, one compile, at every run; a packed form that is refused when it runs."""
    go(run, """
        p = program()
        given = values(p)
        def error(k, given):
            try: k(**given)
            except RuntimeError as e: return str(e)
            raise AssertionError
        k = anetorch.compile(p, device="ane")
        knobs(single_surface=1, fail_compile=1)
        used = anetorch.compile_budget().used
        for _ in range(3):
            text = error(k, given)
            assert "status=0x1d" in text and text.count("; packed: ") == 1 and "CompilationFailure" in text, text
            assert k.lowering == "inputs" and anetorch.compile_budget().used == used + 1
        mixed = mil.build(lambda x, y: mil.ops.cast(x=y, dtype="fp16") * x,
                          {"x": mil.spec((4,), "fp16"), "y": mil.spec((4,), "fp32")}, opset="ios18")
        text = error(anetorch.compile(mixed, device="ane"), {"x": np.ones(4), "y": np.ones(4)})
        assert "status=0x1d" in text and "; packed: [pack] input x is fp16 and y is fp32" in text, text
        lib.standin_reset()
        k = anetorch.compile(p, device="ane")
        knobs(fail_evaluate=2)
        text = error(k, given)
        assert text.count("status=0x1d") == 1 and k.lowering == "packed", text
        same(k(**given), want_packed(p, given))
        del k
        assert left() == NOTHING, left()
    """)


def test_failures_while_another_lowering_is_tried(run):  # noqa: F811
    """An error, no leak, outputs without values; the next run is right."""
    out = go(run, """
        p = program()
        given = values(p)
        want = want_packed(p, given)
        for knob, times in {"fail_describe": 1, "fail_load": 2, "fail_attributes": 1, "fail_surface": 1,
                            "fail_wrap": 1, "fail_request": 1, "fail_lock": 1, "fail_base": 1}.items():
            failures = 0
            for nth in range(40):
                k, _ = quiet(p)
                outs = [Tensor(v.shape, v.dtype) for v in k.outputs]
                for o in outs: o.fill_(7)
                r = k.bind(given, outs)
                knobs(single_surface=1, compile_budget=1000, forget_cache=1, fault_after=nth, **{knob: times})
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        r.run()
                except RuntimeError:
                    failures += 1
                    for o in outs:
                        try: o.tolist()
                        except RuntimeError: pass
                        else: raise AssertionError((knob, nth))
                    passed = False
                except MemoryError:
                    failures += 1
                    passed = False
                else:
                    same(dict(zip(want, outs)), want)
                    passed = get(knob) == times
                lib.standin_reset()
                knobs(compile_budget=1000)
                same(k(**given), want)
                del k, r
                assert left() == NOTHING, (knob, nth, left())
                if passed: break
            print(knob, failures)
    """, ANETORCH_COMPILE_BUDGET="0")
    reached = {k: int(n) for k, n in (line.split() for line in out.splitlines())}
    assert len(reached) == 8 and all(reached.values()), reached


def test_two_threads_find_it_out(run):  # noqa: F811
    go(run, """
        import threading
        p = program()
        given = values(p)
        want = want_packed(p, given)
        warnings.simplefilter("ignore")
        for _ in range(20):
            k, _ = quiet(p)
            knobs(single_surface=1)
            used, wrong, gate = anetorch.compile_budget().used, [], threading.Barrier(4)
            def work():
                gate.wait()
                try:
                    for _ in range(3): same(k(**given), want)
                except BaseException as e: wrong.append(e)
            threads = [threading.Thread(target=work) for _ in range(4)]
            for t in threads: t.start()
            for t in threads: t.join()
            assert not wrong and k.lowering == "packed", wrong
            del k
            lib.standin_reset()
            assert left() == NOTHING, left()
    """, ANETORCH_COMPILE_BUDGET="0")


def test_operands_that_are_slots_of_one_surface_stay_there(run):  # noqa: F811
    go(run, """
        p = mil.build(lambda x, w: {"y": mil.ops.matmul(x=w, y=x, transpose_x=True), "z": x * 2.0},
                      {"x": mil.spec((64, 32), "fp16"), "w": mil.spec((64, 72), "fp16")}, opset="ios18")
        packed = mil.pack(p)
        rows, columns = packed.shape[1], packed.shape[3]
        assert (rows, columns) == (64, 104)
        k, _ = quiet(p, lowering="packed")
        def surface(rows, columns, mem="iosurface"):
            t = Tensor((rows, -(-columns // 32) * 32), "float16", mem=mem, capacity=1 << 17)
            t.fill_(np.nan)
            return t
        def slots(t, side):                             # rows of whole 64 bytes, as the engine has them
            return [t[s.row:s.row + s.rows, s.column:s.column + s.columns] for s in side]
        def steps(r): return {s["name"]: s["op"] for s in r.profile() if s["name"]}
        s = surface(rows, columns)
        x, w = slots(s, packed.inputs)
        x.copy_(data(64, 32)); w.copy_(data(64, 72))
        r = k.bind([x, w])
        same(r.outputs and (r.run(), r.outputs)[1], cpu(p)(x, w))
        assert steps(r)["packed_in_0"] == "in place", steps(r)
        x.copy_(data(64, 32))                           # what is written there is what runs
        r.run()
        same(r.outputs, cpu(p)(x, w))
        # One of them elsewhere, the wrong place, another kind of memory: copied, and nothing of the
        # caller's surface is touched.
        for inputs in ([Tensor.from_numpy(x), w], [x[:, ::-1], w], slots(surface(rows, columns, "heap"), packed.inputs),
                       [s[:, 8:40], s[:, 40:112]], slots(surface(rows, columns + 32), packed.inputs)):
            if inputs[0].memory == "heap" or inputs[0].strides[0] != x.strides[0]:
                inputs[0].copy_(data(64, 32)); inputs[1].copy_(data(64, 72))
            before = s.numpy().copy()
            r = k.bind(inputs)
            with np.errstate(invalid="ignore"):
                r.run()
                same(r.outputs, cpu(p)(*inputs))
            assert steps(r)["packed_in_0"] == "copy in", (inputs, steps(r))
            np.testing.assert_array_equal(s.numpy(), before)
        # Results: in one surface below each other, unless an input lies there.
        sizes = max(s.row + s.rows for s in packed.outputs), max(s.columns for s in packed.outputs)
        out = surface(*sizes)
        outs = slots(out, packed.outputs)
        r = k.bind([x, w], outs)
        r.run()
        same(dict(zip("yz", outs)), cpu(p)(x, w))
        assert steps(r)["packed_out_0"] == steps(r)["packed_in_0"] == "in place", steps(r)
        both = surface(sizes[0] + 64, max(columns, sizes[1]))
        x2, w2 = slots(both, packed.inputs)
        x2.copy_(x); w2.copy_(w)
        outs = [both[64 + s.row:64 + s.row + s.rows, :s.columns] for s in packed.outputs]
        r = k.bind([x2, w2], outs)
        r.run()
        same(dict(zip("yz", outs)), cpu(p)(x, w))
        assert steps(r)["packed_out_0"] == "copy out", steps(r)
        del r, k
        for t in (s, out, both): t.close()
        del t, s, out, both, x, w, x2, w2, outs, inputs
        assert left() == NOTHING, left()
    """)


def test_the_engines_arithmetic(run):  # noqa: F811
    """The stand-in runs numerics="ane" of the chip it names: a product beyond 32752 is inf,
    halves round away from zero; slices are exact on that chip."""
    go(run, """
        @mil.program(x=mil.spec((1, 2, 1, 8), "fp16"), opset="ios18")
        def p(x):
            o = mil.ops
            m = o.matmul(x=x, y=np.full((8, 1), 256, np.float16))
            return {"m": m, "r": o.round(x=x), "s": o.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 2, 1, 4])}
        x = np.zeros((1, 2, 1, 8), np.float16)
        x[0, 0, 0, :2] = 127.5, 2.5
        x[0, 1, 0, :2] = 127, 5000
        y = {n: np.asarray(v) for n, v in anetorch.compile(p, device="ane")(x).items()}
        assert np.isinf(y["m"]).all() and (y["r"][0, 0, 0, :2] == [128, 3]).all()
        assert y["s"][0, 1, 0, 1] == 5000
        x[0, :, 0, 1] = 0
        assert (np.asarray(anetorch.compile(p, device="ane")(x)["m"]).ravel() == [32640, 32512]).all()
    """)


def test_only_for_the_engine():
    p = mil.build(lambda x, y: x + y, {n: mil.spec((2,), "fp16") for n in "xy"})
    for device in (None, "cpu"):
        with pytest.raises(ValueError, match='lowering goes with device="ane"'):
            anetorch.compile(p, device=device, lowering="packed")
    with pytest.raises(ValueError, match='unknown lowering "flat"; expected "inputs" or "packed"'):
        anetorch.compile(p, device="ane", lowering="flat")
    assert anetorch.compile(p).lowering == "inputs"
