"""The control block: what every instance has announced, dispatched and replied, as 64-bit words.

One line of 64 bytes per instance, written by that instance only, read by all. It lies in memory
that all instances share; this module does not know which, how waiters are woken, or where tensors
are. Words are stored whole (8 bytes, aligned), and a sequence word after the data it speaks of.

word             0          1            2           3             4    5           6          7
line 0           closed
lines 1..m       announced  tokens even  tokens odd  dispatched    pid  epoch even  epoch odd  plans
lines m+1..m+n   replied    digest       activated   scheduler ns  pid

announced: steps announced so far (step + 1); ABSENT of an instance that has left.
tokens, epoch even, odd: of the latest even and odd step.
dispatched, replied: `layer_pass_key` of the latest layer pass.
plans: the exchange plans of the latest even (low half) and odd step, see `network.plan_selection`.
All words start at 0, below any key.

Two counts and epochs per attention instance are enough: step s+2 is only announced once every
instance has announced s+1, that is, once every participant of s has combined its last layer, which
takes every expert's reply. By then no instance reads those of step s any more. The epoch of a step
is the largest that was announced for it; no instance ever announces a smaller one than before, so
the epochs of steps never fall either. The plans that count are those of the attention
instance of rank 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from janus_moe.spec import InstanceId, Membership, Pool, PoolShape
from janus_moe.transport.base import ReplyMetadata

LINE_WORDS = 8
WORD_BYTES = 8
MAX_LAYERS = 1 << 16
ABSENT = 1 << 47
"""Counts as announced with 0 tokens in every step; above any number of steps."""
_HALF = (1 << 32) - 1


def control_block_bytes(shape: PoolShape) -> int:
    return (1 + shape.attention + shape.expert) * LINE_WORDS * WORD_BYTES


def layer_pass_key(step: int, layer: int) -> int:
    """One ordered number per layer pass, above 0."""
    return (step + 1) * MAX_LAYERS + layer


def step_and_layer(key: int) -> tuple[int, int]:
    return key // MAX_LAYERS - 1, key % MAX_LAYERS


def make_fence() -> Callable[[], None]:
    """A full memory fence for one thread.

    A release followed by an acquire of the same lock orders everything before against everything
    after, also on machines that reorder more than x86. It makes "store mine, then look at the
    others'" sound: of several instances that do so, at least one sees all the others' stores.
    """
    lock = threading.Lock()
    lock.acquire()

    def fence() -> None:
        lock.release()
        lock.acquire()

    return fence


class ControlBlock:
    """One thread's view of the shared words.

    membership: whose lines these are, by rank.
    words: int64, at least `control_block_bytes(shape)` long.
    """

    def __init__(self, membership: Membership, words: memoryview) -> None:
        shape = membership.shape
        attention_end = (1 + shape.attention) * LINE_WORDS
        attention = words[LINE_WORDS:attention_end]
        expert = words[attention_end : attention_end + shape.expert * LINE_WORDS]
        self.membership = membership
        self._closed = words[0:1]
        self._announced = attention[0::LINE_WORDS]
        self._counts = (attention[1::LINE_WORDS], attention[2::LINE_WORDS])
        self._dispatched = attention[3::LINE_WORDS]
        self._replied = expert[0::LINE_WORDS]
        self._digests = expert[1::LINE_WORDS]
        self._activated = expert[2::LINE_WORDS]
        self._scheduler_ns = expert[3::LINE_WORDS]
        self._epochs = (attention[5::LINE_WORDS], attention[6::LINE_WORDS])
        self._plans = attention[7::LINE_WORDS]
        self._pids = {"attention": attention[4::LINE_WORDS], "expert": expert[4::LINE_WORDS]}
        self._fence = make_fence()

    # --- writing ------------------------------------------------------------------------------

    def sign_in(self, instance: InstanceId, pid: int) -> None:
        self._pids[instance.pool][self.membership.rank(instance)] = pid

    def announce(self, rank: int, step: int, num_tokens: int, epoch: int, plans: int = 0) -> None:
        if plans or self._plans[rank]:
            halves = [self._plans[rank] & _HALF, self._plans[rank] >> 32 & _HALF]
            halves[step & 1] = plans
            word = halves[0] | halves[1] << 32
            self._plans[rank] = word - (1 << 64) if word >> 63 else word  # words are signed
        self._counts[step & 1][rank] = num_tokens
        self._epochs[step & 1][rank] = epoch
        self._fence()
        self._announced[rank] = step + 1
        self._fence()

    def leave(self, rank: int, epoch: int) -> None:
        """An attention instance takes no part in later steps; it has none under way.

        Its counts are 0 in the latest step too, if that goes on without it. In the step before, no
        instance reads them any more. Steps to come keep its epoch, so that epochs never fall.
        """
        for parity in range(2):
            self._counts[parity][rank] = 0
            self._epochs[parity][rank] = epoch
        self._fence()
        self._announced[rank] = ABSENT
        self._fence()

    def dispatch(self, rank: int, key: int) -> None:
        """Says that the rows of an attention instance are in place."""
        self._fence()
        self._dispatched[rank] = key
        self._fence()

    def reply(self, rank: int, key: int, metadata: ReplyMetadata) -> None:
        """Says that the partial sums of an expert instance are in place."""
        self._digests[rank] = metadata.routing_digest
        self._activated[rank] = metadata.activated
        self._scheduler_ns[rank] = metadata.scheduler_ns
        self._fence()
        self._replied[rank] = key
        self._fence()

    def close(self) -> None:
        self._closed[0] = 1
        self._fence()

    # --- reading ------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed[0] != 0

    def announced_steps(self, rank: int) -> int:
        return self._announced[rank]

    def latest_announced(self) -> int:
        """The latest step that any instance has announced, -1 for none."""
        announced = self._announced.tolist()
        latest = max(announced)
        if latest == ABSENT:
            latest = max((steps for steps in announced if steps != ABSENT), default=0)
        return int(latest) - 1

    def latest_common(self) -> int:
        """The latest step that every instance has announced, -1 for none; one must be present."""
        return int(min(self._announced.tolist())) - 1

    def all_absent(self) -> bool:
        """Whether all attention instances have left."""
        return min(self._announced.tolist()) == ABSENT

    def all_announced(self, step: int) -> bool:
        return min(self._announced.tolist()) > step

    def counts(self, step: int) -> tuple[int, ...]:
        """[attention instances] tokens in `step`; all must have announced it."""
        self._fence()
        return tuple(self._counts[step & 1].tolist())

    def epoch(self, step: int) -> int:
        """The placement of `step`, the same for all readers; all must have announced it."""
        return int(max(self._epochs[step & 1].tolist()))

    def plans(self, step: int) -> int:
        """The exchange plans of `step`; all must have announced it."""
        return self._plans[0] >> 32 * (step & 1) & _HALF

    def latest_dispatched(self) -> int:
        return int(max(self._dispatched.tolist()))

    def latest_reply(self, rank: int) -> int:
        """Key of the latest layer pass that an expert instance has replied to."""
        return self._replied[rank]

    def all_dispatched(self, key: int, counts: Iterable[int]) -> bool:
        for dispatched, count in zip(self._dispatched.tolist(), counts, strict=True):
            if count and dispatched != key:
                return False
        self._fence()
        return True

    def all_replied(self, key: int) -> bool:
        for replied in self._replied.tolist():
            if replied != key:
                return False
        self._fence()
        return True

    def replies(self) -> tuple[ReplyMetadata, ...]:
        columns = (self._digests, self._activated, self._scheduler_ns)
        return tuple(map(ReplyMetadata, *(column.tolist() for column in columns)))

    def progress(self) -> int:
        """Changes whenever any instance gets anywhere."""
        return sum(self._announced) + sum(self._dispatched) + sum(self._replied)

    # --- naming -------------------------------------------------------------------------------

    def silent_announcers(self, step: int) -> str:
        late = [i for i, steps in enumerate(self._announced) if steps <= step]
        return self._names("attention", late)

    def silent_dispatchers(self, key: int, counts: Iterable[int]) -> str:
        pairs = zip(self._dispatched, counts, strict=True)
        late = [i for i, (seen, count) in enumerate(pairs) if count and seen != key]
        return self._names("attention", late)

    def silent_experts(self, key: int) -> str:
        return self._names("expert", [e for e, seen in enumerate(self._replied) if seen != key])

    def name(self, instance: InstanceId) -> str:
        """`expert 0 (pid 12)`."""
        return self._names(instance.pool, [self.membership.rank(instance)])

    def _names(self, pool: Pool, ranks: Iterable[int]) -> str:
        """`expert 0 (pid 12), expert 1 (never connected)`."""
        members, pids = self.membership.pool(pool), self._pids[pool]
        return ", ".join(
            f"{members[rank]} ({f'pid {pids[rank]}' if pids[rank] else 'never connected'})"
            for rank in ranks
        )
