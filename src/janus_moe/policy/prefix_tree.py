"""The tree of known prefixes: one node per full KV block, children keyed by the block's tokens.

Walking from the root compares token ids themselves, so two different prefixes can never be taken
for one another, whatever their hashes. This module does not know who references a block or when
one is evicted (see `paging`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class PrefixNode:
    """A prefix that ends at a block boundary.

    tokens: the ids of its last block (empty for the root).
    block: where their KV lies (-1 for the root, which has none).
    """

    __slots__ = ("block", "children", "parent", "tokens")

    def __init__(self, parent: PrefixNode | None, tokens: tuple[int, ...], block: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.children: dict[tuple[int, ...], PrefixNode] = {}


class PrefixTree:
    """All prefixes whose KV is in the cache."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.root = PrefixNode(None, (), -1)

    def walk(self, token_ids: Sequence[int], max_blocks: int) -> Iterator[PrefixNode]:
        """The nodes of the longest cached prefix of `token_ids`, shortest first."""
        node, size = self.root, self.block_size
        for start in range(0, max_blocks * size, size):
            child = node.children.get(tuple(token_ids[start : start + size]))
            if child is None:
                return
            yield child
            node = child

    def evict(self, node: PrefixNode) -> None:
        """Forget a prefix that no longer prefix extends."""
        assert node.parent is not None and not node.children, "only leaves can be evicted"
        del node.parent.children[node.tokens]
