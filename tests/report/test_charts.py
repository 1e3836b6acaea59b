"""Charts: markup, and what stands where, against values derived by hand."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from datafree.report import charts
from datafree.report.charts import Series, bars, curves, line_chart, matrix, pixels, scatter, svg, thin


def test_thin_leaves_a_short_series_alone():
    x, mean, low, high = thin([1, 2, 5], [3.0, -1.0, 4.0], limit=3)
    assert x.tolist() == [1, 2, 5]
    assert mean.tolist() == low.tolist() == high.tolist() == [3, -1, 4]


def test_thin_equals_numpy_on_equal_groups():
    y = np.random.default_rng(0).normal(size=1200)
    x, mean, low, high = thin(range(1200), y.tolist(), limit=40)
    groups = y.reshape(40, 30)
    assert np.allclose(x, np.arange(40) * 30 + 14.5)
    assert np.allclose(mean, groups.mean(1))
    assert np.array_equal(low, groups.min(1))
    assert np.array_equal(high, groups.max(1))


def labels(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag == "text"]


def test_a_chart_stands_on_its_own():
    svg = line_chart(range(2000), np.linspace(0.001, 0.02, 2000).tolist(), name="a", xlabel="step", reference=0.01)
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.get("aria-hidden") == "true"
    assert "http" not in svg
    assert "<style" not in svg
    assert "currentColor" in svg
    assert charts.INK not in svg
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(name is not None and name.startswith("a-") for name in ids)
    used = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg))
    assert used
    assert {one or other for one, other in used} <= set(ids)


def test_a_chart_is_reproducible_and_small():
    y = np.random.default_rng(0).normal(size=20_000).tolist()
    svg = line_chart(range(20_000), y, name="a", xlabel="step")
    assert svg == line_chart(range(20_000), y, name="a", xlabel="step")
    assert len(svg) < 60_000


def test_chart_labels_are_what_the_axis_says():
    # Shortening the coordinates must leave the labels alone.
    svg = line_chart([0, 1], [0.0, 0.008], name="a", xlabel="a step")
    assert "a step" in labels(svg)
    assert "0.002" in labels(svg)
    assert any(
        text.endswith(" %") for text in labels(line_chart([0, 1], [0.1, 0.9], name="a", xlabel="", percent=True))
    )


def test_a_chart_over_decades_is_logarithmic():
    # Five decades: with equal steps on a logarithmic axis, 10^-5 .. 1 lies on a straight line.
    svg = line_chart(range(6), [10.0**-i for i in range(6)], name="a", xlabel="step")
    path = next(p for p in re.findall(r'<path d="([^"]*)"[^>]*stroke: #3b82c4', svg) if p.count("L") == 5)
    heights = [float(point.split()[1]) for point in re.split("[ML]", path)[1:]]
    assert np.allclose(np.diff(heights), np.diff(heights)[0], atol=0.03)


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [-1.0, 1e9], [1e-30, 1.0]])
def test_a_chart_of_degenerate_values_is_drawn(values: list[float]):
    assert line_chart(range(len(values)), values, name="a", xlabel="step").endswith("</svg>")


def points(svg_text: str, pattern: str) -> list[tuple[float, float]]:
    """Of the first path whose element matches."""
    element = next(found for found in re.findall(r"<path [^>]*>", svg_text) if re.search(pattern, found))
    path = re.search(r' d="([^"]*)"', element)
    assert path is not None
    numbers = [part.split() for part in re.split("[MLz]", path[1]) if part.strip()]
    return [(float(x), float(y)) for x, y in numbers]


def test_the_reference_is_a_dashed_line_at_its_height():
    # 0 and 1 are the ends of the curve; three quarters of the way from one to the other stands .75.
    svg = line_chart([0, 1], [0.0, 1.0], name="a", xlabel="step", reference=0.75)
    (_, bottom), (_, top) = points(svg, rf"stroke: {charts.LINE}")
    (_, left), (_, right) = points(svg, r"stroke-dasharray")
    assert left == right == pytest.approx(bottom + 0.75 * (top - bottom), abs=0.02)
    assert charts.REFERENCE in next(each for each in re.findall(r"<path [^>]*>", svg) if "stroke-dasharray" in each)


def test_the_band_goes_from_the_lowest_to_the_highest():
    # 0 and 1 by turns: averaged they are a line in the middle, in a band of the whole height.
    svg = line_chart(range(2000), [step % 2 for step in range(2000)], name="a", xlabel="step")
    middle = {y for _, y in points(svg, rf"stroke: {charts.LINE}")}
    band = {y for _, y in points(svg, r'id="a-m')}  # the filled area, which is drawn by reference
    assert max(middle) - min(middle) < 30  # groups of five: .4 and .6
    assert max(band) - min(band) > 100


def test_labels_are_left_as_they_are():
    names = ['a id="b', "url(#x)", charts.INK]
    assert set(names) <= set(labels(svg(bars(names, [one("s", [0, 1, 2], [0.5, 0.5, 0.5])]), "a")))


def test_a_name_that_is_no_utf8_is_drawn():
    odd = Series(mark="1", label="caf\udce9", colour=charts.LINE, x=[0.0, 1.0], y=[0.0, 1.0])
    assert pixels(curves([odd], xlabel="step", legend=True)).ndim == 3


def test_a_front_is_a_stair_that_keeps_what_is_had_for_less():
    front = ([10.0, 1000.0], [0.5, 0.9])
    figure = scatter([one("1", [10.0], [0.5]), one("2", [1000.0], [0.9])], xlabel="images", fronts=[front])
    stair = next(line for line in figure.axes[0].lines if line.get_drawstyle().startswith("steps"))
    assert stair.get_drawstyle() == "steps-post"
    assert tuple(np.asarray(each).tolist() for each in stair.get_data()) == front


# Charts of several runs --------------------------------------------------------------------------------------------


def one(mark: str, x: list[float], y: list[float], colour: str = charts.LINE) -> Series:
    return Series(mark=mark, label=f"run {mark}", colour=colour, x=x, y=y)


def heights(svg_text: str, colour: str) -> list[float]:
    """The y coordinates of the line of a colour that has the most points."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*stroke: {colour}', svg_text)
    return [float(point.split()[1]) for point in re.split("[ML]", max(paths, key=len))[1:]]


def test_curves_are_drawn_in_their_colours_with_their_marks_at_the_end():
    runs = [one("1", [0, 1, 2], [0.0, 0.5, 1.0]), one("22", [0, 1, 2], [1.0, 0.5, 0.0], "#2f9e6b")]
    drawn = svg(curves(runs, xlabel="step", references=[0.9]), "a")
    up, down = heights(drawn, "#3b82c4"), heights(drawn, "#2f9e6b")
    assert np.allclose(up, down[::-1], atol=0.02)
    assert np.allclose(np.diff(up), np.diff(up)[0], atol=0.02)  # equal steps on a straight line
    assert up[0] > up[2]  # SVG counts downwards
    assert {"1", "22", "step", "100 %"} <= set(labels(drawn))
    assert "run 1" not in labels(drawn)
    assert {"run 1", "run 22", "teacher"} <= set(
        labels(svg(curves(runs, xlabel="step", references=[0.9], legend=True), "a"))
    )


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([0.45, 0.55], [0.5, 0.5]),  # moved by 0 and .1, then by -.05
        ([0.0, 0.4, 0.5, 0.6], [0.1, 0.5, 0.5, 0.5]),  # moved by 0, 0, .1, .2, then by -.1
    ],
)
def test_marks_keep_apart(wanted: list[float], given: list[float]):
    assert charts._apart(given, 0.1) == pytest.approx(wanted)


def test_a_scatter_over_decades_is_logarithmic_and_names_its_points():
    # 10, 100, 1000 at equal distances.
    runs = [one(str(i), [10.0**i], [0.5], charts.COLOURS[i]) for i in (1, 2, 3)]
    front = ([10.0, 1000.0], [0.5, 0.5])
    drawn = svg(scatter(runs, xlabel="images", fronts=[front], teachers=[(500.0, 0.6)]), "a")
    points = [float(re.findall(rf'<use href="[^"]*" x="([^"]*)"[^>]*fill: {run.colour}', drawn)[0]) for run in runs]
    assert points[1] - points[0] == pytest.approx(points[2] - points[1], abs=0.05)
    assert {"1", "2", "3", "images", "1 k"} <= set(labels(drawn))
    linear = svg(scatter([one("1", [0.0], [0.5]), one("2", [5000.0], [0.5])], xlabel="images"), "a")
    assert "2 k" in labels(linear)


@pytest.mark.parametrize("cost", [0.0, 1e-9, 1e12])
def test_a_scatter_of_one_point_is_drawn(cost: float):
    assert svg(scatter([one("1", [cost], [1.0])], xlabel="x"), "a").endswith("</svg>")


def test_bars_are_as_long_as_their_values():
    sides = [one("t", [0, 1], [1.0, 0.25]), one("s", [0, 1], [0.5, math.nan], "#2f9e6b")]
    figure = bars(["cat", "$a$"], sides)
    axes = figure.axes[0]
    widths = [[bar.get_width() for bar in group] for group in axes.containers]
    assert widths[0] == [1.0, 0.25]
    assert widths[1][0] == 0.5
    # Each group within half a step of its row, the first side above the second (the axis counts downwards).
    middles = [[bar.get_y() + bar.get_height() / 2 for bar in group] for group in axes.containers]
    assert middles[0][0] < 0 < middles[1][0]
    assert all(abs(middle - row) < 0.5 for group in middles for row, middle in enumerate(group))
    assert {"cat", "$a$"} <= set(labels(svg(figure, "a")))


def test_a_matrix_shades_shares_of_its_rows_and_writes_counts():
    figure = matrix([[9, 1], [0, 0]], ["cat", "dog"], xlabel="student", ylabel="teacher")
    here, there = figure.axes[0].patches  # what counts nothing is left open
    agree, differ = [tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in (charts.LINE, charts.REFERENCE)]
    assert here.get_facecolor() == pytest.approx((*agree, 0.1 + 0.45 * 0.9))
    assert there.get_facecolor() == pytest.approx((*differ, 0.9 * 0.1**0.5))
    # Column 1 of row 0.
    assert there.get_path().get_extents(there.get_patch_transform()).bounds == (0.5, -0.5, 1, 1)
    drawn = labels(svg(figure, "a"))
    assert sorted(drawn) == sorted(["9", "1", "cat", "dog", "cat", "dog", "student", "teacher"])


def test_names_with_letters_that_the_font_lacks_are_no_warning():
    assert "猫" in labels(svg(bars(["猫"], [one("s", [0], [0.5])]), "a"))


def test_pixels_are_on_white():
    picture = pixels(curves([one("1", [0, 1], [0.0, 1.0])], xlabel="step", legend=True))
    assert picture.shape == (368, 672, 3)  # 2.3 by 4.2 inches at 160 to the inch
    assert picture.dtype == np.uint8
    assert (picture[0, 0] == 255).all()
    assert picture.min() < 128
