"""What holds of a worker: what its engine said, with what the operator stated laid over it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tandem_router.core.urls import split_url
from tandem_router.model.pairing import BootstrapEndpoint, HandshakeKind
from tandem_router.model.spec import WorkerSpec, WorkerType
from tandem_router.model.worker import Condition, Rank, WorkerFacts

__all__ = ["EffectiveFacts", "effective_facts"]


@dataclass(frozen=True, slots=True)
class EffectiveFacts:
    """Facts to go by, the slots they make, and the claim whether stated and found agree."""

    facts: WorkerFacts
    ranks: tuple[Rank, ...]
    agreement: Condition
    """FACTS_MATCH; false names the first field that differs as CONFLICT_<FIELD> and lists all of them."""
    needs_bootstrap: bool
    """Whether decode workers will knock at the worker's bootstrap endpoint."""


def effective_facts(spec: WorkerSpec, url: str, found: WorkerFacts, *, default_bootstrap_port: int) -> EffectiveFacts:
    """Lay the spec over the facts; the spec wins, and every difference is told.

    url: canonical. The bootstrap endpoint of a prefill worker that is met at a room is stated, else found, else the
    URL's host and the default port, each part by itself; other workers have none.
    """
    stated = {
        "runtime_type": spec.runtime_type,
        "dp_size": spec.dp_size,
        "kv_connector": spec.kv_connector,
        "kv_role": spec.kv_role,
        "kv_engine_id": spec.kv_engine_id,
        "kv_block_size": spec.kv_block_size,
    }
    conflicts = []
    for name, value in stated.items():
        answer = getattr(found, name)
        if value is not None and answer is not None and value != answer:
            conflicts.append((name, f"{name}: stated {value}, found {answer}"))
    if spec.worker_type is not None and found.disaggregation_mode not in (None, spec.worker_type):
        conflicts.append(
            ("worker_type", f"worker_type: stated {spec.worker_type}, found {found.disaggregation_mode}"),
        )
    worker_type = spec.worker_type or found.disaggregation_mode or WorkerType.REGULAR
    needs_bootstrap = worker_type is WorkerType.PREFILL and found.handshake is HandshakeKind.RENDEZVOUS
    said = {name: value for name, value in stated.items() if value is not None}
    facts = replace(
        found,
        **said,  # type: ignore[arg-type]  # each value has the type of the fact of its name
        bootstrap=_endpoint(spec, url, found, default_bootstrap_port) if needs_bootstrap else None,
    )
    if conflicts:
        message = "; ".join(text for _, text in conflicts)
        agreement = Condition("FACTS_MATCH", False, f"CONFLICT_{conflicts[0][0].upper()}", message, 0.0)
    else:
        agreement = Condition("FACTS_MATCH", True, "FACTS_MATCH", "", 0.0)
    return EffectiveFacts(facts, _ranks(spec, facts.dp_size), agreement, needs_bootstrap)


def _endpoint(spec: WorkerSpec, url: str, found: WorkerFacts, default_port: int) -> BootstrapEndpoint:
    told = found.bootstrap
    # An engine that listens everywhere tells the address it bound, which is no address to knock at.
    told_host = told.host if told is not None and told.host not in ("", "0.0.0.0", "::") else None
    host = spec.bootstrap_host or told_host or split_url(url).host
    port = spec.bootstrap_port or (told.port if told is not None else None) or default_port
    return BootstrapEndpoint(host, port)


def _ranks(spec: WorkerSpec, dp_size: int) -> tuple[Rank, ...]:
    """One slot per data-parallel rank, or the one rank that the spec pins the worker to."""
    if spec.dp_rank is not None:
        return (Rank(spec.dp_rank),)
    return tuple(Rank(dp_rank) for dp_rank in range(max(dp_size, 1)))
