"""Kills a process at a chosen call: to find what is left when it dies at any of them."""

import itertools
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Literal

Calls = Sequence[tuple[Any, str]]
When = Literal["before", "after"]
WHEN: tuple[When, ...] = ("before", "after")


def where_killed(
    work: Callable[[], object], calls: Calls, number: int, when: When = "before"
) -> str | None:
    """Do `work` in a process that kills itself `when` it makes its `number`-th call of `calls`
    (each an owner and a name): "before fsync". None: there were not so many, the work is done."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _arm(calls, number, when, write)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(read) as told:
        where = told.read()
    assert status == (signal.SIGKILL if where else 0), (status, where)
    return where or None


def _arm(calls: Calls, number: int, when: When, report: int) -> None:
    numbers = itertools.count()

    def die_at(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def armed(*given: Any, **named: Any) -> Any:
            is_it = next(numbers) == number
            if is_it and when == "before":
                die(f"before {name}")
            answer = call(*given, **named)
            if is_it:
                die(f"after {name}")
            return answer

        return armed

    def die(where: str) -> None:
        os.write(report, where.encode())
        os.kill(os.getpid(), signal.SIGKILL)

    for owner, name in calls:
        setattr(owner, name, die_at(name, getattr(owner, name)))
