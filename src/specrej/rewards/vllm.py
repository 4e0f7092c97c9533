"""A reward model on vLLM's pooling runner, in this process: a sequence classifier of those that
vLLM supports.

    VllmClassifierReward("org/reward-model")                                    # one output
    VllmClassifierReward("org/reward-model", label="helpful", partial="open")
    VllmClassifierReward("org/reward-model", engine_args={"gpu_memory_utilization": 0.3})

    vllm:MODEL#LABEL?partial=open&memory=2GiB&engine_args={"tensor_parallel_size": 2}

The same conversations and the same raw logits as `classifier` gives: vLLM's default activation
would saturate them. What was read at one decision is found in vLLM's prefix cache at the next, in
full blocks, where the model pools the last token; what was read nevertheless is counted. On one GPU
beside a generator on vLLM, both need a share of its memory: `gpu_memory_utilization` in the engine
arguments of each.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specrej.engines.vllm_process import (
    check_arguments,
    defaults,
    end,
    hold,
    import_vllm,
    kv_bytes_per_token,
    quiet,
)
from specrej.errors import ModelError, UsageError
from specrej.flops import flops_of_config
from specrej.hub.sources import first_line, load_codec
from specrej.rewards.base import StatelessSession
from specrej.rewards.conversations import (
    ConversationReader,
    Partial,
    check_options,
    name_of,
    until_pooled,
)
from specrej.rewards.labels import choose_outputs, weigh
from specrej.rewards.pretrained import naming
from specrej.rewards.spec import parse_model
from specrej.rewards.together import alone, score_jointly
from specrej.types import Candidate, Message, Reuse

_OURS = {
    "model": "it is the model",
    "runner": "a reward model pools",
    "kv_cache_memory_bytes": "it is `memory`",
    "max_model_len": "it is `max_tokens`",
}
_CPU_KV_BYTES = 2**30


class VllmClassifierReward:
    """Scores conversations with a sequence classifier in vLLM.

    Attributes:
        name: `vllm:MODEL` with `#LABEL` and `?partial=open` where they are given, as `as_reward`
            reads it.
        flops_per_token: of its linear layers, as if each read every token once; None where
            transformers does not know the architecture.
        weights: of the logits whose sum is the score, by their numbers.
        max_tokens: tokens of a conversation that are read; a longer one loses the end of its
            answer.
        memory_bytes: of vLLM's KV cache, which all prompts share and which is there as a whole.
        reuse: "answers" where vLLM's prefix cache serves this model, else "none".
    """

    def __init__(
        self,
        model: str | Path,
        *,
        label: str | int | None = None,
        max_tokens: int | None = None,
        partial: Partial = "closed",
        memory_bytes: int | None = None,
        engine_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the model.

        Args:
            model: a Hugging Face id or a local directory, with a tokenizer that has a chat
                template.
            label: see `ClassifierReward`.
            max_tokens: by default what the model can take; vLLM needs KV for a conversation of that
                length.
            partial: see `ClassifierReward`.
            memory_bytes: of vLLM's KV cache. By default 1 GiB on a CPU, and on a GPU what is left
                of the share `gpu_memory_utilization` beside the weights.
            engine_args: other arguments of vLLM's `EngineArgs`.

        Raises:
            UsageError: vLLM is not installed, or in another version; it takes no such argument;
                several outputs and no label, a size below 1, or a tokenizer without a chat
                template.
            ModelError: vLLM cannot open the model, or it is no sequence classifier.
            UnknownNameError: the model has no such label, or `partial` is neither.
        """
        check_options(partial, memory_bytes, max_tokens=max_tokens)
        source, arguments = str(model), engine_args or {}
        import_vllm()
        check_arguments(arguments, _OURS)
        given = {**defaults(_CPU_KV_BYTES), **arguments}
        if memory_bytes is not None:
            given["kv_cache_memory_bytes"] = memory_bytes
        self._llm = _open(source, {**given, "max_model_len": max_tokens})
        try:
            self._describe(source, label, partial)
        except BaseException:
            self.close()
            raise

    def _describe(self, source: str, label: str | int | None, partial: Partial) -> None:
        """What is known of the model now that it is open, and how it reads conversations."""
        config = self._llm.llm_engine.vllm_config
        hf_config = config.model_config.hf_config
        self.weights = choose_outputs(source, hf_config.id2label, label)
        self.max_tokens: int = config.model_config.max_model_len
        self.name = name_of("vllm", source, label, partial)
        num_tokens = (config.cache_config.num_gpu_blocks or 0) * config.cache_config.block_size
        self.memory_bytes: int = num_tokens * kv_bytes_per_token(config)
        self.reuse: Reuse = "answers" if config.cache_config.enable_prefix_caching else "none"
        flops = flops_of_config(config.model_config.hf_text_config, self.max_tokens)
        self.flops_per_token: float | None = None if flops is None else flops.linear
        self._pad_token_id: int | None = config.model_config.hf_text_config.pad_token_id
        self._reader = ConversationReader(
            self.name, load_codec(source).tokenizer, self.max_tokens, partial
        )
        if not self._reader.has_template:
            raise UsageError(
                f"the tokenizer of {source!r} has no chat template: on vLLM it is not known how it "
                "reads conversations",
                hint=f"give it as classifier:{source}, which reads pairs of question and answer",
            )

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        """Begin with a prompt; vLLM reads it with the first answer.

        Raises:
            PromptError: the prompt alone is longer than what the model reads, so that no answer
                would be seen.
            RewardError: the chat template refuses the conversation, or does not show where an open
                answer ends.
        """
        self._reader.shortest(messages)
        return StatelessSession(
            messages, alone(self._score_pairs), reuse=self.reuse, peak_kv_bytes=self.memory_bytes
        )

    def close(self) -> None:
        """See `vllm_process.end`."""
        llm, self._llm = self._llm, None
        if llm is not None:
            end(llm.llm_engine)

    def score_together(
        self, asked: Sequence[tuple[StatelessSession, Sequence[Candidate]]]
    ) -> Sequence[Sequence[float]]:
        """Answers to several prompts in one call: vLLM makes the batches."""
        return score_jointly(asked, self._score_pairs)

    def _score_pairs(
        self, pairs: Sequence[tuple[Sequence[Message], Candidate]]
    ) -> tuple[Sequence[float], Sequence[int]]:
        from vllm import PoolingParams

        rows = [
            until_pooled(row["input_ids"], self._pad_token_id)
            for row in self._reader.rows_of_prompts(pairs)
        ]
        with naming(self.name, [candidate.index for _, candidate in pairs]):
            outputs = self._llm.classify(
                [{"prompt_token_ids": row} for row in rows],
                pooling_params=PoolingParams(use_activation=False),
                use_tqdm=False,
            )
        scores = [weigh(output.outputs.probs, self.weights) for output in outputs]
        return scores, [
            len(row) - (output.num_cached_tokens or 0)
            for row, output in zip(rows, outputs, strict=True)
        ]


def _open(source: str, arguments: Mapping[str, Any]) -> Any:
    from vllm import LLM

    try:
        with quiet():
            llm = LLM(model=source, runner="pooling", **arguments)
            hold(llm.llm_engine)
            tasks = llm.supported_tasks
    except Exception as error:  # whatever vLLM, torch or a broken file says
        raise ModelError(
            f"vLLM cannot open the reward model {source!r}: {first_line(error)}",
            hint="see its supported pooling models and engine arguments; more is in its log: "
            "VLLM_LOGGING_LEVEL=INFO",
        ) from error
    if "classify" not in tasks:
        end(llm.llm_engine)
        raise ModelError(
            f"{source!r} is no sequence classifier to vLLM: it serves {', '.join(sorted(tasks))}",
            hint="a language model has no reward head: give a checkpoint trained for sequence "
            "classification",
        )
    return llm


def parse_vllm(argument: str = "", memory: str | int | None = None) -> VllmClassifierReward:
    """The reward of `vllm:MODEL#LABEL?option=value&...`; options are `partial`, `memory`,
    `max_tokens`, `engine_args`.

    Args:
        argument: what follows the name.
        memory: of the KV cache, such as "2GiB"; it goes before the option.

    Raises:
        UsageError: no model, or an option that is not known; see also `VllmClassifierReward`.
    """
    model, options = parse_model("vllm", argument, _OPTIONS, memory)
    return VllmClassifierReward(model, **options)


def _parse_arguments(text: str) -> dict[str, Any]:
    arguments = json.loads(text)
    if not isinstance(arguments, dict):
        raise ValueError("give a JSON object")
    return arguments


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "partial": str,
    "max_tokens": int,
    "engine_args": _parse_arguments,
}
