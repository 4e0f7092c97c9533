"""A prompt in work at a server: what its candidates have got, and what is asked for.

prompt = OpenPrompt(ids, sampling, sent=ids)
# a token for each candidate, as soon as every one has its chunk
prompt.is_ready, prompt.give(handle)
"""

from concurrent.futures import Future
from dataclasses import dataclass, field

from specrej.engines.base import Token
from specrej.engines.openai.answers import PartialAnswer
from specrej.engines.openai.replies import Chunk
from specrej.errors import SpecrejError
from specrej.types import FinishReason, SamplingParams


@dataclass(slots=True)
class OpenPrompt:
    """A prompt that is open, the answers of its live candidates, and the requests that are under
    way for it.
    """

    ids: list[int]
    sampling: SamplingParams
    sent: str | list[int]
    """As it is sent."""
    live: dict[int, PartialAnswer] = field(default_factory=dict)
    running: dict[int, tuple[PartialAnswer | None, Future[Chunk]]] = field(default_factory=dict)
    """Requests under way by number: that for a part of an answer, or that which has the prompt
    read."""
    held: set[int] = field(default_factory=set)
    """Candidates that wait."""
    is_read: bool = False
    num_shared: int = 0
    failure: SpecrejError | None = None
    """Why it could not be read."""
    unused_tokens: int = 0
    reread_tokens: int = 0
    peak_bytes: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether every candidate that steps has a token to be given, or is known to be lost."""
        return not self.running and all(one.position < one.target for one in self.stepping)

    @property
    def stepping(self) -> list[PartialAnswer]:
        """The live candidates that take the next step."""
        return [answer for answer in self.live.values() if answer.index not in self.held]

    def give(self, handle: int) -> list[Token]:
        """A token for each candidate that steps, of the prompt with this handle; those that end are
        live no longer.
        """
        tokens = []
        for answer in self.stepping:
            place = answer.position
            answer.position += 1
            if place == len(answer.ids):
                tokens.append(
                    Token(
                        handle,
                        answer.index,
                        -1,
                        None,
                        "lost",
                        answer.lost,
                        cause=answer.cause,
                    )
                )
                del self.live[answer.index]
                continue
            is_last = place == len(answer.ids) - 1
            reason: FinishReason | None = answer.finish if is_last else None
            if reason is None and place == self.sampling.max_new_tokens - 1:
                reason = "length"
            most = self.sampling.top_logprobs
            top = answer.top_logprobs[place][:most] if most else None
            logprob = answer.logprobs[place]
            tokens.append(Token(handle, answer.index, answer.ids[place], logprob, reason, "", top))
            if reason is not None:
                del self.live[answer.index]
        return tokens
