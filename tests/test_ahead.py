from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from deblur import ahead


@pytest.mark.parametrize("count", [0, 1, 5, 6, 40])
def test_results_come_in_order_and_few_are_asked_for_ahead(count: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(count):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(3) as threads:
        for index, result in enumerate(ahead.results(threads, lambda item: -item, items(), 5)):
            assert result == -index
            assert len(taken) == min(index + 6, count)
    assert len(taken) == count


def test_an_error_comes_in_its_turn() -> None:
    with ThreadPoolExecutor(2) as threads:
        results = ahead.results(threads, lambda item: 1 / item, [1, 2, 0], 4)
        assert [next(results), next(results)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_who_leaves_does_not_wait_for_what_was_asked_for() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            raise ConnectionError
        go_on.wait(10)
        return item

    with ThreadPoolExecutor(2) as threads:
        with pytest.raises(ConnectionError):
            next(ahead.results(threads, work, range(100), 50))
        go_on.set()
    assert len(begun) < 5
