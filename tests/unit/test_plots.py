"""Figures: what is drawn is what was given, and it can be seen."""

import itertools
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from study_results import (
    CART,
    NOT_CENTRED,
    ROWS,
    SCALES,
    SHARES,
    TASKS,
    analysis,
    comparison,
    mean,
    sweep,
)

import centermerge_jax as cm
from centermerge_jax.plots import style
from centermerge_jax.plots.comparison import bars_shown, task_interval
from centermerge_jax.plots.labels import place_labels

plots = cm.plots


def line(axes, label):
    (found,) = [one for one in axes.get_lines() if one.get_label() == label]
    return found


def points(axes, label):
    return np.array(line(axes, label).get_data()).T.tolist()


def numbers(axes):
    """The numbers of a map, as rows from the bottom."""
    (mesh,) = axes.collections
    return mesh.get_array()


# Rank and scale


def test_rank_curve_draws_what_it_is_given():
    curves = {"centred": [0.5, None, 0.75], "not centred": [0.25, 0.5, None]}
    figure = plots.rank_curve([0.0, 0.08, 1.0], curves, lines={"average": 0.625})
    (axes,) = figure.axes
    assert points(axes, "centred") == [[0, 50], [2, 75]]
    assert points(axes, "not centred") == [[0, 25], [1, 50]]
    assert list(line(axes, "average").get_ydata()) == [62.5, 62.5]
    assert [x.get_text() for x in axes.get_xticklabels()] == ["0", "8", "100"]


def test_the_rank_curve_has_both_ends_at_the_average():
    (axes,) = plots.accuracy_over_rank(comparison()).axes
    ends = [78.8, *(100 * max(x for x in row if x) for row in CART), 78.8]
    assert points(axes, "centred (CART)") == [[i, y] for i, y in enumerate(ends)]
    not_centred = [[i, 100 * max(row)] for i, row in enumerate(NOT_CENTRED, 1)]
    assert points(axes, "not centred") == not_centred
    assert set(line(axes, "weight average").get_ydata()) == {78.8}
    shown = [x.get_text() for x in axes.get_xticklabels()]
    assert shown == ["0", "2", "4", "8", "32", "100"]


def test_measured_ends_are_kept_and_nothing_is_made_up_without_the_average():
    given = comparison()
    given["curves"]["cart"] = {
        "shares": [0.5, 1],
        "scales": [1],
        "accuracy": [[0.8]] * 2,
    }
    (axes,) = plots.accuracy_over_rank(given).axes
    assert points(axes, "centred (CART)")[-1][1] == 80
    del given["methods"]["weight_average"], given["curves"]["truncated_task_arithmetic"]
    (axes,) = plots.accuracy_over_rank(given).axes
    assert len(axes.get_lines()) == 1
    assert points(axes, "centred (CART)") == [[0, 80], [1, 80]]


def test_the_map_has_ranks_across_scales_up_and_a_frame_around_the_best():
    (axes,) = plots.scale_rank_map(comparison()["curves"]["cart"]).axes
    expected = np.ma.masked_invalid(100 * np.array(CART, float).T)
    np.testing.assert_array_equal(numbers(axes), expected)
    assert numbers(axes).mask.sum() == 1
    assert [x.get_text() for x in axes.get_xticklabels()] == ["2", "4", "8", "32"]
    assert [x.get_text() for x in axes.get_yticklabels()] == ["1", "2", "4"]
    (frame,) = axes.patches
    assert [int(x) for x in frame.get_xy()] == [1, 2]  # rank 4 %, scale 4
    texts = {tuple(map(int, x.get_position())): x.get_text() for x in axes.texts}
    assert len(texts) == 11
    assert texts[1, 2] == "89.0"
    assert texts[0, 0] == "83.3"


def test_points_of_a_search_are_a_grid_only_if_they_are():
    grid = plots.grid_of_points(sweep()["points"])
    assert grid == {"shares": SHARES, "scales": SCALES, "accuracy": CART}
    point = {"setting": {"rank": 0.5}, "validation": 0.5}
    assert plots.grid_of_points([point]) is None
    densities = [
        {"setting": {"density": d, "scale": s}, "validation": 0.5}
        for d in (0.1, 0.2)
        for s in (1, 2)
    ]
    assert plots.grid_of_points(densities) is None


# Task vectors


def test_interference_in_every_normalisation_and_the_reconstruction_error():
    given = analysis()
    figure = plots.interference(given)
    names = [f"interference_{x}" for x in ("top", "whole", "none")]
    names.append("reconstruction_relative")
    assert len(figure.axes) == len(names)
    for axes, name in zip(figure.axes, names, strict=True):
        for origin, label in (("mean", "centred"), ("base", "not centred")):
            values = given["mean_over_matrices"][origin][name]
            drawn = [list(x) for x in zip(given["shares"], values, strict=True)]
            assert points(axes, label) == drawn
        assert axes.get_xscale() == "log"
    assert len({axes.get_title(loc="left") for axes in figure.axes}) == 4


def test_nulls_are_gaps_and_what_was_not_measured_has_no_panel():
    given = analysis()
    del given["mean_over_matrices"]["base"]
    means = given["mean_over_matrices"]["mean"]
    del means["interference_none"]
    means["interference_top"][1] = None
    figure = plots.interference(given)
    assert len(figure.axes) == 3
    assert [len(axes.get_lines()) for axes in figure.axes] == [1, 1, 1]
    assert np.isnan(points(figure.axes[0], "centred")[1][1])


def test_the_trade_off_is_one_against_the_other():
    given = analysis()
    (axes,) = plots.trade_off(given).axes
    means = given["mean_over_matrices"]["base"]
    pairs = zip(
        means["interference_whole"], means["reconstruction_relative"], strict=True
    )
    assert points(axes, "not centred") == [list(pair) for pair in pairs]


def test_spectra_by_kind_and_layer():
    figure = plots.spectra(analysis())
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["blocks/*/attn/q", "blocks/*/mlp/fc1"]
    for axes in panels:
        tenth, eleventh = axes.get_lines()  # layer 0 was not trained
        np.testing.assert_allclose(tenth.get_xdata(), [12.5, 50, 100])
        np.testing.assert_allclose(
            eleventh.get_ydata(), 2.5 * 0.11 * 2.0 ** -np.array([0, 3, 7])
        )
        assert tenth.get_color() != eleventh.get_color()
        assert axes.get_yscale() == "log"


@pytest.mark.parametrize("quantity", ["alignment", "cosine"])
def test_the_task_map_has_every_pair(quantity):
    given = analysis()
    centred, not_centred, bar = plots.task_map(given, quantity).axes
    for axes, origin in ((centred, "mean"), (not_centred, "base")):
        values = given["mean_over_matrices"][origin][quantity]
        np.testing.assert_array_equal(numbers(axes), values)
    assert [x.get_text() for x in centred.get_yticklabels()] == TASKS
    assert [x.get_text() for x in centred.get_xticklabels()] == TASKS
    assert centred.yaxis_inverted()
    assert bar.get_ylim() == ((0, 1) if quantity == "alignment" else (-1, 1))


# Methods


def test_bars_of_every_task_with_their_intervals():
    given = comparison()
    figure = plots.accuracy_bars(given)
    (axes,) = figure.axes
    shown = bars_shown(given)
    assert shown == [
        *("weight_average", "task_arithmetic", "cart", "regmean"),
        *("joint", "experts"),
    ]
    assert len({to_hex(bars[0].get_facecolor()) for bars in axes.containers}) == 6
    for name, bars in zip(shown, axes.containers, strict=True):
        np.testing.assert_allclose(
            [bar.get_width() for bar in bars], 100 * np.array(ROWS[name][0])
        )
    spans = [one.get_xdata() for one in axes.get_lines()]
    low, high = task_interval(given["methods"]["weight_average"], "mnist")
    np.testing.assert_allclose(spans[0], [100 * low, 100 * high])
    assert low < 0.746 < high
    assert high - low == pytest.approx(
        2 * 1.96 * (0.746 * 0.254 / 1000) ** 0.5, rel=0.01
    )
    assert [x.get_text() for x in axes.get_yticklabels()] == TASKS
    assert axes.get_xlim() == (0, 100)


def test_gaps_are_sorted_and_in_points():
    given = comparison()
    joint, experts = plots.gap_bars(given).axes
    ranked = ["RegMean", "TSV-M", "CART", "TIES", "task arithmetic", "weight average"]
    assert [x.get_text() for x in joint.get_yticklabels()] == ranked
    for axes, reference in ((joint, "joint"), (experts, "experts")):
        bars, errors = axes.containers[1], axes.containers[0]
        found = [bar.get_width() for bar in bars]
        expected = 100 * (mean(ROWS["cart"][0]) - mean(ROWS[reference][0]))
        assert found[2] == pytest.approx(expected)
        assert found == sorted(found, reverse=True)
        segments = errors.lines[2][0].get_segments()
        assert np.ptp(segments[2][:, 0]) == pytest.approx(2.5)
    colours = [to_hex(bar.get_facecolor()) for bar in joint.containers[1]]
    assert [i for i, x in enumerate(colours) if x == style.BLUE] == [2]


def test_cost_against_accuracy_has_every_merge_with_its_name():
    given = comparison()
    (axes,) = plots.cost_against_accuracy(given).axes
    merges = {name: row for name, row in ROWS.items() if row[2]}
    assert len(axes.containers) == len(merges)
    found = {tuple(x.lines[0].get_xydata()[0]) for x in axes.containers}
    expected = {
        (1.1 * s, 100 * mean(accuracies)) for accuracies, _, s in merges.values()
    }
    np.testing.assert_allclose(sorted(found), sorted(expected))
    for one in axes.containers:
        (segment,) = one.lines[2][0].get_segments()
        assert np.ptp(segment[:, 1]) == pytest.approx(2.2)
    names = {given["methods"][name]["label"] for name in merges}
    assert {text.get_text() for text in axes.texts} == names
    (cart,) = [text for text in axes.texts if text.get_text() == "CART"]
    assert cart.get_fontweight() == "bold"


def test_methods_of_unknown_time_are_not_placed():
    given = comparison()
    for row in given["methods"].values():
        row["runs"] = []
    (axes,) = plots.cost_against_accuracy(given).axes
    assert not axes.containers


def test_forty_crowded_names_do_not_overlap():
    figure = style.new_figure(6.6, width=7.2)
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    places = rng.normal(size=(40, 2)) * [[1.0, 0.4]]
    axes.plot(*places.T, "o", markersize=5)
    axes.margins(0.2)
    names = [f"a method {i}" for i in range(40)]
    assert place_labels(axes, places.tolist(), names) == []
    boxes = [text.get_window_extent().get_points() for text in axes.texts]
    assert len(boxes) == 40
    for a, b in itertools.combinations(boxes, 2):
        assert (a[1] <= b[0]).any() or (b[1] <= a[0]).any()
    frame = axes.get_window_extent().get_points()
    marks = axes.transData.transform(places)
    for box in boxes:
        assert (box[0] > frame[0]).all()
        assert (box[1] < frame[1]).all()
        assert not ((marks > box[0]) & (marks < box[1])).all(1).any()


def test_names_without_a_place_are_told():
    figure = style.new_figure(1.0, width=1.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "o")
    name = "far too long for a figure of this size"
    assert place_labels(axes, [(0, 0)], [name]) == [name]
    assert not axes.texts


# Files and colours


FIGURES = {
    "rank-curve": lambda: plots.accuracy_over_rank(comparison()),
    "map": lambda: plots.scale_rank_map(comparison()["curves"]["cart"]),
    "interference": lambda: plots.interference(analysis()),
    "spectra": lambda: plots.spectra(analysis()),
    "alignment": lambda: plots.task_map(analysis()),
    "accuracy": lambda: plots.accuracy_bars(comparison()),
    "gaps": lambda: plots.gap_bars(comparison()),
    "cost": lambda: plots.cost_against_accuracy(comparison()),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_pictures_and_drawings_always_the_same(tmp_path, name):
    from PIL import Image

    before = dict(mpl.rcParams)
    figure = FIGURES[name]()
    assert dict(mpl.rcParams) == before  # nothing global is changed
    again = tmp_path / "again"
    again.mkdir()
    other = FIGURES[name]()
    for file in ("a.png", "a.svg"):
        plots.save(figure, tmp_path / file)
        plots.save(other, again / file)
        assert (tmp_path / file).read_bytes() == (again / file).read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        width = figure.get_figwidth()
        assert picture.width == pytest.approx(160 * width, abs=1)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 254)
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("name", FIGURES)
def test_drawings_for_pages_have_the_colours_of_the_page(name):
    text = plots.svg(FIGURES[name](), name)
    root = ET.fromstring(text)
    identifiers = [x.attrib["id"] for x in root.iter() if "id" in x.attrib]
    assert len(identifiers) == len(set(identifiers)) > 5
    assert all(one.startswith(f"{name}-") for one in identifiers)
    used = re.findall(r'(?:url\(|href=")#([^")]*)', text)
    assert set(used) <= set(identifiers)
    assert "var(--ink)" in text
    assert not re.search("|".join(light for light, _ in style.PALETTE.values()), text)
    assert "<text" in text  # text stays text
    links = re.findall(r'(?:href|src)="(?!#|data:)', text)
    assert not links


def test_other_endings_are_refused(tmp_path):
    figure = FIGURES["map"]()
    with pytest.raises(cm.ParameterError, match=r"a\.jpg: figures end in"):
        plots.save(figure, tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


# Of dichromats: Machado, Oliveira and Fernandes, 2009, severity 1.
SEEN = {
    "all": np.eye(3),
    "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no blue": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
XYZ = np.array([[0.412, 0.358, 0.181], [0.213, 0.715, 0.072], [0.019, 0.119, 0.951]])
COLOURS = ("blue", "orange", "green", "purple", "amber", "muted")


def linear(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )


def lab(light):
    x, y, z = np.cbrt(XYZ @ np.clip(light, 0, 1) / XYZ.sum(1) + 1e-9)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("side", [0, 1])
def test_colours_can_be_told_apart_with_any_colour_vision(side, seen):
    labs = [
        lab(np.array(SEEN[seen]) @ linear(style.PALETTE[name][side]))
        for name in COLOURS
    ]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(labs, 2)]
    assert min(distances) > 15


@pytest.mark.parametrize("side", [0, 1])
def test_colours_stand_out_from_the_ground(side):
    ground = XYZ[1] @ linear(style.PALETTE["paper"][side])
    for name in ("ink", *COLOURS):
        light = XYZ[1] @ linear(style.PALETTE[name][side])
        low, high = sorted((light, ground))
        least = 7 if name == "ink" else 4.5 if name in ("muted", "blue") else 3.3
        assert (high + 0.05) / (low + 0.05) > least, name
