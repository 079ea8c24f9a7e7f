"""Pages whose tables stand between markers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

__all__ = ["filled"]


def filled(text: str, parts: Mapping[str, Callable[[], Sequence[str]]]) -> str:
    """Return a page with what stands between `<!-- name:begin -->` and `<!-- name:end -->` new.

    Example:
        >>> page = "<!-- a:begin -->" + chr(10) + "old" + chr(10) + "<!-- a:end -->"
        >>> filled(page, {"a": lambda: ["new"]}).split()
        ['<!--', 'a:begin', '-->', 'new', '<!--', 'a:end', '-->']
    """
    for name, make in parts.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if begin in text:
            head, rest = text.split(begin)
            text = head + begin + "\n" + "\n".join(make()) + "\n\n"
            text += end + rest.split(end, 1)[1]
    return text
