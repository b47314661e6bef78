"""Loss and every gradient of tiny random models against Hugging Face transformers.

The reference is transformers' own model run in double. Its norms and its attention's
softmax compute in float32 whatever the model's dtype, so the former are given a double
forward and the latter runs as scaled_dot_product_attention. (RoPE's angles stay float32:
that is part of what the published models mean, and ours are the same.) Ours must be at
most twice as far from it as PyTorch's float32 run of the same model; a result may always
be off by one rounding of its own.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from anetorch.nn.config import Config
from anetorch.nn.transformer import Model

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install '.[oracle]'")
transformers = pytest.importorskip("transformers", reason="the oracle needs transformers: pip install '.[oracle]'")
F = torch.nn.functional

pytestmark = pytest.mark.oracle

SIZES = dict(vocab_size=37, hidden_size=20, intermediate_size=28, num_hidden_layers=3, rms_norm_eps=1e-6)

CASES = {
    "llama": dict(num_attention_heads=4, num_key_value_heads=4, head_dim=6, tie_word_embeddings=False, rope_theta=1e4),
    "llama-gqa-tied": dict(
        num_attention_heads=4, num_key_value_heads=2, head_dim=6, tie_word_embeddings=True, rope_theta=5e5
    ),
    "qwen3": dict(
        model_type="qwen3", num_attention_heads=3, num_key_value_heads=3, head_dim=8, tie_word_embeddings=True,
        rope_theta=1e6,
    ),
    "qwen3-gqa-untied": dict(
        model_type="qwen3", num_attention_heads=6, num_key_value_heads=3, head_dim=4, tie_word_embeddings=False,
        rope_theta=1e6,
    ),
}  # fmt: skip


def hf_model(config: Config):
    """transformers' model of the same keys, with attention that keeps double."""
    cls = transformers.Qwen3Config if config.qk_norm else transformers.LlamaConfig
    model = {"llama": transformers.LlamaForCausalLM, "qwen3": transformers.Qwen3ForCausalLM}[config.model_type]
    keys = {k: v for k, v in config.to_dict().items() if k not in ("architectures", "model_type")}
    return model._from_config(cls(**keys), attn_implementation="sdpa")


def double_norms(model) -> None:
    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    for m in model.modules():
        if type(m).__name__.endswith("RMSNorm"):
            m.forward = forward.__get__(m)


def torch_run(config, weights, batches, dtype):
    """Of every batch: logits, loss and gradients by name."""
    model = hf_model(config)
    if dtype == torch.float64:
        double_norms(model)
    model.load_state_dict({n: torch.as_tensor(w) for n, w in weights.items()}, strict=False)
    model = model.to(dtype)
    for tokens, targets in batches:
        model.zero_grad()
        logits = model(torch.as_tensor(tokens), use_cache=False).logits
        loss = F.cross_entropy(logits.reshape(-1, config.vocab_size), torch.as_tensor(targets).reshape(-1))
        loss.backward()
        grads = {n: p.grad.double().numpy() for n, p in model.named_parameters()}
        yield logits.detach().double().numpy(), loss.detach().double().numpy(), grads


def our_run(model, batches):
    for tokens, targets in batches:
        model.params.zero_grads()
        loss = model.step_forward_backward(tokens, targets)
        grads = {n: np.array(model.params.view("grads", n), np.float64) for n in model.params}
        yield model.logits(tokens), np.float64(loss), grads


def pooled(runs):
    """Logits, losses and every gradient of several batches, each as one array."""
    logits, losses, grads = zip(*runs)
    return {"logits": np.stack(logits), "loss": np.stack(losses)} | {
        f"gradient of {n}": np.stack([g[n] for g in grads]) for n in grads[0]
    }


def random_weights(model: Model, seed: int) -> dict[str, np.ndarray]:
    """Gains around 1 and matrices of unit gain, so that every path carries signal."""
    rng = np.random.default_rng(seed)
    return {
        n: (rng.standard_normal(s.shape) / np.sqrt(s.shape[-1]) if len(s.shape) == 2
            else rng.uniform(0.5, 1.5, s.shape)).astype(np.float32)
        for n, s in model.params.slots.items()
    }  # fmt: skip


def distances(name, batch, seq, theirs_dtype, **how):
    """What -> our distance from float64 over PyTorch's, in the Frobenius norm over eight
    batches: one number's rounding error is luck, that of eight has a size."""
    config = Config(**SIZES, **CASES[name], max_position_embeddings=32)
    model = Model(config, batch=batch, seq=seq, **how)
    weights = random_weights(model, 11)
    model.params.load(weights)
    batches = np.random.default_rng(12).integers(0, config.vocab_size, (8, 2, batch, seq))
    want = pooled(torch_run(config, weights, batches, torch.float64))
    theirs = pooled(torch_run(config, weights, batches, theirs_dtype))
    ours = pooled(our_run(model, batches))
    assert set(ours) == set(want)
    ratios = {}
    for what, reference in want.items():
        assert ours[what].shape == reference.shape, what
        d, allowed = (np.linalg.norm(r[what] - reference) for r in (ours, theirs))
        assert np.isfinite(d) and np.linalg.norm(reference) > 0, what
        ratios[what] = d / allowed
    return ratios


@pytest.mark.parametrize(("batch", "seq"), [(1, 13), (3, 7)])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients(name, batch, seq):
    """fp32 storage and `highest`: at most twice PyTorch float32's distance."""
    ratios = distances(name, batch, seq, torch.float32, dtype="float32")
    worst = max(ratios, key=ratios.get)
    assert ratios[worst] <= 2, f"{worst}: {ratios[worst]:.3g} times PyTorch float32's distance from float64"


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("name", ["llama-gqa-tied", "qwen3-gqa-untied"])
def test_half_storage(name, precision):
    """fp16 storage at every precision: at most twice PyTorch bfloat16's distance."""
    ratios = distances(name, 2, 9, torch.bfloat16, dtype="float16", precision=precision)
    worst = max(ratios, key=ratios.get)
    assert ratios[worst] <= 2, f"{worst}: {ratios[worst]:.3g} times PyTorch bfloat16's distance from float64"


@pytest.mark.parametrize("name", CASES)
def test_generator_continues_like_transformers(name):
    """Greedy tokens of the cached path equal those of transformers' generate."""
    config = Config(**SIZES, **CASES[name], max_position_embeddings=64)
    model = Model(config, batch=1, seq=48, dtype="float32", training=False)
    weights = random_weights(model, 21)
    model.params.load(weights)
    prompt = np.random.default_rng(22).integers(0, config.vocab_size, 37)
    hf = hf_model(config)
    hf.load_state_dict({n: torch.as_tensor(w) for n, w in weights.items()}, strict=False)
    ids = torch.as_tensor(prompt)[None]
    want = hf.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    g = model.generator()
    scores = g.feed(prompt)
    got = []
    for _ in range(10):
        got.append(int(scores.argmax()))
        scores = g.feed([got[-1]])
    assert got == want[0, len(prompt) :].tolist()


def test_config_json_of_transformers(tmp_path):
    """A config.json that transformers writes reads as the same model, and back."""
    for config in (Config(**SIZES, **CASES[n], max_position_embeddings=32) for n in CASES):
        hf = hf_model(config).config
        hf.save_pretrained(tmp_path)
        assert Config.load(tmp_path) == config
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == config.rope_theta
