"""Paged KV blocks: allocation, prefix reuse, eviction order, reference counts."""

from __future__ import annotations

import pytest

from janus_moe.policy.paging import BlockManager, BlockTable, blocks_needed, slot_mapping


def manager(num_blocks: int = 8, block_size: int = 4) -> BlockManager:
    return BlockManager(num_blocks, block_size, enable_prefix_caching=True)


def computed(blocks: BlockManager, token_ids: list[int]) -> BlockTable:
    """A table whose tokens have all been computed."""
    table = BlockTable()
    assert blocks.allocate(table, len(token_ids), blocks.lookup_prefix(token_ids))
    blocks.commit(table, token_ids, len(token_ids))
    return table


def test_blocks_needed_rounds_up() -> None:
    assert [blocks_needed(n, 4) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_slot_mapping_crosses_blocks() -> None:
    assert slot_mapping([5, 2, 7], 3, 6, 4).tolist() == [23, 8, 9, 10, 11, 28]
    assert slot_mapping([5], 3, 0, 4).tolist() == []


def test_allocation_is_all_or_nothing() -> None:
    blocks = manager(num_blocks=2)
    table = BlockTable()
    assert blocks.allocate(table, 5) and len(table.blocks) == 2
    other = BlockTable()
    assert not blocks.allocate(other, 1) and other.blocks == []
    assert blocks.usage == 1.0
    blocks.free(table)
    assert blocks.usage == 0.0 and blocks.allocate(other, 8)
    blocks.check([other])


def test_a_prefix_is_shared_and_its_last_token_always_computed() -> None:
    blocks = manager()
    first = computed(blocks, list(range(8)))
    assert blocks.lookup_prefix(list(range(8))).num_tokens == 4
    assert blocks.lookup_prefix(list(range(9))).num_tokens == 8
    assert blocks.lookup_prefix([0, 1, 2, 9, 4]).num_tokens == 0
    prefix = blocks.lookup_prefix([*range(8), 50])
    second = BlockTable()
    assert blocks.num_taken(9, prefix) == 1 and blocks.allocate(second, 9, prefix)
    assert second.blocks[:2] == first.blocks
    blocks.check([first, second])
    blocks.free(first)
    blocks.check([second])


def test_without_prefix_caching_nothing_is_found() -> None:
    blocks = BlockManager(8, 4, enable_prefix_caching=False)
    table = computed(blocks, list(range(8)))
    blocks.free(table)
    assert blocks.lookup_prefix(list(range(9))).num_tokens == 0


def test_equal_blocks_are_merged_when_committed() -> None:
    blocks = manager()
    first, second = BlockTable(), BlockTable()
    for table in (first, second):
        assert blocks.allocate(table, 6)
    for table in (first, second):
        blocks.commit(table, [1, 2, 3, 4, 5, 6], 6)
    assert first.blocks[0] == second.blocks[0] and first.blocks[1] != second.blocks[1]
    assert blocks.num_available == 5
    blocks.check([first, second])


def test_freed_blocks_are_evicted_oldest_first_and_leaves_before_roots() -> None:
    blocks = manager(num_blocks=4)
    old, new = list(range(8)), list(range(100, 108))
    for token_ids in (old, new):
        blocks.free(computed(blocks, token_ids))
    assert blocks.num_available == 4
    table = BlockTable()
    assert blocks.allocate(table, 4)
    assert blocks.lookup_prefix([*old, 0]).num_tokens == 4
    assert blocks.lookup_prefix([*new, 0]).num_tokens == 8
    blocks.check([table])


def test_use_renews_a_cached_prefix() -> None:
    blocks = manager(num_blocks=3)
    for start in (0, 10, 20):
        blocks.free(computed(blocks, list(range(start, start + 4))))
    blocks.free(computed(blocks, [0, 1, 2, 3]))  # computed again: merged with the cached one
    assert blocks.lookup_prefix([0, 1, 2, 3, 9]).num_tokens == 4


def test_a_reused_prefix_cannot_be_evicted_by_its_own_allocation() -> None:
    blocks = manager(num_blocks=3)
    blocks.free(computed(blocks, list(range(8))))
    prefix = blocks.lookup_prefix([*range(8), 9])
    table = BlockTable()
    assert blocks.num_taken(16, prefix) == 4
    assert not blocks.allocate(table, 16, prefix) and table.blocks == []
    assert blocks.allocate(table, 12, prefix) and table.blocks[:2] == list(prefix.blocks)
    blocks.check([table])


def test_check_notices_a_lost_table() -> None:
    blocks = manager()
    table = computed(blocks, [1, 2])
    with pytest.raises(AssertionError, match="add up"):
        blocks.check([])
    blocks.check([table])


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="0 x 4"):
        manager(num_blocks=0)
