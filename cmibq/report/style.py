"""How figures look: colours told apart by everyone, one marker per method, nothing superfluous."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS",
    "GREY",
    "INK",
    "MARKERS",
    "NAMES",
    "colour",
    "marker",
    "name",
    "style",
    "tidy",
]

INK: Final = "#1f2430"
GREY: Final = "#8a909c"
# Okabe and Ito's palette, in which neighbours also differ in lightness.
COLOURS: Final = {
    "float": INK,
    "oracle": GREY,
    "rtn": "#D55E00",
    "smoothquant": "#E69F00",
    "awq": "#0072B2",
    "mbq": "#009E73",
}
MARKERS: Final = {
    "float": "D",
    "oracle": "_",
    "rtn": "o",
    "smoothquant": "^",
    "awq": "s",
    "mbq": "P",
}
NAMES: Final = {
    "float": "float",
    "oracle": "oracle",
    "rtn": "RTN",
    "smoothquant": "SmoothQuant",
    "awq": "AWQ",
    "mbq": "MBQ",
}
_SPARE: Final = ("#CC79A7", "#56B4E9", "#7A5195", "#6B6B6B")

_SETTINGS: Final = {
    "axes.edgecolor": "#c9ccd3",
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.dpi": 110,
    "font.size": 9.5,
    "grid.color": "#e7e9ed",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "cmibq",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
}


def colour(method: str) -> str:
    """Return the colour of a method; methods not known here share a spare palette by name."""
    return COLOURS.get(method) or _SPARE[sum(map(ord, method)) % len(_SPARE)]


def marker(method: str) -> str:
    """Return the marker of a method."""
    return MARKERS.get(method, "X")


def name(method: str) -> str:
    """Return how a method is written in text.

    Example:
        >>> name("awq"), name("my_method")
        ('AWQ', 'my_method')
    """
    return NAMES.get(method, method)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw figures in this style; the caller's settings come back afterwards."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        yield


def tidy(ax: Axes, *, grid: str = "y") -> Axes:
    """Put the grid behind the data, along one axis."""
    ax.set_axisbelow(True)
    ax.grid(True, axis=grid)  # type: ignore[arg-type]  # "x", "y" or "both"
    return ax
