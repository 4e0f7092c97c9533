"""The page at /: races that are over are kept, shared as files, and played again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from browsing import HEAR, WINNER, finish, kept, opened, says
from scripted import PLAIN_TEXT, Script, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_past_runs_are_kept_opened_and_deleted(
    browser: "Browser", url: str, script: Script
) -> None:
    with opened(browser, url) as page:
        page.fill("#prompt", "First")
        finish(page)
        kept(page, 1)
        page.reload()
        kept(page, 1)
        assert "24 candidates, reward" in page.inner_text("#kept")
        page.click("#kept .link")
        assert page.input_value("#prompt") == "First"
        assert page.inner_text("#winner .text") == WINNER["text"]
        assert page.inner_text("#plain .text") == PLAIN_TEXT
        page.click("#kept button:has-text('Delete')")
        kept(page, 0)
    assert len(script.asked) == 2


def test_only_the_newest_are_kept(browser: "Browser", url: str) -> None:
    fill = """async () => {
      const { keep, newRun } = await import("./runs.js");
      const ended = { at: 1, kind: "ended", winner: null, candidates: [] };
      for (let i = 1; i <= 25; i++) {
        const run = newRun("m", "r", { messages: [{ content: `prompt ${i}` }] });
        await keep({ ...run, created: i, events: [ended] });
      }
    }"""
    with opened(browser, url) as page:
        page.evaluate(fill)
        page.reload()
        kept(page, 20)
        assert page.locator("#kept .link").all_inner_texts() == [
            f"prompt {i}" for i in range(25, 5, -1)
        ]


def test_a_saved_run_opens_elsewhere_without_the_server(
    browser: "Browser", url: str, tmp_path: Path
) -> None:
    with opened(browser, url) as page:
        page.fill("#prompt", "Share me")
        finish(page)
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "run.json")
    with serving(Script(key="no")) as other, opened(browser, other, faults=1) as page:
        page.set_input_files("#file", tmp_path / "run.json")
        page.wait_for_selector("#replay:not([hidden])")
        assert page.input_value("#prompt") == "Share me"
        assert page.inner_text("#winner .text") == WINNER["text"]
        assert page.inner_text("#counts") == "24 → 12 → 6 → 3"
        assert page.inner_text("#trouble") == ""


def without_end(run: dict[str, Any]) -> None:
    run["events"] = [event for event in run["events"] if event["kind"] != "ended"]


SPOILT: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda run: run.update(format="another"), "the run.format must be specrej-run-1"),
    (lambda run: run.update(model={"a": 1}), "the run.model must be a text"),
    (
        lambda run: run["request"].update(messages=[1]),
        "the run.request.messages[0] must be an object",
    ),
    (lambda run: run["events"][-2].update(candidates=[None]), "candidates[0] must be an object"),
    (
        lambda run: run["events"][3].update(kind="toString"),
        "the run.events[3] is of no kind known here",
    ),
    (lambda run: run["events"][2].update(at="soon"), "the run.events[2].at must be a number"),
    (without_end, "it has no end"),
]


def test_files_that_hold_no_run_are_refused(browser: "Browser", url: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with opened(browser, url) as page:
        finish(page)
        with page.expect_download() as download:
            page.click("#save")
        saved = Path(download.value.path()).read_text()
        for spoil, words in SPOILT:
            run = json.loads(saved)
            spoil(run)
            path.write_text(json.dumps(run))
            page.set_input_files("#file", path)
            page.wait_for_selector(f"#trouble:has-text({json.dumps(words)})")
        path.write_text("no json")
        page.set_input_files("#file", path)
        says(page, "#trouble", "run.json is no JSON.")
        assert page.inner_text("#winner .text") == WINNER["text"]


def test_a_browser_that_keeps_nothing_says_so(browser: "Browser", url: str) -> None:
    shut = "Object.defineProperty(window, 'indexedDB', { get() { throw new Error('no') } })"
    with opened(browser, url, before=shut) as page:
        finish(page)
        page.wait_for_selector("#runs-note:has-text('keeps no runs')")
        assert page.inner_text("#winner .text") == WINNER["text"]


def test_a_race_is_played_again_without_asking(
    browser: "Browser", url: str, script: Script
) -> None:
    script.pause_s = 0.03  # some frames for each moment, on a busy machine too
    with opened(browser, url) as page:
        finish(page)
        num_asked = len(script.asked)
        page.focus("#moment")
        page.keyboard.press("Home")
        says(page, "#counts", "–")
        assert page.inner_text("#winner .text") == ""
        page.evaluate(HEAR, "#counts")
        page.click("#play")
        assert page.inner_text("#play") == "Pause"
        page.select_option("#pace", "1x")
        says(page, "#play", "Replay")
        assert page.inner_text("#winner .text") == WINNER["text"]
        heard = page.evaluate("heard")
        assert heard.index("24 → 12") < heard.index("24 → 12 → 6") < heard.index("24 → 12 → 6 → 3")
    assert len(script.asked) == num_asked
