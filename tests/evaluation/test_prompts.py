"""Prompts from files, stdin and named sets: good rows become tasks, broken ones are said and left
out.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrej.errors import UnknownNameError, UsageError
from specrej.evaluation import prompt_sets
from specrej.evaluation.prompt_sets import NAMED_SETS, read_dialogue
from specrej.evaluation.prompts import Loaded, Task, load_prompts

Load = Callable[..., Loaded]
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi"}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads rows, given as objects or as the bytes of a line."""

    def load(*rows: object, limit: int | None = None, end: bytes = b"\n") -> Loaded:
        path = tmp_path / "prompts.jsonl"
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(end.join(lines))
        return load_prompts(str(path), limit)

    return load


def test_a_row_holds_a_text_a_conversation_or_turns(load: Load) -> None:
    loaded = load(
        {"id": "a", "prompt": "Hello", "category": "greeting"},
        {"id": "b", "messages": [SYSTEM, USER, ANSWER, USER]},
        {"id": "c", "turns": ["One?", "Two?"]},
    )
    assert [(task.id, task.turns, task.category, task.line) for task in loaded.tasks] == [
        ("a", ("Hello",), "greeting", 1),
        ("b", ([SYSTEM, USER, ANSWER, USER],), None, 2),
        ("c", ("One?", "Two?"), None, 3),
    ]
    assert loaded.broken == ()


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1), st.data())
def test_a_seed_depends_on_what_is_asked_and_on_nothing_else(
    texts: list[str], data: st.DataObject
) -> None:
    """Not on ids, order, limit or other prompts; the same question asked again has another one."""
    seeds = seeds_of(texts, 7)
    assert len(set(seeds)) == len(texts)
    assert not set(seeds) & set(seeds_of(texts, 8))
    assert all(0 <= seed < 2**53 for seed in seeds)
    limit = data.draw(st.integers(1, len(texts)))
    assert seeds_of(texts[:limit], 7) == seeds[:limit]
    shuffled = data.draw(st.permutations(texts))
    assert set(zip(shuffled, seeds_of(shuffled, 7), strict=True)) == set(
        zip(texts, seeds, strict=True)
    )


def seeds_of(texts: Sequence[str], seed: int) -> list[int]:
    """In the order of the prompts, whose ids are others each time the file is another one."""
    tasks = tuple(
        Task(id=f"{len(texts)}-{place}-{seed}", turns=(text,), category=None, line=place + 1)
        for place, text in enumerate(texts)
    )
    seeds = Loaded(source="-", tasks=tasks, broken=(), sha256="").seeds(seed)
    return [seeds[task.id] for task in tasks]


def test_a_text_and_its_conversation_have_the_same_seed(load: Load) -> None:
    as_text = load({"id": "a", "prompt": "Hello"}, {"id": "b", "turns": ["Hello", "Bye"]}).seeds(1)
    assert load({"id": "x", "messages": [USER]}).seeds(1) == {"x": as_text["a"]}
    assert as_text["a"] != as_text["b"]


@pytest.mark.parametrize("name", ["id", "prompt_id", "question_id", "key"])
def test_ids_go_by_several_names_and_may_be_numbers(load: Load, name: str) -> None:
    assert load({name: 81, "prompt": "Hello"}).tasks[0].id == "81"


def test_a_row_without_an_id_is_called_by_its_line(load: Load) -> None:
    assert [task.id for task in load({"prompt": "a"}, b"", {"prompt": "b", "id": None}).tasks] == [
        "1",
        "3",
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{", "no JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "recursion"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "limit"),
        ([USER], "expected one JSON object a line"),
        ("Hello", "expected one JSON object a line"),
        ({"id": "b"}, "give one of prompt, messages and turns, got none of them"),
        ({"prompt": None}, "got none of them"),
        ({"prompt": "Hello", "turns": ["Hello"]}, "got prompt and turns"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": 5}, "prompt must be a text, got 5"),
        ({"prompt": [USER]}, "prompt must be a text"),
        ({"messages": "Hello"}, "messages must be a list of messages, got 'Hello'"),
        ({"messages": []}, "the prompt is empty"),
        ({"messages": ["Hello"]}, "messages[0] must be an object with role and content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content must be a text or a list of parts"),
        ({"messages": [USER, ANSWER]}, "ends in an answer"),
        (
            {"messages": [{**USER, "role": "human"}]},
            "messages[0].role must be one of system, developer, user, assistant",
        ),
        ({"turns": []}, "turns must be a list of texts"),
        ({"turns": ["Hello", ""]}, "the prompt is empty"),
        ({"turns": ["Hello", 5]}, "turns must be a list of texts"),
        ({"turns": [[USER], "Hello"]}, "turns must be a list of texts"),
        ({"turns": "Hello"}, "turns must be a list of texts, got 'Hello'"),
        ({"prompt": "Hello", "id": ""}, "an id must be"),
        ({"prompt": "Hello", "id": True}, "an id must be"),
        ({"prompt": "Hello", "id": 1.5}, "an id must be"),
        ({"prompt": "Hello", "category": 5}, "category must be a text, got 5"),
        ({"prompt": "\ud83d"}, "half a surrogate pair"),
        ({"prompt": "Hello", "id": "\ud83d"}, "half a surrogate pair"),
        ({"prompt": "Hello", "category": "\ud83d"}, "half a surrogate pair"),
        ({"prompt": "again", "id": "a"}, "the id 'a' is that of line 1"),
    ],
)
def test_a_broken_line_is_said_and_the_rest_runs(load: Load, row: object, reason: str) -> None:
    loaded = load({"id": "a", "prompt": "Hello"}, row, {"id": "z", "prompt": "Bye"})
    assert [(task.id, task.line) for task in loaded.tasks] == [("a", 1), ("z", 3)]
    ((line, said),) = loaded.broken
    assert line == 2
    assert reason in said
    assert len(said) <= 300


def test_a_message_that_is_quoted_is_cut(load: Load) -> None:
    ((_, said),) = load(
        {"prompt": "Hello"}, {"messages": [{"role": "user", "text": "word " * 1000}]}
    ).broken
    assert "messages[0].text cannot be honoured, got 'word" in said
    assert len(said) <= 100


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n", b"\r\n \r\n"])
def test_the_form_of_the_file_does_not_matter(load: Load, mark: bytes, end: bytes) -> None:
    plain = load({"id": "é", "prompt": "Hello"}, {"id": "b", "prompt": "Bye"})
    spelled = mark + '{"prompt" :  "Hello", "id":"é", "more": 1}'.encode()
    formed = load(spelled, {"id": "b", "prompt": "Bye", "category": None}, b"", end=end)
    assert [(task.id, task.turns) for task in formed.tasks] == [
        (task.id, task.turns) for task in plain.tasks
    ]
    assert formed.sha256 == plain.sha256
    assert formed.broken == ()


def test_a_byte_order_mark_is_left_out_where_a_line_begins(load: Load) -> None:
    loaded = load(
        {"prompt": "Hello"}, b'\xef\xbb\xbf{"prompt": "Bye"}', b'{"prompt":\xef\xbb\xbf "Bye"}'
    )
    assert [task.line for task in loaded.tasks] == [1, 2]
    assert loaded.broken[0][0] == 3


@pytest.mark.parametrize(
    "other",
    [
        [{"id": "b", "prompt": "One?"}, {"id": "c", "turns": ["One?", "Two?"]}],
        [{"id": "a", "prompt": "One!"}, {"id": "c", "turns": ["One?", "Two?"]}],
        [{"id": "a", "prompt": "One?"}, {"id": "c", "turns": ["One?", "Two!"]}],
        [{"id": "c", "turns": ["One?", "Two?"]}, {"id": "a", "prompt": "One?"}],
        [{"id": "a", "prompt": "One?"}, {"id": "c", "messages": [SYSTEM, USER]}],
        [{"id": "a", "prompt": "One?"}],
    ],
)
def test_other_ids_messages_or_orders_have_another_hash(load: Load, other: list[Any]) -> None:
    plain = load({"id": "a", "prompt": "One?"}, {"id": "c", "turns": ["One?", "Two?"]})
    assert load(*other).sha256 != plain.sha256


def test_a_text_and_its_message_have_the_same_hash(load: Load) -> None:
    turned = dict(reversed(USER.items()))
    assert (
        load({"prompt": "Hello"}).sha256
        == load({"messages": [USER]}).sha256
        == load({"messages": [turned]}).sha256
    )


def test_a_limit_counts_good_rows_and_reads_no_further(load: Load) -> None:
    rows = [{"prompt": "a"}, b"{", {"prompt": "b"}, {"prompt": "c"}, b"{"]
    loaded = load(*rows, limit=2)
    assert [task.line for task in loaded.tasks] == [1, 3]
    assert [line for line, _ in loaded.broken] == [2]
    assert loaded.sha256 == load(*rows[:3]).sha256


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(load: Load, limit: int) -> None:
    with pytest.raises(UsageError, match="limit must be at least 1"):
        load({"prompt": "a"}, limit=limit)


def test_a_file_without_a_good_line_is_an_error_that_says_why(load: Load) -> None:
    with pytest.raises(UsageError, match="line 1: prompt must be a text") as caught:
        load({"prompt": 5}, b"{")
    assert '{"id": "a", "prompt": "Why is the sky blue?"}' in str(caught.value.hint)
    with pytest.raises(UsageError, match="it is empty"):
        load(b"\r\n\n")


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=5
    )
)
def test_any_text_comes_through_as_it_is(texts: list[str]) -> None:
    lines = "".join(
        json.dumps({"turns": [text, text]}, ensure_ascii=False) + "\n" for text in texts
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        loaded = load_prompts("-")
    assert [task.turns for task in loaded.tasks] == [(text, text) for text in texts]


def test_stdin_is_read_as_a_file_is(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    monkeypatch.setattr(
        sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'\xef\xbb\xbf{"prompt": "Hello"}\r\n'))
    )
    loaded = load_prompts("-")
    assert loaded.source == "-"
    assert loaded.sha256 == load({"prompt": "Hello"}).sha256


@pytest.mark.parametrize("source", ["nope.jsonl", "./nope", "a/b", "/"])
def test_a_path_that_cannot_be_read_is_no_unknown_name(source: str) -> None:
    with pytest.raises(UsageError, match="cannot read prompts from") as caught:
        load_prompts(source)
    assert not isinstance(caught.value, UnknownNameError)
    assert "mt_bench" in str(caught.value.hint)


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(UnknownNameError, match="unknown prompt set 'mtbench'") as caught:
        load_prompts("mtbench")
    assert "did you mean 'mt_bench'?" in str(caught.value.hint)
    assert "JSONL" in str(caught.value.hint)


def test_a_file_needs_no_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("questions").write_text('{"prompt": "Hello"}')
    assert load_prompts("questions").tasks[0].turns == ("Hello",)


HUB_ROWS: dict[str, tuple[dict[str, Any], tuple[str, tuple[Any, ...], str | None]]] = {
    "alpaca_eval": (
        {"instruction": "Hello", "output": "Hi", "generator": "g", "dataset": "koala"},
        ("1", ("Hello",), "koala"),
    ),
    "alpaca_eval_2": (
        {"instruction": "Hello", "output": "Hi", "generator": "g", "dataset": "koala"},
        ("1", ("Hello",), "koala"),
    ),
    "gsm8k": ({"question": "1 + 1?", "answer": "#### 2"}, ("1", ("1 + 1?",), None)),
    "hh_rlhf": (
        {"chosen": "\n\nHuman: Hello\n\nAssistant: Hi", "rejected": ""},
        ("1", ([USER],), None),
    ),
    "ifeval": (
        {"key": 1000, "prompt": "Hello", "instruction_id_list": [], "kwargs": []},
        ("1000", ("Hello",), None),
    ),
    "math_500": (
        {
            "problem": "1 + 1?",
            "solution": "2",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/1.json",
        },
        ("test/1.json", ("1 + 1?",), "Algebra"),
    ),
    "mt_bench": (
        {"question_id": 81, "category": "writing", "turns": ["One?", "Two?"], "reference": []},
        ("81", ("One?", "Two?"), "writing"),
    ),
    "ultrafeedback": (
        {
            "prompt": "Hello",
            "prompt_id": "f0",
            "chosen": [USER, ANSWER],
            "messages": [USER, ANSWER],
        },
        ("f0", ("Hello",), None),
    ),
}


def stub_hub(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> list[Any]:
    """In place of `datasets` and the hub; what was loaded is appended to the list returned."""
    loaded: list[Any] = []

    def load_dataset(
        path: str, config: str | None, *, data_files: str | None, split: str
    ) -> list[dict[str, Any]]:
        loaded.append((path, config, data_files, split))
        return rows

    hub = SimpleNamespace(is_offline_mode=lambda: True)
    modules = {"datasets": SimpleNamespace(load_dataset=load_dataset), "huggingface_hub": hub}
    monkeypatch.setattr(prompt_sets, "import_module", modules.__getitem__)
    return loaded


@pytest.mark.parametrize("name", sorted(NAMED_SETS))
def test_rows_of_a_named_set_become_tasks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    row, expected = HUB_ROWS[name]
    stub_hub(monkeypatch, [row])
    loaded = load_prompts(name)
    (task,) = loaded.tasks
    assert (task.id, task.turns, task.category) == expected
    assert loaded.source == name


def test_where_a_set_is_loaded_from(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = stub_hub(monkeypatch, [HUB_ROWS["gsm8k"][0]])
    load_prompts("gsm8k")
    stub = stub_hub(monkeypatch, [HUB_ROWS["alpaca_eval"][0]])
    load_prompts("alpaca_eval")
    assert loaded == [("openai/gsm8k", "main", None, "test")]
    assert stub == [("json", None, "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json", "train")]


def test_a_row_without_the_column_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_hub(monkeypatch, [{"question": "1 + 1?"}, {"problem": "2 + 2?"}])
    assert load_prompts("gsm8k").broken == ((2, "the set has no column 'question'"),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n\nHuman: Hello\n\nAssistant: Hi", [USER]),
        (
            "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: Hello\n\nAssistant: Hi",
            [USER, ANSWER, USER],
        ),
        ("\n\nHuman: Hello\n\nAssistant: Hi\n\nBye: now", [USER]),
        (
            "\n\nHuman: One\n\nTwo: three\n\nAssistant: Hi",
            [{"role": "user", "content": "One\n\nTwo: three"}],
        ),
        ("\n\nHuman: Hello\n\nAssistant: Hi\n\nAssistant: Yes", [USER]),
        ("no speaker", []),
    ],
)
def test_a_dialogue_is_read_without_its_last_answer(
    text: str, expected: list[dict[str, str]]
) -> None:
    assert read_dialogue(text) == expected


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UsageError, match="'gsm8k' is read through datasets, which is not installed"
    ) as caught:
        load_prompts("gsm8k")
    assert "specrej[evaluation]" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["gsm8k", "alpaca_eval"])
def test_a_set_that_is_not_there_offline_is_said(tmp_path: Path, name: str) -> None:
    pytest.importorskip("datasets")
    code = f"from specrej.evaluation.prompts import load_prompts\ntry: load_prompts({name!r})\n"
    code += "except Exception as error: print(type(error).__name__, error, error.hint, sep='|')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    kind, message, hint = run.stdout.strip().split("|")
    assert (kind, run.stderr) == ("UsageError", "")
    assert message.startswith(f"cannot load the prompt set '{name}' ({NAMED_SETS[name].hub_id}): ")
    assert "give a JSONL file" in hint


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Api:
        def dataset_info(self, hub_id: str, timeout: float) -> None:
            asked.append((hub_id, timeout))
            raise OSError("no route to host")

    loaded: list[str] = []
    hub = SimpleNamespace(is_offline_mode=lambda: False, HfApi=Api)
    modules = {
        "datasets": SimpleNamespace(load_dataset=lambda *_: loaded.append("asked")),
        "huggingface_hub": hub,
    }
    monkeypatch.setattr(prompt_sets, "import_module", modules.__getitem__)
    with pytest.raises(UsageError, match="no route to host"):
        load_prompts("mt_bench")
    assert (asked, loaded) == ([("lighteval/mt-bench", 10)], [])


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("Yes.", ("Yes.",)), (["a", "b"], ("a", "b")), ([], ()), (["", ""], ()), (None, ())],
)
def test_references_are_kept_beside_what_is_asked(
    tmp_path: Path, reference: Any, expected: tuple[str, ...]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "Hello", "reference": reference}))
    loaded = load_prompts(path)
    assert loaded.tasks[0].references == expected
    path.write_text(json.dumps({"prompt": "Hello"}))
    assert load_prompts(path).sha256 == loaded.sha256


@pytest.mark.parametrize("reference", [3, [3], {"a": "b"}, ["\ud83d"]])
def test_what_is_no_reference(tmp_path: Path, reference: Any) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "Hello", "reference": reference}))
    with pytest.raises(UsageError, match="reference"):
        load_prompts(path)
