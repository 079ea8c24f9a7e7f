"""What happened at every step, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmibq.errors import DataError
from cmibq.fileio import write_text
from cmibq.train.peers import rank

__all__ = ["Journal", "read_journal"]


def read_journal(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a journal; a last line that was cut off is left out.

    Raises:
        DataError: another line is no JSON object.
    """
    file = Path(path)
    lines = file.read_bytes().split(b"\n") if file.exists() else []
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line break was cut off
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not valid JSON; remove the line") from error
        if not isinstance(record, dict):
            raise DataError(f"{file}, line {number}: {record!r} is no object; remove the line")
        found.append(record)
    return found


class Journal:
    """A file of records that only grows, but for steps that are done again.

    Of several processes the first one writes.

    Args:
        path: ``.jsonl`` file; made at the first record.

    Example:
        >>> import tempfile
        >>> journal = Journal(Path(tempfile.mkdtemp(), "log.jsonl"))
        >>> journal.write([{"stage": 1, "step": 0}, {"stage": 1, "step": 1}])
        >>> journal.rewind(1, 1)  # step 1 of stage 1 and what follows are done again
        >>> read_journal(journal.path)
        [{'stage': 1, 'step': 0}]
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records, each on one line; numbers that JSON lacks become text."""
        text = "".join(json.dumps(_plain(r), ensure_ascii=False) + "\n" for r in records)
        if not text or rank():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(text.encode())

    def rewind(self, stage: int, step: int) -> None:
        """Take out what was written of a step and of all that follow."""
        if not self.path.exists() or rank():
            return
        kept = [r for r in read_journal(self.path) if (r["stage"], r["step"]) < (stage, step)]
        write_text(self.path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    unlike = {float("inf"), float("-inf")}
    return {
        key: str(value)
        if isinstance(value, float) and (value != value or value in unlike)
        else value
        for key, value in record.items()
    }
