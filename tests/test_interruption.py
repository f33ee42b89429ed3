import os
import signal
import time

import pytest

from jobs.interruption import terminable


def test_a_process_that_is_asked_to_end_is_interrupted() -> None:
    def ask() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        with pytest.raises(KeyboardInterrupt):
            ask()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # who asks again is not put off
    assert signal.getsignal(signal.SIGTERM) == before
