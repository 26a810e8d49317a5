"""What holds of a worker: what its engine said, with what the operator stated laid over it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tandem_router.core.urls import split_url
from tandem_router.handshake.build import handshake_for
from tandem_router.model.pairing import BootstrapEndpoint
from tandem_router.model.spec import WorkerSpec, WorkerType
from tandem_router.model.worker import Condition, FactMismatch, Rank, WorkerFacts

__all__ = ["EffectiveFacts", "effective_facts"]


_SPEC_FIELDS = {"kv_dtype": "kv_cache_dtype"}
"""Facts that have another name in the spec."""


@dataclass(frozen=True, slots=True)
class EffectiveFacts:
    """Facts to go by, the slots they make, and the claim whether stated and found agree."""

    facts: WorkerFacts
    ranks: tuple[Rank, ...]
    agreement: Condition
    """FACTS_MATCH; false names the first field that differs as CONFLICT_<FIELD>, in the singular, and lists all."""
    needs_bootstrap: bool
    """Whether decode workers will knock at the worker's bootstrap endpoint."""


def effective_facts(spec: WorkerSpec, url: str, found: WorkerFacts, *, default_bootstrap_port: int) -> EffectiveFacts:
    """Lay the spec over the facts; the spec wins, and every difference is told.

    url: canonical. The bootstrap endpoint of a prefill worker whose handshake has decode knock at one is stated, else
    found, else the URL's host and the default port, each part by itself; other workers have none.
    """
    stated = {
        "runtime_type": spec.runtime_type,
        "dp_size": spec.dp_size,
        "kv_connector": spec.kv_connector,
        "kv_role": spec.kv_role,
        "kv_engine_id": spec.kv_engine_id,
        "kv_block_size": spec.kv_block_size,
        "kv_dtype": spec.kv_cache_dtype,
        "pairing_protocol": spec.pairing_protocol,
    }
    conflicts = []
    for name, value in stated.items():
        answer = getattr(found, name)
        # "auto" leaves it to the engine's model, of which the operator may know more.
        if value is not None and answer not in (None, "auto", value):
            conflicts.append(FactMismatch(_SPEC_FIELDS.get(name, name), str(value), str(answer)))
    if spec.worker_type is not None and found.disaggregation_mode not in (None, spec.worker_type):
        conflicts.append(FactMismatch("worker_type", str(spec.worker_type), str(found.disaggregation_mode)))
    if spec.models and not _serves_a_stated_model(spec, found):
        conflicts.append(FactMismatch("models", ", ".join(card.id for card in spec.models), found.model_id))
    can_generate, can_embed = spec.generates(found.can_generate), spec.embeds(found.can_embed)
    if (can_generate and not found.can_generate) or (can_embed and not found.can_embed):  # to offer less is no conflict
        offers = _offer(can_generate, can_embed), _offer(found.can_generate, found.can_embed)
        conflicts.append(FactMismatch("models.capabilities", *offers))
    conflicts += _promised(spec, found)
    worker_type = spec.worker_type or found.disaggregation_mode or WorkerType.REGULAR
    handshake = handshake_for(found.handshake, spec.kv_connector or found.kv_connector)
    needs_bootstrap = worker_type is WorkerType.PREFILL and handshake is not None and handshake.needs_bootstrap
    said = {name: value for name, value in stated.items() if value is not None}
    facts = replace(
        found,
        **said,  # type: ignore[arg-type]  # each value has the type of the fact of its name
        can_generate=can_generate,
        can_embed=can_embed,
        bootstrap=_endpoint(spec, url, found, default_bootstrap_port) if needs_bootstrap else None,
        mismatches=tuple(conflicts),
    )
    if conflicts:
        message = "; ".join(f"{one.field}: stated {one.stated}, found {one.found}" for one in conflicts)
        field = conflicts[0].field.partition(".")[0]
        agreement = Condition("FACTS_MATCH", False, f"CONFLICT_{field.upper().removesuffix('S')}", message, 0.0)
    else:
        agreement = Condition("FACTS_MATCH", True, "FACTS_MATCH", "", 0.0)
    return EffectiveFacts(facts, _ranks(spec, facts.dp_size), agreement, needs_bootstrap)


def _offer(generates: bool, embeds: bool) -> str:
    return " and ".join(word for word, is_so in (("tokens", generates), ("vectors", embeds)) if is_so) or "neither"


def _promised(spec: WorkerSpec, found: WorkerFacts) -> list[FactMismatch]:
    """What is stated of a model beyond what the engine says that it takes; to promise less is no conflict."""
    promised = []
    for name in ("context_length", "vocab_size"):
        stated = max((getattr(card, name) or 0 for card in spec.models), default=0)
        if stated > (getattr(found, name) or stated):
            promised.append(FactMismatch(f"models.{name}", str(stated), str(getattr(found, name))))
    return promised


def _serves_a_stated_model(spec: WorkerSpec, found: WorkerFacts) -> bool:
    """Whether a stated id or alias is what the engine serves; of names that are paths the last part counts."""
    told = {name.rsplit("/", 1)[-1] for name in (found.model_id, *found.served_names)}
    stated = {name.rsplit("/", 1)[-1] for card in spec.models for name in (card.id, *card.aliases)}
    return bool(told & stated) or told == {"unknown"}


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
