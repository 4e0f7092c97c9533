"""The page: what it says, that it is safe and the same each time, and how a real browser shows
it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from synthetic import make_bench, make_turn, write_bench

from fakes import FakeEngine
from specrej.errors import UnknownNameError, UsageError
from specrej.evaluation.comparison import align
from specrej.evaluation.metrics import summarize
from specrej.evaluation.plots import Point, efficiency
from specrej.evaluation.policy_grid import grid
from specrej.evaluation.policy_words import policy_words
from specrej.evaluation.replay_summary import ReplaySummary, replay_folder
from specrej.evaluation.report import write_report
from specrej.evaluation.report.headline import estimated, number, quickened, spoken
from specrej.evaluation.report.page import picture
from specrej.evaluation.report.stories import runners_of, telling_prompts
from specrej.evaluation.rows import BenchRow
from traces import traces_in

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = '<script>alert(1)</script> **bold** & "quoted" {{ 7 * 7 }} </details>'
Scheme = Literal["light", "dark"]
SECTIONS = ["efficiency", "race", "cost", "tables", "answers", "failures", "run"]
SOME = ("best_of_n:4", "best_of_n:16", "speculative_rejection:0.5")


class Elements(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def bench(directory: Path, *, hostile: bool = False) -> list[BenchRow]:
    info, rows = make_bench(num_prompts=6, methods=SOME)
    if hostile:
        info["engine"]["model"] = HOSTILE
        for row in rows:
            row["error"] = row["error"] and {"kind": "Error", "message": HOSTILE}
            for turn in row["turns"]:
                turn["text"], turn["lowest_text"] = HOSTILE, HOSTILE * 20
                turn["messages"][0]["content"] = HOSTILE
    write_bench(directory, info, rows)
    return rows


@pytest.fixture(scope="module")
def bench_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bench")
    bench(directory, hostile=True)
    return write_report(directory)


@pytest.fixture(scope="module")
def trace_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trace")
    traces = traces_in(
        directory,
        ["Why?", "How?", "Who?"],
        [4, 8, 16],
        FakeEngine(eos=0.03),
        n=16,
        max_new_tokens=32,
        memory="1MiB",
    )
    replay_folder(directory, grid(traces)[::7])
    return write_report(directory)


def section_ids(page: Path) -> list[str | None]:
    return [attributes.get("id") for attributes in Elements(page.read_text()).of("section")]


def test_a_bench_has_its_sections_and_figures(bench_page: Path) -> None:
    elements = Elements(bench_page.read_text())
    assert section_ids(bench_page) == SECTIONS
    assert [link["href"] for link in elements.of("a")] == [f"#{name}" for name in SECTIONS]
    drawn = {path.stem for path in (bench_page.parent / "plots").iterdir()}
    figures = [
        f"{kind}-{unit}"
        for kind in ("efficiency", "cost")
        for unit in ("seconds", "tokens", "flops")
    ]
    assert drawn == {*figures, "race-largest-gain", "race-median-gain", "race-smallest-gain"}
    assert len(elements.of("svg")) == len(drawn)


def test_a_trace_has_its_sections_and_figures(trace_page: Path) -> None:
    assert section_ids(trace_page) == ["pareto", "correlation", "losses", "run"]
    drawn = {path.stem for path in (trace_page.parent / "plots").glob("*.svg")}
    correlations = {f"correlation-{measure}" for measure in ("pearson", "spearman", "kendall")}
    assert drawn == {"pareto-num-generated-tokens", "pareto-flops", *correlations}


def test_the_tables_hold_what_metrics_say(tmp_path: Path) -> None:
    rows = bench(tmp_path)
    page = Elements(write_report(tmp_path).read_text()).text
    summary = summarize(rows, "best_of_n:16")
    for name, method in summary["methods"].items():
        assert spoken(name) in page
        for estimate in (
            method["reward"],
            method["difference"],
            method["perplexity"],
            method["risk"]["cvar"],
        ):
            cell = estimated(estimate, 3)
            assert cell.text in page
            assert cell.interval in page
        for speedup in method["speedup"]["reward"].values():
            assert quickened(speedup).text in page


def test_the_replay_page_holds_the_front(trace_page: Path) -> None:
    summary: ReplaySummary = json.loads((trace_page.parent / "replay.json").read_text())
    page = Elements(trace_page.read_text()).text
    for name in summary["pareto"]["num_generated_tokens"]:
        (row,) = (row for row in summary["policies"] if row["name"] == name)
        assert policy_words(row["policy"])[1:] in page  # its first letter is a large one there
        assert name not in page
        assert estimated(row["figures"]["reward"], 3).text in page


def test_texts_are_escaped(bench_page: Path) -> None:
    elements = Elements(bench_page.read_text())
    assert not elements.of("script")
    assert elements.text.count(HOSTILE) > 20


def test_the_page_needs_nothing_else(bench_page: Path, trace_page: Path) -> None:
    for page in (bench_page, trace_page):
        elements = Elements(page.read_text())
        links = [
            value
            for _, tag in elements.tags
            for name, value in tag.items()
            if name in {"src", "href", "xlink:href"}
        ]
        assert links
        assert all(link is not None and link.startswith(("#", "data:")) for link in links)
        assert "@import" not in page.read_text()


def test_ids_are_unique_and_references_lead_somewhere(bench_page: Path) -> None:
    text = bench_page.read_text()
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([\w.-]+)', text)) <= set(ids)


def test_figures_and_tables_say_what_they_are(bench_page: Path, trace_page: Path) -> None:
    for page in (bench_page, trace_page):
        elements = Elements(page.read_text())
        assert elements.of("html") == [{"lang": "en"}]
        assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in elements.of("svg"))
        assert all(head.get("scope") in {"col", "row"} for head in elements.of("th"))
        assert len(elements.of("caption")) == len(elements.of("table")) > 0


def test_the_same_run_gives_the_same_files(bench_page: Path) -> None:
    files = [bench_page, *(bench_page.parent / "plots").iterdir()]
    before = {path: path.read_bytes() for path in files}
    write_report(bench_page.parent)
    assert {path: path.read_bytes() for path in files} == before


def test_another_baseline_can_be_asked_for(tmp_path: Path) -> None:
    bench(tmp_path)
    assert "Wins against Best-of-4" in write_report(tmp_path, baseline="best_of_n:4").read_text()
    with pytest.raises(UnknownNameError, match="best_of_n:5"):
        write_report(tmp_path, baseline="best_of_n:5")


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    info, rows = make_bench(num_prompts=4, methods=["best_of_n:4", "best_of_n:8"], num_failures=0)
    for row in rows:
        for turn in row["turns"]:
            turn["flops"]["reward"] = None
            turn["perplexity"] = None
            for candidate in turn["candidates"]:
                candidate["perplexity"] = None
    write_bench(tmp_path, info, rows)
    page = write_report(tmp_path)
    assert section_ids(page) == ["efficiency", "cost", "tables", "answers", "run"]
    assert not list((page.parent / "plots").glob("*flops*"))


@pytest.mark.parametrize("num_prompts", [1, 2])
def test_few_prompts_and_turns_are_enough(tmp_path: Path, num_prompts: int) -> None:
    info, rows = make_bench(num_prompts=num_prompts, methods=SOME, num_turns=2, num_failures=0)
    write_bench(tmp_path, info, rows)
    assert section_ids(write_report(tmp_path)) == [name for name in SECTIONS if name != "failures"]


def test_a_run_where_everything_failed_says_so(tmp_path: Path) -> None:
    info, rows = make_bench(num_prompts=2, methods=SOME, num_failures=0)
    for row in rows:
        row["turns"], row["error"] = [], {"kind": "ModelError", "message": "no"}
    write_bench(tmp_path, info, rows)
    page = write_report(tmp_path)
    assert "nothing to compare" in page.read_text()
    assert section_ids(page) == ["tables", "failures", "run"]


def test_a_run_that_has_not_ended_is_reported_on(tmp_path: Path) -> None:
    info, rows = make_bench(num_prompts=4, methods=SOME)
    write_bench(tmp_path, info, rows[:-2])
    assert "not yet ended by all methods" in write_report(tmp_path).read_text()


def test_verdicts_of_a_judge_are_shown(tmp_path: Path) -> None:
    bench(tmp_path)
    pair = {"method": "speculative_rejection:0.5", "baseline": "best_of_n:16"}
    unread: dict[str, Any] = {"first": None, "second": None, "error": None, "calls": {}}
    verdict = {**pair, **unread, "judge": "somebody", "verdict": "win"}
    lines = [json.dumps({**verdict, "prompt_id": f"p00{number}"}) for number in range(4)]
    lines += [json.dumps({**verdict, "judge": "<other>", "verdict": "failed", "prompt_id": "p000"})]
    (tmp_path / "judgements.jsonl").write_text("".join(f"{line}\n" for line in lines))
    page = write_report(tmp_path).read_text()
    assert "by the judge somebody" in page
    assert "by the judge &lt;other&gt;" in page
    assert page.count(">Unclear<") == 2


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        write_report(tmp_path)
    info, _ = make_bench(num_prompts=1)
    write_bench(tmp_path, info, [])
    with pytest.raises(UsageError, match="no results yet"):
        write_report(tmp_path)
    info["kind"] = "trace"
    write_bench(tmp_path, info, [])
    with pytest.raises(UsageError, match="without a replay"):
        write_report(tmp_path)


# The prompts that are told


def test_prompts_are_chosen_by_their_gain() -> None:
    _, rows = make_bench(num_prompts=7, num_failures=2)
    comparison = align(rows, "best_of_n:4")
    chosen = telling_prompts(comparison, "speculative_rejection:0.5")
    by_prompt = {
        (row["prompt_id"], row["method"]): row["turns"][0]["reward"]
        for row in rows
        if not row["error"]
    }
    gains = sorted(
        reward - by_prompt[prompt_id, "best_of_n:4"]
        for (prompt_id, method), reward in by_prompt.items()
        if method == "speculative_rejection:0.5" and (prompt_id, "best_of_n:4") in by_prompt
    )
    assert [one.why for one in chosen] == ["largest gain", "median gain", "smallest gain"]
    middle = gains[(len(gains) - 1) // 2]
    assert [one.gain for one in chosen] == pytest.approx([gains[-1], middle, gains[0]])


def test_runners_follow_the_decisions() -> None:
    turn = make_turn(0, "speculative_rejection:0.5", 0, 0)
    runners, decisions = runners_of(turn)
    assert len(runners) == len(turn["candidates"])
    assert [runner.fate for runner in runners].count("winner") == 1
    (winner,) = (runner for runner in runners if runner.fate == "winner")
    assert winner.rewards[-1] == turn["reward"]
    for runner, candidate in zip(runners, turn["candidates"], strict=True):
        assert list(runner.rewards) == list(candidate["rewards"].values())
        assert runner.num_tokens[-1] == candidate["num_tokens"]
        assert (runner.fate == "rejected") == (candidate["state"] == "rejected")
    num_rejected = sum(candidate["state"] == "rejected" for candidate in turn["candidates"])
    assert decisions[0][0] == turn["decisions"][0]["num_tokens"]
    assert decisions[-1][1] == len(runners) - num_rejected


# Words and figures


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (-1.5, 1, "−1.5"),
        (-0.0004, 3, "0.000"),
        (12345.678, 1, "12,345.7"),
        (0.0, 2, "0.00"),
        (12345.678, 3, "12,345.7"),
        (123456.7, 3, "123,457"),
        (-123456789012345.0, 0, "−123T"),
        (0.00012, 3, "0.000"),
    ],
)
def test_numbers(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_a_figure_in_a_page_keeps_its_words_and_takes_the_pages_colours(tmp_path: Path) -> None:
    figure = efficiency(
        [Point(label="N=8", x=1.0, y=100.0)], unit="seconds", baseline="best_of_n:8"
    )
    inlined = picture(figure, tmp_path / "one", title="", caption="", label='a "label" <b>').svg
    assert "N=8" in inlined
    assert Elements(inlined).of("svg")[0]["aria-label"] == 'a "label" <b>'
    assert not re.search(r"#[0-9a-f]{6}\b", inlined)
    assert len(inlined) < (tmp_path / "one.svg").stat().st_size * 0.8


# In a browser


def open_page(
    browser: "Browser", path: Path, *, width: int, scheme: Scheme = "light"
) -> tuple["Page", list[str]]:
    """The page, and whatever it complained about or asked the network for."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "request",
        lambda sent: None if sent.url.startswith(("file:", "data:")) else trouble.append(sent.url),
    )
    page.goto(path.as_uri())
    return page, trouble


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_complaint_and_without_scrolling_sideways(
    browser: "Browser", bench_page: Path, trace_page: Path, width: int
) -> None:
    for path in (bench_page, trace_page):
        page, trouble = open_page(browser, path, width=width)
        assert trouble == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        sizes = page.evaluate(
            "[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().width)"
        )
        assert len(sizes) >= 5
        assert min(sizes) > 300
        page.close()


def test_tables_are_whole_on_a_screen_and_scroll_by_themselves_on_a_telephone(
    browser: "Browser", tmp_path: Path, trace_page: Path
) -> None:
    """Wide tables are those of many columns with long figures, and of a policy with a long name."""
    info, rows = make_bench(num_prompts=12)
    for row in rows:
        for turn in row["turns"]:
            turn["reward"], turn["lowest_reward"] = (
                turn["reward"] * 1234.5,
                turn["lowest_reward"] * 1234.5,
            )
    write_bench(tmp_path, info, rows)
    bench_page = write_report(tmp_path)
    each = "e => [e.scrollWidth - e.clientWidth, getComputedStyle(e).overflowX]"
    over = f"[...document.querySelectorAll('.scroll')].map({each})"
    for path in (bench_page, trace_page):
        wide, _ = open_page(browser, path, width=1280)
        assert {tuple(one) for one in wide.evaluate(over)} == {(0, "auto")}
        wide.close()
        narrow, _ = open_page(browser, path, width=390)
        assert narrow.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert {one[1] for one in narrow.evaluate(over)} == {"auto"}
        narrow.close()


def test_long_texts_open_on_a_click(browser: "Browser", bench_page: Path) -> None:
    page, _ = open_page(browser, bench_page, width=1280)
    whole = page.locator("article details > .text").first
    assert not whole.is_visible()
    page.locator("article details > summary").first.click()
    assert whole.is_visible()
    assert whole.inner_text() == HOSTILE * 20
    page.close()


LUMINANCES = """
(selectors) => {
  const light = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
    const linear = parts.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const back = light(getComputedStyle(document.body).backgroundColor);
  return [back, ...selectors.map(([selector, property]) =>
    light(getComputedStyle(document.querySelector(selector))[property]))];
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_light_and_dark(
    browser: "Browser", bench_page: Path, scheme: Scheme
) -> None:
    page, _ = open_page(browser, bench_page, width=1280, scheme=scheme)
    places = [
        ("h1", "color"),
        (".prose", "color"),
        (".kicker", "color"),
        ("figure svg text", "fill"),
    ]
    back, *words = page.evaluate(LUMINANCES, places)
    assert (back < 0.1) == (scheme == "dark")
    contrasts = [(max(back, word) + 0.05) / (min(back, word) + 0.05) for word in words]
    assert min(contrasts) >= 4.5
    page.close()
