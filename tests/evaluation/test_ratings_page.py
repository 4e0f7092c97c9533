"""The page for raters, in a browser and from a file: keys, progress that stays, what it saves."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from synthetic import make_bench, write_bench

from specrej.evaluation.ratings.forms import Item, to_html
from specrej.evaluation.ratings.reading import read_ratings
from specrej.evaluation.ratings.sheet import export_sheet, read_keys

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

HOSTILE = "</script><img src=x onerror='document.title=1'>\n\u2028<b>bold</b> &amp; {{x}}"


@pytest.fixture
def page(browser: "Browser", tmp_path: Path) -> Iterator["Page"]:
    """The page of a bench with four items."""
    info, rows = make_bench(methods=("best_of_n:4", "best_of_n:16"), num_prompts=2, num_failures=0)
    write_bench(tmp_path / "out", info, rows)
    export_sheet(tmp_path / "out", [tmp_path / "sheet.html"])
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    with opened(context, tmp_path / "sheet.html") as page:
        yield page
    context.close()


@contextmanager
def opened(context: "BrowserContext", path: Path) -> Iterator["Page"]:
    """A window; at its end the page must have complained of nothing and asked nobody."""
    page = context.new_page()
    page.set_default_timeout(60_000)
    trouble: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#place:not(:empty)")
    yield page
    assert trouble == []
    assert [url for url in asked if not url.startswith((path.as_uri(), "blob:", "data:,"))] == []


def press(page: "Page", *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def chosen(page: "Page") -> list[str]:
    return page.locator("#scores [aria-pressed=true]").all_inner_texts()


def saved(page: "Page", path: Path, rater: str) -> Path:
    page.fill("#rater", rater)
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename.endswith(".jsonl")
    download.value.save_as(path)
    return path


def test_scores_by_keys_are_saved_and_imported(page: "Page", tmp_path: Path) -> None:
    press(page, "7", "Enter", "0", "Enter", "5", "-", "-", "Enter", "+", "+", "+")
    assert page.inner_text("#progress") == "4 of 4 rated. Save the file, and send it back."
    assert chosen(page) == ["3"]
    path = saved(page, tmp_path / "any-name.json", "Zoë B.")
    [name] = read_keys(tmp_path / "out")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"sheet": name, "rater": "Zoë B.", "item": item, "score": score}
        for item, score in enumerate((7, 10, 3, 3), 1)
    ]
    ratings, [key] = read_ratings(tmp_path / "out", [path])
    assert {(rating.rater, rating.answer, rating.score) for rating in ratings} == {
        ("Zoë B.", item["answer"], score)
        for item, score in zip(key["items"], (7, 10, 3, 3), strict=True)
    }


def test_scores_stay_in_the_browser(page: "Page", tmp_path: Path) -> None:
    press(page, "4", "ArrowRight", "9", "ArrowRight", "2", "Backspace")
    page.fill("#rater", "anna")
    page.reload()
    page.wait_for_selector("#place:not(:empty)")
    assert page.inner_text("#place") == "Item 3 of 4"  # the first without a score
    assert page.inner_text("#progress") == "2 of 4 rated"
    assert page.input_value("#rater") == "anna"
    press(page, "ArrowLeft")
    assert chosen(page) == ["9"]
    with opened(page.context, tmp_path / "sheet.html") as other:  # a second window
        press(other, "1")
    from playwright.sync_api import expect  # the page forbids what waits for a function

    expect(page.locator("#progress")).to_have_text(re.compile("^3"))
    lines = saved(page, tmp_path / "anna.jsonl", "anna").read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == [4, 9, 1]


def test_a_mouse_and_buttons_do_as_well(page: "Page") -> None:
    page.click("#scores button:text-is('10')")
    assert chosen(page) == ["10"]
    press(page, "Enter")  # the score's button does not take it
    assert page.inner_text("#place") == "Item 2 of 4"
    assert chosen(page) == []
    page.click("#next")
    page.click("#scores button:text-is('1')")
    page.click("#open")
    assert page.inner_text("#place") == "Item 4 of 4"
    assert page.is_disabled("#next")
    page.click("#open")
    assert page.inner_text("#place") == "Item 2 of 4"
    page.click("#previous")
    assert page.is_disabled("#previous")


def test_keys_in_the_name_are_of_the_name_and_a_file_has_one(page: "Page") -> None:
    page.click("#save")
    assert page.inner_text("#trouble") == "Give your name or initials first."
    page.keyboard.type("a7-+")
    assert page.input_value("#rater") == "a7-+"
    assert page.inner_text("#progress") == "0 of 4 rated"


def test_texts_are_only_texts(browser: "Browser", tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": HOSTILE},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": HOSTILE},
        {"role": "user", "content": "And?"},
    ]
    path = tmp_path / "sheet.html"
    path.write_text(to_html("s1", (0, 4), [Item(1, messages, HOSTILE)]), encoding="utf-8")
    context = browser.new_context()
    with opened(context, path) as page:
        assert page.locator("#conversation .text").all_text_contents() == [
            *(message["content"] for message in messages),
            HOSTILE,
        ]
        names = page.locator("#conversation h3").all_text_contents()
        assert names == ["Instruction", "Question", "Answer", "Question", "Answer"]
        assert page.locator("main img, main b").count() == 0
        assert page.title() == "Rate answers"
        press(page, "5", "0")
        assert chosen(page) == ["0"]
    context.close()


def test_a_browser_that_keeps_nothing_says_so(browser: "Browser", tmp_path: Path) -> None:
    path = tmp_path / "sheet.html"
    item = Item(1, [{"role": "user", "content": "Why?"}], "So.")
    path.write_text(to_html("s1", (1, 10), [item]), encoding="utf-8")
    context = browser.new_context()
    context.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })"
    )
    with opened(context, path) as page:
        press(page, "6")
        assert page.inner_text("#trouble").startswith("This browser keeps nothing")
        text = saved(page, tmp_path / "saved.jsonl", "anna").read_text()
        assert json.loads(text)["score"] == 6
    context.close()
