"""The page at /: what it is made of, what it shows of a race, how it looks, and who can use it."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import pytest

import specrej
from browsing import DECISIONS, HEAR, OWN, SECOND, WINNER, finish, kept, opened
from fakes import FakeEngine, FakeReward
from scripted import HOSTILE, PAGE, PLAIN_TEXT, Script
from specrej.search.policies import every, top
from specrej.search.pool import Pool
from specrej.settings import Settings
from specrej.types import Policy

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Scheme = Literal["light", "dark"]


class Elements(HTMLParser):
    """Tags with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name in tags]


INDEX = Elements((PAGE / "index.html").read_text())
CODE = {path.name: path.read_text() for path in PAGE.glob("*.js")}


# What is written


def test_the_page_needs_nothing_from_elsewhere() -> None:
    links = [tag[name] or "" for _, tag in INDEX.tags for name in ("src", "href") if name in tag]
    assert all(link.startswith("#") or (PAGE / link).is_file() for link in links)
    assert "url(" not in (PAGE / "page.css").read_text()
    assert "@import" not in (PAGE / "page.css").read_text()
    for code in CODE.values():
        assert all((PAGE / name).is_file() for name in re.findall(r'from "\./([^"]+)"', code))
        assert set(re.findall(r'https?://[^"]+', code)) <= {"http://www.w3.org/2000/svg"}


def test_nothing_inline_and_no_html_from_texts() -> None:
    assert all(
        not name.startswith("on") and name != "style" for _, tag in INDEX.tags for name in tag
    )
    assert all("src" in script for script in INDEX.of("script"))
    assert not INDEX.of("style")
    ways = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b"
        r"|new Function|\"style\""
    )
    assert not any(re.search(ways, code) for code in CODE.values())


def test_every_control_has_a_name_and_references_lead_somewhere() -> None:
    ids = [tag["id"] for _, tag in INDEX.tags if "id" in tag]
    assert len(ids) == len(set(ids))
    labelled = {label["for"] for label in INDEX.of("label")}
    controls = INDEX.of("input", "select", "textarea")
    assert {control["id"] for control in controls} == labelled
    names = ("aria-labelledby", "aria-describedby", "for")
    assert {tag[name] for _, tag in INDEX.tags for name in names if name in tag} <= set(ids)
    used = {name for code in CODE.values() for name in re.findall(r'\bat\("([\w-]+)"\)', code)}
    assert used <= set(ids)


# What a race looks like, against a script


def test_a_race_is_told_to_its_end(browser: "Browser", url: str, script: Script) -> None:
    with opened(browser, url) as page:
        assert page.input_value("#max-tokens") == "120"  # the server's default
        page.fill("#prompt", "Why is the sky blue?")
        page.fill("#seed", "5")
        page.select_option("#decide", "every")
        page.fill("#every", "12")
        finish(page)
        assert page.inner_text("#said").startswith(
            f"Candidate {WINNER['index']} of 24 wins with a reward of {WINNER['reward']:.3f}."
        )
        assert page.inner_text("#counts") == "24 → 12 → 6 → 3"
        assert page.inner_text("#generated") == f"{OWN['generated_tokens']:,}"
        assert (
            page.inner_text("#winner .about")
            == f"candidate {WINNER['index']}, reward {WINNER['reward']:.3f}"
        )
        assert page.inner_text("#winner .text") == WINNER["text"]
        assert page.inner_text("#runner-up .text") == SECOND["text"]
        assert page.inner_text("#plain .text") == PLAIN_TEXT
        assert page.inner_text("#plain .about") == "reward 0.250"
        assert page.title() == "specrej: a race of answers"
    race, plain = script.asked
    assert race["messages"] == [{"role": "user", "content": "Why is the sky blue?"}]
    assert race["specrej"] == {
        "algorithm": "speculative_rejection",
        "n": "auto",
        "alpha": 0.5,
        "decide": "every:12",
        "progress": True,
        "return": ["rewards", "decisions", "candidates"],
    }
    assert plain["specrej"] == {"algorithm": "best_of_n", "n": 1}
    assert race["seed"] == plain["seed"] == 5


def test_the_saving_is_estimated_from_those_that_finished(browser: "Browser", url: str) -> None:
    lengths = [len(one["token_ids"]) for one in OWN["candidates"]]
    ended = [len(one["token_ids"]) for one in OWN["candidates"] if one["finish_reason"]]
    stopped = [
        length
        for length, one in zip(lengths, OWN["candidates"], strict=True)
        if not one["finish_reason"]
    ]
    whole = sum(ended) + sum(
        fmean([length for length in ended if length > least]) for least in stopped
    )
    saved = whole - OWN["generated_tokens"]
    with opened(browser, url) as page:
        finish(page)
        assert page.inner_text("#saved") == f"{saved:,.0f} ({100 * saved / whole:.0f}%)"


def test_the_picture_draws_every_candidate_and_every_cut(browser: "Browser", url: str) -> None:
    num_rejected = sum(one["state"] == "rejected" for one in OWN["candidates"])
    num_cuts = sum(one["cut"] is not None for one in DECISIONS)
    with opened(browser, url) as page:
        finish(page)
        page.wait_for_selector("#chart .lines .winner")
        assert page.locator("#chart .lines path").count() == 24
        assert page.locator("#chart .lines .rejected").count() == num_rejected
        assert page.locator("#chart .lines .winner").get_attribute("data-index") == str(
            WINNER["index"]
        )
        crosses = page.locator("#chart .crosses path").get_attribute("d") or ""
        assert crosses.count("M") == num_rejected
        cuts = page.locator("#chart .walls .cut").get_attribute("d") or ""
        assert cuts.count("M") == num_cuts
        assert "NaN" not in page.inner_html("#chart")
        label = page.get_attribute("#chart", "aria-label") or ""
        assert "24, then 12, then 6, then 3" in label


def test_the_tables_say_what_the_picture_shows(browser: "Browser", url: str) -> None:
    with opened(browser, url) as page:
        finish(page)
        page.click("#table summary")
        assert page.locator("#decisions tr").count() == len(DECISIONS)
        rows = page.locator("#candidates tr")
        assert rows.count() == 24
        assert rows.first.inner_text().split("\t")[:4] == [
            str(WINNER["index"]),
            "winner",
            str(len(WINNER["token_ids"])),
            f"{WINNER['reward']:.3f}",
        ]
        fates = page.locator("#candidates td:nth-child(2)").all_inner_texts()
        assert fates.count("rejected at 12 tokens") == 12


def test_texts_of_the_model_are_only_texts(browser: "Browser", url: str) -> None:
    with opened(browser, url) as page:
        finish(page)
        page.click("#table summary")
        assert HOSTILE in page.inner_text("#candidates")
        assert page.locator("main img, main script").count() == 0


def test_decisions_are_said_in_words_as_they_come(browser: "Browser", url: str) -> None:
    with opened(browser, url) as page:
        page.evaluate(HEAR, "[role=status]")
        finish(page)
        words = page.evaluate("heard")
    cut = f"{DECISIONS[0]['cut']:.3f}".replace("-", "−")
    assert f"At 12 tokens, memory is full: 24 scored, 12 rejected below {cut}, 12 stay." in words
    assert len(words) > len(DECISIONS)


# How it looks, and who can use it


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_width_scrolls_sideways(browser: "Browser", url: str, width: int) -> None:
    with opened(browser, url, viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        finish(page)
        page.click("#table summary")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.querySelector('#chart').getBoundingClientRect().width") > 300


CONTRASTS = """
() => {
  const light = (color) => {
    const linear = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    const isClear = color === "rgba(0, 0, 0, 0)" && element.parentElement;
    return isClear ? behind(element.parentElement) : color;
  };
  const contrast = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const isShown = element.checkVisibility() && hasText;
    if (!isShown) continue;
    const style = getComputedStyle(element);
    const color = element instanceof SVGElement ? style.fill : style.color;
    found.push([contrast(light(color), light(behind(element))), element.outerHTML.slice(0, 80)]);
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_light_and_dark(browser: "Browser", url: str, scheme: Scheme) -> None:
    with opened(browser, url, color_scheme=scheme) as page:
        finish(page)
        page.click("#table summary")
        found = page.evaluate(CONTRASTS)
        assert len(found) > 100
        assert [one for one in found if one[0] < 4.5] == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_keyboard_is_enough(browser: "Browser", url: str) -> None:
    with opened(browser, url) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "prompt"
        page.keyboard.press("Control+A")
        page.keyboard.type("Typed")
        visited = []
        for _ in range(7):
            page.keyboard.press("Tab")
            visited.append(page.evaluate("document.activeElement.id"))
        assert visited == ["run", "alpha", "n", "max-tokens", "decide", "temperature", "seed"]
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#replay:not([hidden])")
        assert page.evaluate("document.activeElement.id") == "seed"
        page.focus("#table summary")
        page.keyboard.press("Enter")
        assert page.is_visible("#candidates")
        page.focus("#alpha")
        page.keyboard.press("Home")
        assert page.inner_text("#alpha-said") == "0: nobody"


def test_controls_have_names_for_those_who_hear_them(browser: "Browser", url: str) -> None:
    with opened(browser, url) as page:
        finish(page)
        kept(page, 1)
        for role, name in [
            ("textbox", "Prompt"),
            ("slider", "Rejected at each decision (alpha)"),
            ("spinbutton", "Candidates"),
            ("combobox", "Decide"),
            ("slider", "Moment of the race"),
            ("combobox", "Pace"),
            ("button", "Replay"),
            ("button", "Delete: Give three tips for staying healthy."),
            ("table", "Decisions"),
            ("meter", "Share of the memory budget in use"),
        ]:
            found = page.get_by_role(role, name=name, exact=True, include_hidden=True)  # type: ignore[arg-type]
            assert found.count() == 1, name


# With the server itself


@contextmanager
def served(engine: FakeEngine, **options: Any) -> Iterator[str]:
    """The address of the real server, on an engine without a model."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra `server` is not installed")
    from specrej.server.app import make_app
    from specrej.server.service import Service

    service = Service(engine, FakeReward(), Pool(200_000))
    defaults = Settings(**{"max_new_tokens": 60, "memory": 20_000, "min_tokens": 8} | options)
    app = make_app(service, model="bytes", defaults=defaults)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))

    async def run() -> None:
        service.start()
        await server.serve()
        await service.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_real_server_runs_the_race_that_python_runs(browser: "Browser", scheme: Scheme) -> None:
    expected = specrej.generate(
        "Why?",
        model=FakeEngine(),
        reward=FakeReward(),
        n=40,
        max_new_tokens=60,
        memory=20_000,
        min_tokens=8,
        seed=3,
    )
    with served(FakeEngine()) as url, opened(browser, url, color_scheme=scheme) as page:
        page.fill("#prompt", "Why?")
        page.fill("#n", "40")
        page.fill("#seed", "3")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#replay:not([hidden])")
        assert page.inner_text("#trouble") == ""
        assert page.inner_text("#winner .text") == expected.text
        assert f"Candidate {expected.best.index} of 40 wins" in page.inner_text("#said")
        assert page.inner_text("#generated") == f"{expected.usage.generated_tokens:,}"
        page.click("#table summary")
        assert page.locator("#candidates tr").count() == 40
        assert page.locator("#decisions tr").count() == len(expected.decisions)
        alone = specrej.generate(
            "Why?",
            model=FakeEngine(),
            reward=FakeReward(),
            algorithm="best_of_n",
            n=1,
            max_new_tokens=60,
            seed=3,
        )
        assert page.inner_text("#plain .text") == alone.text


def test_the_real_server_says_what_it_cannot_do(browser: "Browser") -> None:
    with served(FakeEngine()) as url, opened(browser, url, faults=1) as page:
        page.fill("#max-tokens", "100000")
        page.click("#run")
        page.wait_for_selector("#trouble:not(:empty)")
        assert "exceed the context of 400" in page.inner_text("#trouble")


def test_where_the_server_has_a_policy_the_form_leaves_it_to_that(browser: "Browser") -> None:
    policy = Policy(when=every(8), keep=top(3), first_tokens=8, name="threes")
    with served(FakeEngine(), policy=policy, min_tokens=16) as url, opened(browser, url) as page:
        assert page.is_disabled("#alpha")
        assert page.is_disabled("#decide")
        assert page.inner_text("#alpha-said") == "the server decides by threes"
        page.fill("#prompt", "Why?")
        page.fill("#n", "12")
        finish(page)
        assert page.inner_text("#trouble") == ""
        assert page.inner_text("#counts").startswith("12 → 3")
