"""math-verify in a process beside this one, which is killed when an answer takes too long.

verifier = MathVerifier("the reward 'math'")
verifier.is_equal("1/2", "The answer is 0.5.")    # True
verifier.close()

That works in any thread, and stops a huge power inside the interpreter's C code, where a signal
would wait.
"""

import importlib.util
import json
import subprocess
import sys
import threading
import weakref
from pathlib import Path

from specrej.errors import RewardError


def is_installed() -> bool:
    """Whether math-verify can be imported; the extra `math` brings it."""
    return importlib.util.find_spec("math_verify") is not None


class MathVerifier:
    """Compares answers with references. Its process begins with the first of them.

    Args:
        owner: who asks, in the words of errors.
        timeout_s: seconds that the check of one answer may take.
    """

    def __init__(self, owner: str, *, timeout_s: float = 5.0) -> None:
        self._owner = owner
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def process(self) -> "subprocess.Popen[str] | None":
        """What runs math-verify now; None before the first answer and after the end."""
        return self._process

    def close(self) -> None:
        """End the process, after the answer that it checks."""
        with self._lock:
            self._is_closed = True
            process, self._process = self._process, None
            if process is not None:
                _end(process)

    def is_equal(self, reference: str, answer: str) -> bool | None:
        """Whether an answer has the value of the reference; None where that cannot be read.

        An answer that takes too long, or on which math-verify fails, has not.

        Raises:
            RewardError: it is closed, or math-verify cannot be started.
        """
        with self._lock:
            if self._is_closed:  # by a thread that did not wait: nobody would end another process
                raise RewardError(f"{self._owner} is closed")
            reply = self._ask(json.dumps({"reference": reference, "answer": answer}))
        return None if reply == "null" else reply == "true"

    def _ask(self, request: str) -> str:
        """The worker's reply; "" where it took too long or died, and then the next request gets
        a new worker.
        """
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        is_late = threading.Event()

        def stop() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(self._timeout_s, stop)
        timer.start()
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            reply = process.stdout.readline().strip()
        except OSError:  # it died before it had read
            reply = ""
        finally:
            timer.cancel()
            timer.join()
        if is_late.is_set() or not reply:
            self._process = None
            _end(process)
        return reply

    def _start(self) -> "subprocess.Popen[str]":
        # -P: the modules beside the worker's file, http.py for one, would hide those of the
        # standard library.
        process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        weakref.finalize(self, _end, process)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            _end(process)
            raise RewardError(
                "the process that runs math-verify ended at once",
                hint=f"see what `{sys.executable} -c 'import math_verify'` says",
            )
        return process


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()  # waits, and closes the pipes
