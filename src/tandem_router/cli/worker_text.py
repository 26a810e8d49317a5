"""How workers are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tandem.v1 import job_pb2, kv_pb2, worker_pb2, worker_service_pb2, worker_spec_pb2
from tandem_router.cli.progress import step_line
from tandem_router.cli.text import STATE_ROOM, UUID_ROOM, Column, Table, one_line, pairs, printable
from tandem_router.cli.words import kind, since, state, until

__all__ = ["COUNTS", "WORKERS", "worker_text"]

Worker = worker_pb2.Worker


def _type(worker: Worker) -> str:
    return kind(worker_spec_pb2.WorkerType, worker.facts.worker_type or worker.spec.worker_type)


def _runtime(worker: Worker) -> str:
    return kind(worker_spec_pb2.RuntimeType, worker.facts.runtime_type or worker.spec.runtime_type)


def _models(worker: Worker) -> str:
    return ", ".join(card.id for card in (worker.spec.models or worker.facts.models))


def _context(worker: Worker) -> str:
    """The context lengths of its models: stated, else found; empty where none is known."""
    stated, found = (
        sorted({card.context_length for card in cards if card.HasField("context_length")})
        for cards in (worker.spec.models, worker.facts.models)
    )
    return ", ".join(f"{length} tokens" for length in stated or found)


def _in_flight(worker: Worker) -> str:
    told = [rank.in_flight for rank in worker.ranks if rank.HasField("in_flight")]
    return str(sum(told)) if told else ""


def _endpoint(worker: Worker) -> str:
    return worker.spec.url or (f"agent {worker.spec.agent.agent_id}" if worker.spec.HasField("agent") else "")


def _ranks(worker: Worker) -> str:
    return f"{sum(rank.routable for rank in worker.ranks)}/{len(worker.ranks)}" if worker.ranks else ""


def _labels(worker: Worker) -> str:
    return ",".join(f"{key}={worker.spec.labels[key]}" for key in sorted(worker.spec.labels))


WORKERS: Table[Worker] = Table(
    (
        Column("ID", lambda worker: worker.id, room=UUID_ROOM),
        Column("TYPE", _type, room=7),
        Column("RUNTIME", _runtime),
        Column("STATUS", lambda worker: state(worker_pb2.WorkerStatus, worker.status), is_state=True, room=STATE_ROOM),
        Column("MODEL", _models),
        Column("IN-FLIGHT", _in_flight),
        Column("URL", _endpoint),
        Column("RANKS", _ranks, is_wide=True),
        Column("CONNECTOR", lambda worker: kind(kv_pb2.KvConnector, worker.facts.kv_connector), is_wide=True),
        Column("EPOCH", lambda worker: str(worker.epoch), is_wide=True),
        Column("GENERATION", lambda worker: str(worker.generation), is_wide=True),
        Column("AGE", lambda worker: since(worker, "create_time"), is_wide=True),
        Column("LABELS", _labels, is_wide=True),
        Column("REASON", lambda worker: worker.failure.reason, is_wide=True),
        Column("MESSAGE", lambda worker: worker.failure.message, is_wide=True),
    )
)
"""RANKS is how many may get requests, of how many there are."""

COUNTS: Table[worker_service_pb2.WorkerCount] = Table(
    (
        Column("TYPE", lambda one: kind(worker_spec_pb2.WorkerType, one.worker_type)),
        Column("STATUS", lambda one: state(worker_pb2.WorkerStatus, one.status), is_state=True),
        Column("COUNT", lambda one: str(one.count)),
    )
)

_CONDITIONS: Table[worker_pb2.Condition] = Table(
    (
        Column("CONDITION", lambda one: one.type),
        Column("STATUS", lambda one: state(worker_pb2.ConditionStatus, one.status), is_state=True),
        Column("SINCE", lambda one: since(one, "transition_time")),
        Column("REASON", lambda one: one.failure.reason),
        Column("MESSAGE", lambda one: one.failure.message or one.message),
    )
)

_RANKS: Table[worker_pb2.Rank] = Table(
    (
        Column("RANK", lambda rank: str(rank.dp_rank)),
        Column("ROUTABLE", lambda rank: "yes" if rank.routable else "no", is_state=True),
        Column("BREAKER", lambda rank: state(worker_pb2.BreakerState, rank.breaker), is_state=True),
        Column("IN-FLIGHT", lambda rank: _of(str(rank.in_flight) if rank.HasField("in_flight") else "-", rank)),
        Column("RUNNING", lambda rank: str(rank.load.running_requests) if rank.HasField("load") else ""),
        Column("WAITING", lambda rank: str(rank.load.waiting_requests) if rank.HasField("load") else ""),
        Column("KV-USED", lambda rank: f"{rank.load.token_usage:.0%}" if rank.HasField("load") else ""),
        Column("REASON", lambda rank: rank.failure.reason),
    )
)


def _of(text: str, rank: worker_pb2.Rank) -> str:
    return f"{text} of {rank.window}" if rank.HasField("window") else text


def worker_text(worker: Worker, *, wide: bool = False) -> str:
    """Everything an operator asks about one worker, in sections; wide adds what else the engine reported."""
    lines = pairs(_head(worker), sys.stdout)
    if worker.conditions:
        lines += ["", *_CONDITIONS.lines(worker.conditions, sys.stdout, wide=wide)]
    if worker.ranks:
        lines += ["", *_RANKS.lines(worker.ranks, sys.stdout, wide=wide)]
        out = [rank for rank in worker.ranks if rank.HasField("outage_time")]
        lines += [f"  {printable(one_line(_outage(rank)), sys.stdout)}" for rank in out]
    if worker.HasField("current_job"):
        job = worker.current_job
        lines += [
            "",
            f"job {job.id}: {kind(job_pb2.JobType, job.type)} {state(job_pb2.JobState, job.state)}",
            *(f"  {printable(one_line(step_line(step)), sys.stdout)}" for step in job.steps),
        ]
    if worker.facts.mismatches:
        lines += ["", "stated and found differ:"]
        lines += [
            printable(f"  {one.field}: stated {one.stated!r}, found {one.found!r}", sys.stdout)
            for one in worker.facts.mismatches
        ]
    if wide and worker.facts.labels:
        lines += ["", "reported:"]
        found = worker.facts.labels
        lines += [f"  {line}" for line in pairs(((key, found[key]) for key in sorted(found)), sys.stdout)]
    return "\n".join(lines)


def _outage(rank: worker_pb2.Rank) -> str:
    since_when, until_when = since(rank, "outage_time"), until(rank, "trial_time")
    return f"rank {rank.dp_rank} is out for {since_when}, tried again in {until_when}: {rank.failure.message}"


def _drain(drain: worker_pb2.DrainState) -> str:
    told = [f"asked for {since(drain, 'start_time')} ago"]
    if drain.HasField("drained_time"):
        told.append("drained")
    elif drain.HasField("remaining_legs"):
        told.append(f"{drain.remaining_legs} legs remain")
    return ", ".join(told) + (f": {drain.reason}" if drain.reason else "")


def _capabilities(worker: Worker) -> str:
    """The words of WorkerCapabilities that hold, constraints by their kinds."""
    if not worker.HasField("facts"):
        return ""
    can = worker.facts.capabilities
    words = [field.name.replace("_", " ") for field in can.DESCRIPTOR.fields if getattr(can, field.name) is True]
    if can.constraints:
        words.append(f"constraints ({', '.join(can.constraints)})")
    return ", ".join(words)


def _head(worker: Worker) -> Iterable[tuple[str, str]]:
    facts = worker.facts
    yield "worker", worker.id
    yield "url", _endpoint(worker)
    yield "status", state(worker_pb2.WorkerStatus, worker.status)
    if worker.HasField("failure"):
        yield "reason", f"{worker.failure.reason}: {worker.failure.message}"
    yield "type", _type(worker)
    yield "runtime", f"{_runtime(worker)} {facts.runtime_version}".strip()
    yield "models", _models(worker)
    yield "context", _context(worker)
    yield "connector", kind(kv_pb2.KvConnector, facts.kv_connector)
    if facts.HasField("bootstrap_endpoint"):
        yield "bootstrap", f"{facts.bootstrap_endpoint.host}:{facts.bootstrap_endpoint.port}"
    if facts.kv_block_size:
        yield "kv blocks", f"{facts.kv_block_size} tokens {facts.kv_cache_dtype}".strip()
    yield "can", _capabilities(worker)
    yield "labels", _labels(worker)
    yield "credentials", "stored" if worker.has_credentials else ""
    if worker.HasField("drain"):
        yield "drain", _drain(worker.drain)
    yield "epoch", str(worker.epoch)
    yield "generation", str(worker.generation)
    yield "created", f"{since(worker, 'create_time')} ago" if worker.HasField("create_time") else ""
