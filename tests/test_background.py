"""Tests pass in a shell's background too."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_ctrl_c_is_heeded_where_a_shell_has_told_the_tests_to_ignore_it() -> None:
    test = (
        f"{TESTS / 'cli' / 'test_cli_batch.py'}::test_handlers_are_as_before_once_the_work_is_done"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    background = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    done = subprocess.run(
        background, cwd=TESTS.parent, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
