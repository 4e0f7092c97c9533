"""lm-evaluation-harness's local-completions and local-chat-completions, over a task of three
questions."""

import math
from pathlib import Path
from typing import Any

import datasets
import openai
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

QUESTIONS = [
    {"question": f"{number} and {number} are", "choices": [str(2 * number), "a cat"], "answer": 0}
    for number in (1, 2, 3)
]


def questions(**_: object) -> dict[str, Any]:
    return {"test": datasets.Dataset.from_list(QUESTIONS)}


def task(**config: Any) -> ConfigurableTask:
    common = {
        "task": "sums",
        "custom_dataset": questions,
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "num_fewshot": 0,
    }
    return ConfigurableTask(config={**common, **config})


def choosing() -> ConfigurableTask:
    """The likelier continuation is the answer: log-probabilities of prompts."""
    return task(
        output_type="multiple_choice", doc_to_choice="{{choices}}", doc_to_target="{{answer}}"
    )


def writing() -> ConfigurableTask:
    """At the harness's defaults: greedy, up to 256 tokens."""
    return task(
        output_type="generate_until",
        doc_to_target="{{choices[0]}}",
        generation_kwargs={"until": ["\n\n"]},
        metric_list=[{"metric": "exact_match"}],
    )


@pytest.fixture
def texts(url: str, model: Path) -> dict[str, Any]:
    """What --model_args says of an endpoint for texts: without a tokenizer nothing can be
    scored."""
    return {"model": "tiny", "base_url": f"{url}/completions", "tokenizer": str(model)}


def evaluate(kind: str, arguments: dict[str, Any], asked: ConfigurableTask, **options: Any) -> Any:
    """The answers of the run, with what was made of them."""
    alone = TaskManager(include_defaults=False)  # else 13,000 files of tasks are read each time
    run = simple_evaluate(
        kind, arguments, [asked], bootstrap_iters=0, task_manager=alone, **options
    )
    return run["samples"]["sums"]


@pytest.mark.parametrize(
    "how", [{}, {"tokenized_requests": False}, {"num_concurrent": 2}, {"batch_size": 2}], ids=str
)
def test_continuations_are_scored(texts: Any, how: Any) -> None:
    """Prompts as token ids (the default) and as texts, one a request and several."""
    samples = evaluate("local-completions", texts | how, choosing())
    assert len(samples) == 3
    for sample in samples:
        for [[logprob, _]] in sample["resps"]:
            assert -math.inf < float(logprob) < 0


def test_the_greedy_continuation_is_the_likeliest(texts: Any) -> None:
    """What is decoded and what is scored stand at the same place."""
    with openai.OpenAI(
        base_url=texts["base_url"].removesuffix("/completions"), api_key="-"
    ) as asking:
        contexts = [f"The letter {letter}" for letter in "ABCDEFGH"]
        answer = asking.completions.create(
            model="tiny", prompt=contexts, temperature=0, max_tokens=1
        )
    likeliest = [choice.text for choice in answer.choices]
    pairs = [pair for pair in zip(contexts, likeliest, strict=True) if "!" < pair[1] < "~"]
    assert pairs
    scored = get_model("local-completions")(**texts).loglikelihood(
        [
            Instance("loglikelihood", {}, (context, text), 0)
            for context, next_one in pairs
            for text in (next_one, "~")
        ]
    )
    assert [is_greedy for _, is_greedy in scored] == [True, False] * len(pairs)
    for likelier, other in zip(scored[::2], scored[1::2], strict=True):
        assert other[0] < likelier[0] < 0


def test_texts_are_continued(texts: Any) -> None:
    samples = evaluate("local-completions", texts, writing())
    assert [type(sample["resps"][0][0]) for sample in samples] == [str] * 3


def test_chats_are_answered(url: str) -> None:
    arguments = {"model": "tiny", "base_url": f"{url}/chat/completions"}
    samples = evaluate("local-chat-completions", arguments, writing(), apply_chat_template=True)
    assert all(sample["resps"][0][0] for sample in samples)
