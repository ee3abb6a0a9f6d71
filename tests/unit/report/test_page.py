"""A report is one file, says what the results say, and runs nothing that stands in them."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from softcpt.report.blocks import Page
from softcpt.report.figures import Line, accuracy_figure, bars_figure
from softcpt.report.page import render_page, write_page
from softcpt.report.pictures import LARGEST_PX, data_uri
from softcpt.report.results import spread
from softcpt.report.sections import scores_section

VOID = {"meta", "img", "br", "link", "input"}


class Reader(HTMLParser):
    """Elements with their attributes, the text of table cells, and whether tags are closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.tables, self.open = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def html(page):
    return render_page(page)


def test_names_from_outside_stay_text(html):
    found = Reader(html)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "b", "i", "u", "em", "base", "form"}
    assert len(found.of("img")) == 3  # a right one of each task, and a wrong one of the second
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7 * 7 }}" in html
    assert "49" not in re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", html, flags=re.DOTALL)


def test_nothing_is_fetched(html):
    found = Reader(html)
    for tag, attributes in found.elements:
        for name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert "http" not in attributes.get("style", "")
    [style] = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert "@import" not in style
    assert re.findall(r"url\((?!#)", html) == []


def test_names_inside_the_page_are_unique_and_lead_somewhere(html):
    found = Reader(html)
    names = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(names) == len(set(names))
    wanted = re.findall(r'href="#([^"]*)"', html) + re.findall(r"url\(#([^)]*)\)", html)
    wanted += [a["aria-labelledby"] for _, a in found.elements if "aria-labelledby" in a]
    assert set(wanted) <= set(names)


def test_images_figures_and_tables_say_what_they_are(html):
    found = Reader(html)
    assert all(attributes["alt"] for attributes in found.of("img"))
    assert all(a["role"] == "img" and a["aria-label"] for a in found.of("svg"))
    assert len(found.of("caption")) == len(found.tables) == 2
    assert len(found.of("figcaption")) == len(found.of("figure")) == 4
    assert found.of("html") == [{"lang": "en"}]


def test_tables_hold_the_results(html, results):
    scores, tasks = Reader(html).tables
    assert scores[0][:3] == ["Method", "1 shot", "4 shots"]
    # Worked by hand: means of 45, 55 / 65, 67 / 50, 50 / 75, 80 and their population deviations.
    assert [line[:3] for line in scores[1:]] == [
        ["Zero-shot CLIP", "30.0", "30.0"],
        ["CoOp <i>", "50.0 ± 5.0", "66.0 ± 1.0"],
        ["Ours", "50.0 ± 0.0", "77.5 ± 2.5"],
    ]
    assert scores[3][3:] == ["4,096", "8.0"]
    assert tasks[0] == ["Task", "Images", "Zero-shot CLIP", "CoOp <i>", "Ours"]
    assert tasks[1] == ["kind", "6", "25.0", "60.0 ± 0.0", "72.5 ± 2.5"]
    assert "population deviation over 2 seeds (1, 2)" in html


def test_one_seed_says_that_it_tells_nothing_of_spread(results):
    suite = results.rows[0].suite
    one = type(results)(tuple(row for row in results.rows if row.seed == 1), results.tasks)
    section = render_page(Page("t", "l", [scores_section(one, suite)]))
    assert "One seed: nothing is said about how scores vary." in section
    assert "±" not in section


def test_where_nothing_is_trained_there_is_a_table_and_no_figure(results):
    untrained = type(results)(results.rows[:1], results.tasks)
    html = render_page(Page("t", "l", [scores_section(untrained, results.rows[0].suite)]))
    [table] = Reader(html).tables
    assert table[0][1] == "untrained"
    assert table[1][:2] == ["Zero-shot CLIP", "30.0"]
    assert "<svg" not in html


def test_the_same_results_give_the_same_bytes(results, make_page, html):
    assert render_page(make_page(results)) == html


def test_figures_follow_the_page_in_colours_and_hold_their_words_as_text(html):
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        assert "#0101" not in drawing
        assert "#0102" not in drawing
        assert "<metadata" not in drawing
        assert "<style" not in drawing
        assert "var(--ink)" in drawing
    assert re.search(r"<text[^>]*>training images per class</text>", drawings[0])


def test_a_task_without_test_images_has_no_bar():
    drawn = bars_figure({"ours": [spread([0.5, 0.6]), spread([None])]}, ["a", "b"], key="k", alt="two bars")
    assert ">b</text>" in drawn


def test_error_bars_reach_one_deviation_up_and_down():
    """Twice the deviation, twice the length: read from the drawing's own paths."""

    def length(*scores):
        line = Line("ours", {1: spread(scores), 4: spread([0.2, 0.8])})
        drawn = accuracy_figure([line], key="k", alt="a line")
        [bars] = re.findall(r'<g id="k-LineCollection_1">(.*?)</g>', drawn, re.DOTALL)
        ends = re.findall(r'd="M [\d.]+ ([\d.]+) \s*L [\d.]+ ([\d.]+)', bars)
        return abs(float(ends[0][0]) - float(ends[0][1]))

    assert length(0.3, 0.7) == pytest.approx(2 * length(0.4, 0.6), rel=1e-3)


def test_a_long_legend_takes_nothing_from_the_axes():
    def height(n, name):
        lines = [Line(f"{name} {i}", {1: spread([0.5])}) for i in range(n)]
        drawn = accuracy_figure(lines, key="k", alt="lines")
        box = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', drawn)
        return float(box[1])

    short, long = "method", "a method with a name of words"
    assert height(4, short) == height(2, long) == height(1, short)
    per_line = 0.21 * 72
    assert height(8, short) == pytest.approx(height(4, short) + 2 * per_line, abs=0.1)
    assert height(8, long) == pytest.approx(height(2, long) + 6 * per_line, abs=0.1)
    assert height(3, f"{long}, {long}") == pytest.approx(height(6, long), abs=0.1)  # told whole, in two lines


def test_a_page_is_written_whole(page, tmp_path):
    write_page(page, tmp_path / "report.html")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_an_image_becomes_small_upright_and_anonymous(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "Somebody"
    Image.new("RGB", (800, 400), "red").save(tmp_path / "a.jpg", exif=exif)
    copy = Image.open(io.BytesIO(base64.b64decode(data_uri(tmp_path / "a.jpg").partition(",")[2])))
    assert copy.size == (LARGEST_PX // 2, LARGEST_PX)
    assert not copy.getexif()
