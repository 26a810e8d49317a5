"""What is known of an engine before anything is asked of it, for people."""

from __future__ import annotations

from tandem_router.handshake.build import handshake_for
from tandem_router.model.detection import told
from tandem_router.model.spec import WorkerType
from tandem_router.testing.conformance.subject import Subject

__all__ = ["facts_of"]


def facts_of(subject: Subject) -> list[tuple[str, str]]:
    """Names and values, in a fixed order; what is not known is empty."""
    facts, dialect = subject.facts, subject.client.dialect
    handshake = handshake_for(facts.handshake, facts.kv_connector)
    safety = dialect.traits.abort_in_transfer if handshake is None else handshake.abort_in_transfer
    tells = [
        name
        for name, has in (
            ("loads", facts.reports_loads),
            ("KV events", facts.publishes_kv_events),
            ("log probabilities", facts.returns_logprobs),
            ("prompt log probabilities", facts.returns_prompt_logprobs),
            ("tokenizer", facts.hands_out_tokenizer),
        )
        if has
    ]
    does = [
        name
        for name, has in (
            ("seeds", facts.supports_seed),
            ("tokens", facts.can_generate),
            ("embeddings", facts.can_embed),
            ("adapters", facts.applies_adapters),
            ("flush", facts.flushes_cache),
            ("profile", facts.profiles),
        )
        if has
    ]
    return [
        ("url", subject.url),
        ("runtime", f"{facts.runtime_type} ({dialect.service})"),
        ("version", facts.version or "not said"),
        ("detection", told(subject.trace)),
        ("mode", str(facts.disaggregation_mode or WorkerType.REGULAR)),
        ("model", ", ".join(dict.fromkeys((facts.model_id, *facts.served_names)))),
        ("context", str(facts.context_length or "not said")),
        ("vocabulary", str(facts.vocab_size or "not said")),
        ("end tokens", ", ".join(map(str, facts.eos_token_ids)) or "not said"),
        ("ranks", str(facts.dp_size)),
        ("max running", str(facts.max_running_requests or "not said")),
        ("handshake", "none: serves aggregated" if handshake is None else str(facts.handshake)),
        ("connector", facts.kv_connector or ""),
        ("KV role", str(facts.kv_role or "")),
        (
            "KV blocks",
            f"{facts.kv_block_size} tokens, {facts.kv_dtype or 'type not said'}" if facts.kv_block_size else "",
        ),
        ("bootstrap", "" if facts.bootstrap is None else f"{facts.bootstrap.host}:{facts.bootstrap.port}"),
        ("abort in transfer", "" if handshake is None else f"{safety}, as its handshake declares"),
        ("after Abort", "cancel the call too" if dialect.traits.needs_cancel_after_abort else "the stream ends"),
        ("tells", ", ".join(tells)),
        ("does", ", ".join(does)),
    ]
