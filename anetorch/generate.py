"""Text from a model: sampling by temperature and top-p, and ``anetorch generate``."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

import numpy as np

from anetorch.data import Vocabulary
from anetorch.env import InputError
from anetorch.nn.transformer import Model
from anetorch.rundir import find_run, newest_checkpoint
from anetorch.session import load_state

__all__ = ["generate", "pick", "sample"]


def pick(logits: np.ndarray, temperature: float, top_p: float, uniform: float) -> int:
    """An id drawn from ``logits`` [vocab] with the random number ``uniform`` of [0, 1).

    Temperature 0 takes the largest; ``top_p`` keeps the most probable ids whose
    probabilities together reach it (at least one).

    >>> pick(np.array([0.0, 2.0, 1.0]), temperature=0, top_p=1, uniform=0.9)
    1
    >>> pick(np.array([0.0, 2.0, 1.0]), temperature=1, top_p=1, uniform=0.9)
    2
    >>> pick(np.array([0.0, 2.0, 1.0]), temperature=1, top_p=0.5, uniform=0.9)
    1
    """
    if temperature == 0:
        return int(logits.argmax())
    x = logits.astype(np.float64) / temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    upto = np.cumsum(p[order])
    keep = int(np.searchsorted(upto, top_p)) + 1
    kept = upto[:keep]
    return int(order[min(int(np.searchsorted(kept, uniform * kept[-1], side="right")), len(kept) - 1)])


def sample(model: Model, vocab: Vocabulary, prompt: bytes, max_tokens: int = 256,
           temperature: float = 0.8, top_p: float = 0.9, seed: int = 42,
           emit: Callable[[bytes], None] = lambda piece: None) -> bytes:
    """Continues ``prompt`` by ``max_tokens`` bytes, handing each to ``emit`` as it comes.

    When the model's window is full, the later half of the text is fed again and goes on
    from there. Same seed, same text.

    >>> sample(model, vocab, b"def ", max_tokens=20)                    # doctest: +SKIP
    b'return a list of the'
    """
    ids = vocab.encode(prompt).tolist()
    rng = np.random.default_rng(seed)
    gen = model.generator()
    gen.reset()
    half = max(1, gen.capacity // 2)
    logits = gen.feed(ids[-half:] if len(ids) > half else ids)
    out = bytearray()
    for i in range(max_tokens):
        token = pick(np.asarray(logits)[:len(vocab.symbols)], temperature, top_p, rng.random())
        ids.append(token)
        out += vocab.decode([token])
        emit(bytes(out[-1:]))
        if i + 1 == max_tokens:
            break
        if gen.length >= gen.capacity:
            gen.reset()
            logits = gen.feed(ids[-half:])
        else:
            logits = gen.feed([token])
    return bytes(out)


def generate(source: str | None, prompt: str, max_tokens: int = 256, temperature: float = 0.8,
             top_p: float = 0.9, seed: int = 42,
             emit: Callable[[str], None] = lambda piece: None) -> str:
    """Continues ``prompt`` with the newest checkpoint of the run folder ``source`` (None:
    the newest numbered folder), as ``anetorch generate`` does; a checkpoint's own path
    works too. Returns the new text.

    >>> generate("anetorch-runs/1", "The ", max_tokens=20)              # doctest: +SKIP
    'following example of'
    """
    path = Path(source) if source is not None else find_run(None)
    if path is None:
        raise InputError("[generate] there is no trained model below anetorch-runs: run anetorch "
                         "train first, or give its folder with --from")
    if path.is_dir():
        found = newest_checkpoint(path)
        if found is None:
            raise InputError(f"[generate] {path} holds no checkpoint: give the folder that anetorch "
                             "train printed")
        path = found
    elif not path.exists():
        raise InputError(f"[generate] {path} does not exist: give the folder that anetorch train "
                         "printed")
    saved = load_state(path)
    text = prompt.encode(errors="surrogateescape") or b"\n"
    saved.vocab.encode(text)                        # complains before the model is made
    model = Model(saved.config, batch=1, seq=saved.training["options"]["seq"], training=False)
    with saved.file as file:
        try:
            model.params.load({n: file.tensors[n] for n in model.params if n in file.tensors})
        except ValueError as e:
            raise InputError(f"[generate] {path} is of another model: {e}") from None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    new = sample(model, saved.vocab, text, max_tokens, temperature, top_p, seed,
                 emit=lambda piece: emit(decoder.decode(piece)))
    emit(decoder.decode(b"", final=True))
    return new.decode(errors="replace")
