"""Time of a training step: forward + backward, and the optimizer's part.

    python benchmarks/bench_step.py                         # stories110m, 1 x 256, highest
    python benchmarks/bench_step.py --model tiny --batch 8 --seq 128 --peer
    python benchmarks/bench_step.py --precision medium --json results.jsonl

With --peer PyTorch runs the same model (transformers, fp32, eager) with the same weights at the
same thread count; the losses are compared before anything is timed.
"""

from __future__ import annotations

import math

import numpy as np
from common import Report, arguments, measure

import anetorch
from anetorch.nn.transformer import Config, Model
from anetorch.optim import AdamW


def flops(config: Config, columns: int, seq: int) -> float:
    """Floating-point operations of forward + backward: 6 for each matrix parameter and
    column, 12 for each head channel and pair of positions, half of which are masked."""
    c = config
    layer = c.hidden_size * (2 * c.q_dim + 2 * c.kv_dim + 3 * c.intermediate_size)
    matrices = layer * c.num_hidden_layers + c.vocab_size * c.hidden_size
    attention = 12 * c.num_hidden_layers * c.q_dim * columns * seq / 2
    return 6.0 * matrices * columns + attention


def torch_model(config: Config, model: Model):  # noqa: ANN201
    """The same model in PyTorch with the same weights."""
    import torch
    import transformers

    keys = {k: v for k, v in config.to_dict().items() if k != "model_type"}
    kinds = {"llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
             "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM)}
    make_config, make_model = kinds[config.model_type]
    peer = make_model(make_config(**keys))
    state = {n: torch.from_numpy(np.array(model.params[n])) for n in model.params}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    peer.load_state_dict(state)
    return peer.train()


def main() -> None:
    p = arguments(__doc__)
    p.add_argument("--model", default="stories110m")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--dtype", default="float16")
    p.add_argument("--precision", default="highest")
    p.add_argument("--peer", action="store_true", help="PyTorch on the same line")
    args = p.parse_args()
    if args.threads:
        anetorch.set_num_threads(args.threads)
    config = Config.preset(args.model)
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
    facts = {"model": args.model, "batch": args.batch, "seq": args.seq,
             "precision": args.precision, "dtype": args.dtype}
    work = flops(config, args.batch * args.seq, args.seq)

    def rate(times: dict[str, float]) -> dict[str, float]:
        return {"gflops": work / times["median"] / 1e9,
                "tokens_per_s": args.batch * args.seq / times["median"]}

    peer = None
    if args.peer:
        import torch

        torch.set_num_threads(anetorch.num_threads())
        peer = torch_model(config, model)
        x, y = torch.from_numpy(tokens.copy()), torch.from_numpy(targets.copy())

        def peer_step() -> float:
            out = torch.nn.functional.cross_entropy(peer(input_ids=x).logits.flatten(0, 1),
                                                    y.flatten())
            out.backward()
            return float(out)

        theirs = peer_step()
        # fp16 storage moves a loss of 10 by some 1e-3; a wrong layer moves it by far more.
        assert abs(theirs - loss) < 1e-2, (theirs, loss)

    times = measure(lambda: model.step_forward_backward(tokens, targets), repeats=args.repeats,
                    prepare=model.params.zero_grads)
    report.add("forward + backward", times, **facts, **rate(times))
    forward = measure(lambda: model.token_losses(tokens, targets), repeats=args.repeats)
    report.add("forward", forward, **facts)
    optimizer = AdamW()
    update = measure(lambda: optimizer.step(model.params, 1e-9, 1.0), repeats=args.repeats)
    report.add("clip + AdamW + staging", update, **facts, parameters=config.num_parameters())
    if peer is not None:
        def clear() -> None:
            peer.zero_grad(set_to_none=False)

        their_times = measure(peer_step, repeats=args.repeats, prepare=clear)
        report.add("PyTorch forward + backward", their_times, **facts, **rate(their_times),
                   peer=f"torch {torch.__version__} fp32 eager")
        print(f"ratio to PyTorch fp32: {their_times['median'] / times['median']:.2f}")


if __name__ == "__main__":
    main()
