"""The Python interface: from what a user gives to a result.

    import specrej

    result = specrej.generate("Give three tips for staying healthy.", memory="64MiB", seed=1)
    print(result.text, result.reward)

    engine = specrej.open_engine("smollm2")              # opened once, used many times
    for number, outcome in specrej.generate_batch(prompts, model=engine, reward=my_reward):
        ...                                              # a result, or the error of a prompt that failed

Nothing heavy is imported before a model is opened.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from specrej.engines import opening
from specrej.engines.base import Engine
from specrej.errors import BudgetError, SpecrejError, UsageError
from specrej.memory import format_bytes, parse_bytes
from specrej.rewards import as_reward
from specrej.rewards.base import Reward
from specrej.search.algorithms import Steps, algorithm_of
from specrej.search.policies import policy_of
from specrej.search.pool import Pool
from specrej.search.scheduler import Observer, Outcome, run
from specrej.search.search import Search
from specrej.settings import Options, Settings
from specrej.types import Prompt, Result

Model = str | Path | Engine
IN_FLIGHT = 16
"""Most prompts side by side by default: beyond that, attention, prompt by prompt, takes what batches gain."""

RewardSpec = str | Path | Reward | Callable[[str, list[str]], Sequence[float]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came while candidates were being decoded. `result` is what there was by then, None if nothing."""

    def __init__(self, result: Result | None) -> None:
        super().__init__("interrupted")
        self.result = result


def unobserved(search: Search) -> None:
    """The observer of a run that nobody watches."""


def open_engine(
    model: Model,
    *,
    engine: str = "torch",
    engine_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    device: str | None = None,
    special_tokens: str = "text",
) -> Engine:
    """An engine for a default model's name, a Hugging Face id, or a directory; an engine is returned as it is.

    Args:
        model: for example "smollm2".
        engine: "torch" (ours), "vllm", "openvino", "openai:URL" (a server, "openai:URL#NAME" where it serves several
            models), or "auto": what is the fastest of those installed here. Docs: docs/engines.md.
        engine_args: handed on to what the engine stands for, such as {"tensor_parallel_size": 4} to vLLM.
        weights: "fp16" (default) or "fp32" (exact): how a CPU holds the weights of the torch engine.
        device: a torch device, such as "cuda:0"; by default the first GPU, else the CPU. Of the torch engine.
        special_tokens: "text": what messages hold is text, also where it spells special tokens; "allow": it becomes
            these.

    Raises:
        UnknownNameError: nothing has this name.
        UsageError: the engine is not installed, or takes no such option.
        ModelError: not a causal language model, or one that the engine cannot honour.
        EngineError: no server answers.
    """
    if not isinstance(model, str | Path):
        return model
    return opening.open_engine(
        model, engine=engine, engine_args=engine_args, weights=weights, device=device, special_tokens=special_tokens
    )


def generate(
    prompt: Prompt,
    *,
    model: Model = "smollm2",
    reward: RewardSpec = "relevance",
    reward_memory: str | int | None = None,
    engine: str = "torch",
    engine_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    device: str | None = None,
    special_tokens: str = "text",
    observe: Observer = unobserved,
    **options: Unpack[Options],
) -> Result:
    """Sample many answers to a prompt and return the one that the reward prefers, with all that led to it.

    Args:
        prompt: a text, or a conversation as a list of `{"role", "content"}` (see `specrej.types.as_messages`).
        model: a default model's name, a Hugging Face id, a directory, or an engine from `open_engine`.
        reward: a name ("relevance", "logprob"), a classifier's id or directory, "module:function", a callable over
            (prompt, texts), or a `Reward`.
        reward_memory: KV that a classifier may hold for the prompt, such as "256MiB"; by default 1 GiB on a CPU, a
            tenth of a GPU's free memory.
        engine: see `open_engine`.
        engine_args: see `open_engine`.
        weights: see `open_engine`.
        device: see `open_engine`.
        special_tokens: see `open_engine`.
        observe: called with the running search after each step and decision.
        options: algorithm, n, alpha, memory, max_new_tokens, seed and more: see `Settings`.

    Raises:
        UsageError: an argument that cannot be honoured; see its subclasses.
        ModelError: the model cannot be opened.
        RewardError: the reward failed.
        Interrupted: Ctrl-C; carries what was generated.
    """
    settings = Settings(**options)
    settings.check(prompt)  # a model takes long to open only to hear that the prompt is empty
    scorer = as_reward(reward, reward_memory)
    opened = open_engine(
        model, engine=engine, engine_args=engine_args, weights=weights, device=device, special_tokens=special_tokens
    )
    return run_one(opened, scorer, prompt, settings, observe)


def generate_batch(
    prompts: Iterable[Prompt],
    *,
    model: Model = "smollm2",
    reward: RewardSpec = "relevance",
    reward_memory: str | int | None = None,
    engine: str = "torch",
    engine_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    device: str | None = None,
    special_tokens: str = "text",
    total_memory: str | int | None = None,
    in_flight: int = IN_FLIGHT,
    observe: Observer = unobserved,
    **options: Unpack[Options],
) -> Iterator[tuple[int, Outcome]]:
    """Run `generate` for many prompts, several of them side by side; yield each outcome with its number as it ends.

    A prompt's result is the one it has alone: it decides against a budget of its own, the option `memory`, whatever
    runs beside it. A prompt that fails yields its error, and the others go on.

    Args:
        prompts: texts or conversations.
        model: see `generate`.
        reward: see `generate`.
        reward_memory: see `generate`.
        engine: see `open_engine`.
        engine_args: see `open_engine`.
        weights: see `open_engine`.
        device: see `open_engine`.
        special_tokens: see `open_engine`.
        total_memory: KV of all prompts in flight together: it decides how many run side by side, and no result. By
            default the option `memory` where it is given, else the engine's choice: room for eight default budgets on
            a CPU, 80% of a GPU's free memory.
        in_flight: most prompts that run side by side.
        observe: see `generate`.
        options: see `Settings`; the same for all prompts.

    Raises:
        UsageError: an argument that cannot be honoured.
    """
    settings = Settings(**options)
    if in_flight < 1:
        raise UsageError(f"in_flight must be at least 1, got {in_flight}")
    if total_memory is not None:
        parse_bytes(total_memory)
    scorer = as_reward(reward, reward_memory)
    opened = open_engine(
        model, engine=engine, engine_args=engine_args, weights=weights, device=device, special_tokens=special_tokens
    )
    pool = open_pool(opened, settings, total_memory)
    requests = ((prompt, settings) for prompt in prompts)
    return run_many(opened, scorer, requests, pool=pool, in_flight=in_flight, observe=observe)


def compare(
    prompt: Prompt,
    *,
    model: Model = "smollm2",
    reward: RewardSpec = "relevance",
    reward_memory: str | int | None = None,
    engine: str = "torch",
    engine_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    device: str | None = None,
    special_tokens: str = "text",
    observe: Observer = unobserved,
    **options: Unpack[Options],
) -> dict[str, Result]:
    """Speculative Rejection beside two Best-of-Ns, on one engine, in the same memory, with the same seed.

    Returns:
        By name: "best_of_n" with the n that the memory carries at full length, "speculative_rejection", and
        "best_of_n_same_start" with the n that Speculative Rejection started with (in waves, where memory asks for it).

    Raises:
        As `generate`.
    """
    if "algorithm" in options:
        raise UsageError("compare runs both algorithms; it takes no 'algorithm'")
    settings = Settings(**options)
    settings.check(prompt)
    scorer = as_reward(reward, reward_memory)
    opened = open_engine(
        model, engine=engine, engine_args=engine_args, weights=weights, device=device, special_tokens=special_tokens
    )

    def result_of(algorithm: str, n: int | str, memory: str | int | None) -> Result:
        own = replace(settings, algorithm=algorithm, n=n, memory=memory)
        return run_one(opened, scorer, prompt, own, observe)

    small = result_of("best_of_n", "auto", settings.memory)
    memory = small.settings["memory_bytes"]  # a default depends on what is free: ask for it once
    rejection = result_of("speculative_rejection", settings.n, memory)
    large = result_of("best_of_n", len(rejection.candidates), memory)
    return {"best_of_n": small, "speculative_rejection": rejection, "best_of_n_same_start": large}


def open_pool(engine: Engine, settings: Settings, total_memory: str | int | None) -> Pool:
    """The memory that prompts in flight share: as given, else that of one prompt where given, else the engine's choice.

    Raises:
        UsageError: not an amount of memory, or more than the engine holds.
    """
    if total_memory is None:
        return Pool(settings.memory_bytes or engine.default_total(settings.max_new_tokens))
    total, capacity = parse_bytes(total_memory), engine.capacity_bytes
    if capacity is not None and total > capacity:
        raise BudgetError(
            f"a total_memory of {total_memory} is more than the {format_bytes(capacity)} of KV that the engine holds",
            hint="leave it out, or open the engine with a larger KV cache",
        )
    return Pool(total)


def run_many(
    engine: Engine,
    reward: Reward,
    requests: Iterable[tuple[Prompt, Settings]],
    *,
    pool: Pool,
    in_flight: int = IN_FLIGHT,
    observe: Observer = unobserved,
) -> Iterator[tuple[int, Outcome]]:
    """`generate_batch` with everything opened, and settings for each prompt.

    Requests are taken one by one, when there is room for them; closing the iterator frees what is in flight.
    """
    makers = (
        (lambda prompt=prompt, settings=settings: prepare(engine, reward, prompt, settings, pool.total_bytes))
        for prompt, settings in requests
    )
    return run(engine, makers, pool=pool, in_flight=in_flight, observe=observe)


def prepare(
    engine: Engine, reward: Reward, prompt: Prompt, settings: Settings, total_bytes: int | None = None
) -> tuple[Search, Steps]:
    """A search for the scheduler, with the algorithm that drives it; total_bytes is what it shares with others.

    Raises:
        PromptError: the prompt is none, or is not to be answered as it ends.
    """
    settings.check(prompt)
    search = Search(engine, reward, prompt, settings.sampling, settings.memory_bytes, settings.to_dict(), total_bytes)
    return search, algorithm_of(settings)(search, settings.num_candidates, policy_of(settings))


def run_one(engine: Engine, reward: Reward, prompt: Prompt, settings: Settings, observe: Observer) -> Result:
    """`generate` with everything opened and checked.

    Raises:
        SpecrejError: the prompt or the run failed.
        Interrupted: Ctrl-C; carries what was generated.
    """
    search, steps = prepare(engine, reward, prompt, settings)
    try:
        _, outcome = next(run(engine, [lambda: (search, steps)], pool=Pool(search.budget_bytes), observe=observe))
    except KeyboardInterrupt as interrupt:
        raise Interrupted(search.result() if search.candidates else None) from interrupt
    if isinstance(outcome, SpecrejError):
        raise outcome
    return outcome
