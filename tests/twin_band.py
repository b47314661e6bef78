"""The band that 50 training steps must land in, made by a PyTorch twin.

    python tests/twin_band.py            # needs torch and transformers; rewrites twin_band.json

The twin is transformers' LlamaForCausalLM in fp32 with torch.optim.AdamW, on the text that
lies in LICENSE, from five seeds. The band is the 99 % prediction interval of a sixth run,
mean +- t(0.995, 4) sqrt(1 + 1/5) deviations: fixed here, before ours is looked at.
What both sides share is this file's constants, windows and schedule.
"""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
TEXT = HERE.parent / "LICENSE"
BAND = HERE / "twin_band.json"

STEPS, BATCH, SEQ = 50, 8, 48
LR, WARMUP, BETAS, EPS, DECAY, CLIP = 3e-3, 10, (0.9, 0.95), 1e-8, 0.1, 1.0
MODEL = dict(
    model_type="llama", hidden_size=64, intermediate_size=160, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=SEQ,
    rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True, initializer_range=0.05,
)  # fmt: skip
T_995_4 = 4.604


def corpus() -> tuple[np.ndarray, np.ndarray, int]:
    """Training and validation ids, and the size of the vocabulary (bytes that occur)."""
    data = np.frombuffer(TEXT.read_bytes(), np.uint8)
    vocab, ids = np.unique(data, return_inverse=True)
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:], len(vocab)


def batches(ids: np.ndarray, seed: int):
    """STEPS batches of (tokens, targets), `[BATCH, SEQ]`."""
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        at = rng.integers(0, len(ids) - SEQ - 1, BATCH)
        rows = np.stack([ids[i : i + SEQ + 1] for i in at])
        yield rows[:, :-1], rows[:, 1:]


def validation(ids: np.ndarray):
    """Consecutive windows as batches; the last partial batch is left out."""
    n = (len(ids) - 1) // SEQ // BATCH * BATCH
    tokens, targets = ids[: n * SEQ].reshape(n, SEQ), ids[1 : n * SEQ + 1].reshape(n, SEQ)
    for i in range(0, n, BATCH):
        yield tokens[i : i + BATCH], targets[i : i + BATCH]


def learning_rate(step: int) -> float:
    """step counts from 1."""
    if step <= WARMUP:
        return LR * step / WARMUP
    return LR * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def twin(seed: int) -> float:
    """Validation loss of one PyTorch run, nats per byte."""
    import torch
    import torch.nn.functional as F  # noqa: N812
    from transformers import LlamaConfig, LlamaForCausalLM

    train, val, vocab = corpus()
    torch.manual_seed(seed)
    keys = {k: v for k, v in MODEL.items() if k != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab, attention_dropout=0.0, **keys))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                back = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = MODEL["initializer_range"] / (math.sqrt(2 * MODEL["num_hidden_layers"]) if back else 1)
                p.normal_(0.0, std)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": gains, "weight_decay": 0.0}],
        lr=LR, betas=BETAS, eps=EPS,
    )  # fmt: skip

    def loss_of(tokens, targets):
        logits = model(torch.as_tensor(tokens), use_cache=False).logits
        return F.cross_entropy(logits.reshape(-1, vocab), torch.as_tensor(targets).reshape(-1))

    for step, (tokens, targets) in enumerate(batches(train, seed), 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.zero_grad()
        loss_of(tokens, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    with torch.no_grad():
        return float(np.mean([float(loss_of(*b)) for b in validation(val)]))


def main() -> None:
    import torch
    import transformers

    losses = [twin(seed) for seed in range(5)]
    half = T_995_4 * math.sqrt(1 + 1 / len(losses)) * float(np.std(losses, ddof=1))
    mean = float(np.mean(losses))
    band = {
        "losses": losses, "low": mean - half, "high": mean + half,
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    BAND.write_text(json.dumps(band, indent=1) + "\n")
    print(json.dumps(band, indent=1))


if __name__ == "__main__":
    main()
