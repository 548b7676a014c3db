"""Which KV block holds which tokens: paged allocation, prefix reuse, reference counts.

Integers and lists only: this module does not know what a block stores or where. A block is in
exactly one of three states:

    free        holds nothing of use
    cached      no table references it, but it holds a known prefix; evicted when blocks run out,
                least recently used first
    referenced  by one or more block tables
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from janus_moe.policy.prefix_tree import PrefixNode, PrefixTree


@dataclass(slots=True, eq=False)
class BlockTable:
    """The blocks of one sequence: position p lies in `blocks[p // block_size]`.

    nodes: the prefix nodes of the leading full blocks; `nodes[i].block == blocks[i]`.
    """

    blocks: list[int] = field(default_factory=list)
    nodes: list[PrefixNode] = field(default_factory=list)


class CachedPrefix(NamedTuple):
    """The longest reusable prefix of some tokens: `num_tokens` of them, in `blocks`."""

    nodes: tuple[PrefixNode, ...]
    num_tokens: int

    @property
    def blocks(self) -> tuple[int, ...]:
        return tuple(node.block for node in self.nodes)


NO_PREFIX = CachedPrefix((), 0)


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """Blocks that hold the KV of `num_tokens` tokens.

    A request computes at most prompt + max_tokens - 1 tokens: its last token is never fed back.
    """
    return -(-num_tokens // block_size)


def slot_mapping(
    blocks: Sequence[int], start: int, num_tokens: int, block_size: int
) -> NDArray[np.int64]:
    """[num_tokens] int64, where positions start.. lie in the cache: block * block_size + offset."""
    positions = np.arange(start, start + num_tokens, dtype=np.int64)
    first = start // block_size
    touched = np.asarray(blocks[first : blocks_needed(start + num_tokens, block_size)], np.int64)
    slots: NDArray[np.int64] = touched[positions // block_size - first] * block_size
    return slots + positions % block_size


class BlockManager:
    """Owns all `num_blocks` blocks of one attention instance."""

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"need at least 1 block of 1 token, got {num_blocks} x {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._caching = enable_prefix_caching
        self._tree = PrefixTree(block_size)
        self._free = list(range(num_blocks - 1, -1, -1))  # popped from the end: lowest id first
        self._cached: OrderedDict[int, PrefixNode] = OrderedDict()  # oldest first
        self._references = [0] * num_blocks

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now: free ones and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences reference."""
        return 1.0 - self.num_available / self.num_blocks

    def blocks_needed(self, num_tokens: int) -> int:
        return blocks_needed(num_tokens, self.block_size)

    def lookup_prefix(self, token_ids: Sequence[int]) -> CachedPrefix:
        """What of `token_ids` need not be computed again; changes nothing.

        Never all of them: the last token's logits are needed, so it is always computed.
        """
        if not self._caching or len(token_ids) <= self.block_size:
            return NO_PREFIX
        nodes = tuple(self._tree.walk(token_ids, (len(token_ids) - 1) // self.block_size))
        return CachedPrefix(nodes, len(nodes) * self.block_size)

    def num_taken(self, num_tokens: int, prefix: CachedPrefix = NO_PREFIX) -> int:
        """By how much `num_available` falls when a new table gets `prefix` and `num_tokens`."""
        new = self.blocks_needed(num_tokens) - len(prefix.nodes)
        return new + sum(self._references[node.block] == 0 for node in prefix.nodes)

    def allocate(
        self, table: BlockTable, num_tokens: int, prefix: CachedPrefix = NO_PREFIX
    ) -> bool:
        """Make room in `table` for `num_tokens` tokens in total; False, unchanged, if impossible.

        prefix: reused as the leading blocks; only for an empty table.
        """
        assert not (prefix.nodes and table.blocks), "a prefix goes into an empty table"
        held = len(table.blocks) + len(prefix.nodes)
        num_new = blocks_needed(num_tokens, self.block_size) - held
        available = self.num_available
        if prefix.nodes:
            available -= sum(self._references[node.block] == 0 for node in prefix.nodes)
        if num_new > available:
            return False
        for node in prefix.nodes:
            self._reference(node)
            table.blocks.append(node.block)
            table.nodes.append(node)
        for _ in range(num_new):
            table.blocks.append(self._take())
        return True

    def commit(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """Make the blocks reusable that the first `num_computed` tokens now fill.

        Where an equal block is already known, the table switches to it and gives its own back:
        read `table.blocks` anew for every step.
        """
        size = self.block_size
        if not self._caching or num_computed < (len(table.nodes) + 1) * size:
            return
        for index in range(len(table.nodes), num_computed // size):
            parent = table.nodes[-1] if table.nodes else self._tree.root
            tokens = tuple(token_ids[index * size : (index + 1) * size])
            own = table.blocks[index]
            node = parent.children.get(tokens)
            if node is None:
                node = parent.children[tokens] = PrefixNode(parent, tokens, own)
            elif node.block != own:
                self._reference(node)
                table.blocks[index] = node.block
                self._references[own] = 0
                self._free.append(own)
            table.nodes.append(node)

    def free(self, table: BlockTable) -> None:
        """Take all blocks from `table`; known prefixes stay reusable until evicted.

        Longer prefixes are released before the shorter ones they extend, so eviction, oldest
        first, always meets a leaf of the tree.
        """
        references = self._references
        for index in range(len(table.blocks) - 1, -1, -1):
            block = table.blocks[index]
            references[block] -= 1
            if references[block] == 0:
                if index < len(table.nodes):
                    self._cached[block] = table.nodes[index]
                else:
                    self._free.append(block)
        table.blocks.clear()
        table.nodes.clear()

    def check(self, tables: Iterable[BlockTable]) -> None:
        """Raise AssertionError unless every block is in exactly one state; `tables`: all in use."""
        tables = list(tables)
        counts = Counter(block for table in tables for block in table.blocks)
        referenced = {block for block in range(self.num_blocks) if self._references[block]}
        states = [*self._free, *self._cached, *referenced]
        assert sorted(states) == list(range(self.num_blocks)), "a block is in two states or none"
        assert all(counts[block] == self._references[block] for block in range(self.num_blocks)), (
            "reference counts do not add up"
        )
        for table in tables:
            assert all(n.block == b for n, b in zip(table.nodes, table.blocks, strict=False))
        for block, node in self._cached.items():
            assert node.block == block and node.parent is not None
            assert node.parent.children[node.tokens] is node, "a cached block cannot be found"

    def _reference(self, node: PrefixNode) -> None:
        if self._references[node.block] == 0:
            del self._cached[node.block]
        self._references[node.block] += 1

    def _take(self) -> int:
        """A block with one reference: a free one, else the least recently used cached one."""
        if self._free:
            block = self._free.pop()
        else:
            block, node = self._cached.popitem(last=False)
            self._tree.evict(node)
        self._references[block] = 1
        return block
