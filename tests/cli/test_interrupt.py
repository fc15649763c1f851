import os
import signal
import threading

import pytest

from orchestrator.cli.interrupt import interrupts_set


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_wish_and_the_next_one_an_interrupt(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    wish = threading.Event()
    with interrupts_set(wish):
        os.kill(os.getpid(), number)
        assert wish.wait(10)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        wish.clear()
        os.kill(os.getpid(), number)
        assert wish.wait(10)
    assert signal.getsignal(number) is before
