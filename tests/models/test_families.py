"""What every family must do: feed its decoder as the model's own forward does, and quantise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.data import Batch, collate, encode, read_items
from cmibq.eval.loading import open_model
from cmibq.eval.pseudo import pseudo_quantize_
from cmibq.eval.questions import load_questions
from cmibq.eval.score import score
from cmibq.io import check_probe
from cmibq.models import MODELS, LoadedModel, load
from cmibq.ptq import quantize, run
from cmibq.ptq.capture import first
from cmibq.ptq.rounding import stages
from cmibq.ptq.stream import enter
from cmibq.recipe import EvalConfig, QuantRecipe
from tests.models.families import FAMILIES, write_family, write_talks

Opened = dict[str, LoadedModel]


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talks(tmp_path_factory.mktemp("talks"))


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp(request.param)
    return load(write_family(request.param, folder), model=request.param)


def own_inputs(loaded: LoadedModel, batch: Batch) -> dict[str, Any]:
    """Return what the family's own processor makes of the texts and images of a batch."""
    from PIL import Image

    processor, made = loaded.processor, []
    for s in batch.samples:
        turns = []
        for role, text in s.sample.messages:
            parts = text.split("<image>")
            content: list[dict[str, str]] = []
            for n, part in enumerate(parts):
                content += [{"type": "image"}] * bool(n)
                content += [{"type": "text", "text": part.strip()}] * bool(part.strip())
            turns.append({"role": role, "content": content})
        made.append(processor.apply_chat_template(turns, tokenize=False))
    images = [[Image.open(p).convert("RGB") for p in s.sample.images] for s in batch.samples]
    processor.tokenizer.padding_side = loaded.adapter.padding
    given: Any = [i for i in images if i] or None
    return dict(processor(text=made, images=given, return_tensors="pt", padding=True))


@torch.no_grad()
def test_the_decoder_gets_what_the_models_own_forward_gives_it(
    loaded: LoadedModel, talks: Path
) -> None:
    samples = encode(read_items(talks), loaded.processor)
    model: Any = loaded.model
    adapter = loaded.adapter
    for chosen in (samples, samples[2:3], samples[1:2]):
        batch = collate(chosen, loaded.processor, side=adapter.padding)
        inputs = own_inputs(loaded, batch)
        assert torch.equal(inputs["input_ids"], batch.input_ids)
        mine = batch.model_inputs()
        assert set(mine) == set(inputs) - (set() if batch.images else {"mm_token_type_ids"})
        for name, value in mine.items():
            torch.testing.assert_close(value, inputs[name].to(value.dtype), msg=name)
        want = model(**inputs).logits
        stream = [*enter(loaded, chosen, reference=False)]
        decoder: Any = adapter.decoder(model)
        out = decoder(
            inputs_embeds=adapter.embed(model, batch),
            attention_mask=batch.attention_mask,
            **adapter.decoder_inputs(model, batch),
        )
        got = adapter.lm_head(model)(out.last_hidden_state)
        real = batch.attention_mask.bool()
        torch.testing.assert_close(got[real], want[real], rtol=1e-5, atol=1e-5)
        for one in stream:
            for index, (_, block) in enumerate(adapter.blocks(model)):
                one.hidden = first(block(one.hidden, **one.calls[index]))
        logits = [adapter.lm_head(model)(decoder.norm(s.hidden))[s.real] for s in stream]
        order = sorted(range(len(chosen)), key=lambda i: (len(chosen[i]), i))
        mixed = torch.cat([want[i][real[i]] for i in order])
        torch.testing.assert_close(torch.cat(logits), mixed, rtol=1e-4, atol=1e-4)


def test_images_have_their_own_numbers_of_tokens(loaded: LoadedModel, talks: Path) -> None:
    samples = encode(read_items(talks), loaded.processor)
    batch = collate(samples, loaded.processor)
    features = list(loaded.adapter.image_features(loaded.model, batch.joined))
    counts = [sum(len(features[batch.images.index(p)]) for p in s.pictures) for s in samples]
    assert counts == [int(s.vision.sum()) for s in samples]
    assert counts[2] == 0
    if loaded.adapter.family != "llava":
        assert len({len(f) for f in features}) > 1


def test_every_family_is_tested() -> None:
    assert set(FAMILIES) == set(MODELS) - {"llava_llama", "internvl2", "internvl2_llama"}


@pytest.mark.parametrize("method", ["rtn", "awq", "mbq"])
def test_quantised_and_opened_again(
    loaded: LoadedModel, talks: Path, tmp_path: Path, method: str
) -> None:
    recipe = QuantRecipe(
        model_args=f"pretrained={loaded.path}",
        method=method,
        w_group=8 if method == "awq" else 16,
        n_grid=3,
        n_samples=6,
        reweight=method == "mbq",
        data_path=str(talks),
        run_process=method != "rtn",
        output_path=str(tmp_path / "out"),
    )
    made = quantize(recipe, progress=False)
    again, package = open_model(tmp_path / "out")
    assert package is not None
    assert check_probe(again.model, package).exact
    assert len(package.manifest.layers) == 14
    assert len(made.groups) == (0 if method == "rtn" else 8)
    (sample, *_) = score(again, load_questions(tmp_path / "out", str(talks)), progress=False)
    assert sample.logprob < 0


@pytest.mark.parametrize(
    ("method", "scope"),
    [("awq", "vision"), ("rtn", "projector"), ("smoothquant", "lm,projector,vision")],
)
def test_tower_and_projector_are_quantised_on_request(
    loaded: LoadedModel, talks: Path, tmp_path: Path, method: str, scope: str
) -> None:
    recipe = QuantRecipe(
        model_args=f"pretrained={loaded.path}",
        method=method,
        scope=scope,
        w_group=16,
        a_bit=8 if method == "smoothquant" else 16,
        n_grid=3,
        n_samples=6,
        data_path=str(talks),
        run_process=method != "rtn",
        output_path=str(tmp_path / "out"),
        verify=False,
    )
    made = quantize(recipe, progress=False)
    again, package = open_model(tmp_path / "out")
    assert package is not None
    assert check_probe(again.model, package).exact
    assert set(package.manifest.layers) == set(loaded.adapter.targets(loaded.model, scope))
    blocks = loaded.adapter.numbered(loaded.model, scope)
    groups = [g for _, n, b in blocks for g in loaded.adapter.groups(n, b)]
    tried = [g for g in groups if g.prev_kind == "norm" or method == "awq"]
    assert len(made.groups) == (0 if method == "rtn" else len(tried))


def test_a_killed_search_goes_on_and_rounds_as_eval_does(
    talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of decoder and tower found before the end are not searched again."""
    folder = write_family("qwen2_vl", tmp_path / "model")
    whole = QuantRecipe(
        model_args=f"pretrained={folder}",
        method="awq",
        scope="lm,projector,vision",
        w_group=16,
        n_grid=3,
        n_samples=6,
        data_path=str(talks),
        run_process=True,
        pseudo_quant=True,
        clip=False,
        scale_path=str(tmp_path / "whole.safetensors"),
        output_path=str(tmp_path / "whole"),
        verify=False,
    )
    quantize(whole, progress=False)
    again = replace(
        whole,
        scale_path=str(tmp_path / "again.safetensors"),
        output_path=str(tmp_path / "again"),
    )
    real, seen = run.search_block, []

    def counted(task: Any, index: int, name: str, *rest: Any) -> Any:
        seen.append(name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(task, index, name, *rest)

    monkeypatch.setattr(run, "search_block", counted)
    with pytest.raises(KeyboardInterrupt):
        quantize(again, progress=False)
    quantize(again, progress=False)
    assert [n.rsplit(".", 2)[1] for n in seen] == ["layers"] * 2 + ["blocks"] * 3
    one, other = (load(tmp_path / n).model.state_dict() for n in ("whole", "again"))
    assert all(torch.equal(one[n], other[n]) for n in one)
    fresh = load(folder)
    config = EvalConfig(
        model_args=f"pretrained={folder}",
        data_path=str(talks),
        pseudo_quant=True,
        method="awq",
        scale_path=whole.scale_path,
        scope=whole.scope,
        w_bit=4,
        w_group=16,
    )
    stored = pseudo_quantize_(fresh, config)
    assert set(stored) == set(fresh.adapter.targets(fresh.model, whole.scope))
    rounded = fresh.model.state_dict()
    for name in stored:
        torch.testing.assert_close(rounded[f"{name}.weight"], one[f"{name}.weight"])


def test_layers_of_a_block_are_rounded_in_the_order_in_which_they_run(
    loaded: LoadedModel, talks: Path
) -> None:
    batch = collate(encode(read_items(talks)[:2], loaded.processor), loaded.processor)
    for part in ("lm", "vision"):
        name, block = loaded.adapter.blocks(loaded.model, part)[0]
        ran: list[str] = []
        hooks = [
            m.register_forward_pre_hook(lambda _, __, n=n, ran=ran: ran.append(n))
            for n, m in block.named_modules()
            if isinstance(m, torch.nn.Linear)
        ]
        with torch.no_grad():
            loaded.model(**own_inputs(loaded, batch))
        for hook in hooks:
            hook.remove()
        order = [
            min(map(ran.index, stage.linears)) for stage in stages(loaded.adapter, name, block)
        ]
        assert order == sorted(order), (part, ran)
