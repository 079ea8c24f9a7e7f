"""How two frozen vision towers are composed: the fields of ``cmibq train calm``'s tower."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cmibq.errors import ConfigError, nearest
from cmibq.recipe.base import at_least, choice, opt, require
from cmibq.recipe.kinds import allowed_kinds, hints_of

__all__ = ["CALMConfig", "layer_indices"]

_DECIDE = ("composition_layers", "attention_heads", "select_layer", "anchor_layers")
"""Fields that weights do not show by their shapes, and how many."""


def layer_indices(depth: int, composition_layers: int) -> tuple[int, ...]:
    """Return after which layers of a tower fusion happens: ``i * depth / n``, i = 1..n, from 1.

    Where n does not divide the depth, the product is rounded to the nearest layer, halves up.

    Args:
        depth: layers of the tower.
        composition_layers: n.

    Raises:
        ConfigError: there are more composition layers than layers.

    References:
        Bansal et al., "LLM Augmented LLMs: Expanding Capabilities through Composition" (CALM),
        ICLR 2024: evenly spread cross-attention between two frozen models.

    Example:
        >>> layer_indices(24, 4), layer_indices(12, 8)
        ((6, 12, 18, 24), (2, 3, 5, 6, 8, 9, 11, 12))
    """
    at_least("composition_layers", composition_layers, 1)
    require(
        composition_layers <= depth,
        f"composition_layers is {composition_layers}, but the tower has {depth} layers; choose"
        f" 1..{depth}",
    )
    n = composition_layers
    return tuple((2 * i * depth + n) // (2 * n) for i in range(1, n + 1))


@dataclass(frozen=True)
class CALMConfig:
    """A composed vision tower: which towers, where they meet, and how.

    Raises:
        ConfigError: a field is out of range or conflicts with another.

    Example:
        >>> CALMConfig(composition_layers=2).fusion_strategy
        'gated_attention'
    """

    anchor_model: str = opt("", "tower whose features come out: a folder or a hub name")
    augmenting_model: str = opt("", "tower that is looked at: a folder or a hub name")
    composition_layers: int = opt(4, "after how many layers, evenly spread, towers meet")
    attention_heads: int = opt(8, "heads of the cross-attention; must divide the anchor's width")
    fusion_strategy: str = opt(
        "gated_attention",
        "cross_attention (the paper's module with a layer norm), gated_attention (a gate that"
        " starts at zero: the composed tower starts as the anchor), placed_attention (the same, and"
        " attention knows where patches lie) or simple_add",
    )
    dimension_mapping: str = opt("linear", "augmenting width -> anchor width: linear, mlp, ...")
    norm: str = opt("post", "layer norm of cross_attention: post, or none as in the public fork")
    select_layer: int = opt(-1, "layer of the anchor that the host reads, counted from the end")
    gradient_checkpointing: bool = opt(False, "recompute the anchor's layers in the backward pass")
    anchor_layers: tuple[int, ...] = opt((), "the anchor's layers that meet, from 1; () = spread")

    def __post_init__(self) -> None:
        for name, hint in hints_of(CALMConfig).items():
            value = getattr(self, name)
            good = name == "anchor_layers" or type(value) is hint
            require(good, f"{name} is {value!r}; it must be {allowed_kinds(hint)}")
        at_least("composition_layers", self.composition_layers, 1)
        at_least("attention_heads", self.attention_heads, 1)
        choice("norm", self.norm, ("post", "none"))
        good = self.select_layer < 0
        require(good, f"select_layer is {self.select_layer!r}; allowed are integers below 0")
        given: Any = self.anchor_layers
        good = isinstance(given, (list, tuple)) and all(type(i) is int for i in given)
        require(good, f"anchor_layers is {given!r}; it must be whole numbers, such as [2, 4]")
        told = tuple(given)
        object.__setattr__(self, "anchor_layers", told)
        good = not told or (
            len(told) == self.composition_layers and list(told) == sorted({*told}) and told[0] >= 1
        )
        require(
            good,
            f"anchor_layers is {told}; give composition_layers = {self.composition_layers} rising"
            " numbers from 1, or none",
        )

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """Return after which layers of an anchor fusion happens, from 1.

        Args:
            depth: its layers that the host reads.

        Raises:
            ConfigError: there are not so many.
        """
        if not self.anchor_layers:
            return layer_indices(depth, self.composition_layers)
        last = self.anchor_layers[-1]
        require(last <= depth, f"anchor_layers names layer {last}; {depth} of the anchor are read")
        return self.anchor_layers

    def conflicts(self, fields: Any) -> str:
        """Tell which fields make trained fusions of another configuration mean something else.

        Args:
            fields: what `to_dict` made of the other one.

        Returns:
            The fields with both values; empty where there are none.

        Example:
            >>> CALMConfig().conflicts({"attention_heads": 4})
            'attention_heads is 4 there and 8 here'
        """
        told = fields if isinstance(fields, dict) else {}
        own = {name: getattr(self, name) for name in _DECIDE}
        own["anchor_layers"] = list(self.anchor_layers)  # as JSON has it
        odd = [name for name in _DECIDE if name in told and told[name] != own[name]]
        return ", ".join(f"{name} is {told[name]!r} there and {own[name]!r} here" for name in odd)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> CALMConfig:
        """Return the configuration of a dictionary, such as `to_dict` made.

        Raises:
            ConfigError: a key is unknown, or a value is out of range.
        """
        require(isinstance(fields, dict), f"CALMConfig is {fields!r}; allowed are fields by name")
        for key in fields:
            if key not in cls.__dataclass_fields__:
                hint = nearest(key, cls.__dataclass_fields__)
                raise ConfigError(f"CALMConfig has no field {key!r}; {hint}")
        return cls(**fields)
