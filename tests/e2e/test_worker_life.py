"""Claim: instances are built once, with their weights, and serve one membership after the other.

A request that begins in one goes on in the next, with the cache that its instance has kept.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from tests.e2e.conftest import Model
from tests.e2e.harness import begin

from janus_moe.cluster.deployment_plan import plan_deployment, this_host
from janus_moe.cluster.worker.exchanges import open_exchanges
from janus_moe.cluster.worker.hosted_instance import HostedInstance
from janus_moe.cluster.worker.worker_instances import (
    build_instances,
)
from janus_moe.cluster.worker_layout import setup_message, worker_layouts
from janus_moe.config import EngineConfig
from janus_moe.messages import (
    AddRequest,
    CommitGeneration,
    FromWorker,
    SamplingParams,
    Setup,
    StepDone,
)
from janus_moe.spec import InstanceId
from janus_moe.transport import Exchange
from janus_moe.transport.network.rendezvous import MemoryRendezvous

DEADLINE_S = 20.0
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
TOKENS = 24
EXPERTS = tuple(InstanceId(pool="expert", number=number) for number in range(3))
FIRST, SECOND = (InstanceId(pool="attention", number=number) for number in range(2))


class Life:
    """Two attention and three expert instances of this process, built once.

    setups: one for each worker, of generation 0; in loopback there is one worker.
    """

    def __init__(self, folder: Path, transport: str) -> None:
        config = EngineConfig(
            model=str(folder),
            attention_instances=2,
            expert_instances=3,
            transport=transport,  # type: ignore[arg-type]
            threads=1,
            max_model_len=160,
            kv_cache_memory_bytes=2**22,
        )
        plan = plan_deployment(config, [this_host(config)])
        self.said: queue.SimpleQueue[FromWorker] = queue.SimpleQueue()
        self.setups = [setup_message(plan, layout) for layout in worker_layouts(plan)]
        self._rendezvous = MemoryRendezvous()
        self._built = [build_instances(setup, self.said.put) for setup in self.setups]

    def serve(
        self, setups: Sequence[Setup], requests: dict[InstanceId, AddRequest], tokens: int
    ) -> dict[InstanceId, list[int]]:
        """Opens the exchanges of a membership, computes so many tokens on each, and closes them."""
        members = set(setups[0].membership.instances)
        taking = [pair for pair in zip(setups, self._built, strict=True) if pair[0].instances]
        with ThreadPoolExecutor(len(taking)) as pool:  # they wait for each other
            opened = list(pool.map(self._open, [setup for setup, _ in taking]))
        present: list[HostedInstance] = []
        for (setup, built), exchanges in zip(taking, opened, strict=True):
            here = [instance for instance in built if instance.id in members]
            begin(here, setup, exchanges)
            present += here
        threads = [threading.Thread(target=serve, args=(instance,)) for instance in present]
        for thread in threads:
            thread.start()
        for instance in present:
            if request := requests.get(instance.id):
                instance.post(request)
        produced = self._collect(members, tokens)
        following = CommitGeneration(generation=setups[0].membership.generation + 1)
        for instance in present:
            instance.leave(following)
            instance.finish()
        for thread in threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        for exchange in (exchange for own in opened for exchange in own):
            exchange.close()
        return produced

    def release(self) -> None:
        for built in self._built:
            for instance in built:
                instance.release()

    def _open(self, setup: Setup) -> tuple[Exchange, ...]:
        return open_exchanges(setup, self._rendezvous, "127.0.0.1")

    def _collect(self, members: set[InstanceId], tokens: int) -> dict[InstanceId, list[int]]:
        found: dict[InstanceId, list[int]] = {i: [] for i in members if i.pool == "attention"}
        while min(map(len, found.values())) < tokens:
            message = self.said.get(timeout=DEADLINE_S)
            if isinstance(message, StepDone):
                found[message.instance] += [t for new in message.outputs for t in new.token_ids]
        return found


def serve(instance: HostedInstance) -> None:
    instance.serve(lambda error, generation: None)


def test_one_build_serves_memberships_of_other_ranks_and_sizes(qwen3: Model) -> None:
    """Experts change ranks, then one attention instance stays away, then all are back."""
    life = Life(qwen3.folder, "loopback")
    check_memberships(life, qwen3)
    life.release()


def check_memberships(life: Life, model: Model) -> None:
    turned = [following(setup, 1, (FIRST, SECOND), (2, 0, 1)) for setup in life.setups]
    alone = [following(setup, 2, (SECOND,), (1, 2, 0)) for setup in life.setups]
    back = [following(setup, 3, (FIRST, SECOND), (0, 1, 2)) for setup in life.setups]
    outputs: dict[InstanceId, list[int]] = {FIRST: [], SECOND: []}
    for number, setups in enumerate([life.setups, turned, alone, back]):
        members = setups[0].membership.attention
        requests = {i: request(i, f"{number} of {i}") for i in members}
        produced = life.serve(setups, requests, TOKENS)
        for instance in members:
            outputs[instance] += produced[instance][:TOKENS]
    expected = greedy(model, TOKENS)
    assert outputs[FIRST] == 3 * expected
    assert outputs[SECOND] == 4 * expected


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_one_build_serves_memberships_over_sockets_and_shared_memory(
    qwen3: Model, transport: str
) -> None:
    life = Life(qwen3.folder, transport)
    before = threading.active_count()
    check_memberships(life, qwen3)
    life.release()
    assert threading.active_count() == before


def test_experts_that_an_instance_does_not_hold_are_loaded(qwen3: Model) -> None:
    life = Life(qwen3.folder, "loopback")
    (setup,) = life.setups
    same = following(setup, 1, (FIRST, SECOND), (0, 1, 2))
    turned = msgspec.structs.replace(
        same, slots=tuple((*layer[1:], layer[0]) for layer in same.slots)
    )
    produced = life.serve([turned], {i: request(i, "turned") for i in (FIRST, SECOND)}, TOKENS)
    assert produced[FIRST][:TOKENS] == produced[SECOND][:TOKENS] == greedy(qwen3, TOKENS)
    life.release()


def following(
    setup: Setup, generation: int, attention: tuple[InstanceId, ...], order: tuple[int, ...]
) -> Setup:
    """The setup of a later membership. order: [expert instances] numbers by rank."""
    membership = msgspec.structs.replace(
        setup.membership,
        generation=generation,
        placement_epoch=generation,
        attention=attention,
        attention_hosts=setup.membership.attention_hosts[: len(attention)],
        expert=tuple(EXPERTS[number] for number in order),
    )
    slots = tuple(tuple(layer[number] for number in order) for layer in setup.slots)
    present = tuple(instance for instance in setup.instances if instance in membership.instances)
    return msgspec.structs.replace(setup, membership=membership, slots=slots, instances=present)


def request(instance: InstanceId, name: str) -> AddRequest:
    return AddRequest(
        instance=instance,
        request_id=name,
        admission=1,
        prompt_ids=PROMPT,
        sampling=SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, seed=0),
        eos_token_ids=(),
    )


def greedy(model: Model, tokens: int) -> list[int]:
    """What the undivided model produces."""
    sequence = list(PROMPT)
    for _ in range(tokens):
        sequence.append(int(model.oracle.logits(sequence)[-1].argmax()))
    return sequence[len(PROMPT) :]
