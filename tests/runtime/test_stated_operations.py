"""What a worker is asked for: as its engine says, and as the operator states over it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.policies.fleet import fleet, worker

from tandem_router.model.spec import ModelCard, RuntimeType, WorkerSpec, WorkerType
from tandem_router.model.worker import WorkerFacts
from tandem_router.policies.filters import embeds, generates
from tandem_router.runtime.facts import EffectiveFacts, effective_facts
from tandem_router.runtime.prompt import facts_of_model

URL = "grpc://engine:30000"
TOKENS, VECTORS = (True, False), (False, True)
BOTH, NEITHER = (True, True), (False, False)


def effective(found: tuple[bool, bool], *cards: tuple[str, ...]) -> EffectiveFacts:
    facts = replace(WorkerFacts(RuntimeType.SGLANG, "m"), can_generate=found[0], can_embed=found[1])
    spec = WorkerSpec(url=URL, models=tuple(ModelCard("m", capabilities=each) for each in cards))
    return effective_facts(spec, URL, facts, default_bootstrap_port=8998)


STATED: list[tuple[tuple[bool, bool], tuple[tuple[str, ...], ...], tuple[bool, bool], str | None]] = [
    (TOKENS, (), TOKENS, None),
    (VECTORS, (), VECTORS, None),
    (VECTORS, ((),), VECTORS, None),
    (BOTH, (("VISION", "TOOLS"),), BOTH, None),
    # Less than the engine offers is the operator's choice, and no contradiction.
    (BOTH, (("EMBEDDINGS",),), VECTORS, None),
    (BOTH, (("CHAT", "TOOLS"),), TOKENS, None),
    (BOTH, (("GENERATE",), ("EMBEDDINGS",)), BOTH, None),
    (BOTH, (("RERANK",),), NEITHER, None),
    (TOKENS, (("COMPLETIONS",), ()), TOKENS, None),
    # More than it offers is one; the statement wins.
    (TOKENS, (("EMBEDDINGS",),), VECTORS, "stated vectors, found tokens"),
    (VECTORS, (("RESPONSES",),), TOKENS, "stated tokens, found vectors"),
    (TOKENS, (("CHAT", "EMBEDDINGS"),), BOTH, "stated tokens and vectors, found tokens"),
]


@pytest.mark.parametrize(
    ("found", "cards", "wanted", "conflict"),
    STATED,
    ids=[f"{row[0]} {' | '.join('+'.join(card) or 'silent' for card in row[1]) or 'no card'}" for row in STATED],
)
def test_what_is_stated_wins_and_a_contradiction_is_told(
    found: tuple[bool, bool], cards: tuple[tuple[str, ...], ...], wanted: tuple[bool, bool], conflict: str | None
) -> None:
    result = effective(found, *cards)
    assert (result.facts.can_generate, result.facts.can_embed) == wanted
    assert result.agreement.is_true == (conflict is None)
    if conflict is not None:
        assert (result.agreement.reason, result.agreement.message) == (
            "CONFLICT_MODEL",
            f"models.capabilities: {conflict}",
        )


def test_a_prompt_is_held_to_the_limits_of_a_worker_that_can_take_it() -> None:
    """Under one model id an embedding server may have a shorter context than those that generate."""
    short = worker(1, WorkerType.REGULAR, can_generate=False, can_embed=True, context_length=64)
    long = worker(2, WorkerType.REGULAR, context_length=4096)
    limits = [facts_of_model("m", fleet(short, long), can) for can in (embeds, generates)]
    assert [facts and facts.context_length for facts in limits] == [64, 4096]
    assert facts_of_model("m", fleet(short), generates) is None
