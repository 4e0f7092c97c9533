"""Whether answers are right: read from prompts, checked, counted, shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import FakeEngine, FakeReward
from specrej.cli.tables import print_bench
from specrej.errors import PromptError
from specrej.evaluation.accuracy import Checks, is_right, read_checks
from specrej.evaluation.bench import parse_methods, run_bench
from specrej.evaluation.instructions import obeys
from specrej.evaluation.intervals import share_of
from specrej.evaluation.metrics import summarize
from specrej.evaluation.prompts import load_prompts
from specrej.evaluation.report import write_report
from specrej.rewards.answers import extractor_of
from traces import loaded_of

AUTO = extractor_of("auto")


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"answer": "18"}, ("18",)),
        ({"answer": 18}, ("18",)),
        ({"answer": ["1", 2.5]}, ("1", "2.5")),
        ({"answer": "9 - 7 = 2\n#### 2", "reference": "3"}, ("9 - 7 = 2\n#### 2",)),
        ({"reference": "so #### 2"}, ("so #### 2",)),
        ({"reference": [r"\boxed{2}"]}, (r"\boxed{2}",)),
        ({"reference": "A poem about the sea."}, ()),
        ({}, ()),
    ],
)
def test_a_row_says_what_is_right(row: dict[str, Any], answers: tuple[str, ...]) -> None:
    assert read_checks(row) == Checks(answers=answers)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": {"a": 1}}, "answer must be"),
        ({"answer": [True]}, "answer must be"),
        ({"answer": "\ud83d"}, "answer"),
        ({"instruction_id_list": "a"}, "instruction_id_list"),
        ({"instruction_id_list": ["a"], "kwargs": []}, "instruction_id_list"),
        ({"instruction_id_list": ["a"], "kwargs": [1]}, "kwargs"),
    ],
)
def test_what_says_nothing_is_broken(row: dict[str, Any], said: str) -> None:
    with pytest.raises(PromptError, match=said):
        read_checks(row)


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("#### 1,018", "So it is 1018.00", True),
        ("18", r"\boxed{18} eggs, not 19", True),
        ("18", "19", False),
        ("18", "I do not know", False),
        ("Paris", "Let me think of 3 towns.\nParis.", True),
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
    ],
)
def test_an_answer_is_compared_by_its_value(answer: str, text: str, expected: bool) -> None:
    assert is_right(Checks(answers=(answer,)), 0, text, AUTO) is expected
    assert is_right(Checks(answers=(answer,)), 1, text, AUTO) is None


OBEYED: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["sea", "sky"]}, "The Sea, the sky", "The sea"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocks", "a Rock."),
    (
        "keywords:frequency",
        {"keyword": "ha", "frequency": 2, "relation": "at least"},
        "Ha, ha",
        "ha",
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": "less than"},
        "#",
        "##",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        "Version 1.5 is out.",
        'It "is." Good!',
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        "one two three",
        "one two",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a *** *** b"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "***\na", "a\n\nb\n***\nc"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        'One\n\n"weekend, at last"',
        "Weekend\n\nOne",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a] b]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. More", "PS"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s: x", "P.S. x"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n**b**"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "*a* **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "PART", "num_sections": 2},
        "PART 1\na\nPART 2\nb",
        "PART 1\na\nPART\nb",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A song>>\nla", "<< >>\nla"),
    ("combination:two_responses", {}, "a******b", "a******a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Do it"}, "do it. Done", "I do it"),
    ("startend:end_checker", {"end_phrase": "That is all."}, '... that is all."', "That is all. x"),
    ("startend:quotation", {}, ' "a" ', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "NO, I say",
        "No, I say",
    ),
    ("change_case:english_capital", {}, "LOUD 1!", "Loud"),
    ("change_case:english_lowercase", {}, "quiet 1.", "Quiet"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]


@pytest.mark.parametrize(("name", "said", "good", "bad"), OBEYED)
def test_instructions(name: str, said: dict[str, Any], good: str, bad: str) -> None:
    assert obeys(name, {**said, "others": None}, good) is True
    assert obeys(name, said, bad) is False
    if said:
        assert obeys(name, dict.fromkeys(said), good) is None


@given(st.sampled_from([(name, said) for name, said, _, _ in OBEYED]), st.text())
@settings(deadline=None)
def test_any_text_obeys_or_not(instruction: tuple[str, dict[str, Any]], text: str) -> None:
    assert obeys(*instruction, text) in (True, False)


def test_a_prompt_obeys_all_of_its_instructions_or_cannot_be_checked() -> None:
    both: tuple[tuple[str, Any], ...] = (
        ("punctuation:no_comma", {}),
        ("change_case:english_lowercase", {}),
    )
    assert is_right(Checks(instructions=both), 0, "quiet", AUTO) is True
    assert is_right(Checks(instructions=both), 0, "Quiet", AUTO) is False
    unknown = (*both, ("language:response_language", {"language": "kn"}))
    assert is_right(Checks(instructions=unknown), 0, "Quiet", AUTO) is None


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(deadline=None)
def test_wilsons_ends_are_where_the_score_test_turns(counts: tuple[int, int]) -> None:
    right, num = counts
    figure = share_of(right, num)
    assert figure["value"] == right / num
    for end in (figure["low"], figure["high"]):
        assert end is not None
        deviation = (right / num - end) ** 2
        assert np.isclose(deviation, 1.959963984540054**2 * end * (1 - end) / num, atol=1e-12)


def test_a_bench_counts_right_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = {"extract": "text", "max_new_tokens": 6, "n": 3, "algorithm": "best_of_n"}
    words = [f"Question {number}?" for number in range(4)]
    [seed] = loaded_of(words[:1]).seeds(0).values()
    given_rows = [
        {"prompt": words[0], "answer": ask(words[0], {**plain, "seed": seed})},
        {"prompt": words[1], "answer": "something else"},
        {"prompt": words[2], "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {"prompt": words[3], "instruction_id_list": ["language:response_language"]},
        {"prompt": "Who knows?"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, given_rows)))
    common = specrej.Settings(extract="text", max_new_tokens=6)
    methods = parse_methods(["best_of_n:3", "majority_vote:3"], common)
    output = tmp_path / "out"
    rows = list(
        run_bench(load_prompts(path), methods, FakeEngine(), FakeReward(), output, settings=common)
    )
    first = [row["turns"][0] for row in rows if row["method"] == "best_of_n:3"]
    assert [turn.get("is_right", "nothing") for turn in first] == [
        True,
        False,
        True,
        None,
        "nothing",
    ]
    summary = summarize(rows, "best_of_n:3")
    assert summary["methods"]["best_of_n:3"]["accuracy"] == {
        "share": share_of(2, 3),
        "num_checked": 3,
        "num_unchecked": 1,
    }
    print_bench(summary)
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "0.67 [0.21, 0.94]" in shown
    page = write_report(output).read_text()
    assert "Accuracy" in page
    assert "majority vote:3" in page


def ask(prompt: str, options: dict[str, Any]) -> str:
    return specrej.generate(prompt, engine=FakeEngine(), reward=FakeReward(), **options).text


def test_who_failed_is_wrong_where_others_could_be_checked() -> None:
    from test_metrics import BASE, OTHER, row, turn

    def checked(*, right: bool) -> Any:
        return {**turn([1, 2]), "is_right": right}

    rows = [row("a", BASE, checked(right=True)), row("a", OTHER), row("b", BASE, turn([1, 2]))]
    rows += [row("b", OTHER)]
    summary = summarize(rows, BASE)
    assert summary["methods"][OTHER]["accuracy"]["share"] == share_of(0, 1)
    assert summary["methods"][BASE]["accuracy"]["share"] == share_of(1, 1)


def test_a_bench_without_answers_has_no_such_column(capsys: pytest.CaptureFixture[str]) -> None:
    from test_metrics import BASE, row, turn

    print_bench(summarize([row("a", BASE, turn([1, 2]))], BASE))
    assert "accuracy" not in capsys.readouterr().out
