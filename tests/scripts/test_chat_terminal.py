"""`distaff chat` in a real terminal: a line is asked for, an answer is stopped by Ctrl-C, Ctrl-D leaves."""

import os
import pty
import select
import subprocess
import sys
import time

import pytest

from ..serving.client.scripted import Scripted, admitted, beside, delta, finished

# The terminal becomes that of the session, so that Ctrl-C is a signal, which whoever runs the tests may have ignored.
# Not by preexec_fn: threads of gRPC run here.
PROGRAM = """
import fcntl, signal, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
from distaff.scripts.main import main
main()
"""
ANSWER = [admitted(), delta("Hel", 1), delta("lo", 2), finished("EOS")]
ENDLESS = [admitted(), delta("Hal", 1), 60.0]


class Typist:
    """Someone at a terminal."""

    def __init__(self, port: int) -> None:
        self.screen, mine = pty.openpty()
        self.seen = ""
        command = [sys.executable, "-c", PROGRAM, "chat", "--target", f"127.0.0.1:{port}"]
        self.process = subprocess.Popen(
            command,
            stdin=mine,
            stdout=mine,
            stderr=mine,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(mine)

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def until(self, text: str, seconds: float = 30.0) -> None:
        """Reads until `text` has come, and forgets all up to it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} never came; the screen shows {self.seen!r}"
            if select.select([self.screen], [], [], 0.1)[0]:
                self.seen += os.read(self.screen, 4096).decode()
        self.seen = self.seen.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.mark.slow
def test_a_talk_with_a_stopped_answer() -> None:
    servicer = Scripted(ANSWER, ENDLESS, ANSWER)

    def work(port: int) -> None:
        typist = Typist(port)
        try:
            typist.until("> ")
            typist.type("one\n")
            typist.until("Hello")
            typist.until("first token after")
            typist.until("> ")
            typist.type("two\n")
            typist.until("Hal")
            typist.type("\x03")
            typist.until("[stopped]")
            typist.until("> ")
            typist.type("three\n")
            typist.until("Hello")
            typist.until("> ")
            typist.type("\x04")
            assert typist.process.wait(20) == 0
        finally:
            typist.close()

    beside(servicer, work)
    last = servicer.requests[-1].chat.messages
    assert [each.content for each in last] == ["one", "Hello", "two", "Hal", "three"]
