"""Time of a training step: forward + backward, and the optimizer's part, beside peers.

    python benchmarks/bench_step.py                         # stories110m, 1 x 256, highest
    python benchmarks/bench_step.py --peers fp32 jax autocast bf16
    python benchmarks/bench_step.py --layers 1 --vocab 64 --peers fp32 jax     # one layer
    python benchmarks/bench_step.py --precision medium --json results.jsonl

Peers (benchmarks/peers.py) have the same weights at the same thread count: "fp32", "autocast"
(fp32 masters, bf16 products) and "bf16" are a lean PyTorch model under torch.compile, "eager"
is transformers' model in fp32, "jax" is fp32 under jit. Losses are compared before anything is
timed; then every repetition runs all candidates in turn.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Callable

# Peers' idle workers must sleep, else they take the next candidate's cores.
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

import numpy as np  # noqa: E402
import peers  # noqa: E402
from common import Report, arguments, interleave, measure, summary  # noqa: E402

import anetorch  # noqa: E402
from anetorch.nn.transformer import Config, Model  # noqa: E402
from anetorch.optim import AdamW  # noqa: E402

#: How far a peer's loss may be from ours: fp16 storage moves a loss of 10 by some 1e-3, bf16
#: by some 1e-2; a wrong layer moves it by far more.
APART = {"fp32": 1e-2, "jax": 1e-2, "eager": 1e-2, "autocast": 5e-2, "bf16": 5e-2}


def flops(config: Config, columns: int, seq: int) -> float:
    """Floating-point operations of forward + backward: 6 for each matrix parameter and
    column, 12 for each head channel and pair of positions, half of which are masked."""
    c = config
    layer = c.hidden_size * (2 * c.q_dim + 2 * c.kv_dim + 3 * c.intermediate_size)
    matrices = layer * c.num_hidden_layers + c.vocab_size * c.hidden_size
    attention = 12 * c.num_hidden_layers * c.q_dim * columns * seq / 2
    return 6.0 * matrices * columns + attention


def eager(config: Config, weights: dict[str, np.ndarray], tokens: np.ndarray,
          targets: np.ndarray) -> tuple[Callable[[], float], Callable[[], None]]:
    """transformers' model with the same weights."""
    import torch
    import transformers

    keys = {k: v for k, v in config.to_dict().items() if k != "model_type"}
    kinds = {"llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
             "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM)}
    make_config, make_model = kinds[config.model_type]
    peer = make_model(make_config(**keys))
    state = {n: torch.from_numpy(a.copy()) for n, a in weights.items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    peer.load_state_dict(state)
    peer.train()
    x, y = torch.from_numpy(tokens.copy()), torch.from_numpy(targets.copy())

    def step() -> float:
        out = torch.nn.functional.cross_entropy(peer(input_ids=x).logits.flatten(0, 1),
                                                y.flatten())
        out.backward()
        return float(out.detach())

    return step, lambda: peer.zero_grad(set_to_none=True)


def main() -> None:
    p = arguments(__doc__)
    p.add_argument("--model", default="stories110m")
    p.add_argument("--layers", type=int, help="other than the preset's")
    p.add_argument("--vocab", type=int, help="other than the preset's")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--dtype", default="float16")
    p.add_argument("--precision", default="highest")
    p.add_argument("--peers", nargs="*", choices=list(APART), default=[])
    args = p.parse_args()
    if args.threads:
        anetorch.set_num_threads(args.threads)
    config = Config.preset(args.model)
    if args.layers:
        config = dataclasses.replace(config, num_hidden_layers=args.layers)
    if args.vocab:
        config = dataclasses.replace(config, vocab_size=args.vocab)
    model = Model(config, batch=args.batch, seq=args.seq, dtype=args.dtype,
                  precision=args.precision)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (args.batch, args.seq + 1))
    tokens, targets = ids[:, :-1], ids[:, 1:]
    model.loss_scale = 1024.0
    model.params.zero_grads()
    loss = model.step_forward_backward(tokens, targets)
    # Random weights predict nothing: the loss is near the log of the vocabulary's size.
    assert abs(loss - math.log(config.vocab_size)) < 1, loss
    grads = np.asarray(model.params.grads)
    assert np.isfinite(grads).all() and grads.any()

    report = Report("bench_step", args.json)
    facts = {"model": args.model, "layers": config.num_hidden_layers, "batch": args.batch,
             "seq": args.seq, "precision": args.precision, "dtype": args.dtype}
    work = flops(config, args.batch * args.seq, args.seq)
    weights = {n: np.array(model.params[n]) for n in model.params}
    candidates: dict[str, Callable[[], object]] = {
        "anetorch": lambda: model.step_forward_backward(tokens, targets)}
    prepare: dict[str, Callable[[], object]] = {"anetorch": model.params.zero_grads}
    if set(args.peers) - {"jax"}:
        import torch

        torch.set_num_threads(anetorch.num_threads())
    for kind in args.peers:
        if kind == "jax":
            step = peers.jax_step(config, weights, tokens, targets)
        elif kind == "eager":
            step, prepare[kind] = eager(config, weights, tokens, targets)
        else:
            step, prepare[kind] = peers.torch_step(config, weights, tokens, targets, kind)
        theirs = step()
        assert abs(theirs - loss) < APART[kind], (kind, theirs, loss)
        candidates[kind] = step
    times = interleave(candidates, args.repeats, prepare=prepare)
    for name, took in times.items():
        t = summary(took)
        ratio = statistics.median([a / b for a, b in zip(took, times["anetorch"], strict=True)])
        report.add(f"forward + backward, {name}", t, **facts, gflops=work / t["median"] / 1e9,
                   tokens_per_s=args.batch * args.seq / t["median"], x_anetorch=ratio)

    forward = measure(lambda: model.token_losses(tokens, targets), repeats=args.repeats)
    report.add("forward", forward, **facts)
    optimizer = AdamW()
    candidates = {"anetorch": lambda: optimizer.step(model.params, 1e-9, 1.0)}
    if set(args.peers) - {"jax"}:
        candidates["torch"] = peers.torch_update(weights)
    times = interleave(candidates, args.repeats)
    for name, took in times.items():
        what = "clip + AdamW + staging" if name == "anetorch" else "clip + fused AdamW"
        ratio = statistics.median([a / b for a, b in zip(took, times["anetorch"], strict=True)])
        report.add(f"{what}, {name}", summary(took), **facts, x_anetorch=ratio,
                   parameters=config.num_parameters())


if __name__ == "__main__":
    main()
