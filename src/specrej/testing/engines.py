"""What every engine must do, as a class of tests: the promises P1 to P7, and what users run into.

    class TestMyEngine(EngineSuite):
        @pytest.fixture
        def subject(self):
            return Subject(MyEngine())

Everything goes through the public interface. Tokens are compared one by one. An engine whose float
sums depend on who stands beside a candidate may let one flip that sits on a boundary: such flips
are counted, and few are let pass.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

import specrej
from specrej.engines.base import Engine, Token
from specrej.errors import BudgetError, PromptError, SamplingError, SpecrejError, UsageError
from specrej.search.events import Decided, Event, Step
from specrej.testing.forks import ForkSuite
from specrej.testing.held import held, left_behind
from specrej.testing.subject import LENGTH, Subject, by_hash, ids
from specrej.types import GREEDY_NOTE, Result, SamplingParams


class EngineSuite(ForkSuite):
    """Tests of an engine.

    A subclass gives the fixture `subject`, and `opening` for the test that shuts an engine down.
    """

    @pytest.fixture
    def opening(self) -> Callable[[], Engine] | None:
        """What opens another engine of the kind; None skips the test that shuts it down."""
        return None

    def test_p1_with_alpha_zero_the_candidates_are_those_of_best_of_n(
        self, subject: Subject
    ) -> None:
        expected = subject.generate(algorithm="best_of_n")
        result = subject.generate(alpha=0.0, decide="every:5")
        subject.compare(zip(ids(result), ids(expected), strict=True))
        assert not any(decision.rejected for decision in result.decisions)
        assert len(result.decisions) > len(expected.decisions)

    def test_p1_waves_are_the_candidates_of_one_batch(self, subject: Subject) -> None:
        waves = subject.generate(algorithm="best_of_n", memory=subject.room(3))
        assert [len(decision.scored) for decision in waves.decisions] == [3, 3, 2]
        subject.compare(zip(ids(waves), ids(subject.generate(algorithm="best_of_n")), strict=True))

    def test_p2_rejecting_some_never_changes_the_others(self, subject: Subject) -> None:
        expected = subject.generate(algorithm="best_of_n")
        result = subject.generate(decide="every:6")
        assert any(
            candidate.state == "rejected" and not candidate.finish_reason
            for candidate in result.candidates
        )
        subject.compare(zip(ids(result), ids(expected), strict=True))

    def test_p3_p5_memory_decides_and_is_kept(self, subject: Subject) -> None:
        budget, causes = subject.room(3), set()
        peaks = [0]

        def observe(event: Event) -> None:
            if isinstance(event, Step):
                assert event.kv_bytes <= budget
            if subject.measured is not None:
                assert subject.measured() <= budget
                peaks.append(subject.measured())
            if isinstance(event, Decided) and event.cause == "budget":
                causes.add("budget")
                assert event.kv_bytes_after <= event.kv_bytes <= budget
                assert event.num_rejected

        result = subject.generate(n="auto", memory=budget, min_tokens=6, observe=observe)
        assert causes == {"budget"}
        assert len(result.candidates) > 3
        assert result.usage.peak_kv_bytes <= budget
        assert subject.measured is None or max(peaks) > budget / 4

    def test_p4_the_winner_is_complete_and_the_best(self, subject: Subject) -> None:
        result = subject.generate(decide="every:6")
        complete = [candidate for candidate in result.candidates if candidate.state == "complete"]
        assert result.best in complete
        assert result.best.finish_reason in ("eos", "length")
        rewards = [candidate.reward for candidate in complete if candidate.reward is not None]
        assert len(rewards) == len(complete)
        assert result.reward == max(rewards)
        assert {candidate.state for candidate in result.candidates} <= {"complete", "rejected"}

    def test_p6_usage_adds_up(self, subject: Subject) -> None:
        result = subject.generate(decide="every:6")
        usage = result.usage
        assert usage.generated_tokens == sum(map(len, ids(result)))
        assert usage.prompt_tokens == len(subject.engine.encode(subject.prompts[1]))
        assert usage.total_s == pytest.approx(
            usage.prefill_s + usage.decode_s + usage.reward_s + usage.other_s
        )
        assert 0 < usage.peak_kv_bytes <= result.settings["memory_bytes"]
        assert usage.num_steps == max(map(len, ids(result)))

    def test_p7_nothing_is_made_twice_but_what_is_said(self, subject: Subject) -> None:
        subject.generate(decide="every:6")  # what is cached is cached
        result = subject.generate(decide="every:6")
        assert result.usage.reread_tokens <= subject.reread * len(result.candidates)
        assert result.usage.unused_tokens <= subject.unused * len(result.candidates)
        assert result.usage.num_preemptions == 0

    def test_the_same_seed_is_the_same_run_and_another_seed_is_not(self, subject: Subject) -> None:
        first = subject.generate(algorithm="best_of_n")
        subject.compare(zip(ids(subject.generate(algorithm="best_of_n")), ids(first), strict=True))
        assert len({tuple(tokens) for tokens in ids(first)}) > 1
        assert ids(subject.generate(algorithm="best_of_n", seed=4)) != ids(first)

    def test_temperature_zero_is_greedy_with_one_candidate(self, subject: Subject) -> None:
        result = subject.generate(temperature=0)
        again = subject.generate(
            temperature=1e-40, algorithm="best_of_n", n="auto", seed=4, top_k=0, top_p=1e-46
        )
        for one in (result, again):
            assert [candidate.state for candidate in one.candidates] == ["complete"]
            assert one.note == one.settings["note"] == GREEDY_NOTE
            assert one.reward is not None
        subject.compare(zip(ids(again), ids(result), strict=True))
        assert subject.generate(temperature=0.01).note is None

    def test_settings_at_the_edge_of_what_is_allowed_give_answers(self, subject: Subject) -> None:
        extremes: list[dict[str, Any]] = [
            {"temperature": subject.hottest, "top_k": 2**31 - 1, "seed": 2**64 - 1},
            {"temperature": 1e-5, "top_p": 1e-46, "min_p": 1 - 2**-53},
            {
                "temperature": min(1e30, subject.hottest),
                "top_p": 1e-300,
                "top_k": 1,
                "repetition_penalty": 1e9,
            },
            {"top_k": 1, "min_p": 5e-324, "repetition_penalty": 1e-9},
        ]
        if subject.hottest < 1e308:
            with pytest.raises(SpecrejError, match="temperature"):
                subject.generate(temperature=1e308)
        for extreme in extremes:
            result = subject.generate(n=2, max_new_tokens=4, **extreme)
            assert result.best.state == "complete"
            assert all(
                math.isfinite(logprob)
                for candidate in result.candidates
                for logprob in candidate.logprobs
            )

    def test_a_bias_forces_and_forbids_tokens_or_is_refused(self, subject: Subject) -> None:
        options: dict[str, Any] = {"algorithm": "best_of_n", "n": 4, "max_new_tokens": 8}
        free = ids(subject.generate(temperature=0, **options))[0]
        forbidden = {free[0]: -100, free[-1]: -100}
        for temperature in (0, 1.0):
            with _honoured_or_refused("logit_bias"):
                given = subject.generate(temperature=temperature, logit_bias=forbidden, **options)
                assert not any(forbidden.keys() & set(tokens) for tokens in ids(given))
                given = subject.generate(
                    temperature=temperature, logit_bias={free[0]: 100}, **options
                )
                assert all(set(tokens) == {free[0]} for tokens in ids(given))

    def test_a_bias_for_a_token_that_is_none_is_told(self, subject: Subject) -> None:
        with pytest.raises(SamplingError, match="logit_bias"):
            subject.generate(logit_bias={2**31 - 1: 1})

    def test_the_likeliest_tokens_are_given_or_refused(self, subject: Subject) -> None:
        with _honoured_or_refused("top_logprobs"):
            result = subject.generate(top_logprobs=4, decide="every:6", max_new_tokens=16)
            for candidate in result.candidates:
                places = zip(
                    candidate.token_ids, candidate.logprobs, candidate.top_logprobs, strict=True
                )
                for token_id, logprob, top in places:
                    numbers = [number for _, number in top]
                    assert len(dict(top)) == 4
                    assert numbers == sorted(numbers, reverse=True)
                    if token_id in dict(top):
                        assert dict(top)[token_id] == pytest.approx(logprob, abs=1e-5)
                    else:
                        assert logprob <= numbers[-1] + 1e-5

    @pytest.mark.parametrize(
        "penalties",
        [
            {"frequency_penalty": 1.5},
            {"presence_penalty": 2.0},
            {"frequency_penalty": 0.5, "presence_penalty": 1.0},
        ],
    )
    def test_penalties_take_from_what_the_answer_has_or_are_refused(
        self, subject: Subject, penalties: dict[str, Any]
    ) -> None:
        """A greedy answer, by the log-probabilities that are reported beside it."""
        options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 24}
        with _honoured_or_refused("penalty", "top_logprobs"):
            result = subject.generate(top_logprobs=20, **options, **penalties)
            counts: Counter[int] = Counter()
            for token_id, top in zip(result.best.token_ids, result.best.top_logprobs, strict=True):
                scores = {
                    one: logprob
                    - penalties.get("frequency_penalty", 0.0) * counts[one]
                    - penalties.get("presence_penalty", 0.0) * (counts[one] > 0)
                    for one, logprob in top
                }
                # Beyond those reported nobody can be likelier than the last of them.
                if max(scores.values()) > top[-1][1]:
                    assert scores[token_id] >= max(scores.values()) - 1e-3
                counts[token_id] += 1

    def test_p1_p2_hold_under_penalties(self, subject: Subject) -> None:
        options: dict[str, Any] = {
            "frequency_penalty": 0.7,
            "presence_penalty": -0.5,
            "logit_bias": {5: 3},
        }
        with _honoured_or_refused("penalty"):
            expected = subject.generate(algorithm="best_of_n", **options)
            halved = subject.generate(decide="every:6", **options)
            subject.compare(zip(ids(halved), ids(expected), strict=True))
            same = subject.generate(alpha=0.0, decide="every:5", **options)
            subject.compare(zip(ids(same), ids(expected), strict=True))

    def test_answers_end_by_themselves_while_others_go_on(self, subject: Subject) -> None:
        memory = subject.room(8, prompt=subject.ending)
        result = subject.generate(subject.ending, algorithm="best_of_n", n=8, memory=memory)
        reasons = {candidate.finish_reason for candidate in result.candidates}
        assert "eos" in reasons
        assert len({len(candidate.token_ids) for candidate in result.candidates}) > 1
        for candidate in result.candidates:
            is_full = len(candidate.token_ids) == LENGTH
            assert candidate.finish_reason == "eos" or is_full
            parts = [
                subject.engine.decode(candidate.token_ids[:end])
                for end in range(len(candidate.token_ids) + 1)
            ]
            assert candidate.text == parts[-1]
            assert all(later.startswith(earlier) for earlier, later in pairwise(parts))
        ended = next(
            candidate for candidate in result.candidates if candidate.finish_reason == "eos"
        )
        assert subject.engine.decode(ended.token_ids[-1:]) == ""  # what ended it is a special token

    def test_stop_strings_end_answers(self, subject: Subject) -> None:
        free = subject.generate(algorithm="best_of_n")
        longest = max((candidate.text for candidate in free.candidates), key=len)
        stop = longest[len(longest) // 2]
        result = subject.generate(algorithm="best_of_n", stop=[stop])
        stopped = [
            candidate for candidate in result.candidates if candidate.finish_reason == "stop"
        ]
        assert stopped
        for candidate in result.candidates:
            assert stop not in candidate.text
        subject.compare(zip(ids(result), ids(free), strict=True))

    def test_drops_in_the_middle(self, subject: Subject) -> None:
        engine, prompt_ids = subject.engine, subject.engine.encode(subject.prompts[1])
        sampling = SamplingParams(max_new_tokens=12, ignore_eos=True, seed=5)
        alone = _decode(engine, prompt_ids, sampling, {})
        halved = _decode(engine, prompt_ids, sampling, {4: [0, 2, 5], 7: [1]})
        assert sorted(map(len, halved.values())) == [4, 4, 4, 7, 12, 12]
        subject.compare((halved[index], alone[index]) for index in range(6))

    def test_many_prompts_are_each_as_alone(self, subject: Subject) -> None:
        options: dict[str, Any] = {"n": 4, "decide": "every:6", "max_new_tokens": 16, "seed": 2}
        memory = max(subject.room(4, 16, prompt) for prompt in subject.prompts)
        alone = [subject.generate(prompt, memory=memory, **options) for prompt in subject.prompts]
        outcomes = specrej.generate_batch(
            subject.prompts,
            model=subject.engine,
            reward=by_hash,
            total_memory=2 * memory,
            memory=memory,
            **options,
        )
        for number, outcome in outcomes:
            assert isinstance(outcome, Result)
            if subject.flips is None:
                assert ids(outcome) == ids(alone[number])
                assert outcome.best.index == alone[number].best.index
            else:  # a flip may change a decision, and with it how far a candidate comes
                pairs = zip(ids(outcome), ids(alone[number]), strict=True)
                subject.compare(sorted(pair, key=len) for pair in pairs)  # type: ignore[misc]

    def test_a_budget_that_holds_no_candidate_is_told(self, subject: Subject) -> None:
        with pytest.raises(BudgetError, match="does not hold one candidate"):
            subject.generate(memory=subject.room(1) - 1)
        if subject.engine.capacity_bytes is not None:
            with pytest.raises(BudgetError, match="more than the"):
                subject.generate(memory=subject.engine.capacity_bytes + 1)

    def test_bad_input_is_told(self, subject: Subject) -> None:
        context = subject.engine.context_tokens
        with pytest.raises(PromptError, match="empty"):
            subject.generate("  ")
        with pytest.raises(UsageError, match=r"exceed the context|does not hold"):
            subject.generate(
                max_new_tokens=context,
                memory=2**50 if subject.engine.capacity_bytes is None else None,
            )
        with pytest.raises(UsageError, match="n must be"):
            subject.generate(n=0)
        with pytest.raises(UsageError, match="alpha must be"):
            subject.generate(alpha=1.0)

    def test_hidden_states_are_given_or_refused(self, subject: Subject) -> None:
        engine, prompt_ids = subject.engine, subject.engine.encode(subject.prompts[0])
        prompt = engine.open(
            prompt_ids, SamplingParams(max_new_tokens=4, ignore_eos=True), subject.room(2)
        )
        engine.add(prompt, range(2))
        engine.step()
        if engine.has_hidden_states:
            assert sorted(engine.hidden_states(prompt)) == [0, 1]
        else:
            with pytest.raises(UsageError, match="gives no hidden states"):
                engine.hidden_states(prompt)
        engine.close(prompt)

    def test_a_prompt_that_fails_leaves_the_others(self, subject: Subject) -> None:
        def fails(prompt: str, texts: list[str]) -> list[float]:
            if prompt == subject.prompts[0]:
                raise ValueError("as asked for")
            return [float(len(text)) for text in texts]

        memory = max(subject.room(2, 8, prompt) for prompt in subject.prompts)
        outcomes = dict(
            specrej.generate_batch(
                subject.prompts,
                model=subject.engine,
                reward=fails,
                n=2,
                max_new_tokens=8,
                memory=memory,
                seed=1,
            )
        )
        assert isinstance(outcomes[0], SpecrejError)
        assert all(isinstance(outcomes[number], Result) for number in (1, 2))

    def test_shutdown_leaves_nothing_and_may_be_called_twice(
        self, opening: Callable[[], Engine] | None
    ) -> None:
        if opening is None:
            pytest.skip("the fixture `opening` gives nothing that opens an engine")
        opening().shutdown()  # what a library starts once for the process stays
        before = held()
        engine = opening()
        prompt_ids = engine.encode("Why?")
        prompt = engine.open(
            prompt_ids, SamplingParams(max_new_tokens=8), engine.kv_bytes(len(prompt_ids), 2, 8)
        )
        engine.add(prompt, range(2))
        engine.step()
        engine.shutdown()
        engine.shutdown()
        assert not left_behind(before)


@contextmanager
def _honoured_or_refused(*names: str) -> Iterator[None]:
    """What is in the block is honoured, or the engine says by name which of these it lacks."""
    try:
        yield
    except SamplingError as error:
        assert any(name in str(error) for name in names), error  # noqa: PT017  one of two ends


def _decode(
    engine: Engine, prompt_ids: Sequence[int], sampling: SamplingParams, drops: dict[int, list[int]]
) -> dict[int, list[int]]:
    """Tokens of six candidates, some of which are dropped after so many steps."""
    prompt = engine.open(
        prompt_ids, sampling, engine.kv_bytes(len(prompt_ids), 6, sampling.max_new_tokens)
    )
    engine.add(prompt, range(6))
    tokens: dict[int, list[int]] = {index: [] for index in range(6)}
    for step in range(sampling.max_new_tokens):
        before = engine.memory(prompt).in_use
        if step in drops:
            engine.drop(prompt, drops[step])
            assert engine.memory(prompt).in_use < before
        given: list[Token] = engine.step({prompt: engine.demand(prompt).wanted})
        for token in given:
            tokens[token.candidate].append(token.token_id)
            assert token.logprob is None or token.logprob <= 0
            assert (token.finish_reason == "length") == (step == sampling.max_new_tokens - 1)
    engine.close(prompt)
    return tokens
