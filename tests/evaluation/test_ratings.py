"""Sheets for raters: blinded, shuffled, harmless; and what comes back from them."""

import csv
import io
import json
import re
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from synthetic import make_bench, write_bench

from specrej.errors import UnknownNameError, UsageError
from specrej.evaluation.ratings.forms import Item, harmless, to_csv, to_html
from specrej.evaluation.ratings.reading import read_ratings
from specrej.evaluation.ratings.sheet import (
    SheetKey,
    export_sheet,
    make_sheet,
    parse_scale,
    read_keys,
)
from specrej.evaluation.ratings.summary import import_ratings

METHODS = ("best_of_n:4", "best_of_n:16", "speculative_rejection:0.5")
HOSTILE = "</script><script>alert(1)</script><!-- @code@ @data@ \u2028 &amp; =1+1"


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    write_bench(tmp_path / "out", *make_bench(methods=METHODS, num_prompts=8, num_failures=1))
    return tmp_path / "out"


def rows_of(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))


def fill(sheet: Path, path: Path, score: Callable[[int], object], delimiter: str = ",") -> Path:
    """What a rater sends back who scores item N so."""
    header, *rows = rows_of(sheet)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([header, *([*row[:-1], score(int(row[1]))] for row in rows)])
    return path


def lines_of(sheet: str, rater: str, scores: dict[int, object]) -> str:
    """What the page saves."""
    rows = [{"sheet": sheet, "rater": rater, "item": n, "score": s} for n, s in scores.items()]
    return "".join(json.dumps(row) + "\n" for row in rows)


# The sheet


def test_every_answer_is_an_item_and_the_key_says_whose(bench: Path, tmp_path: Path) -> None:
    made = export_sheet(bench, [tmp_path / "a" / "sheet.csv", tmp_path / "sheet.html"])
    info, rows = make_bench(methods=METHODS, num_prompts=8, num_failures=1)
    texts = {(row["prompt_id"], row["method"]): row["turns"] for row in rows}
    [key] = read_keys(bench).values()
    assert made.key == bench / "ratings" / f"{key['sheet']}.json"
    header, *cells = rows_of(tmp_path / "a" / "sheet.csv")
    assert header == ["sheet", "item", "question", "answer", "score"]
    assert [int(row[1]) for row in cells] == list(range(1, len(cells) + 1))
    for row, item in zip(cells, key["items"], strict=True):
        for method in item["methods"]:
            [turn] = texts[item["prompt_id"], method]
            assert row == [key["sheet"], str(item["item"]), *asked_and_said(turn), ""]
    failed = [row["prompt_id"] for row in rows if row["error"]]
    assert [one for ids in key["failed"].values() for one in ids] == failed
    assert {(item["prompt_id"], method) for item in key["items"] for method in item["methods"]} == {
        place for place in texts if place[0] not in failed
    }
    assert (made.num_prompts, made.num_answers, made.num_left_out) == (7, 21, 1)
    assert list(made.failed.values()) == [1]
    assert key["methods"] == info["methods"]


def asked_and_said(turn: Any) -> tuple[str, str]:
    return turn["messages"][0]["content"], turn["text"]


def contents(made: tuple[SheetKey, list[Item]]) -> tuple[str, str]:
    """Both files of a sheet."""
    key, items = made
    return to_csv(key["sheet"], (1, 10), items), to_html(key["sheet"], (1, 10), items)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_sheet_is_the_same_whichever_method_gave_which_answer(seed: int) -> None:
    """Blinded: not by omission alone. Order, numbers and names of items tell nothing either."""
    info, rows = make_bench(methods=METHODS, num_prompts=6, num_failures=0)
    sheets = set()
    for names in permutations(METHODS):
        swapped = dict(zip(METHODS, names, strict=True))
        renamed: list[Any] = [{**row, "method": swapped[row["method"]]} for row in rows]
        sheets.add(contents(make_sheet(info, renamed, seed=seed)))
    [(table, page)] = sheets
    for word in ("best_of_n", "speculative", "p000", "reward"):
        assert word not in table
        assert word not in page.replace("Speculative", "")


def test_the_seed_makes_the_order() -> None:
    info, rows = make_bench(methods=METHODS, num_prompts=9, num_failures=0)
    keys = [make_sheet(info, rows, seed=seed)[0] for seed in (0, 0, 1, 2)]
    assert keys[0] == keys[1]
    assert len({key["sheet"] for key in keys}) == 3
    orders = [[item["answer"] for item in key["items"]] for key in keys]
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1
    prompts = [item["prompt_id"] for item in keys[0]["items"]]
    assert prompts != sorted(prompts)


def test_the_same_answer_is_rated_once_for_all_its_methods() -> None:
    info, rows = make_bench(methods=METHODS, num_prompts=3, num_failures=0)
    by_place = {(row["prompt_id"], row["method"]): row for row in rows}
    by_place["p001", METHODS[2]]["turns"] = by_place["p001", METHODS[0]]["turns"]
    key, items = make_sheet(info, rows)
    assert len(items) == 8
    assert [METHODS[0], METHODS[2]] in [item["methods"] for item in key["items"]]


def test_methods_and_prompts_can_be_fewer() -> None:
    info, rows = make_bench(methods=METHODS, num_prompts=9, num_failures=2)
    chosen = [METHODS[2], METHODS[0]]
    key, _ = make_sheet(info, rows, chosen, limit=4)
    assert key["methods"] == [METHODS[0], METHODS[2]]
    assert sorted({item["prompt_id"] for item in key["items"]}) == [f"p{n:03}" for n in range(4)]
    with pytest.raises(UnknownNameError, match="unknown method 'best_of_n:5'"):
        make_sheet(info, rows, ["best_of_n:5"])


def test_prompts_that_not_all_methods_have_ended_are_left_out() -> None:
    info, rows = make_bench(methods=METHODS, num_prompts=4, num_failures=0)
    key, _ = make_sheet(info, rows[:-1])
    assert key["unfinished"] == ["p003"]
    assert {item["prompt_id"] for item in key["items"]} == {"p000", "p001", "p002"}
    with pytest.raises(UsageError, match="nothing to rate"):
        make_sheet(info, rows[:2])


def test_a_conversation_is_one_item_with_all_its_turns() -> None:
    info, rows = make_bench(methods=METHODS[:1], num_prompts=1, num_failures=0, num_turns=2)
    [row] = rows
    first, second = row["turns"]
    second["messages"] = [
        *first["messages"],
        {"role": "assistant", "content": "so"},
        *second["messages"],
    ]
    key, [item] = make_sheet(info, rows)
    assert item == Item(1, second["messages"], second["text"])
    [_, cells] = csv.reader(io.StringIO(to_csv(key["sheet"], (1, 10), [item])))
    assert cells[2].startswith("[user]\nQuestion 0.0")
    assert "\n\n[assistant]\nso\n\n[user]\nQuestion 0.1" in cells[2]


def test_what_an_export_refuses(bench: Path, tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("a rater's work")
    with pytest.raises(UsageError, match=r"is there already, and may hold a rater's scores"):
        export_sheet(bench, [tmp_path / "new.html", tmp_path / "there.csv"])
    with pytest.raises(UsageError, match=r"a sheet is a \.csv or an \.html file, got .*x\.xlsx"):
        export_sheet(bench, [tmp_path / "x.xlsx"])
    with pytest.raises(UsageError, match="limit must be at least 1, got 0"):
        export_sheet(bench, [tmp_path / "x.csv"], limit=0)
    with pytest.raises(UsageError, match="holds no run"):
        export_sheet(tmp_path, [tmp_path / "x.csv"])
    assert not (bench / "ratings").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "there.csv"]


@pytest.mark.parametrize("words", ["10", "10-1", "3-3", "-3-3", "1-100", "a-b", "", "1.5-3"])
def test_a_scale_is_two_whole_numbers(words: str) -> None:
    with pytest.raises(UsageError, match="a scale must be two whole numbers"):
        parse_scale(words)
    assert parse_scale(" 0-20 ") == (0, 20)


# Harmless cells


@given(st.text("=+-@'\t\r\n \uff1d\uff0ba1\u00a0"))
def test_a_cell_is_never_a_formula_and_can_be_undone(text: str) -> None:
    cell = harmless(text)
    assert cell.removeprefix("'") == text
    assert not re.match(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]", cell)
    assert not cell.startswith(("\t", "\r"))


def test_usual_text_stays_as_it_is() -> None:
    assert [harmless(text) for text in ("", "a=b", "1+1", "x\n- y")] == ["", "a=b", "1+1", "x\n- y"]


@given(texts=st.lists(st.text(), min_size=1, max_size=4))
@example(texts=["\r", "a\r=1+1\n", '"', ","])
def test_a_table_holds_texts_whole(texts: list[str]) -> None:
    items = [
        Item(number, [{"role": "user", "content": text}], text[::-1])
        for number, text in enumerate(texts, 1)
    ]
    table = to_csv("s", (1, 10), items)
    cells = list(csv.reader(io.StringIO(table.removeprefix("\ufeff"), newline="")))[1:]
    assert [cell.removeprefix("'") for row in cells for cell in row[2:4]] == [
        part for text in texts for part in (text, text[::-1])
    ]


def test_a_page_holds_texts_as_data_alone() -> None:
    page = to_html("s1", (1, 10), [Item(1, [{"role": "user", "content": HOSTILE}], HOSTILE)])
    blank = to_html("s1", (1, 10), [])
    tags = [re.findall(r"<[!/]?\w+", one) for one in (page, blank)]
    assert tags[0] == tags[1]
    [data] = re.findall(r'<script type="application/json" id="sheet">(.*?)</script>', page, re.S)
    assert json.loads(data)["items"][0]["answer"] == HOSTILE
    assert set(re.findall(r"https?://|@[\w-]+@", blank)) == set()


# What comes back


def test_figures_are_those_of_numpy(bench: Path, tmp_path: Path) -> None:
    export_sheet(bench, [tmp_path / "sheet.csv"], seed=3)
    [key] = read_keys(bench).values()
    rng = np.random.default_rng(5)
    scores = rng.integers(1, 11, size=(3, len(key["items"])))
    files: list[Path] = []
    for name, own_scores in zip(("anna", "ben"), scores.tolist(), strict=False):
        by_item = dict(enumerate(own_scores, 1))
        files.append(fill(tmp_path / "sheet.csv", tmp_path / f"{name}.csv", by_item.__getitem__))
    third = {n: int(scores[2, n - 1]) for n in range(1, 13)}
    files.append(tmp_path / "ratings.json")
    files[-1].write_text(lines_of(key["sheet"], "carl", dict(third)))
    table = scores.astype(float)
    table[2, 12:] = np.nan
    summary = import_ratings(bench, files)
    means, spreads = np.nanmean(table, 0), np.nanvar(table, 0, ddof=1)
    for method in METHODS:
        own = [n for n, item in enumerate(key["items"]) if method in item["methods"]]
        figures = summary["methods"][method]
        assert figures["score"]["value"] == pytest.approx(means[own].mean())
        assert figures["num_ratings"] == np.isfinite(table[:, own]).sum()
        assert figures["num_prompts"] == 7
    disputed = summary["high_disagreement"]
    num = len(key["items"]) // 5
    found = [item["variance"] for item in disputed["items"]]
    assert found == pytest.approx(sorted(spreads, reverse=True)[:num])
    assert disputed["num_ratings"] == sum(len(item["scores"]) for item in disputed["items"])
    for method in METHODS:
        own_means = [
            np.mean(list(item["scores"].values()))
            for item in disputed["items"]
            if method in item["methods"]
        ]
        value = disputed["methods"][method]["score"]["value"]
        assert value == (pytest.approx(np.mean(own_means)) if own_means else None)
    assert summary["num_ratings"] == summary["num_comparable"] == 2 * len(key["items"]) + 12
    assert summary["raters"]["carl"] == {
        "num_ratings": 12,
        "mean": pytest.approx(np.mean(list(third.values()))),
    }
    assert summary == import_ratings(bench, files[::-1])


def test_sheets_in_another_order_are_put_together(bench: Path, tmp_path: Path) -> None:
    """A sheet a rater, so that what comes first is not the same for all."""
    scores: dict[str, int] = {}
    files: list[Path] = []
    for seed, name in enumerate(("anna", "ben")):
        made = export_sheet(bench, [tmp_path / f"{seed}.csv"], seed=seed)
        key: SheetKey = json.loads(made.key.read_text())
        for item in key["items"]:
            scores.setdefault(item["answer"], 1 + len(scores) % 10)
        same = {item["item"]: scores[item["answer"]] for item in key["items"]}
        files.append(fill(tmp_path / f"{seed}.csv", tmp_path / f"{name}.csv", same.__getitem__))
    summary = import_ratings(bench, files)
    assert summary["agreement"]["value"] == 1
    assert summary["num_items"] == summary["num_rated"] == len(scores)
    assert summary["high_disagreement"]["items"] == []
    twice = tmp_path / "again" / "anna.csv"
    twice.parent.mkdir()
    files[1].rename(twice)
    with pytest.raises(UsageError, match=r"rater 'anna' has rated item 1 already, in .*anna\.csv"):
        import_ratings(bench, [files[0], twice])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheets_write_tables_in_their_own_ways(
    delimiter: str, bench: Path, tmp_path: Path
) -> None:
    export_sheet(bench, [tmp_path / "sheet.csv"])
    scores: dict[int, object] = {1: "7.0", 2: " 8 ", 3: ""}
    filled = fill(
        tmp_path / "sheet.csv", tmp_path / "anna.csv", lambda n: scores.get(n, ""), delimiter
    )
    text = filled.read_text()
    filled.write_bytes(
        b"\xef\xbb\xbf"
        + text.replace("sheet", "Sheet", 1).encode()
        + 4 * delimiter.encode()
        + b"\r\n\r\n"
    )
    ratings, _ = read_ratings(bench, [filled])
    assert sorted(rating.score for rating in ratings) == [7, 8]
    assert {rating.rater for rating in ratings} == {"anna"}


@pytest.mark.parametrize("first", ["sep=;\n", "SEP=;\r\n", "sep=|\n"])
def test_excels_line_before_the_table_is_understood(
    first: str, bench: Path, tmp_path: Path
) -> None:
    export_sheet(bench, [tmp_path / "sheet.csv"])
    scores: dict[int, object] = {1: 7, 2: 8}
    mark = first[4]
    filled = fill(tmp_path / "sheet.csv", tmp_path / "anna.csv", lambda n: scores.get(n, ""), mark)
    with filled.open(newline="") as file:
        whole = file.read()
    filled.write_bytes((first + whole).encode())
    assert sorted(rating.score for rating in read_ratings(bench, [filled])[0]) == [7, 8]
    filled.write_bytes((first + whole + "cut\r\n").encode())
    last = (first + whole).count("\n") + 1
    with pytest.raises(UsageError, match=f"line {last}: 1 cells"):
        read_ratings(bench, [filled])


def test_every_fault_is_told_with_file_and_line(bench: Path, tmp_path: Path) -> None:
    export_sheet(bench, [tmp_path / "sheet.csv"])
    [name] = read_keys(bench)
    table = tmp_path / "anna.csv"
    table.write_text(
        f'sheet,item,question,answer,score\n{name},1,"two\nlines",x,5\n{name},99,q,a,5\n'
        f"{name},2,q,a,11\n{name},3,q,a,good\n{name},1,q,a,6\n{name},4\ns000,1,q,a,5\ns000,2,q,a,5\n"
    )
    saved = tmp_path / "ben.jsonl"
    nameless = json.dumps({"sheet": name, "rater": None, "item": 9, "score": 5}) + "\n"
    saved.write_text(
        lines_of(name, "ben", {1: 5, 2: 0, 3: 7.5, 4: True, 5: None}) + "{}\n{\n[]\n" + nameless
    )
    with pytest.raises(UsageError) as found:
        import_ratings(bench, [table, saved, tmp_path / "gone.csv", bench / "run.json"])
    number = len(json.loads((bench / "ratings" / f"{name}.json").read_text())["items"])
    wanted = "the score of item {} must be a whole number from 1 to 10, got {!r}"
    assert str(found.value).splitlines() == [
        f"{table} line 4: there is no item '99', the sheet's are 1 to {number}",
        f"{table} line 5: {wanted.format(2, '11')}",
        f"{table} line 6: {wanted.format(3, 'good')}",
        f"{table} line 7: rater 'anna' has rated item 1 already, in {table} line 2",
        f"{table} line 8: 2 cells, expected 5",
        f"{table} line 9: sheet 's000' was not made from {bench}",
        f"{saved} line 2: {wanted.format(2, '0')}",
        f"{saved} line 3: {wanted.format(3, '7.5')}",
        f"{saved} line 4: {wanted.format(4, 'True')}",
        f"{saved} line 5: {wanted.format(5, 'None')}",
        *(
            f"{saved} line {line}: no rating, which has sheet, rater, item and score"
            for line in (6, 7, 8, 9)
        ),
        f"{tmp_path / 'gone.csv'} cannot be read: No such file or directory",
        f"{bench / 'run.json'} line 1: no rating, which has sheet, rater, item and score",
    ]


def test_many_faults_are_counted(bench: Path, tmp_path: Path) -> None:
    export_sheet(bench, [tmp_path / "sheet.csv"])
    filled = fill(tmp_path / "sheet.csv", tmp_path / "anna.csv", lambda _: 0)
    with pytest.raises(UsageError, match=r"line 21: .*\nand 1 more"):
        import_ratings(bench, [filled])


def test_what_is_no_sheet_is_told(bench: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no sheet for raters"):
        import_ratings(bench, [tmp_path / "anna.csv"])
    export_sheet(bench, [tmp_path / "sheet.csv"])
    with pytest.raises(UsageError, match="the files hold no scores"):
        import_ratings(bench, [tmp_path / "sheet.csv"])
    (tmp_path / "other.csv").write_text("id;score\n1;5\n")
    with pytest.raises(UsageError, match=r"other\.csv line 1: no columns sheet, item; expected"):
        import_ratings(bench, [tmp_path / "other.csv"])
    (tmp_path / "latin.csv").write_bytes("sheet,item,score\nä".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.csv is not UTF-8"):
        import_ratings(bench, [tmp_path / "latin.csv"])
    export_sheet(bench, [tmp_path / "five.csv"], scale="1-5")
    with pytest.raises(UsageError, match="sheets with different scales: 1-10, 1-5"):
        import_ratings(
            bench,
            [
                fill(tmp_path / name, tmp_path / f"r-{name}", lambda _: 3)
                for name in ("five.csv", "sheet.csv")
            ],
        )
    (bench / "ratings" / "broken.json").write_text("{")
    with pytest.raises(UsageError, match=r"broken\.json is no key of a sheet"):
        import_ratings(bench, [tmp_path / "sheet.csv"])


def test_a_text_beyond_the_readers_usual_limit_is_read(tmp_path: Path) -> None:
    info, rows = make_bench(methods=METHODS[:1], num_prompts=2, num_failures=0)
    rows[0]["turns"][0]["text"] = "long " * 60_000
    write_bench(tmp_path / "out", info, rows)
    export_sheet(tmp_path / "out", [tmp_path / "sheet.csv"])
    csv.field_size_limit(2**17)
    table = (tmp_path / "sheet.csv").read_text(encoding="utf-8-sig")
    (tmp_path / "anna.csv").write_text(re.sub(r',""$', ",4", table, flags=re.MULTILINE))
    assert import_ratings(tmp_path / "out", [tmp_path / "anna.csv"])["num_ratings"] == 2
