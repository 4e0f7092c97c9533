"""The table of docs/server.md says what the server does."""

import re
from typing import Any

import field_table
import pytest
from field_table import FIELDS, HONOURED, LABEL, PATHS, REFUSED

from specrej.errors import SpecrejError
from specrej.server import protocol
from specrej.server.asked import Limits, read_request
from specrej.settings import Settings

BODIES: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "Hello"}]},
    "text": {"model": "m", "prompt": "Hello"},
}
CELLS = [(kind, name) for kind in FIELDS for name in field_table.names()]


def read(kind: str, **fields: Any) -> Any:
    return read_request(PATHS[kind], BODIES[kind] | fields, Settings(seed=1), Limits())


def test_the_document_has_the_table() -> None:
    """If not: `python tests/server/field_table.py` writes it."""
    assert field_table.parts()[1] == field_table.make()


@pytest.mark.parametrize(("kind", "name"), CELLS)
def test_what_is_said_of_a_field_is_so(kind: str, name: str) -> None:
    said = field_table.outcome(kind, name)
    if said == HONOURED:
        # No field takes this, and each says so by its name.
        with pytest.raises(SpecrejError, match=name):
            read(kind, **{name: [-1.5]})
    elif said == LABEL:
        assert read(kind, **{name: "some"}) == read(kind)
    else:
        with pytest.raises(SpecrejError, match=f"^{name} cannot be honoured"):
            read(kind, **{name: "some"})
        if said != REFUSED:
            for value in protocol._NOTHING.get(name, ()):
                assert read(kind, **{name: value}) == read(kind)


def test_null_is_as_if_left_out() -> None:
    for kind, name in CELLS:
        if name not in BODIES[kind]:
            assert read(kind, **{name: None}) == read(kind)


def test_rows_are_fields() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", field_table.make(), re.MULTILINE)
    assert rows == field_table.names()
