"""Worker, with its facts, ranks and conditions, to protobuf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from tandem.v1 import (
    kv_pb2,
    worker_facts_pb2,
    worker_load_pb2,
    worker_pb2,
    worker_service_pb2,
    worker_spec_pb2,
)
from tandem_router.errors import Reason
from tandem_router.model.job import Job
from tandem_router.model.spec import ModelCard
from tandem_router.model.worker import Condition, Drain, Rank, RankLoad, Worker, WorkerFacts, WorkerStatus
from tandem_router.wire.connector import connector_pb
from tandem_router.wire.job import job_pb
from tandem_router.wire.model_card import card_pb
from tandem_router.wire.sampling import default_sampling_pb
from tandem_router.wire.scalars import failure_pb, reason_pb, timestamp_pb
from tandem_router.wire.spec import kv_role_pb, spec_pb

__all__ = ["worker_counts_pb", "worker_pb"]


def worker_pb(
    worker: Worker,
    job: Job | None = None,
    *,
    in_flight: Mapping[int, int] | None = None,
    include_load: bool = False,
    wall_minus_monotonic_s: float = 0.0,
    open_legs: int | None = None,
) -> worker_pb2.Worker:
    """The message of a worker.

    job: the one that current_job shows. in_flight: our own open legs by rank, read only with include_load.
    wall_minus_monotonic_s: turns the times of load samples into wall clock.
    open_legs: our own on all its ranks and lives, shown where it drains; None in watches.
    """
    message = worker_pb2.Worker(
        id=worker.id,
        spec=spec_pb(worker.spec),
        has_credentials=worker.has_credentials,
        status=worker_pb2.WorkerStatus.Value(f"WORKER_STATUS_{worker.status.value}"),
        conditions=[_condition_pb(condition) for condition in worker.conditions],
        facts=None if worker.facts is None else _facts_pb(worker, worker.facts),
        drain=_drain_pb(worker.leaving, open_legs),
        current_job=None if job is None else job_pb(job),
        origin=worker_pb2.WORKER_ORIGIN_API,
        epoch=worker.epoch,
        generation=worker.generation,
        revision=worker.revision,
        create_time=timestamp_pb(worker.created_at_s),
        update_time=timestamp_pb(worker.updated_at_s),
        failure=None if worker.failure is None else failure_pb(worker.failure),
    )
    is_parallel = len(worker.ranks) > 1
    for rank in worker.ranks:
        slot = message.ranks.add(
            dp_rank=rank.dp_rank if is_parallel else None,
            healthy=rank.is_healthy,
            routable=rank.is_healthy and worker.status is WorkerStatus.READY,
        )
        failure = worker.failure if rank.outage is None else rank.outage.failure
        if failure is not None:
            slot.failure.CopyFrom(failure_pb(failure))
        if rank.outage is not None:
            slot.outage_time.CopyFrom(timestamp_pb(rank.outage.began_at_s))
            slot.trial_time.CopyFrom(timestamp_pb(rank.outage.trial_at_s))
        if include_load:
            slot.in_flight = (in_flight or {}).get(rank.dp_rank, 0)
            _add_load(slot, rank, wall_minus_monotonic_s)
    return message


def worker_counts_pb(workers: Iterable[Worker]) -> list[worker_service_pb2.WorkerCount]:
    """How many there are of each type in each state; types and states in the schema's order."""
    counts = Counter(
        (
            worker_spec_pb2.WorkerType.Value(f"WORKER_TYPE_{worker.worker_type.value}"),
            worker_pb2.WorkerStatus.Value(f"WORKER_STATUS_{worker.status.value}"),
        )
        for worker in workers
    )
    return [
        worker_service_pb2.WorkerCount(worker_type=kind, status=status, count=count)
        for (kind, status), count in sorted(counts.items())
    ]


def _add_load(slot: worker_pb2.Rank, rank: Rank, wall_minus_monotonic_s: float) -> None:
    load = rank.load
    if load is not None:
        slot.load.CopyFrom(_load_pb(load, timestamp_pb(load.sampled_at_s + wall_minus_monotonic_s)))


def _load_pb(load: RankLoad, sample_time: Timestamp) -> worker_load_pb2.RankLoad:
    return worker_load_pb2.RankLoad(
        sample_time=sample_time,
        running_requests=load.running,
        waiting_requests=load.waiting,
        used_tokens=load.used_tokens,
        max_tokens=load.max_tokens,
        token_usage=load.used_tokens / load.max_tokens if load.max_tokens else 0.0,
    )


def _condition_pb(condition: Condition) -> worker_pb2.Condition:
    message = worker_pb2.Condition(
        type=condition.type,
        status=worker_pb2.CONDITION_STATUS_TRUE if condition.is_true else worker_pb2.CONDITION_STATUS_FALSE,
        transition_time=timestamp_pb(condition.changed_at_s),
        message=condition.message,
    )
    # A condition that says "yes" to something bad (DRAINING, a conflict) carries its reason too, if it is a failure's.
    if not condition.is_true or condition.reason in Reason.__members__:
        message.failure.CopyFrom(reason_pb(condition.reason, condition.message, {}))
    return message


def _drain_pb(drain: Drain | None, remaining_legs: int | None) -> worker_pb2.DrainState | None:
    if drain is None:
        return None
    return worker_pb2.DrainState(
        start_time=timestamp_pb(drain.started_at_s),
        deadline=None if drain.deadline_at_s is None else timestamp_pb(drain.deadline_at_s),
        reason=drain.reason,
        drained_time=None if drain.drained_at_s is None else timestamp_pb(drain.drained_at_s),
        remaining_legs=remaining_legs,
    )


def _facts_pb(worker: Worker, facts: WorkerFacts) -> worker_facts_pb2.WorkerFacts:
    aliases = tuple(name for name in facts.served_names if name != facts.model_id)
    found = ModelCard(
        id=facts.model_id, aliases=aliases, context_length=facts.context_length, vocab_size=facts.vocab_size
    )
    return worker_facts_pb2.WorkerFacts(
        runtime_type=worker_spec_pb2.RuntimeType.Value(f"RUNTIME_TYPE_{facts.runtime_type.value}"),
        runtime_version=facts.version or "",
        worker_type=worker_spec_pb2.WorkerType.Value(f"WORKER_TYPE_{worker.worker_type.value}"),
        models=[card_pb(found)] if facts.model_id else [],
        dp_size=facts.dp_size,
        load_balance_method=facts.load_balance_method or "",
        max_running_requests=facts.max_running_requests or 0,
        eos_token_ids=facts.eos_token_ids,
        kv_connector=connector_pb(facts.handshake, facts.kv_connector),
        kv_connector_name=facts.kv_connector or "",
        kv_role=kv_role_pb(facts.kv_role),
        kv_engine_id=facts.kv_engine_id or "",
        kv_block_size=facts.kv_block_size or 0,
        kv_cache_dtype=facts.kv_dtype or "",
        pairing_protocol=facts.pairing_protocol or "",
        bootstrap_endpoint=(
            None
            if facts.bootstrap is None
            else kv_pb2.BootstrapEndpoint(host=facts.bootstrap.host, port=facts.bootstrap.port)
        ),
        capabilities=_capabilities_pb(facts),
        default_sampling=default_sampling_pb(facts.default_sampling),
        labels={"instance": facts.instance} if facts.instance else {},
        mismatches=[
            worker_facts_pb2.FactMismatch(field=one.field, stated=one.stated, found=one.found)
            for one in facts.mismatches
        ],
    )


def _capabilities_pb(facts: WorkerFacts) -> worker_facts_pb2.WorkerCapabilities:
    return worker_facts_pb2.WorkerCapabilities(
        seed=facts.supports_seed,
        position_keyed_sampling=facts.position_keyed_sampling,
        batch_invariant=facts.batch_invariant,
        loads=facts.reports_loads,
        kv_events=facts.publishes_kv_events,
        tokenizer=facts.hands_out_tokenizer,
        embed=facts.can_embed,
        generate=facts.can_generate,
        multiple_choices=facts.max_choices is None or facts.max_choices > 1,
        logprobs=facts.returns_logprobs,
        adapters=facts.applies_adapters,
        flush_cache=facts.flushes_cache,
        profile=facts.profiles,
        prompt_logprobs=facts.returns_prompt_logprobs,
        constraints=[kind.value.lower() for kind in facts.constraints],
    )
