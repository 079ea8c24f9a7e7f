"""Where results may be written: never over what cmibq did not write, told before any work."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from cmibq.errors import CmibqError, ConfigError
from cmibq.io import load as load_package
from cmibq.ptq import check, quantize
from cmibq.ptq.export import export
from cmibq.recipe import QuantRecipe
from cmibq.recipe.tools import ExportConfig


def recipe(model: Path, out: Path, **fields: Any) -> QuantRecipe:
    fields = {"method": "rtn", "w_group": 32, "threads": 1} | fields
    return QuantRecipe(model_args=f"pretrained={model}", output_path=str(out), **fields)


def test_a_foreign_folder_is_never_replaced(tmp_path: Path, llava_dir: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="something that cmibq did not write"):
            quantize(recipe(llava_dir, tmp_path / "out", overwrite=overwrite), progress=False)
    assert (tmp_path / "out" / "precious.txt").read_text() == "x"


def test_the_inputs_are_never_replaced(tmp_path: Path, llava_dir: Path) -> None:
    first = recipe(llava_dir, tmp_path / "out", pseudo_quant=True)
    quantize(first, progress=False)  # a float folder, which may be the next input
    shutil.copytree(llava_dir, tmp_path / "model")
    again = recipe(tmp_path / "out", tmp_path / "out", overwrite=True, w_bit=3)
    around = recipe(tmp_path / "model", tmp_path, overwrite=True)
    for asked in (again, around):
        with pytest.raises(ConfigError, match="holds the model_args of this run"):
            quantize(asked, progress=False)


@pytest.mark.parametrize("place", ["file/out", "n" * 250])
def test_places_that_cannot_be_written_are_told_first(
    tmp_path: Path, llava_dir: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CmibqError, match="cannot write"):
        check(recipe(llava_dir, tmp_path / place))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_equal_run_that_was_faster_is_as_good(
    tmp_path: Path, llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["cmibq.ptq.quantize"]
    asked, real = recipe(llava_dir, tmp_path / "out"), module.check_weights

    def meanwhile(*args: Any) -> None:
        monkeypatch.setattr(module, "check_weights", real)
        quantize(asked, progress=False)

    monkeypatch.setattr(module, "check_weights", meanwhile)
    assert quantize(asked, progress=False).output_path == tmp_path / "out"
    assert load_package(tmp_path / "out").manifest.recipe["method"] == "rtn"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("place", ["out/scales.pt", "out.pt"])
def test_scales_in_the_folder_of_the_model_are_told_first(
    tmp_path: Path, llava_dir: Path, items_path: Path, place: str
) -> None:
    asked = recipe(
        llava_dir,
        tmp_path / place.split("/")[0],
        method="awq",
        run_process=True,
        data_path=str(items_path),
        n_samples=2,
        scale_path=str(tmp_path / place),
    )
    with pytest.raises(ConfigError, match="put the scales beside it"):
        check(asked)
    assert list(tmp_path.iterdir()) == []


def test_files_beside_a_result_are_never_removed(tmp_path: Path, llava_dir: Path) -> None:
    quantize(recipe(llava_dir, tmp_path / "out"), progress=False)
    (tmp_path / "out" / "notes.txt").write_text("x")
    again = recipe(llava_dir, tmp_path / "out", w_bit=3, overwrite=True)
    with pytest.raises(ConfigError, match=r"also holds notes\.txt, which would be removed"):
        quantize(again, progress=False)
    (tmp_path / "out" / "notes.txt").unlink()
    assert not quantize(again, progress=False).skipped


def test_export_replaces_results_only(tmp_path: Path, llava_dir: Path) -> None:
    package = tmp_path / "all" / "package"
    quantize(recipe(llava_dir, package), progress=False)

    def asked(out: Path) -> ExportConfig:
        return ExportConfig(path=str(package), output_path=str(out), format="cmibq", overwrite=True)

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    for out, told in (
        (tmp_path / "mine", "did not write"),
        (tmp_path / "all", "holds the package"),
    ):
        with pytest.raises(ConfigError, match=told):
            export(asked(out))
    assert (tmp_path / "mine" / "precious.txt").read_text() == "x"
    for _ in range(2):
        assert export(asked(tmp_path / "copy"))["exact"]
