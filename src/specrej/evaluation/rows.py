"""What a bench writes, in JSON's types: the contract between the runs and all that reads them.

    DIR/run.json         one `RunInfo`: what was run, on what, with which versions
    DIR/results.jsonl    one `BenchRow` a (prompt, method), as they ended

Types only. `folder` writes and reads them.
"""

from typing import Literal, NotRequired, TypedDict

from specrej.flops import FlopsRow
from specrej.types import Cause, FinishReason, Reuse, State


class DecisionRow(TypedDict):
    """See `specrej.types.Decision`."""

    cause: Cause
    num_tokens: int
    scored: list[int]
    rejected: list[int]
    cut: float | None
    kv_bytes: int
    kv_bytes_after: int


class CandidateRow(TypedDict):
    """A candidate without its tokens."""

    index: int
    num_tokens: int
    state: State
    finish_reason: FinishReason | None
    perplexity: float | None
    rewards: dict[str, float]
    """Reward by the index of the decision that gave it, oldest first; the last one is its
    reward."""
    parent: NotRequired[int]
    """Of a fork: whose copy it began as."""
    num_inherited: NotRequired[int]
    """Of a fork: the tokens that it began with."""


class UsageRow(TypedDict):
    """See `specrej.types.Usage`."""

    prompt_tokens: int
    generated_tokens: int
    reward_tokens: int
    prefill_s: float
    decode_s: float
    reward_s: float
    other_s: float
    total_s: float
    peak_kv_bytes: int
    num_steps: int
    shared_prompt_tokens: NotRequired[int]
    """Older runs lack this one and those below."""
    reward_reuse: NotRequired[Reuse]
    reward_kv_bytes: NotRequired[int]
    reward_comparisons: NotRequired[int]
    unused_tokens: NotRequired[int]
    reread_tokens: NotRequired[int]
    num_preemptions: NotRequired[int]


class TurnRow(TypedDict):
    """One question of a conversation and the answer that was chosen."""

    messages: list[dict[str, str]]
    """The conversation that the answers follow, the chosen answers of earlier turns included."""
    text: str
    reward: float
    perplexity: float | None
    lowest_text: str
    """The complete candidate of the lowest reward, the chosen one where it is alone."""
    lowest_reward: float
    candidates: list[CandidateRow]
    decisions: list[DecisionRow]
    usage: UsageRow
    flops: FlopsRow
    memory_bytes: int
    """The KV budget."""
    best: NotRequired[int]
    """The candidate that was chosen; in older runs it is the complete one of highest reward."""

    is_right: NotRequired[bool | None]
    """Where the prompt says what is right; None where that cannot be checked."""


class FailureRow(TypedDict):
    """Why a (prompt, method) has no answer."""

    kind: str
    message: str


class BenchRow(TypedDict):
    """One method on one prompt."""

    prompt_id: str
    category: str | None
    method: str
    """As given, such as "best_of_n:8" or "speculative_rejection:0.5"."""
    place: int
    """How many methods ran on this prompt before it."""
    seed: NotRequired[int]
    """Of all its turns: with it `specrej generate` draws the same. See `Loaded.seeds`; older runs
    lack it, and used the run's."""
    turns: list[TurnRow]
    """Those that came to their end: all of them where `error` is None."""
    error: FailureRow | None


class PromptsInfo(TypedDict):
    """Where the prompts came from."""

    source: str
    sha256: str
    """Of ids and messages, as they were run."""
    num_prompts: int


class RelabelledInfo(TypedDict):
    """The traces that were scored again."""

    reward: str
    """That they were recorded with."""
    created: str
    """When they were."""


class RunInfo(TypedDict):
    """What makes a run the same run: all but `created` must be equal on resuming, and methods may
    be added. A setting that an older version did not know counts as its default.
    """

    kind: Literal["bench", "trace"]
    created: str
    prompts: PromptsInfo
    methods: list[str]
    settings: dict[str, object]
    """Model, reward, seed, memory, sampling: all options but the methods' own."""
    seeds: NotRequired[Literal["one for each prompt"]]
    """They come from that of the settings; older runs, which lack this, used that one for all, and
    cannot be resumed."""
    engine: dict[str, str]
    versions: dict[str, str]
    policy_files: NotRequired[dict[str, str]]
    """See `specrej.search.calibrated.fingerprints`."""
    temperatures: NotRequired[dict[str, float]]
    """By category of the prompt, in place of that of the settings."""
    relabelled: NotRequired[RelabelledInfo]
    """Of traces that hold another reward than they were recorded with."""
