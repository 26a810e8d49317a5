"""More than the engine takes, stated of a model, is told by FACTS_MATCH; less is the operator's own limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tandem_router.model.spec import ModelCard, RuntimeType, WorkerSpec
from tandem_router.model.worker import WorkerFacts
from tandem_router.runtime.facts import effective_facts

URL = "grpc://127.0.0.1:1"
FOUND = WorkerFacts(RuntimeType.VLLM, model_id="tiny", context_length=4096, vocab_size=512)


@pytest.mark.parametrize(
    ("card", "found", "told"),
    [
        (ModelCard("tiny", context_length=9000), FOUND, "models.context_length: stated 9000, found 4096"),
        (ModelCard("tiny", vocab_size=513), FOUND, "models.vocab_size: stated 513, found 512"),
        (ModelCard("tiny", context_length=4096, vocab_size=512), FOUND, ""),
        (ModelCard("tiny", context_length=1024, vocab_size=500), FOUND, ""),
        (ModelCard("tiny", context_length=9000), replace(FOUND, context_length=None), ""),
        (ModelCard("tiny"), FOUND, ""),
    ],
    ids=["longer-context", "larger-vocabulary", "the-same", "less", "engine-does-not-say", "nothing-stated"],
)
def test_promising_more_than_the_engine_takes_is_a_conflict(card: ModelCard, found: WorkerFacts, told: str) -> None:
    agreement = effective_facts(WorkerSpec(url=URL, models=(card,)), URL, found, default_bootstrap_port=8998).agreement
    assert (agreement.is_true, agreement.message) == (not told, told)
    assert agreement.reason == ("CONFLICT_MODEL" if told else "FACTS_MATCH")
