from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deblur.sampling import Order

orders = st.builds(
    Order, pairs=st.integers(1, 60), global_batch=st.integers(1, 80), seed=st.integers(0, 2**40)
)


@given(order=orders, epoch=st.integers(0, 5))
def test_an_epoch_has_every_pair_and_whole_batches(order: Order, epoch: int) -> None:
    first = epoch * order.steps_per_epoch
    batches = [order.rows(first + step) for step in range(order.steps_per_epoch)]
    assert {len(batch) for batch in batches} == {order.global_batch}
    counts = np.bincount(np.concatenate(batches), minlength=order.pairs)
    assert len(counts) == order.pairs
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1
    assert {order.epoch(first + step) for step in range(order.steps_per_epoch)} == {epoch}


@given(order=orders, step=st.integers(0, 200), data=st.data())
def test_the_workers_share_the_batch_of_one(order: Order, step: int, data: st.DataObject) -> None:
    divisors = [n for n in range(1, order.global_batch + 1) if order.global_batch % n == 0]
    workers = data.draw(st.sampled_from(divisors))
    shares = [order.rows(step, worker, workers) for worker in range(workers)]
    assert {len(share) for share in shares} == {order.global_batch // workers}
    np.testing.assert_array_equal(np.concatenate(shares), order.rows(step))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = Order(pairs=100, global_batch=100, seed=1)
    first = order.rows(0)
    order.rows(5)
    np.testing.assert_array_equal(Order(100, 100, 1).rows(0), first)
    assert (order.rows(1) != first).any()
    assert (Order(100, 100, 2).rows(0) != first).any()
    assert (first != np.arange(100)).any()
    # Fixed for good: a run resumed by a later version goes on with what it has not seen.
    assert Order(10, 10, 0).rows(0).tolist() == [4, 8, 7, 1, 2, 5, 3, 6, 0, 9]


def test_what_is_drawn_may_be_changed_by_its_owner() -> None:
    order = Order(pairs=10, global_batch=5, seed=0)
    before = order.rows(0).copy()
    order.rows(0)[:] = 0
    np.testing.assert_array_equal(order.rows(0), before)


@pytest.mark.parametrize(("worker", "workers"), [(0, 3), (2, 2), (-1, 2)])
def test_shares_that_are_not_equal_are_refused(worker: int, workers: int) -> None:
    with pytest.raises(ValueError, match=f"worker {worker} of {workers}, global_batch=4"):
        Order(pairs=10, global_batch=4, seed=0).rows(0, worker, workers)


@pytest.mark.parametrize(("pairs", "global_batch"), [(0, 1), (1, 0)])
def test_nothing_has_no_order(pairs: int, global_batch: int) -> None:
    with pytest.raises(ValueError, match=f"pairs={pairs}"):
        Order(pairs, global_batch, 0)
