"""What happens in one simulated run, drawn from its seed before anything runs: machines, client calls, mishaps.

A scenario is data, so a failing seed can be printed, read and cut down.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, replace

from tandem_router.model.adapters import AdapterUse
from tandem_router.model.pairing import HandshakeKind
from tandem_router.model.request import GenerateRequest, Output, Sampling, Timeouts
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.testing.scripted_model import VOCABULARY
from tandem_router.testing.scripted_wire import EngineScript

__all__ = ["ClientPlan", "MachinePlan", "Mishap", "MishapKind", "Scenario", "Stop", "draw_scenario"]

_LAST_START_S = 4.0
"""Client calls and mishaps begin within that many seconds."""


class Stop(enum.StrEnum):
    """How a client gives up."""

    CANCEL = "CANCEL"
    ABORT = "ABORT"


class MishapKind(enum.StrEnum):
    """What befalls a machine or a worker."""

    KILL = "KILL"
    """SIGKILL; a new process follows."""
    HANG = "HANG"
    REFUSE = "REFUSE"
    ZOMBIE = "ZOMBIE"
    BREAK_TRANSFERS = "BREAK_TRANSFERS"
    FAIL_EARLY = "FAIL_EARLY"
    """Streams fail before their first token."""
    FAIL_LATE = "FAIL_LATE"
    """Streams fail after a few tokens."""
    CUT = "CUT"
    """All connections of routers to it break; the process lives."""
    DELETE = "DELETE"
    """An operator deletes the worker, and registers it again later."""
    FAIL_RANK = "FAIL_RANK"
    """Its first rank fails whatever it gets; other ranks, and probes, are well."""
    KILL_HOLDER = "KILL_HOLDER"
    """SIGKILL of a prefill worker as soon as a decode is sent that is to fetch from it; a new process follows."""
    FORGET_ADAPTERS = "FORGET_ADAPTERS"
    """Its adapters are unloaded past the router."""
    MOVE_ADAPTERS = "MOVE_ADAPTERS"
    """An operator unloads an adapter from all workers, and loads it again later."""


_NEEDS_SOMETHING = frozenset(
    {MishapKind.FAIL_RANK, MishapKind.KILL_HOLDER, MishapKind.FORGET_ADAPTERS, MishapKind.MOVE_ADAPTERS}
)
"""What befalls only machines that have what it is about."""
_ANYWHERE = tuple(kind for kind in MishapKind if kind not in _NEEDS_SOMETHING)
ADAPTERS = ("de", "fr")
"""What engines that apply adapters are started with."""


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """One machine, and when its first process is up."""

    name: str
    script: EngineScript
    starts_at_s: float


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """One client call. Times are seconds after the start of traffic, or after the call's own start where named so."""

    request: GenerateRequest
    starts_at_s: float
    stop: Stop | None = None
    stop_after_s: float = 0.0
    """After the call's own start."""
    deadline_after_s: float | None = None
    """The caller's deadline, after the call's own start."""
    stall_at_chunk: int | None = None
    """Number of the chunk at which the client stops reading."""
    stall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Mishap:
    """One bad thing, and how long until it is put right."""

    kind: MishapKind
    machine: str
    at_s: float
    lasts_s: float
    drain_timeout_s: float = 0.0
    """Of a DELETE."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run."""

    seed: int
    waits_for_workers: bool
    """Whether traffic begins only when every worker is registered."""
    machines: tuple[MachinePlan, ...]
    clients: tuple[ClientPlan, ...]
    mishaps: tuple[Mishap, ...]

    @property
    def longest_hold_s(self) -> float:
        """How long an engine may keep what nobody fetches or frees."""
        scripts = [machine.script for machine in self.machines]
        return max(script.transfer_timeout_s if script.is_mooncake else script.handle_lease_s for script in scripts)


def draw_scenario(seed: int) -> Scenario:
    """The scenario of a seed; the same on every machine."""
    rng = random.Random(f"scenario {seed}")
    machines = _draw_machines(rng, random.Random(f"connector {seed}"))
    models = sorted({machine.script.model for machine in machines})
    clients = tuple(_draw_client(rng, number, rng.choice(models)) for number in range(rng.randint(8, 30)))
    mishaps = tuple(_draw_mishap(rng, rng.choice(machines).name) for _ in range(rng.randint(0, 7)))
    waits_for_workers = rng.random() < 0.8
    # Apart, so that all else of a seed is as it was before there were adapters, limits of choices and failing ranks.
    machines, clients, more = _with_abilities(random.Random(f"abilities {seed}"), machines, clients, len(mishaps))
    mishaps += more
    return Scenario(seed, waits_for_workers, machines, clients, tuple(sorted(mishaps, key=lambda each: each.at_s)))


def _draw_machines(rng: random.Random, rng_of_connectors: random.Random) -> tuple[MachinePlan, ...]:
    """rng_of_connectors: apart, so that all else of a seed is as it was before handoffs had several connectors."""
    groups = rng.choice(
        [
            [HandshakeKind.RENDEZVOUS],
            [HandshakeKind.HANDOFF],
            [HandshakeKind.RENDEZVOUS, HandshakeKind.AGGREGATE],
            [HandshakeKind.HANDOFF, HandshakeKind.AGGREGATE],
            [HandshakeKind.RENDEZVOUS, HandshakeKind.HANDOFF],
            [HandshakeKind.RENDEZVOUS, HandshakeKind.HANDOFF, HandshakeKind.AGGREGATE],
        ]
    )
    # One model served in several ways means pairs that do not fit; several models mean routes that must not cross.
    has_one_model = rng.random() < 0.5
    machines: list[MachinePlan] = []
    for kind in groups:
        model = "one" if has_one_model else kind.lower()
        speed = rng.choice([0.2, 1.0, 4.0])
        connector = _draw_connector(rng_of_connectors, kind)
        types = [WorkerType.REGULAR] if kind is HandshakeKind.AGGREGATE else [WorkerType.PREFILL, WorkerType.DECODE]
        for worker_type in types:
            for number in range(rng.randint(1, 3)):
                is_ranked = kind is HandshakeKind.RENDEZVOUS and worker_type is WorkerType.PREFILL
                max_running = rng.choice([1, 4, 16])
                dp_size = rng.choice([1, 1, 2, 3]) if is_ranked else 1
                if connector is not None:
                    dp_size = rng_of_connectors.choice([1, 1, 2, 3])
                script = EngineScript(
                    kind=kind,
                    worker_type=worker_type,
                    runtime=RuntimeType.SGLANG if kind is HandshakeKind.RENDEZVOUS else RuntimeType.VLLM,
                    model=model,
                    max_running=max_running,
                    dp_size=dp_size,
                    connector=connector,
                    handle_lease_s=30.0 if connector is None else 480.0,
                    step_s=0.005 * speed,
                    page_s=0.002 * speed,
                    settle_s=rng.choice([0.001, 0.02, 0.2]),
                )
                name = f"{kind.lower()}-{worker_type.lower()}-{number}"
                machines.append(MachinePlan(name, script, rng.choice([0.0, 0.0, 0.0, rng.uniform(0, 2)])))
    return tuple(machines)


def _draw_connector(rng: random.Random, kind: HandshakeKind) -> str | None:
    """Of a group of workers; None = the one that its engine is known for."""
    return rng.choice([None, "MooncakeConnector"]) if kind is HandshakeKind.HANDOFF else None


def _draw_client(rng: random.Random, number: int, model: str) -> ClientPlan:
    is_greedy = rng.random() < 0.5
    sampling = Sampling(
        temperature=0.0 if is_greedy else 0.7,
        seed=None if is_greedy else rng.randrange(1000),
        n=rng.choice([1, 1, 1, 1, 2, 3]),
        max_tokens=rng.choice([1, 2, 8, 20, 40]),
        ignore_eos=rng.random() < 0.5,
    )
    length = rng.choice([1, 3, 4, 5, rng.randint(6, 60), 200])
    timeouts = Timeouts(
        first_token_s=rng.choice([None, None, None, rng.uniform(0.02, 2)]),
        inter_token_s=rng.choice([None, None, None, 1.0]),
        total_s=rng.choice([None, None, None, rng.uniform(0.05, 3)]),
    )
    return ClientPlan(
        GenerateRequest(
            request_id=f"r{number}",
            model=model,
            token_ids=tuple(rng.randrange(3, VOCABULARY) for _ in range(length)),
            sampling=sampling,
            output=Output.TOKENS,
            timeouts=timeouts,
        ),
        starts_at_s=rng.uniform(0, _LAST_START_S),
        stop=rng.choice([None, None, None, None, Stop.CANCEL, Stop.ABORT]),
        stop_after_s=rng.choice([0.0, rng.uniform(0, 0.05), rng.uniform(0, 1)]),
        deadline_after_s=rng.choice([None, None, None, rng.uniform(0.01, 3)]),
        stall_at_chunk=rng.choice([None, None, None, rng.randint(1, 10)]),
        stall_s=rng.choice([0.1, 2.0, 15.0]),
    )


def _with_abilities(
    rng: random.Random, machines: tuple[MachinePlan, ...], clients: tuple[ClientPlan, ...], mishaps: int
) -> tuple[tuple[MachinePlan, ...], tuple[ClientPlan, ...], tuple[Mishap, ...]]:
    """What engines can do, clients that ask for it, and what may befall it where anything befalls anybody."""
    adapters = ADAPTERS if rng.random() < 0.4 else None
    able = []
    for number, machine in enumerate(machines):
        most, most_greedy = rng.choice([(None, None), (None, None), (1, None), (2, None), (None, 1)])
        if machine.script.worker_type is not WorkerType.REGULAR:
            most = most_greedy = None  # a pair is asked for one choice at a time anyway
        # The first of its kind has all, so that where nothing goes wrong every adapter has a place.
        part = (machine.script.kind, machine.script.worker_type)
        is_first = part not in [(other.script.kind, other.script.worker_type) for other in machines[:number]]
        held = adapters if adapters is None or is_first or rng.random() < 0.5 else adapters[:1]
        script = replace(machine.script, adapters=held, max_choices=most, max_greedy_choices=most_greedy)
        able.append(replace(machine, script=script))
    asking = []
    for client in clients:
        names = () if adapters is None else rng.choice([(), (), (), ("de",), ("de", "fr")])
        uses = tuple(AdapterUse(name, rng.choice([0.5, 1.0])) for name in names)
        asking.append(replace(client, request=replace(client.request, adapters=uses)))
    more = []
    for machine in able if mishaps else ():
        if machine.script.dp_size > 1 and rng.random() < 0.4:
            more.append(Mishap(MishapKind.FAIL_RANK, machine.name, rng.uniform(0, 2), rng.uniform(1.0, 5.0)))
        if machine.script.worker_type is WorkerType.PREFILL and rng.random() < 0.3:
            more.append(Mishap(MishapKind.KILL_HOLDER, machine.name, rng.uniform(0, 3), rng.uniform(1.0, 5.0)))
        if adapters is not None and rng.random() < 0.3:
            kind = rng.choice([MishapKind.FORGET_ADAPTERS, MishapKind.MOVE_ADAPTERS])
            more.append(Mishap(kind, machine.name, rng.uniform(0, _LAST_START_S), rng.uniform(0.01, 2.0)))
    return tuple(able), tuple(asking), tuple(more)


def _draw_mishap(rng: random.Random, machine: str) -> Mishap:
    kind = rng.choice([MishapKind.KILL, MishapKind.KILL, *_ANYWHERE])
    return Mishap(kind, machine, rng.uniform(0, _LAST_START_S), rng.uniform(0.01, 5.0), rng.choice([0.0, 1.0, 20.0]))
