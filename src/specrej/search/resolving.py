"""The algorithm and the policy that settings name.

steps_of(Settings(), search, 16, policy)    # the algorithm at work on a search
algorithm_of(Settings(algorithm="best_of_n"))
policy_of(Settings(alpha=0.5, decide="every:32"))    # from a command line's words
policy_of(Settings(policy="policy.json"))            # from `specrej calibrate`
sampling_of(Settings(algorithm="deepconf"), engine, prompt)  # with what it reads of the engine
needed_sampling(Settings(algorithm="deepconf"))      # the same before there is an engine
unused(Settings(algorithm="best_of_n", window=8))    # ["window"]
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from specrej.constraint import ThoughtLimit
from specrej.engines.base import Engine
from specrej.errors import SamplingError, SpecrejError, UsageError, named
from specrej.hub.thinking import Thinking
from specrej.options import options_of
from specrej.policy import parse_decide
from specrej.registry import find
from specrej.rewards.base import Reward, check_absolute
from specrej.search.algorithms import Steps
from specrej.search.calibrated import read_policy
from specrej.search.checks import checked_steps, engine_at_work
from specrej.search.policies import at, every, fraction, never, top
from specrej.search.view import SearchView
from specrej.settings import Settings
from specrej.types import Policy, Prompt, SamplingParams, Schedule

Algorithm = Callable[..., Steps]
"""Of (search, n, policy). Parameters that can only be given by name get the settings of these
names."""


def algorithm_of(settings: Settings) -> Algorithm:
    """The algorithm that settings name.

    Raises:
        UnknownNameError: nothing has this name.
        UsageError: what the name stands for is no function.
    """
    given = settings.algorithm
    found = find("algorithm", given) if isinstance(given, str) else given
    if not callable(found):
        raise UsageError(
            f"algorithm must be a function; {given!r} is {found!r}",
            hint="docs/extending.md has an example",
        )
    algorithm: Algorithm = found
    return algorithm


def steps_of(settings: Settings, search: SearchView, n: int | None, policy: Policy) -> Steps:
    """The algorithm that settings name, at work on a search.

    Raises:
        UnknownNameError: nothing has this name.
        UsageError: what the name stands for is no algorithm. Also while it works, where it gives
            what is none of an algorithm's.
    """
    algorithm, name = algorithm_of(settings), settings.to_dict()["algorithm"]
    try:
        steps = algorithm(search, n, policy, **_asked_for(algorithm, settings))
    except SpecrejError:
        raise
    except Exception as error:
        raise UsageError(
            f"the algorithm {name!r} cannot begin, called with (search, n, policy): {named(error)}",
            hint="an algorithm is a generator function of these three: docs/extending.md has one",
        ) from error
    return checked_steps(name, steps)


def _asked_for(algorithm: Algorithm, settings: Settings) -> dict[str, Any]:
    """The settings that an algorithm's keyword-only parameters name."""
    return {
        name: getattr(settings, name)
        for name, parameter in inspect.signature(algorithm).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name in options_of(Settings)
    }


_OF_POLICIES = ("alpha", "keep", "decide", "min_tokens")
_OF_ALGORITHMS = ("refill", "extract", "threshold", "window", "warm_up")


def unused(settings: Settings) -> list[str]:
    """The names of options that say how answers are chosen, are not what they are by default, and
    are not read by the algorithm.
    """
    algorithm, usual = algorithm_of(settings), Settings()
    read = set(_asked_for(algorithm, settings))
    if not getattr(algorithm, "ignores_policy", False):
        read.update(_OF_POLICIES)
    return [
        name
        for name in (*_OF_POLICIES, *_OF_ALGORITHMS)
        if name not in read and getattr(settings, name) != getattr(usual, name)
    ]


def unused_note(settings: Settings) -> str | None:
    """What a result says of options that its algorithm does not use; None where it uses all."""
    named, names = settings.to_dict(), unused(settings)
    given = ", ".join(f"{name} {named[name]!r}" for name in names)
    return f"the algorithm {named['algorithm']!r} does not use {given}" if names else None


def sampling_of(settings: Settings, engine: Engine, prompt: Prompt) -> SamplingParams:
    """How the engine is to draw tokens, with as many of the likeliest as the algorithm reads, and
    thoughts as long as they may be.

    Raises:
        SamplingError: the engine cannot draw them so; names the algorithm where it is for its sake.
            Or thoughts have a limit, and nothing tells them from answers.
    """
    sampling = settings.sampling
    if settings.max_thinking_tokens is not None:
        limit = _thought_limit(settings.max_thinking_tokens, engine, prompt)
        sampling = replace(sampling, constraint=limit)
    engine.check_sampling(sampling)
    num_read = needed_sampling(settings).top_logprobs
    if num_read <= sampling.top_logprobs:
        return sampling
    sampling = replace(sampling, top_logprobs=num_read)
    try:
        engine.check_sampling(sampling)
    except SamplingError as error:
        name = settings.to_dict()["algorithm"]
        raise SamplingError(
            f"the algorithm {name!r} reads top_logprobs: {error}", hint=error.hint
        ) from error
    return sampling


def needed_sampling(settings: Settings) -> SamplingParams:
    """How tokens are to be drawn, with as many of the likeliest as the algorithm reads. Where
    thoughts have a limit, no marks are known yet.
    """
    sampling = settings.sampling
    if settings.max_thinking_tokens is not None:
        limit = ThoughtLimit(settings.max_thinking_tokens, "", "", is_begun=False)
        sampling = replace(sampling, constraint=limit)
    num_read = getattr(algorithm_of(settings), "top_logprobs", 0)
    return replace(sampling, top_logprobs=max(num_read, sampling.top_logprobs))


def check_rewards(settings: Settings, policy: Policy, reward: Reward) -> None:
    """See that the algorithm and the policy can go by this reward's scores.

    Raises:
        UsageError: the scores are relative, and one of them compares what was not scored together.
    """
    named = settings.to_dict()
    if getattr(algorithm_of(settings), "needs_absolute_rewards", False):
        check_absolute(reward, f"the algorithm {named['algorithm']!r}")
    if policy.recorded:
        check_absolute(reward, f"the policy {named['policy']!r}, which was calibrated on scores,")


def _thought_limit(most_tokens: int, engine: Engine, prompt: Prompt) -> ThoughtLimit:
    """How long candidates may think before they answer this prompt."""
    with engine_at_work():
        thinking: Thinking | None = getattr(engine.detokenizer(prompt), "thinking", None)
    if thinking is None:
        raise SamplingError(
            f"max_thinking_tokens cannot be honoured, got {most_tokens}: nothing tells what this "
            "model thinks from what it answers",
            hint="leave it out, or take a model whose tokenizer or chat template has the marks of "
            "a thought, and a chat: docs/prompts.md has them",
        )
    return ThoughtLimit(most_tokens, thinking.opening, thinking.closing, thinking.is_begun)


def policy_of(settings: Settings) -> Policy:
    """The policy that settings describe: an object as it is, one by its name, that of a file, or
    alpha, keep and decide.

    Raises:
        UnknownNameError: no policy has this name.
        UsageError: what the name stands for is none, and makes none; or the file holds none.
    """
    given = settings.policy
    if given is None:
        decide, rejects = (
            parse_decide(settings.decide),
            settings.keep is not None or settings.alpha > 0,
        )
        first = min(decide.lengths, default=settings.min_tokens)
        rule = fraction(settings.alpha) if settings.keep is None else top(settings.keep)
        return Policy(_SCHEDULES[decide.kind](decide.lengths), rule, first if rejects else None)
    if isinstance(given, str) and given.endswith(".json"):
        return read_policy(given).to_policy()
    found = find("policy", given) if isinstance(given, str) else given
    try:
        policy = found() if callable(found) else found  # a function makes it
    except Exception as error:
        raise UsageError(
            f"the policy {given!r} cannot be made: {type(error).__name__}: {error}",
            hint="it is called without arguments",
        ) from error
    if not isinstance(policy, Policy):
        raise UsageError(
            f"policy must be a specrej.Policy, or the name of one or of what makes one; {given!r} "
            f"is {policy!r}",
            hint="docs/extending.md has an example",
        )
    return policy


_SCHEDULES: dict[str, Callable[[tuple[int, ...]], Schedule]] = {
    "budget": lambda _: never,
    "every": lambda lengths: every(lengths[0]),
    "at": at,
}
