"""What the command line writes: results to stdout, messages to stderr, never half a line."""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["close_line", "complain", "duration", "log_to_stderr", "open_line", "say"]

_open = False


def _follows() -> bool:
    """Whether another process of the run writes to stdout: torchrun numbers them."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


def say(text: str = "") -> None:
    """Write one or more whole lines to stdout at once; of several processes the first one does."""
    global _open
    if _follows():
        return
    _open = False
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def open_line(text: str) -> None:
    """Begin a line on stdout that `close_line` will finish."""
    global _open
    if _follows():
        return
    _open = True
    sys.stdout.write(text)
    sys.stdout.flush()


def close_line(text: str) -> None:
    """Finish the line begun by `open_line`; after an interruption the text gets its own line."""
    say(text if _open else text.lstrip())


def complain(text: str) -> None:
    """Write a message to stderr, on a line of its own."""
    global _open
    if _open:
        sys.stdout.write("\n")
        sys.stdout.flush()
        _open = False
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(f"cmibq: {record.levelname.lower()}: {record.getMessage()}")


def log_to_stderr(verbose: bool) -> None:
    """Send what the library logs to stderr: warnings, with `verbose` also what it is doing."""
    logger = logging.getLogger("cmibq")
    logger.handlers = [_Handler()]
    logger.propagate = False
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def duration(seconds: float) -> str:
    """Return a time span for people.

    Example:
        >>> duration(0.43), duration(48.3), duration(754), duration(7400)
        ('0.4 s', '48 s', '12 min 34 s', '2 h 03 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
