from __future__ import annotations

import json
from pathlib import Path

from tests.fixtures import SHAPES


def test_folders_are_ordinary_and_differently_shaped(llava_dir: Path, llava_gqa_dir: Path) -> None:
    configs = [json.loads((d / "config.json").read_text()) for d in (llava_dir, llava_gqa_dir)]
    assert all(c["model_type"] == "llava" for c in configs)
    assert [c["text_config"]["hidden_size"] for c in configs] == [
        SHAPES[s]["hidden_size"] for s in ("mha", "gqa")
    ]
    assert (llava_dir / "chat_template.jinja").exists()
    assert not (llava_gqa_dir / "chat_template.jinja").exists()


def test_items_name_pictures_that_exist(items_path: Path) -> None:
    items = json.loads(items_path.read_text())
    assert all((items_path.parent / i["image"]).is_file() for i in items)
    assert len({i["image"] for i in items}) < len(items)
