"""An engine without a model whose every answer is what a script says: here, calls of functions.

engine = CallingEngine("hermes", ["I look.", '<tool_call>{"name": "f", "arguments": {}}'])
engine = CallingEngine("mistral", [Piece("", "[TOOL_CALLS]"), "[...]"])
"""

from collections.abc import Sequence
from typing import Any

from fakes import ByteReader, FakeEngine
from specrej.hub.tool_formats import FORMS, ToolForm
from specrej.types import Conversation, Piece, Prompt

END = "~"
"""Ends an answer, as a stop string."""
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": {}},
}


class ScriptReader(ByteReader):
    """Reads what the script says, whatever the tokens are."""

    def __init__(self, script: Sequence[Piece], form: ToolForm | None) -> None:
        super().__init__()
        self.tool_form = form
        self._left = list(reversed(script))

    def add(self, token_id: int) -> Piece:
        return self._left.pop() if self._left else Piece("")


class CallingEngine(FakeEngine):
    """Writes a script in place of each answer."""

    def __init__(self, family: str, script: Sequence[str | Piece]) -> None:
        super().__init__(eos=0.0)
        self._form = FORMS[family]
        self._script = [
            piece
            for part in (*script, END)
            for piece in ([part] if isinstance(part, Piece) else map(Piece, part))
        ]

    def detokenizer(self, prompt: Prompt) -> ScriptReader:
        has_tools = isinstance(prompt, Conversation) and bool(prompt.tools)
        return ScriptReader(self._script, self._form if has_tools else None)
