"""The assignment as device code: greedy, then repair until it is proved optimal.

Sets of experts are bit masks. A set per instance is a tile `[WORDS, LANES]` of uint32: expert e of
instance i is bit e % 32 of row e // 32, column i. Everything stays in the registers of one program
and no step reads memory that an earlier one wrote, so there is nothing to synchronise. Integers
only, in a fixed order: all instances get the same answer. (METRO, arXiv 2512.09277, takes locks
in any order on the GPU, so copies of it can disagree.)

The semantics, ties included, are those of `janus_moe.policy.activation.reference`. This module
knows neither ids nor slots; it is imported only where a kernel is made, since it needs Triton.
"""

from collections.abc import Callable
from typing import Any

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

WORD_BITS: tl.constexpr = tl.constexpr(32)
NONE: tl.constexpr = tl.constexpr(2**31 - 1)
"""Larger than every key. Keys order candidates: least first, with the instance in the low bits."""


SIZES = ("num_ids", "num_experts", "num_instances", "instance_index")
"""Arguments whose values Triton must not compile in: a capture cannot wait for a compiler."""


def device_function(function: Callable[..., Any]) -> Any:
    return triton.jit(function, do_not_specialize=SIZES, do_not_specialize_on_alignment=("ids",))


@device_function
def popcount(bits):  # type: ignore[no-untyped-def]
    """Number of set bits of each uint32 (Warren, Hacker's Delight, section 5-1)."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    bits = bits + (bits >> 8)
    return ((bits + (bits >> 16)) & 0x3F).to(tl.int32)


@device_function
def lowest_bit(bits):  # type: ignore[no-untyped-def]
    """The lowest set bit of each uint32, 0 for 0."""
    return bits & (~bits + 1)


@device_function
def lowest_position(bits):  # type: ignore[no-untyped-def]
    """Position of the lowest set bit of each uint32, 0 for 0."""
    low = lowest_bit(bits)
    position = ((low & 0xAAAAAAAA) != 0).to(tl.int32)
    position += ((low & 0xCCCCCCCC) != 0).to(tl.int32) * 2
    position += ((low & 0xF0F0F0F0) != 0).to(tl.int32) * 4
    position += ((low & 0xFF00FF00) != 0).to(tl.int32) * 8
    position += ((low & 0xFFFF0000) != 0).to(tl.int32) * 16
    return position


@device_function
def load_words(address):  # type: ignore[no-untyped-def]
    return tl.load(address).to(tl.uint32, bitcast=True)


@device_function
def assign_greedily(active, held_words, movable_words, WORDS: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Algorithm 1 of Janus (arXiv 2512.13525): single replicas, then the least loaded holders.

    active: [WORDS] uint32, the activated experts. held_words: [WORDS, LANES] in memory, the experts
    that each instance holds. movable_words: [WORDS] in memory, those with several holders.

    Returns assigned: [WORDS, LANES] uint32, and the largest number of experts that live on one
    instance only.
    """
    lane = tl.arange(0, LANES)
    word = tl.arange(0, WORDS)
    held = load_words(held_words + word[:, None] * LANES + lane[None, :])
    movable = active & load_words(movable_words + word)
    assigned = held & (active & ~movable)[:, None]
    load = tl.sum(popcount(assigned), axis=0)
    most_singles = tl.max(load, axis=0)
    for row in range(WORDS):
        left = tl.sum(tl.where(word == row, movable, 0), axis=0)
        holds = load_words(held_words + row * LANES + lane)
        mine = tl.zeros([LANES], tl.uint32)
        while left != 0:
            expert = lowest_bit(left)
            left = left ^ expert
            key = tl.where((holds & expert) != 0, load * LANES + lane, NONE)
            chosen = lane == (tl.min(key, axis=0) & (LANES - 1))
            load += chosen.to(tl.int32)
            mine = mine | tl.where(chosen, expert, 0)
        assigned = assigned | tl.where(word[:, None] == row, mine[None, :], 0)
    return assigned, most_singles


@device_function
def repair(assigned, held_words, bound, WORDS: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Shift experts along paths to lighter instances until none is left or `bound` is met.

    It ends without a limit: each path makes the sum of squared loads smaller. The instances that
    are reached when no lighter one is, prove that the answer is optimal.
    """
    lane = tl.arange(0, LANES)
    word = tl.arange(0, WORDS)
    load = tl.sum(popcount(assigned), axis=0)
    top = tl.max(load, axis=0)
    improvable = top > bound
    while improvable:
        held = load_words(held_words + word[:, None] * LANES + lane[None, :])
        source = tl.min(tl.where(load == top, lane, LANES), axis=0)
        reached = (lane == source).to(tl.int32)
        arrival_expert = tl.zeros([LANES], tl.int32)
        arrival_from = tl.zeros([LANES], tl.int32)
        # Breadth first. The queue is sorted by (turn of the parent, expert, instance), which is
        # the order in which a sequential search finds the instances.
        queue = tl.full([LANES], NONE, tl.int32)
        head = source
        goal = tl.full([], NONE, tl.int32)
        turn = 0
        while (goal == NONE) & (head != NONE):
            instance = head & (LANES - 1)
            queue = tl.where(lane == instance, NONE, queue)
            mine = tl.sum(tl.where(lane[None, :] == instance, assigned, 0), axis=1)
            movable_to = held & mine[:, None]
            expert = word[:, None] * WORD_BITS + lowest_position(movable_to)
            expert = tl.min(tl.where(movable_to != 0, expert, WORDS * WORD_BITS), axis=0)
            found = (expert < WORDS * WORD_BITS) & (reached == 0)
            key = expert * LANES + lane
            goal = tl.min(tl.where(found & (load <= top - 2), key, NONE), axis=0)
            arrival_expert = tl.where(found, expert, arrival_expert)
            arrival_from = tl.where(found, instance, arrival_from)
            reached = tl.where(found, 1, reached)
            queue = tl.where(found, turn * (WORDS * WORD_BITS * LANES) + key, queue)
            head = tl.min(queue, axis=0)
            turn += 1
        improvable = goal != NONE
        if improvable:
            target = goal & (LANES - 1)
            load += (lane == target).to(tl.int32) - (lane == source).to(tl.int32)
            while target != source:
                previous = tl.sum(tl.where(lane == target, arrival_from, 0), axis=0)
                expert_id = tl.sum(tl.where(lane == target, arrival_expert, 0), axis=0)
                ends = (lane == target) | (lane == previous)
                bit = tl.full([], 1, tl.uint32) << (expert_id % WORD_BITS).to(tl.uint32)
                moves = (word == expert_id // WORD_BITS)[:, None] & ends[None, :]
                assigned = assigned ^ tl.where(moves, bit, 0)
                target = previous
            top = tl.max(load, axis=0)
            improvable = top > bound
    return assigned


@device_function
def assign(  # type: ignore[no-untyped-def]
    active_flags, held_words, movable_words, instance_of_expert, activated, optimal,
    num_experts, num_instances,
    WORDS: tl.constexpr, LANES: tl.constexpr, REPAIR: tl.constexpr,
):  # fmt: skip
    """Fill the three outputs in memory; see `ScheduleTensors`.

    active_flags: [WORDS, 32] int32, 1 where the expert is activated. num_experts <= 32 * WORDS,
    num_instances <= LANES. REPAIR: of `exact`; without it `aebs`.
    """
    lane = tl.arange(0, LANES)
    word = tl.arange(0, WORDS)
    bit = tl.arange(0, WORD_BITS)
    active = tl.sum(active_flags.to(tl.uint32) << bit.to(tl.uint32)[None, :], axis=1)
    num_active = tl.sum(popcount(active), axis=0)
    assigned, most_singles = assign_greedily(active, held_words, movable_words, WORDS, LANES)
    bound = tl.maximum(tl.cdiv(num_active, num_instances), most_singles)
    if REPAIR:
        assigned = repair(assigned, held_words, bound, WORDS, LANES)
    load = tl.sum(popcount(assigned), axis=0)
    proved = REPAIR | (tl.max(load, axis=0) == bound)
    tl.store(activated + lane, load, mask=lane < num_instances)
    tl.store(optimal, proved.to(tl.int32))

    # Each bit of the instance's number is one more set of experts.
    instance_of = active_flags - 1
    for place in tl.static_range(0, 16):
        if (1 << place) < LANES:
            has_bit = ((lane >> place) & 1) != 0
            experts = tl.sum(tl.where(has_bit[None, :], assigned, 0), axis=1)
            one = (experts[:, None] >> bit.to(tl.uint32)[None, :]) & 1
            instance_of += one.to(tl.int32) << place
    expert = word[:, None] * WORD_BITS + bit[None, :]
    tl.store(instance_of_expert + expert, instance_of, mask=expert < num_experts)
