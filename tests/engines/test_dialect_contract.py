"""What every dialect keeps in its requests, whatever its protocol: one suite, run over all of them.

The other half, what it makes of an engine's stream, is test_dialect_streams.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any, get_args

import pytest
import smg_grpc_proto.generated
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from legs import EMBED, HANDOFF_DECODE, LIMITED, RENDEZVOUS_DECODE, ROOM, every_dialect, sampled

from tandem_router.engines.contract import Dialect, Rpc
from tandem_router.engines.registry import PROBE_ORDER, dialect_of
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.adapters import AdapterUse
from tandem_router.model.embedding import Vector
from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import CANNOT, Operation
from tandem_router.model.pairing import HandshakeKind
from tandem_router.model.request import Constraint, ConstraintKind, LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import WorkerFacts

SMALL = WorkerFacts(RuntimeType.SGLANG, "m", vocab_size=8)


def services() -> dict[str, ServiceDescriptor]:
    """The services of the pinned protos, by full name."""
    found: dict[str, ServiceDescriptor] = {}
    for info in pkgutil.iter_modules(smg_grpc_proto.generated.__path__):
        if info.name.endswith("_pb2"):
            module: ModuleType = importlib.import_module(f"smg_grpc_proto.generated.{info.name}")
            found |= {one.full_name: one for one in module.DESCRIPTOR.services_by_name.values()}
    return found


def method_of(rpc: Rpc) -> MethodDescriptor:
    _, service, name = rpc.path.split("/")
    return services()[service].methods_by_name[name]


def rpcs(dialect: Dialect) -> Iterator[tuple[Rpc, Message, bool]]:
    """Every rpc that a dialect maps, with a request of it and whether it streams."""
    methods = dialect.methods
    yield methods.generate, dialect.generate_request(LIMITED, None), True
    yield methods.abort, dialect.abort_request("leg-1"), False
    yield methods.health, dialect.health_request(), False
    yield methods.model_info, dialect.model_info_request(), False
    yield methods.server_info, dialect.server_info_request(), False
    if methods.loads is not None:
        yield methods.loads, dialect.loads_request(), False
    if methods.tokenizer is not None:
        yield methods.tokenizer, dialect.tokenizer_request(), True
    if dialect.embed is not None:
        yield dialect.embed.rpc, dialect.embed.request(EMBED, None), False
    if dialect.kv_events is not None:
        yield dialect.kv_events.rpc, dialect.kv_events.request(0), True
    for kind, operation in dialect.operations.items():
        needs = {"name": "a", "path": "/a"}
        fields = {name: value for name, value in needs.items() if name in kind.__dataclass_fields__}
        yield operation.rpc, operation.request(kind(**fields)), False


def refusal(dialect: Dialect, leg: LegRequest, facts: WorkerFacts | None = None) -> TandemError:
    with pytest.raises(TandemError) as caught:
        dialect.generate_request(leg, facts)
    return caught.value


def built_or_refused(dialect: Dialect, leg: LegRequest) -> Message | TandemError:
    try:
        return dialect.generate_request(leg, None)
    except TandemError as error:
        return error


@every_dialect
def test_every_mapped_rpc_is_in_the_pinned_proto(dialect: Dialect) -> None:
    for rpc, request, is_streamed in rpcs(dialect):
        method = method_of(rpc)
        assert method.output_type.full_name == rpc.response.DESCRIPTOR.full_name, rpc.path
        assert method.input_type.full_name == request.DESCRIPTOR.full_name, rpc.path
        assert method.server_streaming is is_streamed, rpc.path


@every_dialect
def test_every_rpc_of_the_pinned_proto_is_mapped(dialect: Dialect) -> None:
    mapped = {rpc.path.rpartition("/")[2] for rpc, _, _ in rpcs(dialect)}
    assert set(services()[dialect.service].methods_by_name) == mapped


@every_dialect
def test_what_a_protocol_lacks_has_its_reason(dialect: Dialect) -> None:
    lacking = [kind for kind in get_args(Operation) if kind not in dialect.operations]
    assert all(CANNOT[kind] in Reason for kind in lacking)


def test_every_runtime_but_our_own_and_the_external_has_a_dialect() -> None:
    spoken = {kind for kind in RuntimeType if dialect_of(kind) is not None}
    assert set(RuntimeType) - spoken == {RuntimeType.NATIVE, RuntimeType.EXTERNAL}


def test_unknown_workers_are_asked_in_a_fixed_order() -> None:
    asked = [dialect.runtime_type for dialect in PROBE_ORDER]
    assert asked == [
        RuntimeType.SGLANG,
        RuntimeType.VLLM,
        RuntimeType.TRTLLM,
        RuntimeType.TOKENSPEED,
        RuntimeType.MLX,
    ]


@every_dialect
def test_engine_sees_our_request_id(dialect: Dialect) -> None:
    request: Any = dialect.generate_request(LIMITED, None)
    abort: Any = dialect.abort_request("leg-1")
    named = [abort.request_id] if hasattr(abort, "request_id") else list(abort.request_ids)
    assert (request.request_id, named) == ("leg-1", ["leg-1"])


@every_dialect
def test_prompt_is_sent_as_token_ids_alone(dialect: Dialect) -> None:
    tokenized = dialect.generate_request(LIMITED, None).tokenized
    assert [(field.name, list(value)) for field, value in tokenized.ListFields()] in (
        [("input_ids", [5, 6, 7])],
        [("input_token_ids", [5, 6, 7])],
    )


@every_dialect
def test_trap_4_decode_never_gets_pixels(dialect: Dialect) -> None:
    sent = {field.name for field, _ in dialect.generate_request(LIMITED, None).ListFields()}
    media = {"mm_inputs", "extra_mm_inputs", "media_refs", "multimodal_input", "encode_bootstrap_info", "input_embeds"}
    assert not sent & media


@every_dialect
def test_trap_2_dp_rank_zero_is_sent_with_presence_where_the_wire_has_it(dialect: Dialect) -> None:
    request = dialect.generate_request(replace(LIMITED, dp_rank=0), None)
    field = "data_parallel_rank"
    assert field not in request.DESCRIPTOR.fields_by_name or request.HasField(field)


@every_dialect
def test_no_dp_rank_is_sent_without_presence(dialect: Dialect) -> None:
    assert "data_parallel_rank" not in {field.name for field, _ in dialect.generate_request(LIMITED, None).ListFields()}


@every_dialect
def test_a_pin_that_the_wire_cannot_carry_is_never_dropped(dialect: Dialect) -> None:
    leg = replace(LIMITED, dp_rank=1)
    if "data_parallel_rank" in dialect.generate_request(LIMITED, None).DESCRIPTOR.fields_by_name:
        assert dialect.generate_request(leg, None).data_parallel_rank == 1
    else:
        assert refusal(dialect, leg).reason is Reason.INTERNAL_ERROR


@every_dialect
def test_empty_prompt_never_reaches_an_engine(dialect: Dialect) -> None:
    assert refusal(dialect, replace(LIMITED, token_ids=())).reason is Reason.EMPTY_PROMPT


@every_dialect
def test_token_outside_the_vocabulary_never_reaches_an_engine(dialect: Dialect) -> None:
    error = refusal(dialect, replace(LIMITED, token_ids=(1, 8, 2)), SMALL)
    assert (error.reason, error.field) == (Reason.TOKEN_OUT_OF_VOCABULARY, "token_ids")


@every_dialect
def test_biased_token_outside_the_vocabulary_never_reaches_an_engine(dialect: Dialect) -> None:
    error = refusal(dialect, sampled(LIMITED, logit_bias={3: 1.0, 8: 1.0}), SMALL)
    assert (error.reason, error.field) == (Reason.TOKEN_OUT_OF_VOCABULARY, "sampling.logit_bias")


@every_dialect
@pytest.mark.parametrize(
    "leg",
    [
        replace(RENDEZVOUS_DECODE, sampling=LIMITED.sampling),
        replace(HANDOFF_DECODE, sampling=LIMITED.sampling),
    ],
    ids=["rendezvous", "handoff"],
)
def test_handshake_that_the_protocol_cannot_carry_is_never_built(dialect: Dialect, leg: LegRequest) -> None:
    if leg.kind in dialect.traits.handshakes:
        dialect.generate_request(leg, None)
    else:
        assert refusal(dialect, leg).reason in (Reason.INTERNAL_ERROR, Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS)


@every_dialect
def test_pair_leg_without_its_handoff_is_never_built(dialect: Dialect) -> None:
    for kind in set(dialect.traits.handshakes) - {HandshakeKind.AGGREGATE}:
        assert refusal(dialect, replace(LIMITED, kind=kind, handoff=None)).reason is Reason.INTERNAL_ERROR


@every_dialect
@pytest.mark.parametrize("room", [0, -1, 2**31])
def test_trap_11_room_outside_int32_is_never_sent(dialect: Dialect, room: int) -> None:
    leg = replace(RENDEZVOUS_DECODE, sampling=LIMITED.sampling, handoff=replace(ROOM, room=room))
    assert refusal(dialect, leg).code in (Code.INTERNAL, Code.FAILED_PRECONDITION)


@every_dialect
def test_adapter_that_is_not_known_to_be_applied_is_refused(dialect: Dialect) -> None:
    error = refusal(dialect, replace(LIMITED, adapters=(AdapterUse("legal"),)))
    assert error.reason is Reason.RUNTIME_CANNOT_APPLY_ADAPTERS


@every_dialect
@pytest.mark.parametrize(
    "adapters", [(AdapterUse("7", 0.5),), (AdapterUse("7"), AdapterUse("8"))], ids=["scale", "two"]
)
def test_adapters_that_no_wire_carries_are_refused(dialect: Dialect, adapters: tuple[AdapterUse, ...]) -> None:
    error = refusal(dialect, replace(LIMITED, adapters=adapters))
    assert error.reason is Reason.RUNTIME_CANNOT_APPLY_ADAPTERS


@every_dialect
def test_seed_reaches_the_wire_or_is_refused(dialect: Dialect) -> None:
    leg = sampled(LIMITED, seed=7, temperature=0.5)
    request: Any = built_or_refused(dialect, leg)
    if isinstance(request, TandemError):
        assert (request.reason, request.field) == (Reason.RUNTIME_CANNOT_SEED, "sampling.seed")
    else:
        params = getattr(request, "sampling_params", None) or request.sampling_config
        assert 7 in (getattr(params, "seed", None), getattr(params, "sampling_seed", None))


@every_dialect
def test_seed_is_no_obstacle_where_nothing_is_drawn(dialect: Dialect) -> None:
    dialect.generate_request(sampled(LIMITED, seed=7, temperature=0.0), None)


@every_dialect
def test_seed_that_no_wire_carries_whole_is_refused(dialect: Dialect) -> None:
    error = refusal(dialect, sampled(LIMITED, seed=2**64))
    assert error.field == "sampling.seed"


@every_dialect
def test_temperature_zero_is_told_from_none(dialect: Dialect) -> None:
    bare: Any = dialect.generate_request(LIMITED, None)
    greedy: Any = dialect.generate_request(sampled(LIMITED, temperature=0.0), None)
    assert bare.SerializeToString() != greedy.SerializeToString()


NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "n": 1,
    "min_tokens": 0,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "logit_bias": {},
}


@every_dialect
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_value_is_never_refused(dialect: Dialect, name: str) -> None:
    dialect.generate_request(sampled(LIMITED, **{name: NEUTRAL[name]}), None)


STATED = {
    "top_p": 0.5,
    "top_k": 4,
    "min_p": 0.25,
    "repetition_penalty": 1.5,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "n": 3,
    "min_tokens": 5,
    "stop_token_ids": (9,),
    "ignore_eos": True,
    "logit_bias": {5: -1.0},
}
"""`stop`, `skip_special_tokens` and `include_stop` are not here: the router makes the text and cuts it itself."""


@every_dialect
@pytest.mark.parametrize("name", STATED)
def test_parameter_changes_the_request_or_is_refused_by_its_name(dialect: Dialect, name: str) -> None:
    bare = dialect.generate_request(LIMITED, None).SerializeToString(deterministic=True)
    request = built_or_refused(dialect, sampled(LIMITED, **{name: STATED[name]}))
    if isinstance(request, TandemError):
        assert (request.reason, request.field) == (Reason.RUNTIME_CANNOT_CARRY_FIELD, f"sampling.{name}")
    else:
        assert request.SerializeToString(deterministic=True) != bare


@every_dialect
@pytest.mark.parametrize("kind", ConstraintKind)
def test_constraint_is_carried_where_the_facts_say_so_and_refused_elsewhere(
    dialect: Dialect, kind: ConstraintKind
) -> None:
    facts = dialect.facts(dialect.methods.model_info.response(), dialect.methods.server_info.response())
    texts = ("yes",) if kind is ConstraintKind.CHOICE else ()
    leg = sampled(LIMITED, constraint=Constraint(kind, "{}", texts))
    if kind in facts.constraints:
        assert dialect.generate_request(leg, facts) != dialect.generate_request(LIMITED, facts)
    else:
        assert refusal(dialect, leg, facts).reason is Reason.RUNTIME_CANNOT_CONSTRAIN


@every_dialect
def test_facts_agree_with_what_is_mapped(dialect: Dialect) -> None:
    facts = dialect.facts(dialect.methods.model_info.response(), dialect.methods.server_info.response())
    assert facts.runtime_type is dialect.runtime_type
    assert facts.max_choices == dialect.traits.max_choices
    assert facts.publishes_kv_events is (dialect.kv_events is not None)
    assert not facts.can_embed or dialect.embed is not None
    assert facts.flushes_cache is any(kind.__name__ == "FlushCache" for kind in dialect.operations)
    assert facts.profiles is any(kind.__name__ == "StartProfile" for kind in dialect.operations)
    assert facts.handshake is None or facts.handshake in dialect.traits.handshakes
    assert facts.model_id == "unknown"


@every_dialect
def test_prompt_logprobs_are_asked_for_or_refused(dialect: Dialect) -> None:
    facts = dialect.facts(dialect.methods.model_info.response(), dialect.methods.server_info.response())
    leg = replace(LIMITED, prompt_logprobs=True)
    if facts.returns_prompt_logprobs:
        assert dialect.generate_request(leg, None) != dialect.generate_request(LIMITED, None)
    else:
        assert refusal(dialect, leg).reason is Reason.RUNTIME_CANNOT_RETURN_PROMPT_LOGPROBS


@every_dialect
def test_embed_sends_our_id_and_the_tokens_or_is_not_mapped(dialect: Dialect) -> None:
    if dialect.embed is None:
        assert "Embed" not in services()[dialect.service].methods_by_name
        return
    request: Any = dialect.embed.request(EMBED, None)
    tokens = [list(value) for _, value in request.tokenized.ListFields()]
    assert (request.request_id, tokens) == ("embed-1", [[5, 6, 7]])


@every_dialect
def test_embed_of_nothing_and_of_foreign_tokens_is_refused(dialect: Dialect) -> None:
    if dialect.embed is None:
        return
    for leg, reason in (
        (replace(EMBED, token_ids=()), Reason.EMPTY_PROMPT),
        (replace(EMBED, token_ids=(8,)), Reason.TOKEN_OUT_OF_VOCABULARY),
        (replace(EMBED, adapters=(AdapterUse("legal"),)), Reason.RUNTIME_CANNOT_APPLY_ADAPTERS),
    ):
        with pytest.raises(TandemError) as caught:
            dialect.embed.request(leg, SMALL)
        assert caught.value.reason is reason


@every_dialect
def test_vector_is_what_came_and_none_is_a_protocol_error(dialect: Dialect) -> None:
    if dialect.embed is None:
        return
    response = dialect.embed.rpc.response(embedding=[0.5, -0.25], prompt_tokens=3)
    assert dialect.embed.vector(response) == Vector((0.5, -0.25), 3)
    with pytest.raises(EngineFailure) as caught:
        dialect.embed.vector(dialect.embed.rpc.response())
    assert caught.value.reason is Reason.ENGINE_PROTOCOL_ERROR


@every_dialect
def test_unhealthy_engine_is_told_by_its_answer(dialect: Dialect) -> None:
    healthy: Any = dialect.methods.health.response()
    if hasattr(healthy, "healthy"):
        healthy.healthy = True
    else:
        healthy.status = "OK"
    dialect.check_health(healthy)
    with pytest.raises(EngineFailure):
        dialect.check_health(dialect.methods.health.response())


@every_dialect
def test_output_logprobs_are_asked_for(dialect: Dialect) -> None:
    leg = replace(LIMITED, output_logprobs=True)
    assert dialect.generate_request(leg, None) != dialect.generate_request(LIMITED, None)
