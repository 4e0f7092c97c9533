"""Refusals say what is at fault, and no more than that."""

import pytest

from specrej.errors import UsageError
from specrej.server.protocol import parse_text
from specrej.server.refusals import refusal_of_body
from specrej.settings import Settings


@pytest.mark.parametrize(("name", "param"), [("colour", "colour"), ("x" * 900_000, None)])
def test_a_field_nobody_knows_is_named_if_it_is_a_name(name: str, param: str | None) -> None:
    body = {"model": "bytes", "prompt": "a", name: 1}
    with pytest.raises(UsageError) as caught:
        parse_text(body, Settings())
    refusal = refusal_of_body(caught.value, body)
    assert refusal.param == param
    assert len(refusal.message) < 1000
