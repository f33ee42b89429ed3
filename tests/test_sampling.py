from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deblur.sampling import Order

orders = st.builds(
    Order, photos=st.integers(1, 60), global_batch=st.integers(1, 80), seed=st.integers(0, 2**40)
)


@given(order=orders, epoch=st.integers(0, 5))
def test_an_epoch_has_every_photo_and_whole_batches(order: Order, epoch: int) -> None:
    first = epoch * order.steps_per_epoch
    batches = [order.rows(first + step) for step in range(order.steps_per_epoch)]
    assert {len(batch) for batch in batches} == {order.global_batch}
    counts = np.bincount(np.concatenate(batches), minlength=order.photos)
    assert len(counts) == order.photos
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1
    assert {order.epoch(first + step) for step in range(order.steps_per_epoch)} == {epoch}


@given(order=orders, step=st.integers(0, 200), replicas=st.integers(1, 90))
def test_the_replicas_share_the_batch_of_one(order: Order, step: int, replicas: int) -> None:
    shares = [order.share(step, replica, replicas) for replica in range(replicas)]
    assert len({len(share.rows) for share in shares}) == 1  # one shape for all
    assert {share.rows.shape for share in shares} == {share.weights.shape for share in shares}
    counted = [share.rows[share.weights > 0] for share in shares]
    np.testing.assert_array_equal(np.concatenate(counted), order.rows(step))
    sizes = [len(rows) for rows in counted]
    assert max(sizes) - min(sizes) <= 1
    weights = np.concatenate([share.weights for share in shares])
    assert set(weights[weights > 0]) == {np.float32(1 / order.global_batch)}


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = Order(photos=100, global_batch=100, seed=1)
    first = order.rows(0)
    order.rows(5)
    np.testing.assert_array_equal(Order(100, 100, 1).rows(0), first)
    assert (order.rows(1) != first).any()
    assert (Order(100, 100, 2).rows(0) != first).any()
    assert (first != np.arange(100)).any()
    # Fixed for good: a run resumed by a later version goes on with what it has not seen.
    assert Order(10, 10, 0).rows(0).tolist() == [4, 8, 7, 1, 2, 5, 3, 6, 0, 9]


def test_what_is_drawn_may_be_changed_by_its_owner() -> None:
    order = Order(photos=10, global_batch=5, seed=0)
    before = order.rows(0).copy()
    order.rows(0)[:] = 0
    np.testing.assert_array_equal(order.rows(0), before)


@pytest.mark.parametrize(("replica", "replicas"), [(2, 2), (-1, 2), (0, 0)])
def test_a_replica_that_there_is_not(replica: int, replicas: int) -> None:
    with pytest.raises(ValueError, match=f"replica {replica} of {replicas}"):
        Order(photos=10, global_batch=4, seed=0).share(0, replica, replicas)


@pytest.mark.parametrize(("photos", "global_batch"), [(0, 1), (1, 0)])
def test_nothing_has_no_order(photos: int, global_batch: int) -> None:
    with pytest.raises(ValueError, match=f"photos={photos}"):
        Order(photos, global_batch, 0)
