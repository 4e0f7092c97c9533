"""No function of the package is longer than 60 lines, no file longer than 400."""

import ast
from pathlib import Path

import specrej

ROOT = Path(specrej.__file__).parent
SOURCES = {path.relative_to(ROOT): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
MOST_OF_A_FUNCTION, MOST_OF_A_FILE = 60, 400
"""In lines, with docstring and comments."""


def test_no_function_is_too_long() -> None:
    lengths = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, source in SOURCES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: n for name, n in lengths.items() if n > MOST_OF_A_FUNCTION} == {}


def test_no_file_is_too_long() -> None:
    lengths = {str(path): len(source.splitlines()) for path, source in SOURCES.items()}
    assert {name: n for name, n in lengths.items() if n > MOST_OF_A_FILE} == {}
