"""What a model answered to each question, and the file these answers are kept in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmibq.errors import DataError
from cmibq.fileio import atomic_write

__all__ = ["Sample", "read_samples", "write_samples"]


@dataclass(frozen=True)
class Sample:
    """One question as one model answered it.

    Args:
        id: the item's name.
        kind: kind of question, or empty.
        scans: what items may share: errors of items with a common scan are not independent.
        question: text of the question.
        answer: the right answer.
        pred: most likely token at each place of the answer, given the right ones before it.
        correct: whether all of them and the end are right: greedy decoding then gives `answer`.
        logprob: log-likelihood of the answer and its end, in nats.
        image: path of the (first) image as the item has it, or empty.
        generated: what the model answered by itself (metrics exact_match and vqa), or empty.
        score: what that answer counts, 0 to 1; None where nothing was generated.
    """

    id: str
    kind: str
    scans: tuple[str | int, ...]
    question: str
    answer: str
    pred: str
    correct: bool
    logprob: float
    image: str = ""
    generated: str = ""
    score: float | None = None

    @property
    def credit(self) -> float:
        """What the answer counts: the score of what was generated, else whether it is right."""
        return float(self.correct) if self.score is None else self.score


_FIELDS = {f.name for f in dataclasses.fields(Sample)}
_NEEDED = _FIELDS - {"image", "generated", "score"}


def write_samples(path: str | Path, samples: Iterable[Sample]) -> None:
    """Write one JSON object per line, atomically.

    Raises:
        StorageError: disk full or not permitted.
    """
    with atomic_write(path) as file:
        for sample in samples:
            row = {name: getattr(sample, name) for name in Sample.__dataclass_fields__}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _parse(row: object, where: str) -> Sample:
    if not isinstance(row, dict) or not set(row) >= _NEEDED:
        missing = _NEEDED - set(row) if isinstance(row, dict) else _NEEDED
        raise DataError(f"{where}: no answer record; missing {', '.join(sorted(missing))}")
    fields = {key: value for key, value in row.items() if key in _FIELDS}
    try:
        fields["scans"] = tuple(fields["scans"])
        fields["logprob"] = float(fields["logprob"])
        fields["correct"] = bool(fields["correct"])
        if fields.get("score") is not None:
            fields["score"] = float(fields["score"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error
    return Sample(**fields)


def read_samples(path: str | Path) -> list[Sample]:
    """Read what `write_samples` wrote; unknown fields are left out.

    Raises:
        DataError: the file is missing or a line is no answer record; names file and line.
    """
    try:
        lines: Sequence[bytes] = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); run cmibq eval") from error
    samples = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error}); run cmibq eval again") from error
        samples.append(_parse(row, where))
    return samples
