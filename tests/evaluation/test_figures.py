"""A growing preference is drawn with titles, and whatever is drawn needs nothing from elsewhere."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.image import imread

from forethought.evaluation.figures import draw_growing, to_svg
from forethought.evaluation.report import write_growing

TITLES = [f"Title {i} ($5 & <more>)" for i in range(30)]


def growing(guidance=(0.0, 1.0, 2.0), steps=6):
    random = np.random.default_rng(0)
    ends = random.dirichlet(np.ones(30), size=len(guidance))
    share = np.linspace(0, 1, steps)[None, :, None]
    return np.linspace(5, 0, steps), share * ends[:, None] + (1 - share) / 30


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_the_highest_items_and_the_target_are_drawn_for_each_w():
    levels, chances = growing()
    target = int(np.argsort(chances[-1, -1])[5])  # none of the highest
    ranks = (3.0, 1204.0, 6.0)
    figure = draw_growing([0, 1, 2], levels, chances, TITLES, target, ranks)
    highest = {int(item) for panel in chances for item in np.argsort(-panel[-1])[:3]} - {target}
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["w = 0", "w = 1", "w = 2"]
    for number, axes in enumerate(figure.axes):
        lines = lines_of(axes)
        for item in highest:
            np.testing.assert_allclose(lines[TITLES[item]].get_ydata(), chances[number, :, item])
        np.testing.assert_allclose(lines[f"came next: {TITLES[target]}"].get_ydata(), chances[number, :, target])
        assert axes.get_title(loc="right") == ("rank 3", "rank 1,204", "rank 6")[number]


def test_a_target_among_the_highest_is_drawn_once_and_none_is_needed():
    levels, chances = growing()
    best = int(np.argmax(chances[-1, -1]))
    assert TITLES[best] not in lines_of(draw_growing([0, 1, 2], levels, chances, TITLES, best).axes[0])
    assert not any("came next" in label for label in lines_of(draw_growing([0, 1, 2], levels, chances, TITLES).axes[0]))


def test_of_two_items_with_one_title_the_one_that_came_next_is_drawn():
    levels, chances = growing()
    order = np.argsort(-chances[-1, -1])
    low, high = int(order[-1]), int(order[0])
    titles = ["Emma" if item in (low, high) else title for item, title in enumerate(TITLES)]
    for target, other in ((low, high), (high, low)):
        lines = lines_of(draw_growing([2.0], levels, chances[-1:], titles, target).axes[0])
        np.testing.assert_allclose(lines["came next: Emma"].get_ydata(), chances[-1, :, target])
        assert ("Emma" in lines) == (other == high)


def test_one_w_one_step_and_a_zero_probability_are_drawn():
    chances = np.full((1, 1, 30), 1 / 29)
    chances[0, 0, 3] = 0.0
    assert "<path" in to_svg(draw_growing([2.0], [1.0], chances, TITLES, 3), "one step")


@pytest.mark.filterwarnings("error")
def test_titles_in_a_script_that_the_font_has_not_are_no_reason_for_warnings(tmp_path):
    levels, chances = growing()
    png, page = write_growing(tmp_path / "growing", (0.0, 1.0, 2.0), levels, chances, [f"音楽 {i}" for i in range(30)])
    assert png.is_file()
    assert "音楽" in page.read_text()


def test_shapes_that_do_not_fit_are_refused():
    levels, chances = growing()
    with pytest.raises(ValueError, match="2 w, 6 levels, 30 titles"):
        draw_growing([0, 1], levels, chances, TITLES)


def test_the_page_and_the_picture(tmp_path):
    levels, chances = growing()
    history = ["An <old> film", "A newer one"]
    png, page = write_growing(
        tmp_path / "grow", [0, 1, 2], levels, chances, TITLES, 7, history=history, facts=[("user", "ann & bob")]
    )
    picture = imread(png)
    assert picture.shape[0] > 400
    assert picture[..., :3].std() > 0.02  # something is drawn
    source = page.read_text()
    assert "An &lt;old&gt; film" in source
    assert "ann &amp; bob" in source
    assert "came next: Title 7 ($5 &amp; &lt;more&gt;)" in source
    assert not re.search(r"https?:|//\w+\.\w|url\((?!#)|\bitem \d", source)
    assert "var(--ink)" in source
