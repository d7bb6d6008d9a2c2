"""The page of an evaluation in a headless Chromium: it asks for nothing, sorts, filters, plays."""

import shutil
from pathlib import Path

import pytest

from pusa.evaluation.page.page import write_page
from pusa.evaluation.page.view import make_view
from pusa.evaluation.results import Result
from tests.evaluation.results_for_tests import BASELINE, CONTENDER, ERROR, OTHER, make_result

PLOTS = """() => [...document.querySelectorAll('svg.dots')].map(svg => ({
  ticks: [...svg.querySelectorAll('.tick')].map(tick => tick.textContent),
  dots: [...svg.querySelectorAll('.dot')]
    .map(dot => dot.style.transform.match(/[-\\d.]+/g).map(Number)),
}))"""
SECTIONS = "() => [...document.querySelectorAll('.item:not([hidden])')].map(s => s.id)"
ROWS = """() => [...document.querySelectorAll('tbody.models tr')]
  .map(row => row.querySelector('.system').textContent)"""
VIDEOS = "id => [...document.querySelectorAll(`#${id} video:not([hidden])`)]"
PLAYING = f"id => ({VIDEOS})(id).filter(v => !v.paused && v.currentTime > 0.05).length"


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    return make_result(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def address(result, tmp_path_factory) -> str:
    """Of the page alone: the videos and images that it was made of are not beside it."""
    folder = tmp_path_factory.mktemp("alone")
    made = result.items[0].image.parent.parent / "report.html"
    write_page(made, result, max_examples=5)
    return Path(shutil.copy(made, folder)).as_uri()


@pytest.fixture
def tab(browser, address):
    """The page, opened; nothing may be asked for and nothing may go wrong until a test's end."""
    asked, wrong = [], []
    browser.on("request", lambda request: asked.append(request.url))
    browser.on("console", lambda message: wrong.append(message.text))
    browser.on("pageerror", lambda error: wrong.append(str(error)))
    browser.goto(address)
    browser.wait_for_selector("html.js")
    yield browser
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert not wrong


def field(tab, name: str):
    return tab.locator(f"#tools [name={name}]")


def order_of(result: Result, column: str) -> list[str]:
    view = make_view(result)
    [chosen] = [c for c in view.scored if c.name == column]
    return [f"item-{item.index}" for item in view.worst_first(chosen)]


def test_what_is_said_is_seen(tab, result):
    assert tab.locator("h1").inner_text() == result.title
    assert tab.locator("h1").is_visible()
    assert tab.locator("svg.radar").count() == 2
    for polygon in tab.locator("svg.radar .polygon.contender").all():
        assert polygon.bounding_box()["width"] > 100
    tab.locator(".radars .legend").get_by_label(CONTENDER).uncheck()
    assert not tab.locator("svg.radar .polygon.contender").first.is_visible()
    assert tab.locator("svg.radar .polygon.baseline").first.is_visible()
    assert tab.locator(".warnings p").count() == len(result.warnings)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_comparison_is_seen_with_its_verdict(tab):
    table = tab.locator(".pair .scroll").first
    assert table.evaluate("box => box.scrollWidth <= box.clientWidth")
    assert tab.locator(".pair figure").first.bounding_box()["width"] >= 350


def test_a_click_on_a_heading_sorts_each_block_by_itself(tab, result):
    def sort(column: str) -> list[str]:
        tab.locator(f"th[data-column={column}] button").click()
        return tab.evaluate(ROWS)

    assert sort("i2v_subject") == [CONTENDER, BASELINE, OTHER]
    assert sort("i2v_subject") == [OTHER, BASELINE, CONTENDER]
    assert sort(ERROR) == [CONTENDER, BASELINE, OTHER]  # less is better, best first
    heading = tab.locator("th[aria-sort]")
    assert heading.get_attribute("data-column") == ERROR
    assert heading.get_attribute("aria-sort") == "ascending"
    assert tab.locator("tbody.published tr").count() == 1 + len(result.published)


def test_items_come_worst_first_in_the_chosen_column(tab, result):
    assert tab.evaluate(SECTIONS) == order_of(result, "i2v_subject")
    for column in ("aesthetic_quality", ERROR, "camera_motion"):
        field(tab, "column").select_option(label=column)
        assert tab.evaluate(SECTIONS) == order_of(result, column)
    field(tab, "column").select_option(label=ERROR)
    field(tab, "order").select_option(label="best of the system first")
    errors = make_view(result).values[CONTENDER, ERROR]
    assert tab.evaluate(SECTIONS) == [f"item-{i}" for i in sorted(errors, key=errors.__getitem__)]
    first = min(errors, key=errors.__getitem__)
    shot = next(s for s in result.shots if (s.system, s.index) == (CONTENDER, first))
    seen = tab.locator(f"#item-{first} figure[data-system='0'] .value").inner_text()
    lean = "lean" in tab.locator(f"#item-{first}").get_attribute("class")
    assert seen == f"{errors[first] if lean else shot.values[ERROR]:.3f}"


def test_items_are_filtered_by_text_kind_and_system(tab):
    field(tab, "text").fill("HONIG")
    assert tab.evaluate(SECTIONS) == ["item-1"]
    assert tab.locator("#count").inner_text().startswith("1 of 6 items")
    field(tab, "text").fill("")
    field(tab, "kind").select_option(label="scenery")
    assert sorted(tab.evaluate(SECTIONS)) == ["item-3", "item-4"]
    tab.locator("#tools .legend").get_by_label(BASELINE).uncheck()
    figures = tab.locator("#item-3 .shot:visible .system").all_inner_texts()
    assert CONTENDER in figures
    assert BASELINE not in figures
    # A dot of an item that is filtered away brings it back.
    tab.locator("#strip .dot[data-item='0']").click()
    assert tab.locator("#item-0").is_visible()
    assert tab.evaluate("location.hash") == "#item-0"


def test_the_script_draws_the_dots_where_they_were(open_browser, address):
    before = open_browser(java_script_enabled=False)
    before.goto(address)
    after = open_browser()
    after.goto(address)
    after.wait_for_selector("html.js")
    plain, scripted = before.evaluate(PLOTS), after.evaluate(PLOTS)
    for old, new in zip(plain, scripted, strict=True):
        assert new["ticks"] == old["ticks"]
        assert [x for dot in new["dots"] for x in dot] == pytest.approx(
            [x for dot in old["dots"] for x in dot], abs=0.02
        )
    field(after, "column").select_option(label=ERROR)
    assert after.evaluate(PLOTS) != scripted


def test_a_dot_tells_its_item_and_the_keys_walk_along(tab, result):
    tab.locator("#strip svg").focus()
    worst = order_of(result, "i2v_subject")
    for item in worst[:2]:
        tab.keyboard.press("ArrowRight")
        index = int(item.removeprefix("item-"))
        assert tab.locator("#tip").inner_text().startswith(f"#{index} {result.items[index].text}")
    tab.keyboard.press("Enter")
    assert tab.evaluate("location.hash") == f"#{worst[1]}"


def test_the_videos_of_an_item_play_together(tab, result):
    worst = order_of(result, "i2v_subject")[0]

    def wait_for(playing: int) -> None:
        tab.wait_for_function(f"id => ({PLAYING})(id) === {playing}", arg=worst)

    assert tab.evaluate(PLAYING, worst) == 0
    tab.locator(f"#{worst}").hover()
    wait_for(6)
    times = tab.evaluate(f"id => ({VIDEOS})(id).map(v => v.currentTime)", worst)
    assert max(times) - min(times) < 0.25
    tab.locator("h1").hover()
    wait_for(0)
    tab.locator(f"#{worst} .play").click()
    field(tab, "sample").select_option("1")  # of two systems; the others keep theirs
    samples = tab.evaluate(f"id => ({VIDEOS})(id).map(v => v.dataset.sample)", worst)
    assert samples == ["1", "1", "0", "0", "0", "0"]
    wait_for(6)
    # Nine frames at 8 per second: after the end they begin again.
    tab.evaluate(
        f"id => {{ window.again = 0; ({VIDEOS})(id)[0].onseeked = () => {{ again += 1 }} }}", worst
    )
    tab.wait_for_function("() => again > 0")


def test_without_a_script_the_page_can_be_read(open_browser, address, result):
    tab = open_browser(java_script_enabled=False, color_scheme="dark")
    tab.goto(address)
    assert not tab.locator("#tools").is_visible()
    assert not tab.locator(".play").first.is_visible()
    for seen in ("table.means", ".forest svg", "svg.radar", "#scatter svg", "#item-0"):
        assert tab.locator(seen).first.is_visible()
    videos = tab.locator("video:visible")
    assert videos.count() == 5 * len(result.systems)
    assert videos.first.get_attribute("controls") == ""
    tab.locator(".radars .legend").get_by_label(BASELINE).uncheck()
    assert not tab.locator("svg.radar .polygon.baseline").first.is_visible()
    back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, back.removeprefix("rgb(").removesuffix(")").split(","))) < 150
