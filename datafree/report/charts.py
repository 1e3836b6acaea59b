"""Charts: small figures of one run or of several, as SVG to stand inside a page or as pixels.

Nothing here touches a file, nor knows what a run is.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datafree.pictures import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# Drawn by matplotlib, then replaced by the page's own text colour, so that a chart reads on any background.
INK = "#010203"
LINE = "#3b82c4"
REFERENCE = "#c2691c"
# Several runs in a chart, told apart by a mark as well. Each reads on white and on black; none is the teacher's.
COLOURS = (LINE, "#2f9e6b", "#b0559e", "#d1495b", "#7a6fd0", "#1f9fb3", "#a3840c", "#7f8a96")


def thin(x: Sequence[float], y: Sequence[float], limit: int = 400) -> tuple[Array, Array, Array, Array]:
    """A series of at most `limit` points: neighbours are averaged, and their lowest and highest value kept.

    Args:
        x: (n,), sorted.
        y: (n,).
        limit: Points wanted at most, at least 1.

    Returns:
        x, mean, lowest and highest of each group of neighbours, each (min(n, limit),).
    """
    assert len(x) == len(y) > 0
    assert limit >= 1
    groups = min(len(x), limit)
    xs = np.array_split(np.asarray(x, dtype=np.float64), groups)
    ys = np.array_split(np.asarray(y, dtype=np.float64), groups)
    return (
        np.array([group.mean() for group in xs]),
        np.array([group.mean() for group in ys]),
        np.array([group.min() for group in ys]),
        np.array([group.max() for group in ys]),
    )


def line_chart(
    x: Sequence[float],
    y: Sequence[float],
    *,
    name: str,
    xlabel: str,
    percent: bool = False,
    reference: float | None = None,
) -> str:
    """One curve as an `<svg>` element to stand inside an HTML page.

    It has no background, and its text takes the page's colour. A long series is thinned to 400 points, with a band from
    the lowest to the highest value of the neighbours averaged. The axis is logarithmic when all values are positive
    and nine tenths of the curve span more than two decades.

    Args:
        x: (n,), sorted, finite.
        y: (n,), finite; fractions if `percent`.
        name: Letters, digits and hyphens; unlike that of any other chart on the page. It starts every id in the chart.
        xlabel: Text below the axis.
        percent: Show fractions as percentages.
        reference: Draw a dashed horizontal line at this value.

    Returns:
        The element, hidden from screen readers: the page says in words what it shows.
    """
    with _style():
        # Fixed margins, with room for eight digits: to have them computed would double the time.
        figure, axes = _axes()
        centre, mean, low, high = thin(x, y)
        if len(mean) < len(x):
            axes.fill_between(centre, low, high, color=LINE, alpha=0.25, linewidth=0)
        axes.plot(centre, mean, color=LINE, linewidth=1.4, marker="o" if len(mean) < 30 else "", markersize=3)
        if reference is not None:
            axes.axhline(reference, color=REFERENCE, linewidth=1.2, linestyle="--")
        bottom, top = np.percentile(mean, [5, 95])
        if not percent and low.min() > 0 and top > 100 * bottom:
            axes.set_yscale("log")
        if percent:
            axes.yaxis.set_major_formatter(_percent)
        axes.set_xlabel(xlabel)
        _plain(axes)
    return svg(figure, name)


# Charts of several runs --------------------------------------------------------------------------------------------
# Each is a figure: `svg` puts it into a page, whose text says which mark is which run; `pixels` makes a picture of it,
# for which `legend` names the runs inside.


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's settings while a chart is made or written."""
    import matplotlib

    # "none" keeps text as text (small, scalable); the salt makes the ids, and so the page, reproducible.
    own = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "datafree", "font.size": 8})
    with own, warnings.catch_warnings():
        # A browser has the letters that matplotlib's font may lack.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


@dataclass(frozen=True, kw_only=True)
class Series:
    """What a chart shows of one run.

    Attributes:
        mark: One or two characters that stand beside it.
        label: Its name, for a legend.
        colour: One of `COLOURS`.
        x, y: (n,), finite, n at least 1.
    """

    mark: str
    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]


@_style()
def curves(series: Sequence[Series], *, xlabel: str, references: Sequence[float] = (), legend: bool = False) -> Figure:
    """Fractions over a course: a line for each run, its mark at the end; dashed horizontal lines at `references`."""
    figure, axes = _axes(right=0.9)
    for each in series:
        x, y, _, _ = thin(each.x, each.y)
        marker = "o" if len(x) < 30 else ""
        axes.plot(x, y, color=each.colour, linewidth=1.4, marker=marker, markersize=3, label=_literal(each.label))
    for index, reference in enumerate(references):
        label = "teacher" if index == 0 else None
        axes.axhline(reference, color=REFERENCE, linewidth=1.2, linestyle="--", label=label)
    _accuracy_against(axes, xlabel, legend)
    # The marks stand in the right margin, at the height of the line's end or as near to it as others leave room.
    low, high = axes.get_ylim()
    ends = sorted((each.y[-1] - low) / (high - low) for each in series)
    order = sorted(range(len(series)), key=lambda i: series[i].y[-1])
    for height, index in zip(_apart(ends, min(0.085, 1.1 / len(series))), order, strict=True):
        each = series[index]
        axes.text(1.02, height, each.mark, transform=axes.transAxes, va="center", weight="bold", color=each.colour)
    return figure


@_style()
def scatter(
    series: Sequence[Series],
    *,
    xlabel: str,
    fronts: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
    teachers: Sequence[tuple[float, float]] = (),
    legend: bool = False,
) -> Figure:
    """Fractions against a cost: a point for each run (the first of its series), its mark beside it.

    The axis is logarithmic where all costs are positive and the highest is more than ten times the lowest.

    Args:
        series: The runs, at least one.
        xlabel: Text below the axis.
        fronts: x and y of Pareto fronts, x ascending. Drawn as steps: at x stands the most that is had for x or less.
        teachers: (x, y), drawn as hollow diamonds.
        legend: Name the runs inside the figure.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = _axes()
    for x, y in fronts:
        axes.plot(x, y, color=INK, alpha=0.4, linewidth=1, drawstyle="steps-post")
    diamond = {"color": REFERENCE, "marker": "D", "markersize": 5, "markerfacecolor": "none", "linestyle": ""}
    for index, (cost, gain) in enumerate(teachers):
        axes.plot([cost], [gain], **diamond, label="teacher" if index == 0 else None)  # type: ignore[arg-type]
    for each in series:
        point = {"color": each.colour, "marker": "o", "markersize": 6, "linestyle": ""}
        axes.plot(each.x[:1], each.y[:1], **point, label=_literal(each.label))  # type: ignore[arg-type]
        where = (each.x[0], each.y[0])
        axes.annotate(each.mark, where, (4, 3), textcoords="offset points", weight="bold", color=each.colour)
    costs = [*(each.x[0] for each in series), *(x for x, _ in teachers)]
    if min(costs) > 0 and max(costs) > 10 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(costs) < 200 * min(costs) else (1.0,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.locator_params(axis="x", nbins=6)
    _accuracy_against(axes, xlabel, legend)
    axes.margins(x=0.08, y=0.15)
    return figure


@_style()
def bars(names: Sequence[str], sides: Sequence[Series], *, legend: bool = False) -> Figure:
    """Fractions as horizontal bars: a group for each name, in it a bar for each side (y: (n,), NaN for none)."""
    height = len(names) * (0.11 * len(sides) + 0.06) + 0.5
    figure, axes = _axes(height=height, left=0.3, right=0.95, bottom=0.36 / height, top=1 - 0.06 / height)
    thick = 0.84 / len(sides)
    for index, side in enumerate(sides):
        places = [row + (index - (len(sides) - 1) / 2) * thick for row in range(len(names))]
        axes.barh(places, side.y, height=0.9 * thick, color=side.colour, label=_literal(side.label))
    axes.set_yticks(range(len(names)), [_literal(one_line(name, 105)) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(_percent)
    if legend:
        axes.legend(fontsize=7, framealpha=0.8)
    _plain(axes)
    axes.grid(visible=False, axis="y")
    return figure


@_style()
def matrix(counts: Sequence[Sequence[int]], names: Sequence[str], *, xlabel: str, ylabel: str) -> Figure:
    """Counts (n, n) as a table: the diagonal in one colour, the rest in another, stronger for a larger share of a row.

    A count of 0 is left open. Names stand at the rows and below the columns.
    """
    from matplotlib.patches import Rectangle

    table = np.asarray(counts, dtype=np.float64)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    names = [_literal(one_line(name, 64)) for name in names]
    long = max(map(len, names)) > 2
    size, edge = max(2.6, 0.3 * len(table) + 0.8), 0.95 if long else 0.45
    figure, axes = _axes(size, size, edge / size, 1 - 0.05 / size, edge / size, 1 - 0.05 / size)
    for row, column in zip(*table.nonzero(), strict=True):
        part = share[row, column]
        # The root shows the few that stray beside the many that do not.
        colour, alpha = (LINE, 0.1 + 0.45 * part) if row == column else (REFERENCE, 0.9 * part**0.5)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=alpha, linewidth=0))
        text = f"{table[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=INK, fontsize=7 if len(text) < 4 else 5)
    axes.set_xticks(range(len(names)), names, rotation=90 if long else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    _plain(axes)
    axes.grid(visible=False)
    axes.set_xlim(-0.5, len(table) - 0.5)
    axes.set_ylim(len(table) - 0.5, -0.5)
    return figure


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The figure as a picture (H, W, 3), 0 to 255, on white."""
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return np.asarray(Image.open(buffer).convert("RGB"))


def svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element; `name` as for `line_chart`."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with _style():
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), name)


# Parts of charts ---------------------------------------------------------------------------------------------------


def _axes(
    width: float = 4.2,
    height: float = 2.3,
    left: float = 0.14,
    right: float = 0.98,
    bottom: float = 0.18,
    top: float = 0.92,
) -> tuple[Figure, Axes]:
    """A figure of so many inches, and axes whose borders are fractions of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_axes((left, bottom, right - left, top - bottom))


def _accuracy_against(axes: Axes, xlabel: str, legend: bool) -> None:
    axes.xaxis.set_major_formatter(_short)
    axes.yaxis.set_major_formatter(_percent)
    axes.set_xlabel(xlabel)
    if legend:
        axes.legend(fontsize=7, framealpha=0.8)
    _plain(axes)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights (n,), ascending, moved as little upwards as keeps them `gap` apart, then all down by half of the most."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    most = max((after - before for after, before in zip(moved, heights, strict=True)), default=0.0)
    return [height - most / 2 for height in moved]


def _literal(text: str) -> str:
    """The text as it stands: between two dollar signs matplotlib would read a formula, and no font has
    what a folder's name holds that is no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.4g} %"


def _short(value: float, _: object) -> str:
    size, unit = next(((s, u) for s, u in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if abs(value) >= s), (1.0, ""))
    return f"{value / size:.4g}{unit}"


def _plain(axes: Axes) -> None:
    """Faint grid, no frame, everything in the one ink that the page replaces."""
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)
    axes.tick_params(which="both", colors=INK, length=0)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.margins(x=0.02)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _inline(svg: str, name: str) -> str:
    """A matplotlib SVG file as an element of a page: no prologue, no addresses, ids of its own, the page's colour."""
    svg = svg[svg.index("<svg") :]
    # A <style> inside would rule the whole page; the page has its own.
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    # Coordinates to a hundredth of a point halve the page. They stand inside tags; the numbers between tags are labels.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = re.sub(r"<[^>]*>", lambda tag: _own(tag[0], name), svg)
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1).strip()


def _own(tag: str, name: str) -> str:
    """A tag with ids that begin with the chart's name, and with the page's colour."""
    for mark in (' id="', 'href="#', "url(#"):
        tag = tag.replace(mark, f"{mark}{name}-")
    return tag.replace(INK, "currentColor")
