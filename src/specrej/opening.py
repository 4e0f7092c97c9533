"""What a user opens: a model, an engine and a reward, by name or as objects. The one place that
lists the options.

opening = Opening(model="smollm2", reward="relevance", weights="fp32")
engine, reward = opening.open()
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from specrej.engines import opening
from specrej.engines.base import Engine, as_engine
from specrej.errors import UsageError
from specrej.options import option, options_of
from specrej.rewards import as_reward
from specrej.rewards.base import Reward
from specrej.search.resolving import needed_sampling
from specrej.settings import Settings

Model = str | Path | Engine
RewardSpec = str | Path | Reward | Callable[[str, list[str]], Sequence[float]]


class OpeningOptions(TypedDict, total=False):
    """The keyword arguments about what is opened; `Opening` has the defaults."""

    model: Model
    reward: RewardSpec
    reward_memory: str | int | None
    engine: str | Engine
    engine_args: Mapping[str, Any] | None
    weights: str | None
    device: str | None
    special_tokens: str


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What is opened, and how. Nothing is, before `open` is called.

    Attributes:
        model: a default model's name, a Hugging Face id, a directory, or an engine that is open.
        reward: a name ("relevance", "logprob"), a classifier's id or directory, "module:function",
            a callable over (prompt, texts), or a `Reward`.
        reward_memory: KV that a classifier may hold for the prompt, such as "256MiB"; by default 1
            GiB on a CPU, a tenth of a GPU's free memory.
        engine: "torch" (ours), "vllm", "openvino", "openai:URL" (a server; "openai:URL#NAME" where
            it serves several models), "auto" (what is the fastest of those installed), a name that
            a package adds, or an engine.
        engine_args: handed on to what the engine stands for, such as {"tensor_parallel_size": 4} to
            vLLM.
        weights: "fp16" (default) or "fp32" (exact): how a CPU holds the weights of the torch
            engine.
        device: a torch device, such as "cuda:0"; by default the first GPU, else the CPU. Of the
            torch engine.
        special_tokens: "text" or "allow": whether messages that spell special tokens are text, or
            these tokens.
    """

    model: Model = option(
        "smollm2",
        "A default model, a Hugging Face id, or a directory (safetensors, or one GGUF file).",
        metavar="MODEL",
    )
    reward: RewardSpec = option(
        "relevance",
        "relevance, logprob, classifier:MODEL, ensemble:A*0.7+B*0.3, math:ANSWER, judge:URL#MODEL, "
        "http:URL, module:function and more.",
        metavar="REWARD",
    )
    reward_memory: str | int | None = option(
        None,
        "KV that a reward model may hold for a prompt.",
        metavar="SIZE",
        unset="1GiB on a CPU, 10% of a GPU's free memory",
    )
    engine: str | Engine = option(
        "torch",
        "torch, vllm, openvino, openai:URL (a server), or auto: the fastest that is installed.",
        metavar="ENGINE",
    )
    engine_args: Mapping[str, Any] | None = option(
        None,
        'A JSON object that is handed on to the engine, such as {"tensor_parallel_size": 4} to '
        "vLLM.",
        metavar="JSON",
    )
    weights: str | None = option(
        None,
        "How a CPU holds the weights: fp16 (half the bytes, sums in float32) or fp32 (exact).",
        metavar="fp16|fp32",
        unset="fp16",
    )
    device: str | None = option(
        None, "A torch device.", metavar="DEVICE", unset="the first GPU, else the CPU"
    )
    special_tokens: str = option(
        "text",
        "What becomes of messages that spell special tokens: text, or (allow) these tokens.",
        metavar="text|allow",
    )

    def open(self, runs: Iterable[Settings] = ()) -> tuple[Engine, Reward]:
        """The engine and the reward; the reward first, which is the cheaper one to be wrong about.

        Args:
            runs: settings that are known already: "auto" takes an engine that can run them all.

        Raises:
            UnknownNameError: nothing has this name.
            UsageError: something is not installed, or takes no such option, as an engine that is
                open.
            ModelError: a model cannot be opened, or is one that the engine cannot honour.
            EngineError: no server answers.
        """
        reward = self.open_reward()
        try:
            return self.open_engine(runs), reward
        except BaseException:
            self._close_reward(reward)
            raise

    def close(self, engine: Engine, reward: Reward) -> None:
        """Free what `open` opened by name; objects that were handed in are left as they are."""
        try:
            self._close_reward(reward)
        finally:
            if isinstance(self.engine, str) and isinstance(self.model, str | Path):
                engine.shutdown()

    def _close_reward(self, reward: Reward) -> None:
        if isinstance(self.reward, str | Path):
            reward.close()

    def open_reward(self) -> Reward:
        return as_reward(self.reward, self.reward_memory)

    def open_engine(self, runs: Iterable[Settings] = ()) -> Engine:
        """The engine; one that is open is returned as it is. `runs` as for `open`."""
        if not isinstance(self.engine, str):
            return self._handed_in("engine", self.engine)
        if not isinstance(self.model, str | Path):
            return self._handed_in("model", self.model)
        return opening.open_engine(
            self.model,
            engine=self.engine,
            engine_args=self.engine_args,
            weights=self.weights,
            device=self.device,
            special_tokens=self.special_tokens,
            must_draw=map(needed_sampling, runs),
        )

    def _handed_in(self, role: str, given: Engine) -> Engine:
        """An engine that is open, which has its model, and which no option changes any more."""
        engine = as_engine(given, role)
        usual = {name: field.default for name, (field, _) in options_of(Opening).items()}
        for name in ("engine", "model", "engine_args", "weights", "device", "special_tokens"):
            if name != role and (other := getattr(self, name)) != usual[name]:
                raise UsageError(
                    f"{name} must be left out for an engine that is open already, got {other!r}",
                    hint="give it to open_engine",
                )
        return engine


def open_engine(
    model: Model = "smollm2",
    *,
    engine: str = "torch",
    engine_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    device: str | None = None,
    special_tokens: str = "text",
) -> Engine:
    """An engine for a default model's name, a Hugging Face id, or a directory; an engine is
    returned as it is.

    Args:
        model: for example "smollm2".
        engine: see `Opening`, and docs/engines.md.
        engine_args: see `Opening`.
        weights: see `Opening`.
        device: see `Opening`.
        special_tokens: see `Opening`.

    Raises:
        UnknownNameError: nothing has this name.
        UsageError: the engine is not installed, or takes no such option.
        ModelError: not a causal language model, or one that the engine cannot honour.
        EngineError: no server answers.
    """
    return Opening(
        model=model,
        engine=engine,
        engine_args=engine_args,
        weights=weights,
        device=device,
        special_tokens=special_tokens,
    ).open_engine()
