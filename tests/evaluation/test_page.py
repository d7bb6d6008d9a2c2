"""The page of an evaluation as text: all is said, escaped, embedded within its budget."""

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from PIL import Image

from pusa.data import video
from pusa.evaluation.page import media
from pusa.evaluation.page.drawing import padded, rounded
from pusa.evaluation.page.markup import VOID
from pusa.evaluation.page.page import write_page
from pusa.evaluation.page.view import make_view
from pusa.evaluation.results import Result, Shot
from pusa.pipelines.schedule_report import colour
from tests.evaluation.results_for_tests import (
    BASELINE,
    CONTENDER,
    ERROR,
    FPS,
    NOISE,
    NUM_FRAMES,
    SIZE,
    STAND_IN,
    STILL,
    TRUTH,
    make_result,
    single,
    without,
)


class Page(HTMLParser):
    """The elements of a page; ValueError if one is not closed. text: of all but scripts."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.contents: list[str] = []  # the text inside of each, without that of its children
        self.open: list[int] = []
        self.feed(source)
        self.close()
        if self.open:
            raise ValueError(f"not closed: {[self.elements[i] for i in self.open]}")

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.contents.append("")
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        place = self.open.pop()
        if self.elements[place][0] != tag:
            raise ValueError(f"{self.elements[place]} is closed by </{tag}>")

    def handle_data(self, data):
        if self.open:
            self.contents[self.open[-1]] += data

    def find(self, tag: str, class_: str = "") -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, text)
            for (name, attributes), text in zip(self.elements, self.contents, strict=True)
            if name == tag and class_ in (attributes.get("class") or "").split() + [""]
        ]

    @property
    def text(self) -> str:
        named = zip(self.elements, self.contents, strict=True)
        return "\n".join(text for (name, _), text in named if name not in ("script", "style"))

    @property
    def data(self) -> dict:
        def refuse(name):
            raise ValueError(f"{name} is no JSON")

        [text] = [text for a, text in self.find("script") if a.get("type") == "application/json"]
        return json.loads(text, parse_constant=refuse)

    @property
    def addresses(self) -> list[str]:
        names = ("src", "href", "poster", "action", "data", "srcset", "xlink:href")
        return [a[n] or "" for _, a in self.elements for n in names if n in a]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def result(folder) -> Result:
    return make_result(folder)


def written(folder: Path, result: Result, **options) -> Page:
    write_page(folder / "report.html", result, **options)
    return Page((folder / "report.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def page(folder, result) -> Page:
    return written(folder, result)


def test_a_stand_in_is_called_one_wherever_its_numbers_stand(page, result):
    assert "stand-in, not VBench" in result.title
    for element in ("title", "h1", "caption"):
        assert page.find(element)[0][1] == result.title
    radars = [text for _, text in page.find("figcaption") if "spoke" in text]
    assert len(radars) == 2
    assert all(text.startswith(result.title) for text in radars)
    for said in (*result.warnings, *result.facts, *result.facts.values()):
        assert said in page.text


def test_nothing_that_users_wrote_becomes_markup(page, result):
    assert len(page.find("script")) == 2
    assert "α" not in [text for _, text in page.find("b")]
    assert {text for _, text in page.find("span", "prompt")} == {i.text for i in result.items}
    names = {text for _, text in page.find("span", "system")}
    assert names == {system.name for system in result.systems}
    assert [item[1] for item in page.data["items"]] == [item.text for item in result.items]


def test_the_page_is_of_one_piece(page, folder):
    files = [a for a in page.addresses if not a.startswith(("data:", "#"))]
    assert len(files) == 48
    assert all((folder / unquote(address)).is_file() for address in files)
    [policy] = [a for a, _ in page.find("meta") if a.get("http-equiv")]
    assert policy["content"].startswith("default-src 'none'; img-src data:; media-src data:;")
    [(_, style)] = page.find("style")
    assert "url(" not in style
    assert "@import" not in style


def test_every_cell_has_its_mean_and_interval_times_the_columns_scale(page, result):
    for column, scale, digits in (("i2v_subject", 100, 2), (ERROR, 1, 3)):
        cell = result.cells[CONTENDER, column]
        mean, low, high = (f"{scale * v:.{digits}f}" for v in (cell.mean, cell.low, cell.high))
        assert mean in page.text.splitlines()
        assert f"[{low}, {high}]" in page.text.splitlines()


def test_motion_stands_beside_the_total(page):
    columns = [a["data-column"] for a, _ in page.find("th") if "data-column" in a]
    assert columns[:2] == ["Total", STAND_IN]
    assert columns.count(STAND_IN) == 1


def test_the_papers_rows_are_a_block_of_their_own(page, result):
    bodies = [a.get("class") for a, _ in page.find("tbody")]
    assert bodies[:3] == ["models", "controls", "published"]
    assert "As printed in arXiv 2507.16116 v2, under other conditions" in page.text
    for row in result.published:
        assert f"{row.percent['Total']:.2f}" in page.text


def test_what_was_not_measured_is_listed_with_why(page):
    assert page.find("strong")[0][1] == "temporal_flickering"
    assert "its videos are of static scenes <none here>" in page.text


def test_intervals_without_ends_are_shown_as_such(folder, result):
    page = written(folder, single(result))
    assert "[−∞, +∞]" in page.text
    assert "[−∞, ∞]" in page.text
    assert "too few prompts to test" in page.text
    for word in ("nan", "inf"):
        drawn = [v for _, a in page.elements for n, v in a.items() if n not in ("src", "poster")]
        assert not [v for v in drawn if v and re.search(rf"\b{word}\b", v)]


def test_values_that_are_no_numbers_are_left_out(folder, result):
    first = replace(result.shots[0], values={"i2v_subject": math.nan, ERROR: math.inf})
    page = written(folder, replace(result, shots=(first, *result.shots[1:])))
    column = [c["name"] for c in page.data["columns"]].index("i2v subject")
    assert page.data["shots"]["0"]["0"]["0"][column] is None
    other = result.shots[1].values["i2v_subject"]  # the item's other sample alone
    assert page.data["means"][0][column][0] == pytest.approx(100 * other, abs=1e-4)


def test_videos_and_images_stay_within_the_budget(folder, result):
    budget = 400e3
    page = written(folder, result, budget=budget)
    sections = [a["class"] for a, _ in page.find("section", "item")]
    assert sections.count("item") in range(1, len(result.items))
    assert sections.count("item lean") == len(result.items) - sections.count("item")
    held = [a for a in page.addresses if a.startswith(("data:video", "data:image/jpeg"))]
    assert 0 < sum(map(len, held)) <= budget


def test_images_without_videos_have_a_budget_too(folder, result):
    page = written(folder, replace(result, shots=()), budget=1000)
    assert not [a for a in page.addresses if a.startswith("data:image/jpeg")]


@pytest.mark.parametrize("options", [{"budget": 0}, {"max_examples": 0}])
def test_without_room_items_are_listed_with_links(folder, result, options):
    page = written(folder, result, **options)
    assert not page.find("video")
    assert len(page.find("section", "lean")) == len(result.items)
    assert sum(a.endswith(".mp4") for a in page.addresses) == len(result.shots)


def test_how_a_system_was_run_is_there_with_its_networks(page, result):
    lines = page.text.splitlines()
    assert "LoRA & <per-frame> sigmas" in lines
    assert "dynamic_degree: id: flow <small>; sha256: " + "1" * 64 + "; comparable: False" in lines
    assert len(page.find("details", "run")) == len(result.systems)


def test_comparisons_with_controls_are_closed(page, result):
    pairs = {(c.first, c.second) for c in result.comparisons}
    controls = {s.name for s in result.systems if s.role == "control"}
    closed = len(page.find("details")) - len(page.find("details", "run"))
    assert closed == sum(second in controls for _, second in pairs)


def test_the_worst_are_embedded_and_those_of_other_columns_too(result):
    view = make_view(result)
    first, other = result.columns[3], next(c for c in result.columns if c.name == ERROR)
    assert view.scored[0] == first
    gaps, errors = view.gaps(first), view.gaps(other)
    chosen = [item.index for item in media.choose(view, 4)]
    assert chosen[:2] == sorted(gaps, key=gaps.__getitem__)[:2]
    # Less is better: the worst has gained most.
    assert view.worst_first(other)[0].index == max(errors, key=errors.__getitem__)
    assert len(set(chosen)) == 4
    assert {i.index for i in media.choose(view, 99)} == {i.index for i in result.items}


def test_sections_come_worst_first(page, result):
    view = make_view(result)
    worst = [f"item-{item.index}" for item in view.worst_first(view.scored[0])]
    assert [a["id"] for a, _ in page.find("section", "item")] == worst


CASES = {
    "no baseline": lambda r: without(r, BASELINE),
    "no contender": lambda r: without(r, CONTENDER),
    "a control alone": lambda r: without(r, *(s.name for s in r.systems if s.name != STILL)),
    "one item": lambda r: single(r),
    "one sample": lambda r: replace(r, shots=tuple(s for s in r.shots if s.sample == 0)),
    "no published rows": lambda r: replace(r, published=()),
    "no videos": lambda r: replace(r, shots=()),
    "no items": lambda r: replace(r, shots=(), items=()),
    "no warnings": lambda r: replace(r, warnings=(), facts={}, missing={}, retention=()),
    "one column": lambda r: replace(r, columns=r.columns[-1:]),
    "totals alone": lambda r: replace(r, columns=r.columns[:3]),
    "no plans": lambda r: replace(r, systems=tuple(replace(s, plan=None) for s in r.systems)),
}


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_a_result_may_lack_anything_but_systems_and_columns(folder, result, change):
    changed = change(result)
    page = written(folder, changed, max_examples=1)
    assert page.find("h1")[0][1] == changed.title
    assert len(page.find("section", "item")) == len(changed.items)
    assert bool(page.find("tbody", "published")) == bool(changed.published)
    assert bool(page.find("svg", "radar")) == (len(changed.columns) > 3)
    assert page.data["items"] == [[i.index, i.text, i.kind] for i in changed.items]


def test_a_result_of_nothing_is_refused(folder, result):
    with pytest.raises(ValueError, match="needs a system and a column"):
        write_page(folder / "none.html", replace(result, systems=()))
    assert not (folder / "none.html").exists()


def test_a_file_that_is_gone_is_told(folder, result):
    gone = [replace(s, path=folder / "gone.mp4") if s.system == NOISE else s for s in result.shots]
    page = written(folder, replace(result, shots=tuple(gone)))
    assert page.text.count("(not here)") == len(result.items)
    assert page.text.count("not embedded") == len(result.items)


def test_a_video_of_the_page_is_the_same_but_for_its_size(result, tmp_path):
    shot: Shot = next(s for s in result.shots if s.system == TRUTH)
    clip = media.small_clip(shot.path)
    (tmp_path / "clip.mp4").write_bytes(base64.b64decode(clip.source.split(",")[1]))
    small, info = video.read_frames(tmp_path / "clip.mp4")
    assert (info.num_frames, info.fps) == (NUM_FRAMES, FPS)
    assert (clip.width, clip.height) == (10 * SIZE, 10 * SIZE) == (info.width, info.height)
    truth, _ = video.read_frames(shot.path)
    assert (small[:, :, 5::10, 5::10].float() - truth.float()).abs().mean() < 4


@pytest.mark.parametrize(
    ("size", "expected"),
    [((32, 32), (320, 320)), ((48, 64), (192, 256)), ((480, 832), (184, 320)),
     ((832, 480), (320, 184)), ((161, 243), (160, 242)), ((720, 1280), (180, 320))],
)  # fmt: skip
def test_sizes_are_even_and_fit_the_page(size, expected):
    frames = torch.randint(0, 255, (2, 3, *size), dtype=torch.uint8)
    fitted = media.fitted(frames)
    assert fitted.shape[2:] == expected
    if expected[0] > size[0]:  # enlarged: every pixel is a square of its own colour
        zoom = expected[0] // size[0]
        assert torch.equal(fitted[:, :, ::zoom, ::zoom], frames)


def test_a_sigma_picture_has_steps_down_and_latent_frames_across():
    plan = torch.tensor([[1.0, 0.2], [0.5, 0.1], [0.0, 0.0]])
    content = base64.b64decode(media.heat_map(plan).split(",")[1])
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (2, 3)
        assert picture.getpixel((1, 0)) == colour(0.2)
        assert picture.getpixel((0, 2)) == colour(0.0)


@pytest.mark.parametrize(
    "values", [[0.0], [1.0, 1.0], [-3.2, 41.7], [99.97, 99.98], [1e-7, 2e-7], [math.inf, 4.0, 5.0]]
)
def test_an_axis_holds_its_values_and_has_round_ticks(values):
    axis = padded(values, 0, 100)
    finite = [value for value in values if math.isfinite(value)]
    assert axis.low < min(finite)
    assert axis.high > max(finite)
    assert axis.low <= min(finite) - 0.01 * (max(finite) - min(finite))
    shown = [float(axis.label(tick).replace("−", "-")) for tick in axis.ticks]
    assert shown == pytest.approx(axis.ticks, rel=1e-9, abs=1e-12)
    assert (axis(-math.inf), axis(math.inf)) == (0, 100)


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([0.0, 100.00001], (0, 100)), ([61.5, 97.7], (60, 100)), ([5.0, 5.0], (5, 6)),
        ([0.0, 99.999999], (0, 100)), ([-1e-5, 30.0], (0, 30)), ([98.2, 100.00001], (98, 100)),
    ],
)  # fmt: skip
def test_a_radars_rim_is_not_doubled_by_rounding(values, ends):
    assert rounded(values) == pytest.approx(ends)


def test_the_forest_says_what_is_better_and_what_cannot_be_told(page, result, folder):
    better = [c for c in result.comparisons if c.contrast.metric == ERROR]
    assert len(page.find("g", "mark")) == len(result.comparisons)
    assert len(page.find("g", "yes")) >= len(better)  # a smaller error is better: green
    alone = written(folder, single(result))
    assert {a["class"] for a, _ in alone.find("g", "mark")} == {"mark open"}
    assert len(alone.find("rect", "blind")) == 0
