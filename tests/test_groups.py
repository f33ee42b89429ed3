import itertools

from hypothesis import given
from hypothesis import strategies as st

from deblur.groups import groups


@given(st.lists(st.integers(0, 9)), st.integers(1, 20), st.none() | st.integers(1, 4))
def test_groups_keep_the_order_and_the_bounds_and_are_as_few_as_can_be(
    sizes: list[int], most_bytes: int, most_items: int | None
) -> None:
    found = list(groups(sizes, lambda size: size, most_bytes, most_items))
    assert [size for group in found for size in group] == sizes
    for group in found:
        assert len(group) == 1 or sum(group) <= most_bytes
        assert 1 <= len(group) <= (most_items or len(group))
    for group, after in itertools.pairwise(found):
        assert len(group) == most_items or sum(group) + after[0] > most_bytes
