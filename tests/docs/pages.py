"""Reading the documents: fenced blocks, and the sentence before each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)]
SHELLS = ("bash", "console", "sh", "shell")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    lang: str
    text: str
    lead: str
    """The last line of text before the block, on the same page."""

    @property
    def where(self) -> str:
        return f"{name(self.page)}:{self.line}"

    @property
    def target(self) -> tuple[str, str] | None:
        """("New file" or "Add to", path) where the block is the content of a file."""
        found = re.match(r"(New file|Add to) `([^`]+)`", self.lead)
        return (found[1], found[2]) if found else None

    @property
    def runs(self) -> bool:
        return self.lang == "python" and not self.target and "<!-- not run" not in self.lead


def blocks(page: Path) -> Iterator[Block]:
    lead, lang, body, start = "", None, list[str](), 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.match(r"\s*```(.*)", line)
        if fence and lang is None:
            lang, body, start = fence[1].strip(), [], number
        elif fence:
            yield Block(page, start, lang or "", "\n".join(body) + "\n", lead)
            lang, lead = None, ""
        elif lang is not None:
            body.append(line)
        elif line.strip():
            lead = line.strip()


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, words) of every command line in a shell block, continued lines joined."""
    for block in blocks(page):
        if block.lang not in SHELLS:
            continue
        prompts = re.search(r"^\$ ", block.text, re.MULTILINE) is not None
        for line in block.text.replace("\\\n", " ").splitlines():
            if prompts and not line.startswith("$ "):
                continue
            for part in re.split(r"&&|;|\|", line.removeprefix("$ ")):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words = words[1:]
                if words:
                    yield block.where, words


def cmibq_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the arguments of every quoted call of cmibq, in shell blocks and in the text."""
    for where, words in commands(page):
        if words[0].endswith("cmibq"):
            yield where, words[1:]
        elif words[1:3] == ["-m", "cmibq"]:
            yield where, words[3:]
    for number, line in prose(page):
        for quoted in re.findall(r"`cmibq ([^`]+)`", line):
            yield f"{name(page)}:{number}", shlex.split(quoted)


def make_words(page: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, target) of every quoted call of make."""
    lines = [(where, words[1:]) for where, words in commands(page) if words[0] == "make"]
    for number, line in prose(page):
        for quoted in re.findall(r"`make ([^`]+)`", line):
            lines.append((f"{name(page)}:{number}", shlex.split(quoted)))
    for where, words in lines:
        yield from ((where, word) for word in words if "=" not in word)


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines outside fenced blocks."""
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if re.match(r"\s*```", line):
            inside = not inside
        elif not inside:
            yield number, line


def slug(heading: str) -> str:
    """Return the anchor that GitHub and MyST give a heading."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(m[1]) for _, line in prose(page) if (m := re.match(r"#+\s+(.*)", line))}


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, target) of every relative link and image."""
    for number, line in prose(page):
        for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", line):
            if not re.match(r"[a-z]+:", target):
                yield f"{name(page)}:{number}", target
