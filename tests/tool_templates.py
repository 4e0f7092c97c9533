"""Chat formats with tools, in the marks of real families, written by hand in small.

form = TOOL_FORMATS["hermes"]()
form.tokenizer.apply_chat_template(messages, tools=tools)
"""

from collections.abc import Callable

from templates import ChatFormat, _byte_level, _wrap

_CHATML_TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
_HERMES_TOOLS = (
    "{% if tools %}<|im_start|>system\nYou may call:\n{% for tool in tools %}{{ tool | tojson }}\n"
    "{% endfor %}In tags: <tool_call>name and arguments</tool_call><|im_end|>\n{% endif %}"
)
_RESULT = (
    "{% if not m.name %}{{ raise_exception('a result without a name') }}{% endif %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
)
_BEGIN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def _chatml_with(call: str, begin: str = _BEGIN) -> str:
    return (
        _HERMES_TOOLS + "{% for m in messages %}{% if m.role == 'tool' %}" + _RESULT + "{% elif "
        "m.tool_calls %}{{ '<|im_start|>assistant\n' + m.content }}{% for c in m.tool_calls %}"
        + call
        + "{% endfor %}{{ '<|im_end|>\n' }}{% else %}"
        + _CHATML_TURN
        + "{% endif %}{% endfor %}"
        + begin
    )


HERMES = _chatml_with(
    '\n<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>"
)
# As some that think: what it puts before an answer begins as a call does.
THINKING = HERMES.replace(
    "'<|im_start|>assistant\n' }}{% endif %}",
    "'<|im_start|>assistant\n' }}{% if enable_thinking %}<think>{% else %}<thought>{{ "
    "reasoning_effort }}</thought>{% endif %}{% endif %}",
)
# The same tags around something else than JSON.
XML = _chatml_with(
    "\n<tool_call><function={{ c.function.name }}>{% for k, v in c.function.arguments.items() %}"
    "<parameter={{ k }}>{{ v }}</parameter>{% endfor %}</function></tool_call>"
)
LLAMA = (
    "{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>\n\nGive name and "
    "parameters.\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|eot_id|>{% endif %}"
    "{% for m in messages %}{{ '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) "
    "+ '<|end_header_id|>\n\n' }}{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}{% set f = m.tool_calls[0].function %}"
    '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
    "{% elif m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content | trim }}{% endif %}"
    "<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% if tools and m == asked[-1] %}"
    "[AVAILABLE_TOOLS]{{ tools | tojson }}"
    "[/AVAILABLE_TOOLS]{% endif %}{{ '[INST]' + m.content + '[/INST]' }}{% elif m.tool_calls %}"
    "[TOOL_CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('ids of nine characters') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, '
    '"id": "{{ c.id }}"}{{ ", " if not loop.last }}{% endfor %}]{{ eos_token }}'
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{\"content\": {{ m.content | tojson }}, "
    '"call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]{% else %}{{ m.content + eos_token }}'
    "{% endif %}{% endfor %}"
)

_CHATML_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def _chatml(template: str, *more: str) -> ChatFormat:
    special = (*_CHATML_SPECIAL, *more)
    return _wrap(_byte_level(None), template, special, eos_token="<|im_end|>")


def hermes() -> ChatFormat:
    return _chatml(HERMES)


def hermes_special() -> ChatFormat:
    """Its tags are special tokens, which no text of an answer has."""
    return _chatml(HERMES, "<tool_call>", "</tool_call>")


def thinking() -> ChatFormat:
    return _chatml(THINKING)


def xml() -> ChatFormat:
    return _chatml(XML)


def llama() -> ChatFormat:
    special = (
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    )
    return _wrap(_byte_level(None), LLAMA, special, bos_token=special[0], eos_token=special[3])


def mistral() -> ChatFormat:
    names = ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS")
    special = ("<s>", "</s>", "[TOOL_CALLS]", *(f"[{slash}{n}]" for n in names for slash in "/"))
    special += tuple(f"[{name}]" for name in names)
    return _wrap(_byte_level(None), MISTRAL, special, bos_token="<s>", eos_token="</s>")


TOOL_FORMATS: dict[str, Callable[[], ChatFormat]] = {
    "hermes": hermes,
    "hermes_special": hermes_special,
    "thinking": thinking,
    "llama3": llama,
    "mistral": mistral,
}
