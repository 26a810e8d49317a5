"""What an engine can do, and where it contradicts what was stated, is shown as it is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.policies.fleet import worker

from tandem.v1 import worker_facts_pb2
from tandem_router.model.request import ConstraintKind
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.model.worker import FactMismatch, WorkerFacts
from tandem_router.wire.worker import worker_pb

LEAST = WorkerFacts(
    RuntimeType.VLLM,
    "m",
    can_generate=False,
    max_choices=1,
    returns_logprobs=False,
    returns_prompt_logprobs=False,
)
"""Of an engine that can do nothing more than it must."""


def shown(**facts: Any) -> worker_facts_pb2.WorkerFacts:
    one = worker(1, WorkerType.REGULAR)
    return worker_pb(replace(one, facts=replace(LEAST, **facts))).facts


CAPABILITIES: list[tuple[dict[str, Any], str, Any]] = [
    ({"supports_seed": True}, "seed", True),
    ({"position_keyed_sampling": True}, "position_keyed_sampling", True),
    ({"batch_invariant": True}, "batch_invariant", True),
    ({"reports_loads": True}, "loads", True),
    ({"publishes_kv_events": True}, "kv_events", True),
    ({"hands_out_tokenizer": True}, "tokenizer", True),
    ({"can_embed": True}, "embed", True),
    ({"can_generate": True}, "generate", True),
    ({"max_choices": None}, "multiple_choices", True),
    ({"max_choices": 2}, "multiple_choices", True),
    ({"returns_logprobs": True}, "logprobs", True),
    ({"applies_adapters": True}, "adapters", True),
    ({"flushes_cache": True}, "flush_cache", True),
    ({"profiles": True}, "profile", True),
    ({"returns_prompt_logprobs": True}, "prompt_logprobs", True),
    (
        {"constraints": (ConstraintKind.JSON_SCHEMA, ConstraintKind.STRUCTURAL_TAG)},
        "constraints",
        ["json_schema", "structural_tag"],
    ),
]


@pytest.mark.parametrize(
    ("facts", "name", "value"), CAPABILITIES, ids=[f"{row[1]} from {next(iter(row[0]))}" for row in CAPABILITIES]
)
def test_a_capability_is_shown_alone(facts: dict[str, Any], name: str, value: Any) -> None:
    expected = worker_facts_pb2.WorkerCapabilities(**{name: value})
    assert shown(**facts).capabilities == expected


def test_the_least_engine_shows_no_capability() -> None:
    assert shown().capabilities == worker_facts_pb2.WorkerCapabilities()


def test_every_capability_of_the_schema_is_fed() -> None:
    assert {name for _, name, _ in CAPABILITIES} == set(worker_facts_pb2.WorkerCapabilities.DESCRIPTOR.fields_by_name)


def test_a_contradiction_is_shown_with_both_values() -> None:
    [mismatch] = shown(mismatches=(FactMismatch("kv_block_size", "32", "16"),)).mismatches
    assert (mismatch.field, mismatch.stated, mismatch.found) == ("kv_block_size", "32", "16")
