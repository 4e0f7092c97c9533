"""The Python interface: from what a user gives to a result.

    import specrej

    result = specrej.generate("Give three tips for staying healthy.", memory="64MiB", seed=1)
    print(result.text, result.reward)

    with specrej.Session(model="smollm2", reward="relevance") as session:   # opened once
        results = session.generate_batch(["Name a fruit.", "Name a tree."], max_new_tokens=64)

Nothing heavy is imported before a model is opened.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple, Unpack

from specrej.arguments import (
    RunOptions,
    check_compared,
    check_prompts,
    check_sharing,
    read_options,
)
from specrej.engines.base import Engine
from specrej.engines.reading import with_text
from specrej.errors import BudgetError, SpecrejError, UsageError, contained
from specrej.memory import format_bytes, parse_bytes
from specrej.rewards.base import Reward, check_absolute, is_relative
from specrej.search.algorithms import Steps
from specrej.search.budget import Total
from specrej.search.calibrated import mismatches
from specrej.search.events import Observer, Watcher
from specrej.search.notes import noted
from specrej.search.pool import Pool
from specrej.search.resolving import (
    check_rewards,
    policy_of,
    sampling_of,
    steps_of,
    unused_note,
)
from specrej.search.scheduler import Maker, Outcome, Watch, as_outcome, run
from specrej.search.search import Search
from specrej.settings import Settings
from specrej.types import RELATIVE_NOTE, Candidate, Policy, Prompt, Result

IN_FLIGHT = 16
"""Most prompts side by side by default: beyond that, attention, prompt by prompt, takes what
batches gain."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came while candidates were being decoded.

    Attributes:
        result: what there was by then, None if nothing.
        results: of `compare`: by method, what was done and what was begun.
    """

    def __init__(self, result: Result | None, results: dict[str, Result] | None = None) -> None:
        super().__init__("interrupted")
        self.result = result
        self.results = results or {}


class RunRequest(NamedTuple):
    """One prompt of many."""

    prompt: Prompt
    settings: Settings
    num_skipped: int = 0
    """Candidates that another run has drawn. It gets those that a larger n would have drawn after
    them; the skipped ones count as rejected, without a token."""


def unobserved(search: Search) -> None:
    """Watches a run for nobody."""


def generate(
    prompt: Prompt,
    *,
    settings: Settings | None = None,
    observe: Observer | None = None,
    **options: Unpack[RunOptions],
) -> Result:
    """Sample many answers to a prompt and return the one that the reward prefers, with all that led
    to it.

    Args:
        prompt: a text, or a conversation as a list of `{"role", "content"}` (see
            `specrej.messages.as_messages`).
        settings: how answers are sampled and chosen; single options may be given beside it and go
            before it.
        observe: called with each of the run's events: see `specrej.search.events`.
        options: what is opened (model, reward, engine, ...): see `specrej.Opening`; algorithm, n,
            alpha, memory, max_new_tokens, seed and more: see `specrej.Settings`.

    Raises:
        UsageError: an argument that cannot be honoured; see its subclasses.
        ModelError: the model cannot be opened.
        RewardError: the reward failed.
        Interrupted: Ctrl-C; carries what was generated.
    """
    opening, asked = read_options(options, settings)
    asked.check(prompt)  # a model takes long to open only to hear that the prompt is empty
    engine, reward = opening.open([asked])
    try:
        return run_observed(engine, reward, prompt, asked, observe)
    finally:
        opening.close(engine, reward)


def generate_batch(
    prompts: Iterable[Prompt],
    *,
    settings: Settings | None = None,
    total_memory: str | int | None = None,
    in_flight: int = IN_FLIGHT,
    observe: Observer | None = None,
    **options: Unpack[RunOptions],
) -> Iterator[tuple[int, Outcome]]:
    """Run `generate` for many prompts, several of them side by side; yield each outcome with its
    number as it ends.

    A prompt's result is the one it has alone: it decides against a budget of its own, the option
    `memory`, whatever runs beside it. A prompt that fails yields its error, and the others go on.

    Args:
        prompts: texts or conversations.
        settings: see `generate`.
        total_memory: KV of all prompts in flight together: it decides how many run side by side,
            and no result. By default the option `memory` where it is given, else the engine's
            choice: room for eight default budgets on a CPU, 80% of a GPU's free memory; and then as
            much as the largest prompt may hold.
        in_flight: most prompts that run side by side.
        observe: see `generate`; an event says by its number which prompt it is of.
        options: see `generate`; the same for all prompts.

    Raises:
        UsageError: an argument that cannot be honoured.
    """
    check_prompts(prompts)
    opening, asked = read_options(options, settings)
    check_sharing(total_memory, in_flight)
    engine, reward = opening.open([asked])
    policy_note(engine, reward, asked)
    pool = open_pool(engine, asked, total_memory)
    requests = (RunRequest(prompt, asked) for prompt in prompts)
    return run_many(engine, reward, requests, pool=pool, in_flight=in_flight, observe=observe)


def compare(
    prompt: Prompt,
    *,
    settings: Settings | None = None,
    observe: Observer | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Result]:
    """Speculative Rejection beside two Best-of-Ns, on one engine, in the same memory, with the same
    seed.

    Returns:
        By name: "best_of_n" with the n that the memory carries at full length,
        "speculative_rejection", and "best_of_n_same_start" with the n that Speculative Rejection
        started with (in waves, where memory asks for it).

    Raises:
        SpecrejError: as `generate`.
    """
    check_compared(options)
    opening, asked = read_options(options, settings)
    asked.check(prompt)
    engine, reward = opening.open([asked])
    try:
        return run_three(engine, reward, prompt, asked, observe)
    finally:
        opening.close(engine, reward)


def open_pool(engine: Engine, settings: Settings, total_memory: str | int | None) -> Pool:
    """The memory that prompts in flight share: as given, else that of one prompt where given, else
    the engine's choice. If it is not given, it grows to what the largest prompt may hold.

    Raises:
        UsageError: not an amount of memory, or more than the engine holds.
    """
    if total_memory is None:
        return Pool(
            settings.memory_bytes or engine.default_total(settings.max_new_tokens), grows=True
        )
    total, capacity = parse_bytes(total_memory, "total_memory"), engine.capacity_bytes
    if capacity is not None and total > capacity:
        raise BudgetError(
            f"a total_memory of {total_memory} is more than the {format_bytes(capacity)} of KV "
            "that the engine holds",
            hint="leave it out, or open the engine with a larger KV cache",
        )
    return Pool(total)


def run_one(
    engine: Engine,
    reward: Reward,
    prompt: Prompt,
    settings: Settings,
    *,
    watch: Watch = unobserved,
    number: int = 0,
) -> Result:
    """`generate` with everything opened and checked.

    Args:
        engine: decodes.
        reward: scores.
        prompt: to answer.
        settings: how.
        watch: called with the search after each step and decision.
        number: of the prompt, for its events.

    Raises:
        SpecrejError: the prompt or the run failed.
        Interrupted: Ctrl-C; carries what was generated.
    """
    try:
        search, steps = prepare(engine, reward, prompt, settings, number=number)
    except SpecrejError:
        raise
    except Exception as error:
        raise as_outcome(error) from error
    try:
        _, outcome = next(
            run(engine, [lambda: (search, steps)], pool=Pool(search.budget_bytes), observe=watch)
        )
    except KeyboardInterrupt as interrupt:
        raise Interrupted(search.result() if search.candidates else None) from interrupt
    if isinstance(outcome, SpecrejError):
        raise outcome
    return outcome


def run_observed(
    engine: Engine,
    reward: Reward,
    prompt: Prompt,
    settings: Settings,
    observe: Observer | None,
    number: int = 0,
) -> Result:
    """`run_one` with its events."""
    watcher = Watcher(observe)
    try:
        outcome: Outcome = run_one(engine, reward, prompt, settings, watch=watcher, number=number)
    except SpecrejError as error:
        outcome = error
    outcome = watcher.end(number, outcome)
    if isinstance(outcome, SpecrejError):
        raise outcome
    return outcome


def run_three(
    engine: Engine, reward: Reward, prompt: Prompt, settings: Settings, observe: Observer | None
) -> dict[str, Result]:
    """`compare` with everything opened and checked; its runs are prompts 0, 1 and 2 of the events.

    Raises:
        UsageError: rewards are relative: those of two runs cannot be compared.
        SpecrejError: a run failed.
        Interrupted: Ctrl-C; carries the runs that there are, the last of them unfinished.
    """
    check_absolute(reward, "to compare methods")
    results: dict[str, Result] = {}

    def add(method: str, algorithm: str, n: int | str, memory: str | int | None) -> Result:
        # A policy says how many begin, and Best-of-N has its own number.
        policy = settings.policy if algorithm == "speculative_rejection" else None
        own = replace(settings, algorithm=algorithm, n=n, memory=memory, policy=policy)
        try:
            results[method] = run_observed(engine, reward, prompt, own, observe, len(results))
        except Interrupted as interrupt:
            begun = {} if interrupt.result is None else {method: interrupt.result}
            raise Interrupted(interrupt.result, {**results, **begun}) from interrupt
        return results[method]

    small = add("best_of_n", "best_of_n", "auto", settings.memory)
    memory = small.settings["memory_bytes"]  # a default depends on what is free: ask for it once
    rejection = add("speculative_rejection", "speculative_rejection", settings.n, memory)
    add("best_of_n_same_start", "best_of_n", len(rejection.candidates), memory)
    return results


def run_many(
    engine: Engine,
    reward: Reward,
    requests: Iterable[RunRequest],
    *,
    pool: Pool,
    in_flight: int = IN_FLIGHT,
    observe: Observer | None = None,
) -> Generator[tuple[int, Outcome], None, None]:
    """`generate_batch` with everything opened, and settings for each prompt.

    Requests are taken one by one, when there is room for them; closing the iterator frees what is
    in flight.
    """
    watcher = Watcher(observe)
    makers = (
        maker_of(engine, reward, asked, pool, number) for number, asked in enumerate(requests)
    )
    for number, outcome in run(engine, makers, pool=pool, in_flight=in_flight, observe=watcher):
        yield number, watcher.end(number, outcome)


def maker_of(engine: Engine, reward: Reward, asked: RunRequest, pool: Pool, number: int) -> Maker:
    """Makes the search of a prompt when its turn has come."""
    prompt, settings, num_skipped = asked
    return lambda: prepare(engine, reward, prompt, settings, pool.total, number, num_skipped)


def prepare(
    engine: Engine,
    reward: Reward,
    prompt: Prompt,
    settings: Settings,
    total: Total | None = None,
    number: int = 0,
    num_skipped: int = 0,
) -> tuple[Search, Steps]:
    """A search for the scheduler, with the algorithm that drives it; `total` is what it shares
    with others. For num_skipped see `RunRequest`.

    Raises:
        PromptError: the prompt is none, or is not to be answered as it ends.
        SamplingError: the engine cannot draw tokens as the settings say.
        UsageError: the algorithm or the policy cannot go by rewards that are relative.
    """
    settings.check(prompt)
    prompt = with_text(engine, prompt)
    with contained("the policy"):
        policy = policy_of(settings)
    num_candidates = _num_candidates(policy, settings)
    notes = [_note_of(policy, engine, reward, settings), unused_note(settings)]
    search = Search(
        engine,
        reward,
        prompt,
        sampling_of(settings, engine, prompt),
        settings.memory_bytes,
        settings.to_dict()
        | noted([note for note in notes if note])
        | ({"has_relative_rewards": True} if is_relative(reward) else {}),
        total,
    )
    search.number = number
    search.candidates += [Candidate(i, state="rejected") for i in range(num_skipped)]
    with contained("the algorithm"):
        return search, steps_of(settings, search, num_candidates, policy)


def policy_note(engine: Engine, reward: Reward, settings: Settings) -> str | None:
    """What is to be known of the settings' policy before many prompts run by it: see the `note` of
    a result.

    Raises:
        UsageError: there is something, and the settings are strict; or the algorithm or the policy
            cannot go by such rewards.
    """
    return _note_of(policy_of(settings), engine, reward, settings)


def _num_candidates(policy: Policy, settings: Settings) -> int | None:
    """Those to begin with; None leaves it to the memory."""
    return policy.n if settings.n == "auto" else settings.num_candidates


def _note_of(policy: Policy, engine: Engine, reward: Reward, settings: Settings) -> str | None:
    """What a result says of rewards that are relative, or of a policy that was calibrated for
    something else than is here.
    """
    check_rewards(settings, policy, reward)
    if is_relative(reward):
        return RELATIVE_NOTE
    asked = settings.to_dict()
    n = _num_candidates(policy, settings)
    here = {**asked, "n": n, **engine.describe(), "reward": reward.name}
    differing = mismatches(policy.recorded, here)
    if not differing:
        return None
    words = f"the policy {asked['policy']!r} was calibrated for {'; '.join(differing)}"
    if settings.strict:
        raise UsageError(words, hint="calibrate one for this, or do not ask for strict")
    return f"{words}: what it promises does not hold"
