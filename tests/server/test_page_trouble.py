"""The page at / when things go another way: stopped, refused, broken off, late."""

import time
from typing import TYPE_CHECKING

import pytest

from browsing import OWN, RACE, WINNER, finish, opened, says
from scripted import Script, chunk, progress, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_a_race_is_watched_while_it_runs_and_stopped(
    browser: "Browser", url: str, script: Script
) -> None:
    script.pause_s = 0.03
    with opened(browser, url) as page:
        page.click("#run")
        page.wait_for_selector("#counts:has-text('24 → 12')")
        assert page.evaluate("document.activeElement.id") == "stop"
        assert page.inner_text("#winner h3") == "In the lead"
        assert page.locator("#chart .lines .leader").count() == 1
        assert page.evaluate("document.querySelector('#memory-bar').value") > 0
        page.click("#stop")
        page.wait_for_selector("#run:not([hidden])")
        assert page.inner_text("#said").startswith("Stopped")
        assert page.evaluate("document.activeElement.id") == "run"
        assert not page.is_visible("#replay")
    until_s = time.monotonic() + 60
    while not script.num_gone:
        assert time.monotonic() < until_s, "the server was not left"
        time.sleep(0.01)
    assert len(script.asked) == 1


REFUSALS = [
    (
        400,
        "n must be at most 64, got 1000",
        None,
        "The server cannot do this: n must be at most 64, got 1000.",
    ),
    (429, "full", "7", "The server is busy, its queue is full. Try again in 7 seconds."),
    (500, "the reward failed", None, "The server failed: the reward failed."),
    (503, "it is being stopped", None, "The server takes no requests now: it is being stopped."),
    (504, "nobody was complete", None, "No answer was finished in time: nobody was complete."),
]


def test_refusals_are_said_in_words(browser: "Browser", url: str, script: Script) -> None:
    with opened(browser, url, faults=len(REFUSALS)) as page:
        for status, error, retry_after, words in REFUSALS:
            script.status, script.error, script.retry_after = status, error, retry_after
            page.click("#run")
            says(page, "#trouble", words)
            page.wait_for_selector("#run")
        script.status = 200
        finish(page)
        assert page.inner_text("#trouble") == ""


def test_a_key_is_asked_for_and_remembered(browser: "Browser", url: str, script: Script) -> None:
    script.key = "secret"
    with opened(browser, url, faults=1) as page:
        assert "asks for an API key" in page.inner_text("#trouble")
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#replay:not([hidden])")
        assert page.inner_text("#winner .text") == WINNER["text"]
        page.reload()
        page.wait_for_selector("#model:not(:empty)")
        assert page.input_value("#key") == "secret"
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")


@pytest.mark.parametrize(
    ("cut_off", "words"),
    [
        (Script(RACE[:40], is_whole=False), "The connection was lost in the middle of the race."),
        (
            Script([*RACE[:40], {"error": {"message": "the reward failed"}}]),
            "The race ended with an error: the reward failed.",
        ),
        (Script(RACE[:40], rest=b"data: {no\n\n"), "The server sent something that is no JSON"),
    ],
)
def test_a_race_that_breaks_off_is_said_and_stays(
    browser: "Browser", cut_off: Script, words: str
) -> None:
    with serving(cut_off) as url, opened(browser, url) as page:
        page.click("#run")
        page.wait_for_selector("#trouble:not(:empty)")
        assert words in page.inner_text("#trouble")
        assert page.inner_text("#said") == "The race did not come to its end."
        assert page.inner_text("#counts") == "24 → 12 → 6"
        assert page.is_visible("#run")
        assert not page.is_visible("#replay")


def test_a_server_that_is_gone(browser: "Browser", script: Script) -> None:
    with serving(script) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#model:not(:empty)")
    page.click("#run")
    page.wait_for_selector("#trouble:not(:empty)")
    assert "cannot be reached" in page.inner_text("#trouble")
    context.close()


def test_without_a_plain_sample_the_race_stands(
    browser: "Browser", url: str, script: Script
) -> None:
    script.plain_status = 429
    with opened(browser, url, faults=1) as page:
        finish(page)
        assert page.inner_text("#plain .about").startswith("could not be had: The server is busy")
        assert page.inner_text("#winner .text") == WINNER["text"]


def test_a_late_answer_is_called_so_and_a_lonely_winner_stands_beside_the_best_rejected(
    browser: "Browser",
) -> None:
    candidates = [
        {
            **one,
            "state": "rejected" if one["state"] == "complete" and one != WINNER else one["state"],
        }
        for one in OWN["candidates"]
    ]
    late = [*RACE[:-1], chunk({}, specrej={**OWN, "is_late": True, "candidates": candidates})]
    with serving(Script(late)) as url, opened(browser, url) as page:
        finish(page)
        assert page.inner_text("#said").startswith("The deadline came.")
        assert "deadline" in page.inner_text("#winner .about")
        assert page.inner_text("#runner-up h3") == "The best of those rejected"
        assert "rejected" in page.inner_text("#runner-up .about")
        shown = int(page.inner_text("#runner-up .about").split()[1].rstrip(","))

    for cause in ("lost", "filter"):  # who has no reward for a finished text is no runner-up
        gone = {"index": shown, "num_tokens": 9, "reward": None, "state": "rejected"}
        told = progress(
            kind="decision", number=9, cause=cause, num_tokens=9, cut=None,
            kv_bytes=1, kv_bytes_after=1,
            best=None, text="", candidates=[gone],
        )  # fmt: skip
        with serving(Script([*late[:-1], told, late[-1]])) as url, opened(browser, url) as page:
            finish(page)
            other = page.inner_text("#runner-up .about")
            assert other.startswith("candidate ")
            assert int(other.split()[1].rstrip(",")) != shown
