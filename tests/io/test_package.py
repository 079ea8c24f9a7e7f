from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cmibq import io
from cmibq.errors import ModelError, PackageError, StorageError
from cmibq.fileio import sha256_file
from cmibq.io.manifest import _checksum
from cmibq.io.tensors import read_tensors, write_tensors
from cmibq.nn import PackedLinear, convert_
from cmibq.quant import PerGroup, QuantSpec
from tests.test_fileio import file_size_limit, unprivileged

ROOT = Path(__file__).parents[2]
FILES = ["buffers.safetensors", "cmibq.safetensors", "config.json", "manifest.json"]
FILES += ["probe.safetensors", "tokenizer.json"]


class Toy(nn.Module):
    """Two packed layers, a norm, a tied pair and a buffer that is no part of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 32)
        self.up = nn.Linear(32, 64, bias=False)
        self.norm = nn.LayerNorm(64)
        self.down = nn.Linear(64, 32)
        self.head = nn.Linear(32, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("phase", torch.linspace(0, 1, 32), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.get_buffer("phase")
        logits: torch.Tensor = self.head(x + self.down(self.norm(self.up(x))))
        return logits


def make_source(folder: Path) -> Path:
    folder.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "_name_or_path": "/x"}))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    for name in ("modeling_toy.py", "model.safetensors", "notes.md"):
        (folder / name).write_text("no")
    return folder


def make_model(bits: int = 4) -> Toy:
    torch.manual_seed(0)
    model = Toy()
    targets = {"up": QuantSpec(bits, PerGroup(16)), "down": QuantSpec(bits, PerGroup(64), True)}
    convert_(model, targets)
    return model.eval()


def save(tmp_path: Path, name: str = "package", **options: Any) -> io.Package:
    source = tmp_path / "source"
    if not source.exists():
        make_source(source)
    probe = {"ids": torch.arange(8).reshape(2, 4)}
    return io.save(
        make_model(),
        source,
        tmp_path / name,
        **({"recipe": {"w_bit": 4}, "metadata": {"any": [1]}, "probe": probe} | options),
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> io.Package:
    """A package; do not write to it."""
    return save(tmp_path_factory.mktemp("io"))


@pytest.fixture
def copied(package: io.Package, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package.path, tmp_path / "copied"))


def skeleton() -> Toy:
    with torch.device("meta"):
        return Toy()


def test_what_is_in_a_package(package: io.Package) -> None:
    names = sorted(p.relative_to(package.path).as_posix() for p in package.path.rglob("*.*"))
    wanted = [*FILES, "additional_chat_templates/tool.jinja", "chat_template.jinja"]
    assert names == sorted([*wanted, "preprocessor_config.json"])
    assert set(package.manifest.files) == set(names) - {"manifest.json"}
    for name, info in package.manifest.files.items():
        assert info.sha256 == sha256_file(package.path / name)
    assert package.manifest.recipe == {"w_bit": 4}
    assert package.manifest.metadata == {"any": [1]}
    assert package.manifest.environment["threads"] == torch.get_num_threads()
    assert package.config["quantization_config"]["quant_method"] == "cmibq"
    assert "_name_or_path" not in package.config


def test_sizes_are_those_of_the_buffers(package: io.Package) -> None:
    model = make_model()
    packed = [m for m in model.modules() if isinstance(m, PackedLinear)]
    bias = sum(m.bias.nbytes for m in packed if m.bias is not None)
    assert package.manifest.packed_bytes == sum(m.nbytes() for m in packed) - bias
    weights = sum(m.in_features * m.out_features for m in packed)
    assert package.manifest.bits_per_weight == pytest.approx(
        sum(m.bits_per_weight() * m.in_features * m.out_features for m in packed) / weights
    )


def test_reload_is_exact_without_a_float_copy(package: io.Package) -> None:
    model = io.load(package.path).fill_(skeleton())
    wanted = make_model()
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    for (a, x), (b, y) in zip(model.state_dict().items(), wanted.state_dict().items(), strict=True):
        assert (a, x.dtype) == (b, y.dtype)
        assert torch.equal(x, y)
    assert model.get_parameter("head.weight") is model.get_parameter("embed.weight")
    assert torch.equal(model.get_buffer("phase"), wanted.get_buffer("phase"))
    assert io.check_probe(model, package) == io.ProbeCheck(True, 0.0)
    stored = (package.path / "cmibq.safetensors").stat().st_size
    held = {t.data_ptr(): t.nbytes for t in model.state_dict().values()}
    assert sum(held.values()) < stored


def test_reload_in_a_fresh_process(package: io.Package) -> None:
    code = (
        "import sys; from cmibq import io; from tests.io.test_package import skeleton;"
        "package = io.load(sys.argv[1]); print(io.check_probe(package.fill_(skeleton()), package))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(package.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "ProbeCheck(exact=True, max_difference=0.0)\n", done.stderr


def test_the_probe_notices_another_model(package: io.Package) -> None:
    model = package.fill_(skeleton())
    model.get_parameter("norm.weight").data[0] += 1e-3
    check = io.check_probe(model, package)
    assert check is not None
    assert not check.exact
    assert 0 < check.max_difference < 1


def test_saving_moves_tensors_to_where_a_reload_has_them(tmp_path: Path) -> None:
    model = make_model()
    for tensor in {*model.parameters(), *model.buffers()}:
        room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        tensor.data = room[1:].reshape(tensor.shape).copy_(tensor.data)
    assert any(p.data_ptr() % 64 for p in model.parameters())
    package = io.save(model, make_source(tmp_path / "s"), tmp_path / "p", recipe={})
    reloaded = package.fill_(skeleton())
    for tensor in (*model.parameters(), *model.buffers(), *reloaded.state_dict().values()):
        assert tensor.data_ptr() % 64 == 0
    assert model.head.weight is model.embed.weight
    assert set(package.manifest.tied) == {"head.weight"}
    for name, tensor in make_model().state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_the_probe_runs_without_gradients_as_a_reload_does(tmp_path: Path) -> None:
    model, seen = make_model(), set()
    model.norm.weight.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    model.norm.register_forward_hook(
        lambda *_: seen.update(p.requires_grad for p in model.parameters())
    )
    probe = {"ids": torch.arange(4)[None]}
    io.save(model, make_source(tmp_path / "s"), tmp_path / "p", recipe={}, probe=probe)
    assert seen == {False}
    assert [p.requires_grad for p in model.parameters()] == before
    assert set(before) == {True, False}


@pytest.mark.parametrize("threads", [0, -1, 10**9, "x", True, None])
def test_absurd_threads_of_a_package_are_not_taken(package: io.Package, threads: Any) -> None:
    environment = dict(package.manifest.environment) | {"threads": threads}
    manifest = dataclasses.replace(package.manifest, environment=environment)
    odd = dataclasses.replace(package, manifest=manifest)
    assert io.check_probe(package.fill_(skeleton()), odd) is not None


def test_no_probe(tmp_path: Path) -> None:
    package = save(tmp_path, probe=None)
    assert io.check_probe(package.fill_(skeleton()), package) is None


def test_the_probe_runs_with_the_threads_it_was_saved_with(package: io.Package) -> None:
    before = torch.get_num_threads()
    io.check_probe(package.fill_(skeleton()), package)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", FILES)
def test_truncated_at_many_places(copied: Path, name: str) -> None:
    content = (copied / name).read_bytes()
    for size in {0, 1, 7, 8, 9, len(content) // 2, len(content) - 2} & set(range(len(content))):
        (copied / name).write_bytes(content[:size])
        with pytest.raises(PackageError, match=name):
            io.load(copied)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(copied: Path, name: str) -> None:
    content, named = (copied / name).read_bytes(), []
    step = max(1, 8 * len(content) // 60)
    for bit in range(3, 8 * len(content), step):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (copied / name).write_bytes(damaged)
        try:
            found = io.load(copied)
        except PackageError as error:
            named.append(name in str(error))
            continue
        assert name == "manifest.json"  # a blank became another blank
        (copied / name).write_bytes(content)
        assert found.manifest == io.load(copied).manifest
    assert named
    assert all(named)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(PackageError, match=name):
        io.load(copied)


def test_longer_file(copied: Path) -> None:
    with (copied / "cmibq.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(PackageError, match=r"cmibq\.safetensors is altered"):
        io.load(copied)


def sign(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest as someone would who signs it again."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    for name, info in value["files"].items():
        if (folder / name).is_file():
            info |= {
                "sha256": sha256_file(folder / name),
                "bytes": (folder / name).stat().st_size,
            }
    path.write_text(json.dumps(value | {"checksum": _checksum(value)}))


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors, _ = read_tensors(folder / "cmibq.safetensors")
    change(tensors)
    with (folder / "cmibq.safetensors").open("wb") as file:
        write_tensors(file, tensors)
    sign(folder, lambda value: None)


def test_newer_version(copied: Path) -> None:
    sign(copied, lambda value: value.update(version=4))
    with pytest.raises(PackageError, match=r"version 4 is newer than 3.*update"):
        io.load(copied)


def test_config_and_manifest_disagree(copied: Path) -> None:
    sign(copied, lambda value: value["layers"]["up"].update(bits=3))
    with pytest.raises(PackageError, match="disagree"):
        io.load(copied)


@pytest.mark.parametrize("content", ["[]", "{}", '{"quantization_config": 1}', "{"])
def test_config_without_quantisation(copied: Path, content: str) -> None:
    (copied / "config.json").write_text(content)
    sign(copied, lambda value: None)
    with pytest.raises(PackageError, match=r"config\.json"):
        io.load(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 1}, "layer up: bits is 1"),
        ({"group_size": 4}, "layer up: group_size is 4"),
        ({"bits": 8}, r"up\.qweight is"),
        ({"group_size": 32}, r"up\.scales is"),
        ({"symmetric": True}, r"has up\.zeros, unknown"),
        ({"bias": True}, r"lacks up\.bias"),
    ],
)
def test_layers_that_do_not_fit(copied: Path, changes: dict[str, Any], message: str) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["quantization_config"]["layers"]["up"] |= changes
    (copied / "config.json").write_text(json.dumps(config))
    sign(copied, lambda value: value["layers"]["up"].update(changes))
    with pytest.raises(PackageError, match=message):
        io.load(copied).fill_(skeleton())


def test_file_list_is_complete(copied: Path) -> None:
    sign(copied, lambda value: value["files"].pop("probe.safetensors"))
    with pytest.raises(PackageError, match=r"does not list probe\.safetensors"):
        io.load(copied)


def set_value(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda t: t[name].view(-1).__setitem__(0, value)


HOSTILE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "nan scale": (set_value("up.scales", float("nan")), "up lacks scales"),
    "inf scale": (set_value("down.scales", float("inf")), "down lacks scales"),
    "zero scale": (set_value("up.scales", 0.0), "up lacks scales"),
    "negative scale": (set_value("up.scales", -1.0), "up lacks scales"),
    "no scales": (lambda t: t.pop("up.scales"), "up lacks scales"),
    "missing": (lambda t: t.pop("norm.weight"), r"lacks norm\.weight"),
    "left over": (lambda t: t.update(x=torch.ones(1)), "has x, unknown"),
    "shape": (lambda t: t.update({"norm.weight": torch.ones(3)}), r"norm\.weight is"),
    "kind": (
        lambda t: t.update({"up.qweight": t["up.qweight"].float()}),
        r"up\.qweight is torch\.float32",
    ),
    "wide scales": (
        lambda t: t.update({"up.scales": t["up.scales"].float()}),
        r"up\.scales is torch\.float32",
    ),
    "signed codes": (
        lambda t: t.update({"up.qweight": t["up.qweight"].view(torch.int8)}),
        r"up\.qweight is torch\.int8",
    ),
    "few codes": (
        lambda t: t.update({"up.qweight": t["up.qweight"][:, :-1].contiguous()}),
        r"up\.qweight is",
    ),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_tensors_that_do_not_fit(
    copied: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    retensor(copied, change)
    with pytest.raises(PackageError, match=message):
        io.load(copied).fill_(skeleton())


def test_another_architecture(package: io.Package) -> None:
    other = skeleton()
    other.up = nn.Linear(32, 48, bias=False, device="meta")
    with pytest.raises(PackageError, match=r"layer up is \(48, 32\) in the model and \(64, 32\)"):
        package.fill_(other)
    with pytest.raises(PackageError, match="the model has no layer up"):
        package.fill_(nn.Linear(2, 2))


def test_tied_to_nothing(copied: Path) -> None:
    sign(copied, lambda value: value["tied"].update({"head.weight": "nowhere"}))
    with pytest.raises(PackageError, match=r"head\.weight is tied to nowhere"):
        io.load(copied).fill_(skeleton())


def test_nothing_to_pack(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no packed layer; run convert_"):
        io.save(nn.Linear(2, 2), make_source(tmp_path / "s"), tmp_path / "out", recipe={})
    assert not (tmp_path / "out").exists()


def test_overwrite_only_when_told(tmp_path: Path) -> None:
    first = save(tmp_path)
    with pytest.raises(StorageError, match=r"not empty.*overwrite"):
        save(tmp_path, recipe={"w_bit": 3})
    assert io.load(first.path).manifest.recipe == {"w_bit": 4}
    assert save(tmp_path, recipe={"w_bit": 3}, overwrite=True).manifest.recipe == {"w_bit": 3}


@pytest.mark.parametrize("limit", [100, 1000, 4000])
def test_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    make_source(tmp_path / "source")
    with file_size_limit(limit), pytest.raises(StorageError, match="free space"):
        save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_full_disk_keeps_the_old_package(tmp_path: Path) -> None:
    old = save(tmp_path)
    with file_size_limit(2000), pytest.raises(StorageError):
        save(tmp_path, overwrite=True, recipe={})
    assert io.load(old.path).manifest.recipe == {"w_bit": 4}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["package", "source"]


def test_read_only_folder(tmp_path: Path) -> None:
    save(tmp_path)
    for part in (tmp_path, *tmp_path.parents):
        if part.is_relative_to("/tmp") and part != Path("/tmp"):
            part.chmod(0o755)
    tmp_path.chmod(0o555)
    with unprivileged(), pytest.raises(StorageError, match="not permitted"):
        save(tmp_path, "other")
    tmp_path.chmod(0o755)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["package", "source"]


def test_read_only_package_loads(package: io.Package, copied: Path) -> None:
    for path in copied.rglob("*"):
        path.chmod(0o444 if path.is_file() else 0o555)
    copied.chmod(0o555)
    assert io.load(copied).manifest == package.manifest
    copied.chmod(0o755)


def test_killed_while_saving_a_package_is_old_or_new(tmp_path: Path) -> None:
    save(tmp_path)
    code = (
        "import sys; from pathlib import Path; from tests.io.test_package import save\n"
        "print('ready', flush=True)\n"
        "for i in range(10**6): save(Path(sys.argv[1]), overwrite=True, recipe={'round': i})"
    )
    for round_ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.1 + 0.017 * round_)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        found = io.load(tmp_path / "package")
        assert io.check_probe(found.fill_(skeleton()), found) == io.ProbeCheck(True, 0.0)
    save(tmp_path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["package", "source"]


def test_nothing_in_a_package_is_a_pickle(package: io.Package) -> None:
    for path in package.path.rglob("*"):
        if path.is_file():
            start = path.read_bytes()[:2]
            assert not start.startswith((b"\x80", b"PK"))
            assert path.suffix in (".json", ".safetensors", ".jinja")


def test_memory_while_loading_stays_near_the_size_of_the_file(tmp_path: Path) -> None:
    model = make_model()
    model.embed = nn.Embedding(40_000, 256)
    model.head = nn.Linear(256, 40_000, bias=False)
    model.head.weight = model.embed.weight
    package = io.save(model, make_source(tmp_path / "s"), tmp_path / "p", recipe={})
    code = """
import sys
from cmibq import io
from cmibq.eval.footprint import peak_memory
from torch import nn
from tests.io.test_package import skeleton
import cmibq.io.package
model = skeleton()
model.embed = nn.Embedding(40_000, 256, device="meta")
model.head = nn.Linear(256, 40_000, bias=False, device="meta")
model.head.weight = model.embed.weight
with peak_memory() as before:
    pass
with peak_memory() as during:
    io.load(sys.argv[1]).fill_(model)
print(during.bytes - before.bytes)
"""
    command = [sys.executable, "-c", code, str(package.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    size = (package.path / "cmibq.safetensors").stat().st_size
    assert size > 40_000_000
    assert int(done.stdout) < 1.2 * size + 16e6


def test_is_package(package: io.Package, tmp_path: Path) -> None:
    assert io.is_package(package.path)
    assert not io.is_package(tmp_path)
    with pytest.raises(PackageError, match="no cmibq package"):
        io.load(tmp_path)
