"""Config, parameters and the whole model."""

import json

import pytest

from anetorch.nn.config import PRESETS, Config


@pytest.mark.parametrize(
    ("name", "parameters"),
    # The published counts: reference-systems 1.1 (whose Qwen3 lacks 28 * 256 QK-norm gains).
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
