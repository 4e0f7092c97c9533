"""`specrej serve` with a tiny random model that knows a chat with tools.

Run by the environment that has specrej: `python small_server.py FOLDER OPTION...`.
"""

import sys
from pathlib import Path

from specrej.cli import main
from tiny import make_tokenizer, save_model

TEMPLATE = (
    "{{ bos_token }}{% if tools %}<system><tools>{{ tools | tojson }}</tools>{{ eos_token }}"
    "{% endif %}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>{{ call['function'] | tojson }}"
    "</tool_call>{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Tools and their calls are written as JSON, as Hermes and Qwen do."""

if __name__ == "__main__":
    folder, *options = sys.argv[1:]
    save_model(Path(folder), max_position_embeddings=4096)
    make_tokenizer(TEMPLATE).save_pretrained(folder)
    sys.argv[1:] = ["serve", "--model", folder, *options]
    main()
