"""Items in a row, in groups of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def groups(
    items: Iterable[Item],
    size_bytes: Callable[[Item], int],
    most_bytes: int,
    most_items: int | None = None,
) -> Iterator[list[Item]]:
    """Yield the items in their order, in groups of at most so many bytes, or of one item that has more.

    Args:
        items: what to group.
        size_bytes: says how large one is.
        most_bytes: of a group.
        most_items: in a group; None bounds nothing.
    """
    group: list[Item] = []
    size = 0
    for item in items:
        more = size_bytes(item)
        if group and (len(group) == most_items or size + more > most_bytes):
            yield group
            group, size = [], 0
        group.append(item)
        size += more
    if group:
        yield group
