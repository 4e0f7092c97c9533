"""How well an answer fits the question: a small cross-encoder reads both and gives one logit, about
-12 to 10.

    reward = RelevanceReward()  # the default model, pulled where the cache does not hold it
    session = reward.open([{"role": "user", "content": "Give three tips for staying healthy."}])
    session.score(candidates)                        # higher is more relevant

It measures relevance to the last message of the user, not what people prefer; earlier turns are not
read. The directory of another cross-encoder serves as well, if it holds a `model.onnx` that takes
token ids and gives `[batch, outputs]` logits, and its `tokenizer.json`; of several outputs `label`
says by number which one is the score:

    RelevanceReward("./reranker")                # relevance:./reranker
    RelevanceReward("./nli", label=1)            # relevance:./nli?label=1

The model's int8 activations are scaled over the whole tensor, so in a batch a score depends on its
neighbours and on padding: by 0.86 on 32 answers whose scores ran from -9.5 to -3.3. Hence every
answer is a run of its own, without padding, on a thread of its own: equal to the last bit whatever
else is scored, and the fastest of what we measured. Milliseconds per answer, 32 answers of 126
tokens in the mean, two cores (AVX2), onnxruntime 1.32:

    one batch of 32                    52        one by one, two threads inside      37
    batches of 8, sorted by length     32        two at a time, one thread each      27    <- this

On a CPU without 8-bit dot products (VNNI) sums may saturate; that moved these scores by up to 0.5,
so compare scores within one kind of CPU.

Of a long answer it reads the beginning only; `windows` has the reward that reads all of it.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specrej.errors import ModelError, RewardError, UsageError
from specrej.hub.contents import warn_of_parsed
from specrej.hub.defaults import locate
from specrej.messages import as_messages
from specrej.rewards.base import StatelessSession
from specrej.rewards.together import alone, score_jointly
from specrej.threads import usable_cores
from specrej.types import Candidate, Message

if TYPE_CHECKING:
    from tokenizers import Encoding

MAX_TOKENS = 512
"""Tokens of question and answer together that the model reads, its three special tokens
included."""

FLOPS_PER_TOKEN = 2.0 * 12 * (4 * 384 * 384 + 2 * 384 * 1536)
"""Of the default model: 12 layers, 384 wide, 1,536 inside; integer operations count as
floating-point ones.

Its linear layers only: attention, which grows with the length, and the last layers, which read one
token, are left out.
"""

_LOG = logging.getLogger("specrej")


class RelevanceReward:
    """Scores an answer by its relevance to the last message of the user.

    What does not fit in `MAX_TOKENS` is cut off on the right, with a warning on the logger
    `specrej`. A question gets at most half of the room, however short the answer, so that it stays
    the same while the answer grows.

    Args:
        directory: holds `model.onnx` and `tokenizer.json`; None is the default model `relevance`.
        label: number of the output that is the score; needed where there are several.

    Raises:
        ModelError: onnxruntime is missing, or the model cannot be opened or is no such
            cross-encoder.
        UsageError: several outputs and no label, or no such output.
    """

    name: str
    flops_per_token: float | None

    def __init__(self, directory: Path | str | None = None, *, label: int | None = None) -> None:
        self.name = written(directory, label=label)
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ModelError(
                f"the reward 'relevance' needs onnxruntime and tokenizers: {error}",
                hint="pip install 'specrej[onnx]'",
            ) from error
        # An ONNX file does not say its shape without a further library.
        self.flops_per_token = FLOPS_PER_TOKEN if directory is None else None
        directory = Path(directory) if directory is not None else locate("relevance")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # Threads that spin would take the cores from the generator beside us.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._model = onnxruntime.InferenceSession(
                directory / "model.onnx", options, providers=["CPUExecutionProvider"]
            )
            self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # both libraries raise bare exceptions
            raise ModelError(
                f"cannot open the cross-encoder in {directory}: {error}",
                hint="the directory must hold model.onnx and tokenizer.json",
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # what question and answer spell is text
        warn_of_parsed(self.name, self._tokenizer)
        self._input_names = _input_names(self._model)
        self._output = _choose_output(self._model.get_outputs()[0].shape[1], label, directory)
        self._room = MAX_TOKENS - self._tokenizer.num_special_tokens_to_add(is_pair=True)

    @property
    def answer_room(self) -> int:
        """Tokens of an answer that are read whatever the question."""
        return self._room - self._room // 2

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        """Begin with a prompt: its last user message, or its last message if it has none, is the
        question.

        Raises:
            PromptError: the prompt is empty, or a message lacks `role` or `content`.
        """
        return StatelessSession(self.read_question(messages), alone(self._score))

    def read_question(self, messages: Sequence[Message]) -> "Encoding":
        """The question's tokens, at most half of the room. Raises as `open` does."""
        turns = as_messages(messages)
        question = next((turn for turn in reversed(turns) if turn["role"] == "user"), turns[-1])[
            "content"
        ]
        query = self._tokenizer.encode(question, add_special_tokens=False)
        if num_cut := _cut(query, self._room // 2):
            _LOG.warning(
                "%s: %d tokens cut off the end of the question, %d read",
                self.name,
                num_cut,
                len(query),
            )
        return query

    def read_windows(self, text: str, size: int) -> list["Encoding"]:
        """The tokens of an answer in windows of so many, the last one shorter; at least one."""
        whole = self._tokenizer.encode(text, add_special_tokens=False)
        whole.truncate(size)
        return [whole, *whole.overflowing]

    def close(self) -> None:
        """Let the model go."""
        self._model = None

    def score_together(
        self, asked: Sequence[tuple[StatelessSession, Sequence[Candidate]]]
    ) -> list[Sequence[float]]:
        """Answers to several prompts, through one pool of threads."""
        return score_jointly(asked, self._score)

    def _score(
        self, asked: Sequence[tuple["Encoding", Candidate]]
    ) -> tuple[list[float], list[int]]:
        parts: list[tuple[Encoding, Encoding, Candidate]] = []
        cuts = []
        for query, candidate in asked:
            document = self._tokenizer.encode(candidate.text, add_special_tokens=False)
            if num_cut := _cut(document, self._room - len(query)):
                cuts.append(f"candidate {candidate.index} by {num_cut}")
            parts.append((query, document, candidate))
        if cuts:
            listed = ", ".join(cuts)
            _LOG.warning(
                "%s: reads %d tokens of a pair; cut off its end: %s", self.name, MAX_TOKENS, listed
            )
        return self.score_parts(parts)

    def score_parts(
        self, parts: Sequence[tuple["Encoding", "Encoding", Candidate]]
    ) -> tuple[list[float], list[int]]:
        """The score of each question with a part of an answer, and the tokens read for it.

        Args:
            parts: question, part and the candidate that it is of; the two fit in `MAX_TOKENS`.

        Raises:
            RewardError: the model failed; names the candidate.
        """
        pairs = [self._tokenizer.post_process(query, part) for query, part, _ in parts]
        with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
            scores = list(pool.map(self._score_pair, [part[-1] for part in parts], pairs))
        return scores, [len(pair) for pair in pairs]

    def _score_pair(self, candidate: Candidate, pair: "Encoding") -> float:
        columns = {
            "input_ids": pair.ids,
            "attention_mask": pair.attention_mask,
            "token_type_ids": pair.type_ids,
        }
        inputs = {name: np.asarray([columns[name]], dtype=np.int64) for name in self._input_names}
        try:
            [logits] = self._model.run(None, inputs)
        except Exception as error:  # onnxruntime raises bare exceptions
            raise RewardError(
                f"reward {self.name!r} failed on candidate {candidate.index}, of {len(pair)} "
                "tokens with its question: "
                f"{error}",
                hint=f"the model must take any length up to {MAX_TOKENS} tokens",
            ) from error
        return float(logits[0, self._output])


def _input_names(model: Any) -> list[str]:
    names = [tensor.name for tensor in model.get_inputs()]
    shapes = [tensor.shape for tensor in model.get_outputs()]
    is_one_row = len(shapes) == 1 and len(shapes[0]) == 2 and isinstance(shapes[0][1], int)
    if not set(names) <= {"input_ids", "attention_mask", "token_type_ids"} or not is_one_row:
        raise ModelError(
            f"the model takes {names} and gives {shapes}; a cross-encoder takes token ids and "
            "gives [batch, outputs]",
            hint="give the directory of a cross-encoder, exported with a fixed number of labels",
        )
    return names


def _choose_output(num_outputs: int, label: int | None, directory: Path) -> int:
    if label is None and num_outputs > 1:
        raise UsageError(
            f"the cross-encoder in {directory} has {num_outputs} outputs",
            hint=f"choose one by its number, 0 to {num_outputs - 1}: relevance:DIRECTORY?label=0",
        )
    if not 0 <= (label or 0) < num_outputs:
        raise UsageError(
            f"the cross-encoder in {directory} has no output {label}: it has {num_outputs}, from 0"
        )
    return label or 0


def _cut(encoding: "Encoding", room: int) -> int:
    """Cut to `room` tokens on the right; how many were cut off."""
    num_cut = max(0, len(encoding) - room)
    if num_cut:
        encoding.truncate(room)
    return num_cut


def written(directory: Path | str | None, **options: int | None) -> str:
    """The spec of a relevance reward, with those options that are given."""
    given = "&".join(f"{name}={value}" for name, value in options.items() if value is not None)
    argument = ("" if directory is None else str(directory)) + ("?" + given if given else "")
    return "relevance" + (":" + argument if argument else "")
