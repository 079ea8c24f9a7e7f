from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch

from cmibq import CMIBQConfig, IBQuantizedLayer
from cmibq.errors import ModelError, PackageError
from cmibq.nn.latent import CompressedLatent
from cmibq.runtime import native
from cmibq.train import stage_one_pretrain

TOKENS = 6


def features(count: int, seed: int = 0) -> torch.Tensor:
    """Skewed and correlated: a code with few values carries most."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(8, 8, generator=torch.Generator().manual_seed(77))
    heavy = torch.randn(count, TOKENS, 8, generator=draw) ** 3
    return heavy @ mix * torch.linspace(0.2, 2, 8)


def trained(steps: int = 60, **fields: object) -> IBQuantizedLayer:
    """A layer trained by stage one, frozen, trained on and finalised."""
    torch.manual_seed(0)
    plain = {"feature_dim": 8, "hidden_dim": 16, "min_bits": 0, "stage1_bits": 2.0}
    given = plain | {"stage2_bits": 2.0, "beta": 0.05} | fields
    layer = IBQuantizedLayer(CMIBQConfig(**given))
    task = torch.randn(steps, 16, 4, generator=torch.Generator().manual_seed(5))
    data = [{"features": features(16, 100 + i), "task_embedding": task[i]} for i in range(steps)]
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
    stage_one_pretrain(layer, data, optimiser, torch.device("cpu"))
    layer.freeze_()
    stage_one_pretrain(layer, data[: steps // 3], optimiser, torch.device("cpu"))
    layer.finalize_()
    return layer.eval()


TASK = {"mode": "task", "task_dim": 4, "n_maps": 5}
KINDS = [{}, TASK, {"token_gain": True}, {**TASK, "token_gain": True}, {"rate": "gaussian"},
         {"grid": "log"}, {"grid": "pow2"}]  # fmt: skip


@pytest.fixture(scope="module")
def layer() -> IBQuantizedLayer:
    return trained()


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_decoder_finds_what_evaluation_gives(kind: dict[str, object], entropy: bool) -> None:
    layer = trained(12, **kind)
    x, task = features(5, 9), torch.randn(5, 4, generator=torch.Generator().manual_seed(6))
    want = layer.run(x, task)
    z = layer.compress(x, task, entropy=entropy)
    again = CompressedLatent.from_bytes(bytes(z))
    assert torch.equal(layer.decompress(again), want.quantised)
    np.testing.assert_allclose(z.rate, want.rate.tolist(), rtol=1e-5) if layer.prior else None
    for size, rate, nominal in zip(z.sizes, z.rate, z.nominal_bits, strict=True):
        assert size < (1 + rate / 8 + 1 if entropy else 5 + (nominal + 8 + 4 * TOKENS) / 8 + 1)


def test_vectors_and_single_tokens(layer: IBQuantizedLayer) -> None:
    for x in (features(3)[:, 0], features(3)[:, :1], features(1), features(1)[:, 0]):
        z = layer.compress(x)
        made = layer.decompress(bytes(z))
        assert torch.equal(made, layer(x)[0])
        assert max(z.sizes) <= 3 + max(z.rate) / 8 + 3


def test_trained_reported_and_coded_bits_agree(layer: IBQuantizedLayer) -> None:
    """On pictures that training has not seen; the header is a byte, the ending below one."""
    test = features(400, 1)
    reported = layer.run(test).rate
    z = layer.compress(test)
    np.testing.assert_allclose(z.rate, reported.tolist(), rtol=1e-5)
    mean, bits = np.mean(z.sizes), reported.mean().item() / 8
    assert bits < mean <= 1.02 * bits + 1.5, (mean, bits)
    assert min(z.sizes) > 1
    with torch.no_grad():  # what training minimised, on the same codes
        told = copy.deepcopy(layer)
        told.latent._write("ready", 0)
        trained_bits = told.run(test).rate.mean().item() / 8
    assert abs(trained_bits - bits) < 0.005 * bits


def test_nothing_depends_on_isa_or_threads(
    layer: IBQuantizedLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = features(20, 3)
    want, made = bytes(layer.compress(x)), layer.decompress(layer.compress(x))
    for isa in native().ISAS:
        monkeypatch.setenv("CMIBQ_ISA", isa)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            try:
                assert bytes(layer.compress(x)) == want
                assert torch.equal(layer.decompress(want), made)
            finally:
                torch.set_num_threads(1)


def test_another_machine_decodes(layer: IBQuantizedLayer) -> None:
    """A fresh layer with the saved state; its float networks are never run."""
    x, file = features(4, 2), io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = IBQuantizedLayer(layer.config)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert bytes(other.compress(x)) == bytes(layer.compress(x))
    for name in ("encoder", "decoder", "prior", "allocation"):
        for parameter in getattr(other, name).parameters():
            parameter.data.fill_(torch.nan)
    assert torch.equal(other.decompress(bytes(layer.compress(x))), layer(x)[0])


def test_counts_take_the_place_of_what_was_learned() -> None:
    """Few steps teach the prior little; the codes of training data say it."""
    for kind in ({}, {**TASK, "token_gain": True}):
        layer = trained(12, **kind)
        x, task = features(300, 7), torch.randn(300, 4, generator=torch.Generator().manual_seed(8))
        counts = layer.count_codes(x, task)
        assert int(counts.sum()) == 300 * TOKENS * 8
        test, last = features(300, 8), task.flip(0)
        before = layer.run(test, last).rate.mean()
        layer.finalize_(counts)
        assert layer.run(test, last).rate.mean() < before
        z = layer.compress(test[:4], last[:4])
        assert torch.equal(layer.decompress(bytes(z)), layer(test[:4], last[:4])[0])
    layer.thaw_()
    with pytest.raises(ModelError, match="frozen bits"):
        layer.count_codes(x, task)


def test_next_steps_are_named() -> None:
    layer = IBQuantizedLayer(CMIBQConfig(feature_dim=8, stage1_bits=2.0, stage2_bits=2.0))
    x = features(2)
    with pytest.raises(ModelError, match=r"call layer.finalize_\(\)"):
        layer.compress(x)
    with pytest.raises(ModelError, match=r"no integer tables to decode with"):
        layer.decompress(b"abc")
    layer.train()(x)
    layer.finalize_()
    assert layer.finalised
    layer.eval().compress(x)
    with pytest.raises(ModelError, match="no integer tables for target_bits 3"):
        layer.compress(x, target_bits=3.0)
    layer.train()(x)  # another step: the tables are those of an older layer
    assert not layer.finalised
    with pytest.raises(ModelError, match="finalize_"):
        layer.eval().compress(x)


def test_damaged_streams_are_refused(layer: IBQuantizedLayer) -> None:
    """Single bits always; anything else but for one in 128 (short form) or 65536."""
    rng, x = np.random.default_rng(0), features(40, 4)
    for entropy in (True, False):
        made = layer.compress(x, entropy=entropy).streams
        data = made[0]
        for bit in range(8 * len(data)):
            other = bytearray(data)
            other[bit // 8] ^= 1 << (bit % 8)
            with pytest.raises(PackageError):
                layer.decompress(bytes(other))
        tried = [stream[:cut] for stream in made for cut in range(len(stream))]
        tried += [rng.bytes(int(rng.integers(1, 40))) for _ in range(200)]
        passed = 0
        for damaged in tried:
            try:
                layer.decompress(damaged)
            except PackageError:
                continue
            passed += 1
        assert passed <= (len(tried) / 64 if entropy else 4)
    x = x[:1]
    with pytest.raises(PackageError, match="another layer made it"):
        trained(12).decompress(bytes(layer.compress(x, entropy=False)))


def test_large_streams_have_lanes() -> None:
    layer = IBQuantizedLayer(
        CMIBQConfig(feature_dim=64, hidden_dim=8, min_bits=0, stage1_bits=4.0, stage2_bits=4.0)
    )
    x = torch.randn(1, 300, 64, generator=torch.Generator().manual_seed(0))
    layer.train()(x)
    layer.finalize_()
    z = layer.eval().compress(x)
    assert len(z) > 4096
    assert len(z) <= 1.001 * z.rate[0] / 8 + 16
    assert torch.equal(layer.decompress(bytes(z)), layer(x)[0])


def test_files_of_several_samples() -> None:
    z = CompressedLatent((b"abc", b"d", b""))
    assert CompressedLatent.from_bytes(bytes(z)) == z
    for cut in range(1, len(bytes(z))):
        with pytest.raises(PackageError):
            CompressedLatent.from_bytes(bytes(z)[:cut])
    with pytest.raises(PackageError, match="1 bytes follow"):
        CompressedLatent.from_bytes(bytes(z) + b"x")
    with pytest.raises(PackageError, match="no bytes"):
        CompressedLatent.from_bytes(b"")
