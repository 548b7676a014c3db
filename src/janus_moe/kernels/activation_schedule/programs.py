"""The Triton programs that `kernel` launches: mark, solve and rewrite, or all three in one.

Ids: [tokens * top_k] int32 logical experts, -1 = padding. Flags: [32 * WORDS + 1] int32, 1 where
an expert is activated; the last one is 1 if an id was out of range. Flags are clear before the
first launch of a schedule, and the last one clears them again.
"""

import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

from janus_moe.kernels.activation_schedule.assignment import WORD_BITS, assign, device_function


@device_function
def mark(ids, flags, num_ids, num_experts, WORDS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Set flags from ids, a block of ids per program. Many may store the same 1; order is idle."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + position, mask=position < num_ids, other=-1)
    valid = (expert >= 0) & (expert < num_experts)
    flag = tl.where(valid, expert, WORDS * WORD_BITS)
    tl.store(flags + flag, 1, mask=expert != -1)


@device_function
def solve(  # type: ignore[no-untyped-def]
    flags, held_words, movable_words, instance_of_expert, activated, optimal, invalid,
    num_experts, num_instances,
    WORDS: tl.constexpr, LANES: tl.constexpr, REPAIR: tl.constexpr,
):  # fmt: skip
    """One program: the assignment of the flagged experts."""
    word = tl.arange(0, WORDS)
    bit = tl.arange(0, WORD_BITS)
    active_flags = tl.load(flags + word[:, None] * WORD_BITS + bit[None, :])
    tl.store(invalid, tl.load(flags + WORDS * WORD_BITS))
    assign(
        active_flags, held_words, movable_words, instance_of_expert, activated, optimal,
        num_experts, num_instances, WORDS, LANES, REPAIR,
    )  # fmt: skip


@device_function
def rewrite_block(  # type: ignore[no-untyped-def]
    start, ids, instance_of_expert, slot_of, first_replica, slot_ids, replica_ids,
    num_ids, num_experts, instance_index, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Slots and replicas of `BLOCK` ids from `start` on.

    slot_of: [experts, LANES] int32, the expert's slot on each instance. first_replica: [LANES].
    """
    position = start + tl.arange(0, BLOCK)
    inside = position < num_ids
    expert = tl.load(ids + position, mask=inside, other=-1)
    valid = (expert >= 0) & (expert < num_experts)
    instance = tl.load(instance_of_expert + expert, mask=valid, other=0)
    slot = tl.load(slot_of + expert * LANES + instance, mask=valid, other=-1)
    replica = tl.load(first_replica + instance, mask=valid, other=0) + slot
    tl.store(slot_ids + position, tl.where(instance == instance_index, slot, -1), mask=inside)
    tl.store(replica_ids + position, replica, mask=inside)


@device_function
def rewrite(  # type: ignore[no-untyped-def]
    flags, ids, instance_of_expert, slot_of, first_replica, slot_ids, replica_ids,
    num_ids, num_experts, instance_index,
    WORDS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of ids per program. The flags are not read any more, so the first clears them."""
    program = tl.program_id(0)
    if program == 0:
        tl.store(flags + tl.arange(0, WORDS * WORD_BITS), 0)
        tl.store(flags + WORDS * WORD_BITS, 0)
    rewrite_block(
        program * BLOCK, ids, instance_of_expert, slot_of, first_replica, slot_ids, replica_ids,
        num_ids, num_experts, instance_index, LANES, BLOCK,
    )  # fmt: skip


@device_function
def mark_solve_rewrite(  # type: ignore[no-untyped-def]
    ids, held_words, movable_words, slot_of, first_replica,
    instance_of_expert, activated, optimal, invalid, slot_ids, replica_ids,
    num_ids, num_experts, num_instances, instance_index,
    WORDS: tl.constexpr, LANES: tl.constexpr, REPAIR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All of it in one program, for few ids; flags are counts in registers."""
    counts = tl.zeros([WORDS * WORD_BITS], tl.int32)
    num_invalid = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_ids, BLOCK):
        position = start + tl.arange(0, BLOCK)
        expert = tl.load(ids + position, mask=position < num_ids, other=-1)
        valid = (expert >= 0) & (expert < num_experts)
        counts += tl.histogram(expert, WORDS * WORD_BITS, mask=valid)
        num_invalid += ((expert != -1) & ~valid).to(tl.int32)
    tl.store(invalid, (tl.sum(num_invalid, axis=0) > 0).to(tl.int32))
    active_flags = tl.reshape((counts > 0).to(tl.int32), [WORDS, WORD_BITS])
    assign(
        active_flags, held_words, movable_words, instance_of_expert, activated, optimal,
        num_experts, num_instances, WORDS, LANES, REPAIR,
    )  # fmt: skip
    tl.debug_barrier()  # below, all threads read what single ones stored to instance_of_expert
    for start in range(0, num_ids, BLOCK):
        rewrite_block(
            start, ids, instance_of_expert, slot_of, first_replica, slot_ids, replica_ids,
            num_ids, num_experts, instance_index, LANES, BLOCK,
        )  # fmt: skip
