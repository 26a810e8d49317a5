"""The exact bytes-to-be of each request, as checked-in text. TANDEM_UPDATE_GOLDEN=1 writes them anew, for review."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from legs import (
    ADAPTED,
    AGGREGATE,
    EMBED,
    FULL,
    HANDOFF_DECODE,
    HANDOFF_PREFILL,
    LIMITED,
    MOONCAKE,
    MOONCAKE_DECODE,
    MOONCAKE_PREFILL,
    RENDEZVOUS_DECODE,
    RENDEZVOUS_PREFILL,
    SEEDED,
    sampled,
)

from tandem_router.engines.contract import Dialect
from tandem_router.engines.mlx import MlxDialect
from tandem_router.engines.registry import PROBE_ORDER
from tandem_router.engines.sglang import SglangDialect
from tandem_router.engines.tokenspeed import TokenspeedDialect
from tandem_router.engines.trtllm import TrtllmDialect
from tandem_router.engines.vllm import VllmDialect
from tandem_router.errors import Reason, TandemError
from tandem_router.model.adapters import AdapterUse
from tandem_router.model.operations import (
    FlushCache,
    ListAdapters,
    LoadAdapter,
    Operation,
    StartProfile,
    StopProfile,
    UnloadAdapter,
)
from tandem_router.model.request import Constraint, ConstraintKind, LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import WorkerFacts

GOLDEN = Path(__file__).parent / "golden"
SGLANG, VLLM = SglangDialect(), VllmDialect()
TRTLLM, TOKENSPEED, MLX = TrtllmDialect(), TokenspeedDialect(), MlxDialect()
ONE_SEQUENCE = replace(FULL, n=1, min_tokens=None, seed=None)
LOGPROBS = replace(AGGREGATE, output_logprobs=True, top_logprobs=3, is_streaming=False)
STORE = WorkerFacts(RuntimeType.VLLM, "m", kv_connector="MooncakeStoreConnector")
DEFAULTED = WorkerFacts(RuntimeType.SGLANG, "m", default_sampling={"temperature": 0.6, "top_p": 0.95, "top_k": 20})
PROMPT_LOGPROBS = {"output_logprobs": True, "prompt_logprobs": True, "top_logprobs": 3}
CONSTRAINTS = {
    "json_schema": Constraint(ConstraintKind.JSON_SCHEMA, '{"type": "object"}'),
    "regex": Constraint(ConstraintKind.REGEX, "[0-9]+"),
    "ebnf": Constraint(ConstraintKind.EBNF, 'root ::= "a"'),
    "structural_tag": Constraint(ConstraintKind.STRUCTURAL_TAG, '{"structures": []}'),
}
CHOICE = Constraint(ConstraintKind.CHOICE, choices=("yes", "no"))


def constrained(leg: LegRequest, constraint: Constraint) -> LegRequest:
    return replace(leg, sampling=replace(leg.sampling, constraint=constraint))


CASES: dict[str, tuple[Dialect, LegRequest, WorkerFacts | None]] = {
    "sglang_aggregate_bare": (SGLANG, AGGREGATE, None),
    "sglang_aggregate_full": (SGLANG, replace(AGGREGATE, sampling=FULL), SEEDED),
    "sglang_aggregate_logprobs": (SGLANG, LOGPROBS, None),
    "sglang_aggregate_worker_defaults": (SGLANG, AGGREGATE, DEFAULTED),
    "sglang_rendezvous_prefill": (SGLANG, replace(RENDEZVOUS_PREFILL, dp_rank=0), None),
    "sglang_rendezvous_decode": (SGLANG, replace(RENDEZVOUS_DECODE, dp_rank=1), None),
    "vllm_aggregate_bare": (VLLM, AGGREGATE, None),
    "vllm_aggregate_full": (VLLM, replace(AGGREGATE, sampling=FULL), None),
    "vllm_aggregate_logprobs": (VLLM, LOGPROBS, None),
    "vllm_handoff_prefill": (VLLM, replace(HANDOFF_PREFILL, sampling=FULL, dp_rank=0), None),
    "vllm_handoff_decode": (VLLM, replace(HANDOFF_DECODE, sampling=replace(FULL, n=1)), None),
    "sglang_rendezvous_prefill_prompt_logprobs": (SGLANG, replace(RENDEZVOUS_PREFILL, **PROMPT_LOGPROBS), None),
    "vllm_handoff_prefill_prompt_logprobs": (VLLM, replace(HANDOFF_PREFILL, **PROMPT_LOGPROBS), None),
    "vllm_aggregate_prompt_logprobs": (VLLM, replace(AGGREGATE, **PROMPT_LOGPROBS), None),
    "vllm_handoff_prefill_constrained": (VLLM, constrained(HANDOFF_PREFILL, CHOICE), None),
    "vllm_aggregate_choice": (VLLM, constrained(AGGREGATE, CHOICE), None),
    "sglang_include_stop": (SGLANG, sampled(AGGREGATE, stop=("END",), include_stop=True), None),
    "vllm_include_stop": (VLLM, sampled(AGGREGATE, stop=("END",), include_stop=True), None),
    "sglang_aggregate_adapter": (SGLANG, replace(AGGREGATE, adapters=(AdapterUse("legal"),)), ADAPTED),
    "vllm_mooncake_prefill": (VLLM, replace(HANDOFF_PREFILL, handoff=MOONCAKE_PREFILL, dp_rank=1), MOONCAKE),
    "vllm_mooncake_decode": (VLLM, replace(HANDOFF_DECODE, handoff=MOONCAKE_DECODE), MOONCAKE),
    "vllm_store_decode": (VLLM, replace(HANDOFF_DECODE, handoff=None), STORE),
    "trtllm_aggregate_bare": (TRTLLM, LIMITED, None),
    "trtllm_aggregate_full": (TRTLLM, replace(AGGREGATE, sampling=replace(FULL, logit_bias={})), None),
    "trtllm_aggregate_logprobs": (TRTLLM, replace(LOGPROBS, sampling=LIMITED.sampling), None),
    "trtllm_aggregate_adapter": (TRTLLM, replace(LIMITED, adapters=(AdapterUse("7"),)), None),
    "tokenspeed_aggregate_bare": (TOKENSPEED, AGGREGATE, None),
    "tokenspeed_aggregate_full": (TOKENSPEED, replace(AGGREGATE, sampling=FULL), None),
    "tokenspeed_aggregate_logprobs": (TOKENSPEED, LOGPROBS, None),
    "tokenspeed_aggregate_worker_defaults": (TOKENSPEED, AGGREGATE, DEFAULTED),
    "tokenspeed_rendezvous_prefill": (TOKENSPEED, replace(RENDEZVOUS_PREFILL, dp_rank=0), None),
    "tokenspeed_rendezvous_decode": (TOKENSPEED, replace(RENDEZVOUS_DECODE, dp_rank=1), None),
    "mlx_aggregate_bare": (MLX, AGGREGATE, None),
    "mlx_aggregate_full": (MLX, replace(AGGREGATE, sampling=ONE_SEQUENCE), None),
    "mlx_aggregate_logprobs": (MLX, LOGPROBS, None),
    **{f"trtllm_aggregate_{name}": (TRTLLM, constrained(LIMITED, one), None) for name, one in CONSTRAINTS.items()},
    **{
        f"tokenspeed_aggregate_{name}": (TOKENSPEED, constrained(AGGREGATE, one), None)
        for name, one in CONSTRAINTS.items()
    },
    **{
        f"sglang_rendezvous_{name}": (SGLANG, constrained(RENDEZVOUS_DECODE, one), None)
        for name, one in CONSTRAINTS.items()
    },
    **{f"vllm_aggregate_{name}": (VLLM, constrained(AGGREGATE, one), None) for name, one in CONSTRAINTS.items()},
}


OPERATIONS: dict[str, Operation] = {
    "flush_cache": FlushCache(1.5),
    "start_profile": StartProfile("/tmp/traces", 10, 5, ("CPU", "GPU"), with_stack=True, by_stage=True),
    "stop_profile": StopProfile(),
    "load_adapter": LoadAdapter("legal", "/adapters/legal", is_pinned=True),
    "unload_adapter": UnloadAdapter("legal", "a1b2"),
    "list_adapters": ListAdapters(),
}

_OWN_OPERATIONS: dict[RuntimeType, dict[str, Operation]] = {RuntimeType.VLLM: {"start_profile": StartProfile()}}
"""What a protocol refuses more of."""


def others(dialect: Dialect) -> dict[str, Message]:
    """The requests of a dialect beside Generate, by the rest of their file's name."""
    found: dict[str, Message] = {
        name: dialect.operations[type(operation)].request(operation)
        for name, operation in {**OPERATIONS, **_OWN_OPERATIONS.get(dialect.runtime_type, {})}.items()
        if type(operation) in dialect.operations
    }
    if dialect.embed is not None:
        found["embed"] = dialect.embed.request(replace(EMBED, dp_rank=1), None)
    if dialect.kv_events is not None:
        found["kv_events"] = dialect.kv_events.request(41)
    found["abort"] = dialect.abort_request("leg-1")
    return found


OTHERS = {
    f"{str(dialect.runtime_type).lower()}_{name}": request
    for dialect in PROBE_ORDER
    for name, request in others(dialect).items()
}


def check_golden(name: str, request: Message) -> None:
    text = text_format.MessageToString(request)
    path = GOLDEN / f"{name}.txtpb"
    if os.environ.get("TANDEM_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_request_is_the_golden_one(name: str) -> None:
    dialect, leg, facts = CASES[name]
    check_golden(name, dialect.generate_request(leg, facts))


@pytest.mark.parametrize("name", OTHERS)
def test_other_request_is_the_golden_one(name: str) -> None:
    check_golden(name, OTHERS[name])


def test_every_golden_file_has_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txtpb")} == {*CASES, *OTHERS}


@pytest.mark.parametrize(
    ("dialect", "constraint"),
    [
        (SGLANG, CHOICE),
        (SGLANG, Constraint(ConstraintKind.GBNF, 'root ::= "a"')),
        (VLLM, Constraint(ConstraintKind.GBNF, 'root ::= "a"')),
    ],
    ids=["sglang-choice", "sglang-gbnf", "vllm-gbnf"],
)
def test_a_constraint_without_a_field_on_the_wire_is_refused(dialect: Dialect, constraint: Constraint) -> None:
    with pytest.raises(TandemError) as caught:
        dialect.generate_request(constrained(AGGREGATE, constraint), None)
    assert caught.value.reason is Reason.RUNTIME_CANNOT_CONSTRAIN
