"""``cmibq chat --model-path DIR --image-file F``: talk with a model about a picture."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from cmibq.cli.options import read_options
from cmibq.cli.output import close_line, complain, open_line, say
from cmibq.errors import CmibqError
from cmibq.recipe.serve import ChatConfig

if TYPE_CHECKING:
    from cmibq.serve.chat import Conversation

__all__ = ["run", "underscored"]

_INTERRUPTED: Final = 130
_HELP: Final = "/image FILE shows another picture, /new forgets what was said, /quit or Ctrl-D ends"


def underscored(words: Sequence[str]) -> list[str]:
    """Return flags with ``_`` for ``-``, as their fields are named; values stay as they are.

    Example:
        >>> underscored(["--model-path", "my-model", "--image-file=a-b.png"])
        ['--model_path', 'my-model', '--image_file=a-b.png']
    """
    made = []
    for word in words:
        if word.startswith("--"):
            name, sign, value = word[2:].partition("=")
            word = f"--{name.replace('-', '_')}{sign}{value}"
        made.append(word)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(
        "chat",
        ChatConfig,
        underscored(words),
        about="Talk with a model, a composed model or a package about a picture. Ctrl-C ends an"
        " answer.",
        from_file=False,
    )
    if options.done:
        return 0
    from cmibq.ops.library import torch_threads

    (config,) = options.runs
    with torch_threads(config.threads):
        talk = _begin(config)
        if config.question is not None:
            return 0 if _answer(talk, config.question) else _INTERRUPTED
        return _converse(talk)


def _begin(config: ChatConfig) -> Conversation:
    """Check the image before the model is read."""
    from pathlib import Path

    from cmibq.data import CalibSample, check_images
    from cmibq.serve.chat import Conversation
    from cmibq.serve.opening import open_any

    image = Path(config.image_file).expanduser()
    check_images([CalibSample((image,), (), "image", where="--image-file")])
    settings: dict[str, Any] = {}
    if config.temperature > 0:
        import torch

        torch.manual_seed(config.seed)
        settings = {"do_sample": True, "temperature": config.temperature}
    return Conversation(
        open_any(config.model_path), image, config.max_new_tokens, config.history, settings
    )


def _answer(talk: Conversation, question: str) -> bool:
    """Write an answer while it is made; tell whether it was not interrupted."""
    pieces, started = talk.ask(question), False
    try:
        with contextlib.closing(pieces):
            for piece in pieces:
                open_line(piece if started else piece.lstrip())
                started = True
    except KeyboardInterrupt:
        close_line(" [stopped]")
        return False
    close_line("" if started else "(the model says nothing)")
    return True


def _converse(talk: Conversation) -> int:
    say(f"{talk.loaded.path} looks at {talk.image}; ask, or {_HELP}")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            say()
            return 0
        except KeyboardInterrupt:
            say()
            return _INTERRUPTED
        if line == "/quit":
            return 0
        try:
            _obey(talk, line)
        except CmibqError as error:
            complain(f"cmibq: {error}")


def _obey(talk: Conversation, line: str) -> None:
    """Do what a line says: a command, or a question."""
    word, _, rest = line.partition(" ")
    if word == "/image":
        talk.show(rest.strip())
        say(f"now looking at {talk.image}")
    elif word == "/new":
        talk.said = ()
        say("forgotten")
    elif word.startswith("/"):
        say(_HELP)
    elif line:
        _answer(talk, line)
