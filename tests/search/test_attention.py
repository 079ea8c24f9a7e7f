"""Attention on some of its tokens equals the module on all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmibq.ptq.capture import record, runner
from cmibq.ptq.rows import row_runner
from cmibq.ptq.stream import BatchStream
from cmibq.search import LinearGroup, RowRunner

LENGTHS = [[9, 14], [20]]
GROUPS = {
    "qkv": LinearGroup(
        "qkv", "n", "norm", tuple(f"self_attn.{c}_proj" for c in "qkv"), "self_attn"
    ),
    "gate_up": LinearGroup("gate_up", "n", "norm", ("mlp.gate_proj", "mlp.up_proj"), "mlp"),
}


def layer(family: str, kv_heads: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return a decoder layer and its table of positions."""
    fields = {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": kv_heads, "vocab_size": 8, "num_hidden_layers": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    if family == "llama":
        from transformers.models.llama import modeling_llama as m

        config = m.LlamaConfig(**fields, attn_implementation="sdpa")
        return m.LlamaDecoderLayer(config, 0).eval(), m.LlamaRotaryEmbedding(config)
    from transformers.models.qwen2_vl import modeling_qwen2_vl as q

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = q.Qwen2VLTextConfig(**fields, attn_implementation="sdpa", rope_parameters=rope)
    return q.Qwen2VLDecoderLayer(config, 0).eval(), q.Qwen2VLRotaryEmbedding(config)


def streams(family: str, table: torch.nn.Module) -> list[BatchStream]:
    """Return batches padded on the left, with causal masks and positions."""
    made = []
    for lengths in LENGTHS:
        n = max(lengths)
        real = torch.arange(n) >= n - torch.tensor(lengths)[:, None]
        hidden = torch.randn(len(lengths), n, 32)
        place = (real.cumsum(1) - 1).clamp(min=0)
        if family != "llama":
            place = torch.stack([place, place // 2, place % 3])
        mask = (torch.ones(n, n).tril().bool() & real[:, None, None]) | torch.eye(n).bool()
        call = {"attention_mask": mask, "position_embeddings": table(hidden, place)}
        none = torch.zeros_like(real)
        made.append(BatchStream(hidden, [call], real, real, none, none, [], none.long()))
    return made


def runners(family: str, kv_heads: int, name: str) -> tuple[Tensor, RowRunner | None, list[Tensor]]:
    """Return outputs of the whole module on kept tokens, the runner, and the weights."""
    block, table = layer(family, kv_heads)
    group, batches = GROUPS[name], streams(family, table)
    modules = dict(block.named_modules())
    first = group.linears[0]
    with torch.no_grad():
        seen, _ = record(
            block, 0, batches, {first: modules[first]}, {group.inspect: modules[group.inspect]}
        )
    module, weights = modules[group.inspect], [modules[n].weight.detach() for n in group.linears]
    whole = runner(group, module, seen, batches)
    assert whole is not None
    want = torch.cat(list(whole(weights, input_scale=None, act_bits=None)))
    x = seen.x(first)
    rows = row_runner(group, module, x, weights, seen.calls[group.inspect], whole, batches)
    return want, rows, weights


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 4), ("llama", 2), ("qwen2_vl", 1)])
def test_some_tokens_are_those_of_the_module(family: str, kv_heads: int, name: str) -> None:
    want, run, weights = runners(family, kv_heads, name)
    assert run is not None
    rows = torch.tensor([0, 3, 4, 8, 9, 22, 23, 30, 42])
    with torch.no_grad():
        got = run(weights, rows, input_scale=None, act_bits=None)
        torch.testing.assert_close(got, want[rows], rtol=1e-4, atol=1e-6)
        s = torch.linspace(0.5, 2, 32)
        scaled = run([w * s for w in weights], rows, input_scale=s, act_bits=None)
        torch.testing.assert_close(scaled, want[rows], rtol=1e-4, atol=1e-6)
        rounded = run(weights, rows, input_scale=None, act_bits=8)
    assert 1e-4 < float((rounded - got).norm() / got.norm()) < 0.1


def test_a_module_that_does_something_else_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama as m

    real = m.LlamaMLP.forward
    mixing = lambda self, x: real(self, x).cumsum(1)  # noqa: E731
    monkeypatch.setattr(m.LlamaMLP, "forward", mixing)
    _, run, _ = runners("llama", 4, "gate_up")
    assert run is None
