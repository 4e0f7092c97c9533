"""How the tests of the page use it, and the race that they watch.

with opened(browser, url) as page:
    finish(page)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scripted import make_race

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RACE = make_race()
OWN = RACE[-1]["specrej"]
DECISIONS = [one["progress"] for one in RACE if one.get("progress", {}).get("kind") == "decision"]
LEFT = [candidate for candidate in OWN["candidates"] if candidate["state"] == "complete"]
WINNER, SECOND = sorted(LEFT, key=lambda candidate: -candidate["reward"])[:2]


@contextmanager
def opened(
    browser: "Browser", url: str, *, faults: int = 0, before: str = "", **options: Any
) -> Iterator["Page"]:
    """The page; at its end it must have complained of no more than so many answers that were no
    success."""
    context = browser.new_context(
        **{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options}
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "request",
        lambda sent: None if sent.url.startswith((url, "blob:")) else trouble.append(sent.url),
    )
    page.add_init_script(before)
    page.goto(url)
    page.wait_for_selector("#model:not(:empty), #trouble:not(:empty)")
    yield page
    assert len([words for words in trouble if "Failed to load resource" in words]) == faults
    assert [words for words in trouble if "Failed to load resource" not in words] == []
    context.close()


def finish(page: "Page") -> None:
    """Run what the form says, to its end."""
    page.click("#run")
    page.wait_for_selector("#replay:not([hidden])")


def says(page: "Page", selector: str, words: str) -> None:
    """Wait until an element's text is this; the page's policy forbids to wait for functions."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(words)


def kept(page: "Page", num: int) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#kept li")).to_have_count(num)


HEAR = """(selector) => {
  window.heard = [];
  const element = document.querySelector(selector);
  const note = () => window.heard.push(element.textContent);
  new MutationObserver(note).observe(element, { childList: true });
}"""
"""Remembers every text that an element has from now on."""
