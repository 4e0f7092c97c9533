"""What a request can be told is in one table, and the OpenAPI document and the docs say the
same."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from endpoint import Scripted
from specrej.server.app import make_app
from specrej.server.bodies import BODIES
from specrej.server.refusals import CODES
from specrej.settings import Settings

ROOT = Path(__file__).parents[2]
CODES_BY_STATUS = defaultdict(set)
for code, (status, _) in CODES.items():
    CODES_BY_STATUS[status].add(code)


@pytest.fixture(scope="module")
def document() -> Any:
    return make_app(Scripted(), model="bytes", defaults=Settings(memory=6000)).openapi()  # type: ignore[arg-type]


def test_the_docs_have_all_codes_with_their_statuses() -> None:
    docs = (ROOT / "docs" / "server.md").read_text()
    told: dict[int, set[str]] = {}
    for statuses, meanings in re.findall(
        r"^\| (\d{3}(?: / \d{3})*) \| (.*) \|$", docs, re.MULTILINE
    ):
        for status, words in zip(statuses.split(" / "), meanings.split(" / "), strict=True):
            told[int(status)] = set(re.findall(r"`([a-z_]+)`", words))
    assert told == CODES_BY_STATUS


def test_endpoints_document_all_that_they_may_say(document: Any) -> None:
    asked = CODES.keys() - {"not_found", "method_not_allowed"}
    statuses = {str(CODES[code][0]) for code in asked} | {"200"}
    for path in BODIES:
        of_path = statuses - ({"502"} if path == "/v1/score" else set())
        assert set(document["paths"][path]["post"]["responses"]) == of_path
    documented = {
        status
        for path in document["paths"].values()
        for one in path.values()
        for status in one["responses"]
    }
    assert documented == statuses


def test_every_code_says_what_it_means(document: Any) -> None:
    responses = document["paths"]["/v1/completions"]["post"]["responses"]
    for code, (status, meaning) in CODES.items():
        if code not in ("not_found", "method_not_allowed"):
            assert meaning in responses[str(status)]["description"]
