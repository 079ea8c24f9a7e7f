"""A small language model that reads image tokens, trained on symbols instead of pictures.

It learns words, how to find the token of a place or of a hue, and how to say what a token
tells: digit, hue, sum of its row. It never has to calculate: a sum is told by the token,
as the other facts are. Nothing of it is trained when towers are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.demo.model import END, PAD, build_tokenizer
from cmibq.demo.packing import IGNORE, PackedQuestions, Packer
from cmibq.demo.scenes import load_pool
from cmibq.demo.tiles import HUES, Tiles, ask, compose_tiles
from cmibq.demo.training import descend

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = [
    "TEXT_WIDTH",
    "answer_logits",
    "answer_loss",
    "build_reader",
    "reader_config",
    "tile_tokenizer",
    "train_reader_",
]

TEXT_WIDTH: Final = 64
_NOISE: Final = 0.05
_SPREAD: Final = 0.15


def tile_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: the demo's words and those of `cmibq.demo.tiles`."""
    return build_tokenizer(("with", *HUES))


def reader_config() -> LlamaConfig:
    """Return the language model's configuration."""
    from transformers import LlamaConfig

    tokenizer = tile_tokenizer()
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        tie_word_embeddings=False,
    )


def build_reader(seed: int) -> LlamaForCausalLM:
    """Build the untrained language model; the global random state is left as it was."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader: Any = LlamaForCausalLM(reader_config()).float()
    return reader


def answer_logits(reader: Any, tokens: Tensor, packed: PackedQuestions) -> Tensor:
    """Return the logits where answers are told.

    Args:
        reader: the language model.
        tokens: [B, T, D], what it reads in place of the picture's tokens.
        packed: questions about these pictures, packed for T tokens.

    Returns:
        [answer tokens, words], in the order of ``packed.labels != IGNORE``.
    """
    words = reader.model.embed_tokens(packed.input_ids)
    whole = torch.cat([words[:, :1], tokens, words[:, 1 + tokens.shape[1] :]], 1)
    output = reader.model(
        inputs_embeds=whole,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        use_cache=False,
    )
    found: Tensor = reader.lm_head(output.last_hidden_state[packed.labels != IGNORE])
    return found


def answer_loss(reader: Any, tokens: Tensor, packed: PackedQuestions) -> Tensor:
    """Return the mean cross-entropy of the answer tokens; see `answer_logits`."""
    told = packed.labels[packed.labels != IGNORE]
    return functional.cross_entropy(answer_logits(reader, tokens, packed), told)


class _Symbols(nn.Module):
    """Says what tiles show without a picture: a vector per fact, added up."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"digit": 11, "hue": len(HUES) + 1, "sum": 18, "place": 4}
        self.tables = nn.ModuleDict({k: nn.Embedding(n, TEXT_WIDTH) for k, n in sizes.items()})
        for parameter in self.tables.parameters():
            nn.init.normal_(parameter, std=_SPREAD)

    def forward(self, tiles: Tiles, rows: Tensor, per_tile: int, rng: Tensor) -> Tensor:
        """Return tokens [B, 4 * per_tile, D]; with two per tile each fact is on either of them.

        Args:
            tiles: what is shown.
            rows: [B], which of them.
            per_tile: 1 or 2.
            rng: [B, 4, facts] in 0..1, chooses the token of each fact.
        """
        facts = {
            "digit": tiles.digits + 1,
            "hue": tiles.hues + 1,
            "sum": tiles.sums,
        }
        at = torch.arange(4).expand(len(rows), 4)
        out: Tensor = self.tables["place"](at)[:, :, None].repeat(1, 1, per_tile, 1)
        for number, (name, values) in enumerate(facts.items()):
            told = self.tables[name](torch.from_numpy(values)[rows])[:, :, None]
            which = (rng[:, :, number, None] * per_tile).long() == torch.arange(per_tile)
            out = out + told * which[..., None]
        out = out + _NOISE * torch.randn_like(out)
        return out.flatten(1, 2)


def train_reader_(
    reader: LlamaForCausalLM, *, seed: int, steps: int = 800, pictures: int = 4000
) -> list[float]:
    """Train a language model in place on symbols, one or two tokens per tile by turns.

    Args:
        reader: what `build_reader` made.
        seed: of pictures, symbols and order.
        steps: of 32 pictures with four questions each.
        pictures: how many different ones there are.

    Returns:
        The loss of every step.
    """
    rng = np.random.default_rng((seed, 73))
    tiles = compose_tiles(load_pool("train"), pictures, rng, split="train", new=0.2)
    asked = [[(q.text, q.answer) for q in ask(tiles, n, rng)] for n in range(pictures)]
    tokenizer = tile_tokenizer()
    packers = {size: Packer(tokenizer, 4 * size) for size in (1, 2)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        symbols = _Symbols()

        def read(step: int) -> tuple[Tensor, float]:
            rows, per_tile = rng.integers(pictures, size=32), 1 + step % 2
            packed = packers[per_tile].pack([asked[row] for row in rows])
            tokens = symbols(tiles, torch.from_numpy(rows), per_tile, torch.rand(32, 4, 3))
            loss = answer_loss(reader, tokens, packed)
            return loss, float(loss.detach())

        learners = [*reader.parameters(), *symbols.parameters()]
        optimiser = torch.optim.AdamW(
            learners, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True
        )
        reader.train()
        curve = descend(optimiser, steps, "reader", read)
    reader.eval()
    return curve
