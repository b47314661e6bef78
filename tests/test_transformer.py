"""Config, parameters and the whole model."""

import json
import os

import numpy as np
import pytest
import twin_band as twin

from anetorch import _core
from anetorch.nn import programs
from anetorch.nn.config import PRESETS, Config
from anetorch.nn.module import Parameters
from anetorch.nn.transformer import Model


@pytest.mark.parametrize(
    ("name", "parameters"),
    # The published counts; that of Qwen3 leaves out the 28 * 256 gains of QK-norm.
    [("stories110m", 109_529_856), ("qwen3-0.6b", 596_042_752 + 28 * 256), ("stories15m", 15_191_712)],
)
def test_preset_sizes(name, parameters):
    assert Config.preset(name).num_parameters() == parameters


def test_presets_round_trip(tmp_path):
    for name in PRESETS:
        c = Config.preset(name)
        (tmp_path / "config.json").write_text(json.dumps(c.to_dict()))
        assert Config.load(tmp_path) == c


GOOD = dict(
    model_type="llama", vocab_size=10, hidden_size=8, intermediate_size=12,
    num_hidden_layers=1, num_attention_heads=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 9}, "hidden_size 9 is not a multiple of num_attention_heads 2"),
        ({"num_key_value_heads": 3}, "num_attention_heads 2 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 3}, "head_dim must be even"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"vocab_size": "x"}, "vocab_size must be an integer, got 'x'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be positive"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not known"),
        ({"model_type": None}, "no model_type"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "RoPE type 'llama3' is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window = True is not supported"),
        ({"vocab_size": None, "hidden_size": None}, "missing keys: vocab_size, hidden_size"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises((ValueError, TypeError)) as e:
        Config.from_dict({**GOOD, **change}, where="here/config.json")
    assert message in str(e.value)
    assert str(e.value).startswith("[here/config.json] ")


def test_config_reads_both_rope_spellings():
    old = Config.from_dict({**GOOD, "rope_theta": 5.0})
    new = Config.from_dict({**GOOD, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}})
    assert old == new and old.rope_theta == 5.0


# ---------------------------------------------------------------- the whole model

SIZES = dict(vocab_size=11, hidden_size=10, intermediate_size=14, num_hidden_layers=2, max_position_embeddings=16)
KINDS = {
    "llama": Config(**SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=4, rope_theta=100.0),
    "llama-tied": Config(**SIZES, num_attention_heads=2, head_dim=6, tie_word_embeddings=True),
    "qwen3": Config(
        **SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=4, tie_word_embeddings=True, model_type="qwen3"
    ),
}
BATCH, SEQ = 2, 5


def signal(params, seed=3):
    """Gains around 1 and matrices of unit gain, so that every path carries signal."""
    rng = np.random.default_rng(seed)
    return {
        n: (rng.standard_normal(s.shape) / np.sqrt(s.shape[-1]) if len(s.shape) == 2 else rng.uniform(0.5, 1.5, s.shape))
        for n, s in params.slots.items()
    }  # fmt: skip


def tokens(config, batch=BATCH, seq=SEQ, seed=4):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (2, batch, seq))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_whole_model(kind, dtype):
    """Differences of the step's own Pipeline, kept in double from request to request: of
    every parameter, along its gradient and along a random direction."""
    config = KINDS[kind]
    model = Model(config, batch=BATCH, seq=SEQ, dtype=dtype)
    p, x = model.params, signal(model.params)
    ids, targets = tokens(config)
    run = _core._testing.eval_pipeline

    def inputs(values):
        bound = [(p.storage(n), values[n]) for n in p]
        # A staged matrix and its master are two tensors; kernels read the staged one.
        return [*bound, (model._ids, ids.reshape(-1)), (model._targets, targets.reshape(-1))]

    def loss(values):
        return run(model._evaluate, inputs(values), [model._loss])[0].item()

    grads = [p.view("grads", n) for n in p]
    zero = [(g, np.zeros(g.shape)) for g in grads]
    scale = 8.0
    got = run(model._step, [*inputs(x), *zero, (model._scale, [scale])], grads)
    h, rng = 2.0**-12, np.random.default_rng(5)
    for name, g in zip(p, got):
        g = g.reshape(p.slots[name].shape) / scale
        assert np.isfinite(g).all() and np.abs(g).max() > 0, name
        for direction in (g / np.linalg.norm(g), rng.standard_normal(g.shape) / np.sqrt(g.size)):
            near, far = (
                (loss({**x, name: x[name] + s * direction}) - loss({**x, name: x[name] - s * direction})) / (2 * s)
                for s in (h, 2 * h)
            )
            # Truncation by the two steps; the double evaluation's rounding over the step;
            # and constants of the programs that are held in fp32 (fp16 for fp16 storage,
            # but the same ones forward and backward).
            bound = 2 / 3 * abs(far - near) + 1000 * 2.0**-53 / h + 2.0**-21 * np.abs(g * direction).sum()
            assert abs(near - (g * direction).sum()) <= bound, f"{name}: {near} against {(g * direction).sum()}"


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_programs_print_and_parse(kind):
    """Every generated program, in both storage dtypes: its text means the same program."""
    for dtype in ("fp16", "fp32"):
        whole = programs.Sizes(KINDS[kind], BATCH, SEQ, dtype)
        step = programs.Sizes(KINDS[kind], 1, 3, dtype, cache=8)
        names = [(n, whole) for n in (*programs.FORWARD, *programs.BACKWARD)] + [(n, step) for n in programs.DECODE]
        for name, sizes in names:
            text = programs.make(name, sizes).text()
            assert _core.Program.parse(text, filename=name).text() == text, name


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_accumulation_adds(dtype):
    """Two micro-batches without zeroing are the sum, in fp32; masters are untouched."""
    config = KINDS["llama"]
    model = Model(config, batch=1, seq=SEQ, dtype=dtype)
    model.params.load(signal(model.params))
    ids, targets = tokens(config)
    masters = np.array(model.params.masters)

    def grads(rows):
        model.params.zero_grads()
        for r in rows:
            model.step_forward_backward(ids[r : r + 1], targets[r : r + 1])
        return np.array(model.params.grads)

    a, b, both = grads([0]), grads([1]), grads([0, 1])
    # The second run starts its sums from the first's: each of its at most SEQ + vocab
    # additions may round differently, by 2^-24 of the terms' magnitudes.
    terms = (SEQ + config.vocab_size) * 2.0**-24 * (np.abs(a) + np.abs(b) + np.abs(both))
    slack = terms + 2.0**-23 * np.abs(np.concatenate([a, b])).max()
    assert (np.abs(both - (a + b)) <= slack).all()
    assert (np.array(model.params.masters) == masters).all()
    assert (grads([0, 1]) == both).all()         # and the bits repeat


def test_loss_scale_multiplies_gradients():
    config = KINDS["qwen3"]
    model = Model(config, batch=BATCH, seq=SEQ, dtype="float32")
    model.params.load(signal(model.params))
    losses, grads = [], []
    for scale in (1.0, 1024.0):
        model.loss_scale = scale
        model.params.zero_grads()
        losses.append(model.step_forward_backward(*tokens(config)))
        grads.append(np.array(model.params.grads))
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(grads[1], grads[0] * 1024)     # a power of two is exact


def test_evaluation_does_not_train():
    config = KINDS["llama"]
    model = Model(config, batch=BATCH, seq=SEQ)
    model.params.zero_grads()
    ids, targets = tokens(config)
    losses = model.token_losses(ids, targets)
    scores = model.logits(ids).astype(np.float64)
    top = scores.max(-1, keepdims=True)
    nll = np.log(np.exp(scores - top).sum(-1)) + top[..., 0] - np.take_along_axis(scores, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses, nll, rtol=2**-18)
    assert not np.asarray(model.params.grads).any()
    step = model.step_forward_backward(ids, targets)
    assert abs(step - losses.mean(dtype=np.float64)) <= 2**-20 * step


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_generator_agrees_with_logits(kind, dtype):
    """The cached path, by chunks and token by token, against the whole window at once."""
    config = KINDS[kind]
    model = Model(config, batch=1, seq=SEQ, dtype=dtype, training=False)
    model.params.load(signal(model.params))
    (ids,), _ = tokens(config, batch=1)
    want = model.logits(ids[None])[0]
    u = {"float16": 2.0**-11, "float32": 2.0**-24}[dtype]
    # The same products in another order: a few roundings of the storage dtype per layer.
    slack = 64 * u * np.abs(want).max()
    g = model.generator()
    for i in range(SEQ):
        assert np.abs(g.feed(ids[i : i + 1]) - want[i]).max() <= slack
    assert g.length == SEQ
    with pytest.raises(ValueError, match="5 \\+ 1 positions exceed the cache's 5"):
        g.feed([1])
    g.reset()
    assert np.abs(g.feed(ids) - want[-1]).max() <= slack


def test_generator_takes_prompts_in_chunks(monkeypatch):
    from anetorch.nn import transformer

    config = KINDS["qwen3"]
    model = Model(config, batch=1, seq=8, dtype="float32", training=False)
    model.params.load(signal(model.params))
    (ids,), _ = tokens(config, 1, 8)
    single, chunked = model.generator(), model.generator()
    for i in ids:
        one = single.feed([i])
    monkeypatch.setattr(transformer, "CHUNK", 3)
    np.testing.assert_allclose(chunked.feed(ids), one, rtol=2**-16, atol=2**-16)


def test_published_tables_need_no_stage():
    """fp32 storage reads the masters; fp16 storage its own copy, made by load and stage."""
    config = KINDS["llama"]
    name = "model.layers.1.mlp.up_proj.weight"
    wide, half = (Model(config, batch=1, seq=2, dtype=d, training=False).params for d in ("float32", "float16"))
    assert wide.staged is None and wide.storage(name) is wide[name]
    half.load(signal(half))
    np.testing.assert_array_equal(np.asarray(half.storage(name)), np.asarray(half[name]).astype(np.float16))
    assert wide.grads is None and half.m is None


def test_initialisation_depends_on_the_seed_alone():
    a, b, c = (Parameters(KINDS["qwen3"]) for _ in range(3))
    for p, seed in ((a, 1), (b, 1), (c, 2)):
        p.initialize(seed, 0.02)
    assert (np.array(a.masters) == np.array(b.masters)).all()
    assert (np.array(a.masters) != np.array(c.masters)).any()


def test_ranges_cover_the_blocks():
    p = Parameters(KINDS["qwen3"])
    assert p.ranges[0].start == 0 and p.ranges[-1].stop == p.size
    for r, s in zip(p.ranges, p.ranges[1:]):
        assert r.stop == s.start
    for name, slot in p.slots.items():
        (r,) = [r for r in p.ranges if r.start <= slot.start and slot.stop <= r.stop]
        assert r.decay == (len(slot.shape) == 2), name
        assert r.staged == slot.staged and slot.start % 32 == 0
    spans = sorted((s.start, s.stop) for s in p.slots.values())
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(batch=0), "[Model] batch must be at least 1, got 0"),
        (dict(seq=17), "[Model] seq 17 is longer than the model's 16 positions"),
        (dict(dtype="int8"), "[Model] dtype must be float16 or float32, got 'int8'"),
    ],
)
def test_model_refuses(how, message):
    with pytest.raises(ValueError) as e:
        Model(KINDS["llama"], **{"seq": 4, **how})
    assert str(e.value) == message


def test_tokens_are_checked():
    model = Model(KINDS["llama"], batch=1, seq=3)
    good = np.zeros((1, 3), np.int64)
    for bad, message in (
        (np.zeros((3, 1), int), "must be integers [1, 3], got int64 [3, 1]"),
        (np.zeros((1, 3)), "must be integers [1, 3], got float64 [1, 3]"),
        (good + 11, "must lie in 0..10, got 11..11"),
        (good - 1, "must lie in 0..10, got -1..-1"),
    ):
        with pytest.raises(ValueError) as e:
            model.step_forward_backward(bad, good)
        assert message in str(e.value) and str(e.value).startswith("[Model] tokens")
    with pytest.raises(ValueError, match="\\[Model\\] targets"):
        model.step_forward_backward(good, good - 1)


def test_load_checks_names_and_shapes_first():
    p = Parameters(KINDS["llama"], training=False)
    before = np.array(p.masters)
    good = signal(p)
    for bad, message in (
        ({k: v for k, v in good.items() if k != "model.norm.weight"}, "missing model.norm.weight"),
        ({**good, "x": np.zeros(3)}, "unexpected x"),
        ({**good, "model.norm.weight": np.zeros(3)}, "model.norm.weight has shape (3,), the model needs (10,)"),
    ):
        with pytest.raises(ValueError) as e:
            p.load(bad)
        assert message in str(e.value)
    assert (np.array(p.masters) == before).all()


def test_fifty_steps_land_in_the_twins_band():
    """Validation loss after 50 fp16 steps on LICENSE, inside the band that five PyTorch
    runs fixed beforehand (twin_band.py)."""
    band = json.loads(twin.BAND.read_text())
    train, val, vocab = twin.corpus()
    config = Config.from_dict({**twin.MODEL, "vocab_size": vocab})
    model = Model(config, batch=twin.BATCH, seq=twin.SEQ, dtype="float16", seed=100)
    model.loss_scale = 1024.0
    p = model.params
    for step, (ids, targets) in enumerate(twin.batches(train, 100), 1):
        p.zero_grads()
        model.step_forward_backward(ids, targets)
        norm, finite = _core.grad_norm(p.grads, 1 / model.loss_scale)
        assert finite
        scale = _core.clip_factor(norm, twin.CLIP) / model.loss_scale
        for r in p.ranges:
            part = slice(r.start, r.stop)
            _core.adamw_step(
                p.masters[part], p.grads[part], p.m[part], p.v[part], p.staged[part] if r.staged else None,
                lr=twin.learning_rate(step), step=step, beta1=twin.BETAS[0], beta2=twin.BETAS[1], eps=twin.EPS,
                weight_decay=twin.DECAY if r.decay else 0.0, scale=scale,
            )  # fmt: skip
    loss = np.mean([model.evaluate(*b) for b in twin.validation(val)])
    assert band["low"] <= loss <= band["high"], f"{loss} outside [{band['low']}, {band['high']}]"


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_preset_trains_three_steps(name):
    """Losses of three steps of plain descent fall, where the machine has the memory."""
    config = Config.preset(name)
    size, staged = Parameters.sizes(config)
    need = 16 * size + 2 * staged + 2 * 2**30
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > free:
        pytest.skip(f"{name} needs {need >> 20} MB, {free >> 20} MB are free")
    model = Model(config, batch=1, seq=16)
    model.loss_scale = 256.0
    p, losses = model.params, []
    ids, targets = tokens(config, 1, 16)
    for step in (1, 2, 3):
        p.zero_grads()
        losses.append(model.step_forward_backward(ids, targets))
        norm, finite = _core.grad_norm(p.grads, 1 / 256)
        assert finite and norm > 0
        for r in p.ranges:
            part = slice(r.start, r.stop)
            _core.adamw_step(
                p.masters[part], p.grads[part], p.m[part], p.v[part], p.staged[part] if r.staged else None,
                lr=1e-3, step=step, scale=1 / 256,
            )  # fmt: skip
    assert losses[2] < losses[0]
