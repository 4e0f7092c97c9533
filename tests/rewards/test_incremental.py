"""Causal classifiers that read each token once, against transformers' own pass over each whole
conversation alone."""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.models import BPE
from torch import nn

import specrej
from fakes import FakeEngine
from specrej.attention.attention import ExtendPass
from specrej.attention.groups import Group
from specrej.errors import RewardError, UnknownNameError, UsageError
from specrej.rewards import causal, incremental
from specrej.rewards.classifier import ClassifierReward
from specrej.rewards.incremental import IncrementalSession
from specrej.types import Candidate, FinishReason
from tiny import CHAT_TEMPLATE, EOS_ID, VOCABULARY, make_config, make_tokenizer

PROMPT = [{"role": "user", "content": "Say ab, é or 漢."}]
MERGES = [(":", "a"), ("a", "b"), ("ab", "ab"), ("Ġ", "a"), ("Ã", "©"), ("Ċ", "Ċ"), ("b", "Ġ")]
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:{{ message['content'] }}\n{% endfor %}"
)
TOLERANCE = 1e-4
NAMES = ("llama", "qwen2", "mistral", "gemma2")
CHUNK = 32
GROUPS: list[weakref.ref[Group]] = []
"""All that were made and may be alive."""


@pytest.fixture(scope="module", autouse=True)
def _small_chunks_and_nan() -> Iterator[None]:
    """Prompts and long answers take several passes, what was never written is NaN, and all
    groups are known."""
    resize, init = Group.resize, Group.__init__

    def noted(self: Group, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        GROUPS.append(weakref.ref(self))

    def poisoned(self: Group, slots: int) -> None:
        num_old = self.keys[0].shape[0] if self.keys else 0
        resize(self, slots)
        for tensor in (*self.keys, *self.values):
            tensor[num_old:] = torch.nan
            tensor[:, :, self.length :] = torch.nan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "resize", poisoned)
        patch.setattr(Group, "__init__", noted)
        patch.setattr(causal, "PREFILL_CHUNK", CHUNK)
        patch.setattr(incremental, "PREFILL_CHUNK", CHUNK)
        yield


def make_classifier(name: str, **changes: Any) -> Any:
    """A classifier with random weights, drawn wide: see tiny.py."""
    auto: Any = transformers.AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = make_config(
            name, **{"num_labels": 1, "vocab_size": VOCABULARY + len(MERGES), **changes}
        )
        model = auto.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    return model.eval()


def merging_tokenizer() -> Any:
    """Characters that come later change the tokens of those before them, even those of the
    template."""
    tokenizer = make_tokenizer(PLAIN_TEMPLATE)
    vocabulary = dict(tokenizer.get_vocab())
    for left, right in MERGES:
        vocabulary[left + right] = len(vocabulary)
    tokenizer.backend_tokenizer.model = BPE(vocab=vocabulary, merges=MERGES)
    return tokenizer


class Case:
    """A reward, and what transformers alone says about conversations."""

    def __init__(self, model: Any, tokenizer: Any, **arguments: Any) -> None:
        self.tokenizer = tokenizer
        self._model = copy.deepcopy(model)
        self.reward = ClassifierReward((model, tokenizer), **arguments)
        self.num_fed = 0
        model.get_input_embeddings().register_forward_hook(self._count)
        scorer = self.reward._scorer
        self.token_bytes = scorer.layout.bytes_per_token if scorer else 0

    def _count(self, module: nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        self.num_fed += given[0].numel()

    def open(self, memory_bytes: int | None = None) -> Any:
        self.num_fed = 0
        self.reward.memory_bytes = 2**30 if memory_bytes is None else memory_bytes
        return self.reward.open(PROMPT)

    def ids(self, text: str) -> list[int]:
        turns = [*PROMPT, {"role": "assistant", "content": text}]
        ids: list[int] = self.tokenizer.apply_chat_template(turns, return_dict=False)
        return ids

    @torch.no_grad()
    def expected(self, ids: Sequence[int]) -> float:
        return float(self._model(torch.tensor([ids])).logits[0, 0])

    def check(self, session: Any, candidates: Sequence[Candidate]) -> None:
        scores = session.score(candidates)
        expected = [self.expected(self.ids(candidate.text)) for candidate in candidates]
        assert scores == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE), [
            c.text for c in candidates
        ]
        if session.reuse != "none":  # transformers' own pass is fed padding too
            assert session.num_tokens == self.num_fed


@pytest.fixture(scope="module")
def cases() -> dict[tuple[str, bool], Case]:
    """By architecture, and whether tokens merge."""
    tokenizers = {False: make_tokenizer(CHAT_TEMPLATE), True: merging_tokenizer()}
    return {
        (name, merges): Case(make_classifier(name), tokenizer, batch_size=3)
        for name in NAMES
        for merges, tokenizer in tokenizers.items()
    }


@pytest.fixture
def llama(cases: dict[tuple[str, bool], Case]) -> Case:
    return cases["llama", False]


def live(*texts: str) -> list[Candidate]:
    return [Candidate(index, text=text) for index, text in enumerate(texts)]


def held_bytes() -> int:
    """Bytes of all tensors of all groups that are alive."""
    alive = [group for reference in GROUPS if (group := reference()) is not None]
    GROUPS[:] = map(weakref.ref, alive)
    tensors = [
        t
        for group in alive
        for t in (*group.prompt_keys, *group.prompt_values, *group.keys, *group.values)
    ]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


TEXT = st.text("ab é漢🙂\n<", max_size=12)
CHANGES: dict[str, Callable[[str, str], str]] = {
    "grows": lambda text, piece: text + piece,
    "grows long": lambda text, piece: text + 4 * piece,
    "shrinks": lambda text, piece: text[: len(piece)],
    "changes": lambda text, piece: piece + text[1:],
    "waits": lambda text, piece: text,
}
MOVES = st.tuples(
    st.sampled_from(["grows", "grows", "grows", "grows long", "shrinks", "changes", "waits"]),
    TEXT,
    st.sampled_from(["scored", "scored", "scored", "not scored", "ends", "rejected"]),
)
SCHEDULES = st.lists(st.lists(MOVES, min_size=7, max_size=7), min_size=1, max_size=5)


def follow(case: Case, session: Any, schedule: Sequence[Sequence[tuple[str, str, str]]]) -> None:
    """Let seven candidates go through a schedule; every score is checked."""
    candidates = {index: Candidate(index) for index in range(7)}
    for moves in schedule:
        scored = []
        for index, (change, piece, fate) in enumerate(moves):
            if index in candidates and fate != "not scored":
                candidates[index].text = CHANGES[change](candidates[index].text, piece)
                candidates[index].finish_reason = "eos" if fate == "ends" else None
                scored.append(candidates[index])
        if scored:
            case.check(session, scored)
        fates = {index: fate for index, (_, _, fate) in enumerate(moves) if index in candidates}
        session.drop([index for index, fate in fates.items() if fate == "rejected"])
        candidates = {
            index: candidates[index]
            for index, fate in fates.items()
            if fate not in ("ends", "rejected")
        }


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("name", NAMES)
@given(schedule=SCHEDULES)
@settings(max_examples=12, deadline=None)
def test_scores_are_those_of_a_whole_pass(
    cases: dict[tuple[str, bool], Case],
    name: str,
    merges: bool,
    schedule: list[list[tuple[str, str, str]]],
) -> None:
    session = cases[name, merges].open()
    follow(cases[name, merges], session, schedule)
    assert session.reuse == "answers"
    session.close()


@given(schedule=SCHEDULES, num_tokens=st.integers(0, 700))
@settings(max_examples=30, deadline=None)
def test_any_memory_gives_the_same_scores_and_holds(
    cases: dict[tuple[str, bool], Case], schedule: list[list[tuple[str, str, str]]], num_tokens: int
) -> None:
    case = cases["mistral", True]
    memory_bytes = num_tokens * case.token_bytes
    attend, most = ExtendPass.attend, 0

    def measured(self: ExtendPass, layer: int, *given: Any) -> Any:
        nonlocal most
        most = max(most, held_bytes()) if layer == 0 else most
        return attend(self, layer, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExtendPass, "attend", measured)
        session = case.open(memory_bytes)
        follow(case, session, schedule)
    assert most <= session.peak_kv_bytes <= memory_bytes
    assert (session.peak_kv_bytes > 0) == (num_tokens >= len(case.ids("")) - 1)
    session.close()


def test_what_memory_carries_decides_what_is_kept(llama: Case) -> None:
    answers = live(*("abc" * n for n in (5, 6, 7)))
    num_prompt, longest = len(llama.ids("")) - 1, len(llama.ids("abc" * 7)) - len(llama.ids("")) + 1
    tiers = {}
    for num_tokens in (
        num_prompt - 1,
        num_prompt + longest - 1,
        num_prompt + longest,
        num_prompt + 4 * longest,
    ):
        session = llama.open(num_tokens * llama.token_bytes)
        for _ in range(2):
            llama.check(session, answers)
        tiers[num_tokens] = (session.reuse, session.num_tokens)
        session.close()
    whole = sum(len(llama.ids(answer.text)) for answer in answers)
    own = whole - 3 * num_prompt
    # Texts that stay the same still have one token read: the one that is scored.
    assert list(tiers.values()) == [
        ("none", 2 * whole),
        ("none", num_prompt + 2 * whole),
        ("prompt", num_prompt + 2 * own),
        ("answers", num_prompt + own + 3),
    ]


def test_only_new_tokens_and_the_ending_are_read(llama: Case) -> None:
    texts = ["one" * n for n in range(1, 6)]
    session = llama.open()
    num_prompt = len(llama.ids("")) - 1
    assert session.num_tokens == llama.num_fed == num_prompt
    llama.check(session, live(*texts))
    assert session.num_tokens == num_prompt + sum(len(text) + 1 for text in texts)
    before = session.num_tokens
    llama.check(session, live(*(text + "é🙂" for text in texts)))
    assert session.num_tokens - before == 5 * (2 + 4 + 1)


def test_rejected_and_ended_candidates_leave_at_once(llama: Case) -> None:
    before = held_bytes()
    session = llama.open()
    prompt_bytes = held_bytes() - before
    assert prompt_bytes == (len(llama.ids("")) - 1) * llama.token_bytes
    answers = live("a" * 9, "b" * 20, "c" * 14, "d")
    session.score(answers)
    row = 21 * llama.token_bytes
    assert held_bytes() - before == prompt_bytes + 4 * row
    session.drop([0, 2])
    assert held_bytes() - before == prompt_bytes + 2 * row
    answers[1].finish_reason = "eos"
    llama.check(session, [answers[1], answers[3]])
    assert held_bytes() - before == prompt_bytes + row
    session.drop([0, 3, 77])
    assert held_bytes() - before == prompt_bytes
    session.close()
    assert held_bytes() == before


def test_an_answer_that_joins_the_templates_last_token(cases: dict[tuple[str, bool], Case]) -> None:
    case = cases["llama", True]
    session = case.open()
    case.check(session, live("b", "bb"))
    joined = case.ids("ab")
    assert joined[: len(case.ids("")) - 1] != case.ids("")[:-1], "':a' is one token"
    case.check(session, live("b", "ab", "bb"))
    case.check(session, live("ba", "abab", "bbb"))
    assert session.reuse == "answers"


@pytest.mark.parametrize("memory_tokens", [0, 80, 10_000])
def test_a_score_does_not_depend_on_its_neighbours(llama: Case, memory_tokens: int) -> None:
    texts = ["", "b", "a longer answer than the others, with é and 漢", "ab" * 30, "no", "yes \n"]
    memory_bytes = memory_tokens * llama.token_bytes
    together = llama.open(memory_bytes).score(live(*texts))
    alone = [llama.open(memory_bytes).score([Candidate(9, text=text)])[0] for text in texts]
    tolerance = 1e-5 * max(map(abs, alone))
    assert together == pytest.approx(alone, rel=0, abs=tolerance)
    backwards = llama.open(memory_bytes).score(live(*texts)[::-1])
    assert backwards[::-1] == pytest.approx(alone, rel=0, abs=tolerance)


def test_generate_says_what_was_kept(llama: Case) -> None:
    llama.open()
    engine = FakeEngine()
    for memory_bytes, reuse in (
        (2**30, "answers"),
        (65 * llama.token_bytes, "prompt"),
        (0, "none"),
    ):
        llama.reward.memory_bytes = memory_bytes
        result = specrej.generate(
            PROMPT, model=engine, reward=llama.reward, n=6, decide="every:8", max_new_tokens=24
        )
        usage = result.to_dict()["usage"]
        assert usage["reward_reuse"] == reuse
        assert (usage["reward_kv_bytes"] > 0) == (reuse != "none")
        assert usage["reward_kv_bytes"] <= memory_bytes
        assert len(result.decisions) > 1
        for candidate in result.candidates:
            assert candidate.reward == pytest.approx(
                llama.expected(llama.ids(candidate.text)), abs=TOLERANCE
            )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt_oss", {}),  # sinks
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}},
        ),
        ("gpt2", {}),  # reads token types
    ],
)
def test_what_cannot_be_read_in_parts_is_read_whole(name: str, changes: dict[str, Any]) -> None:
    case = Case(make_classifier(name, **changes), make_tokenizer(CHAT_TEMPLATE))
    session = case.open()
    scores = session.score(live("ab", "a longer one"))
    assert scores == pytest.approx(
        [case.expected(case.ids(text)) for text in ("ab", "a longer one")], abs=TOLERANCE
    )
    assert (session.reuse, session.peak_kv_bytes) == ("none", 0)
    assert session.num_tokens == len(case.ids("ab")) + len(case.ids("a longer one"))


@pytest.mark.parametrize("output", [0, 2])
def test_one_of_several_outputs(output: int) -> None:
    model = make_classifier("llama", num_labels=3)
    expected = copy.deepcopy(model)
    case = Case(model, make_tokenizer(CHAT_TEMPLATE), label=output)
    [score] = case.open().score(live("ab"))
    logits = expected(torch.tensor([case.ids("ab")])).logits[0]
    assert score == pytest.approx(logits[output].item(), abs=TOLERANCE)


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
@pytest.mark.parametrize("trim", ["", " | trim"])
def test_an_open_answer_has_nothing_behind_it(memory_bytes: int, trim: str) -> None:
    template = CHAT_TEMPLATE.replace("message['content']", f"message['content']{trim}")
    case = Case(make_classifier("llama"), make_tokenizer(template), partial="open")
    reasons: list[FinishReason | None] = [None, "length", "eos", "stop", None]
    answers = [
        Candidate(i, text=" ab é "[i:], finish_reason=reason) for i, reason in enumerate(reasons)
    ]
    answers.append(Candidate(9))
    session = case.open(memory_bytes)
    scores = session.score(answers)
    rows = [case.ids(answer.text) for answer in answers]
    assert all(row[-1] == EOS_ID for row in rows)
    expected = [
        row[:-1] if a.finish_reason in (None, "length") else row
        for row, a in zip(rows, answers, strict=True)
    ]
    assert scores == pytest.approx([case.expected(row) for row in expected], abs=TOLERANCE)
    answers[0].text += "more"
    session.drop([1, 2, 3, 4, 9])
    assert session.score(answers[:1]) == pytest.approx(
        [case.expected(case.ids(answers[0].text)[:-1])], abs=TOLERANCE
    )


def test_an_open_answer_needs_a_template_that_shows_it() -> None:
    tokenizer = make_tokenizer(
        CHAT_TEMPLATE.replace("message['content']", "message['content'] | upper")
    )
    reward = ClassifierReward((make_classifier("llama"), tokenizer), partial="open")
    with pytest.raises(RewardError, match="does not show where an answer ends") as caught:
        reward.open(PROMPT)
    assert "partial='closed'" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no chat template"):
        ClassifierReward((make_classifier("llama"), make_tokenizer()), partial="open")


def test_arguments_that_cannot_be_honoured() -> None:
    with pytest.raises(UsageError, match="memory_bytes must be at least 0, got -1"):
        ClassifierReward("never/opened", memory_bytes=-1)
    ajar: Any = "ajar"
    with pytest.raises(UnknownNameError, match="ajar"):
        ClassifierReward("never/opened", partial=ajar)


def test_a_model_that_fails_names_its_candidates(
    llama: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = llama.open()
    llama.check(session, live("a", "b", "c", "d"))
    with monkeypatch.context() as patch:
        patch.setattr(ExtendPass, "attend", lambda *given: 1 / 0)
        with pytest.raises(
            RewardError, match=r"failed on candidates \[0, 1, 2\]: ZeroDivisionError"
        ):
            session.score(live("ab", "bb", "cb", "db"))
    llama.num_fed = session.num_tokens
    llama.check(session, live("ab", "b", "cc", "dd"))


def test_sessions_of_causal_models_are_incremental(llama: Case) -> None:
    assert isinstance(llama.open(), IncrementalSession)
