"""Operations and KV events: what is asked, and what is read from the answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from legs import ADAPTED, AGGREGATE, every_dialect
from smg_grpc_proto.generated import common_pb2 as common
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb

from tandem_router.engines.contract import Dialect
from tandem_router.engines.kv_events import kv_events_rpc
from tandem_router.engines.sglang import SglangDialect
from tandem_router.engines.vllm import VllmDialect
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.adapters import AdapterUse, LoadedAdapter
from tandem_router.model.failure import EngineFailure
from tandem_router.model.kv_events import KvBatch, KvBlock, KvCleared, KvRemoved, KvStored
from tandem_router.model.operations import FlushCache, ListAdapters, LoadAdapter, StartProfile, StopProfile

SGLANG = SglangDialect()
VLLM = VllmDialect()
EVENTS = kv_events_rpc("x.Y")
LEGAL = replace(AGGREGATE, adapters=(AdapterUse("legal"),))


def batch(*events: common.KvCacheEvent, **fields: object) -> KvBatch | None:
    return EVENTS.batch(common.KvEventBatch(sequence_number=7, events=events, **fields))


def test_flush_waits_as_long_as_it_is_told() -> None:
    assert SGLANG.operations[FlushCache].request(FlushCache(2.5)) == common.FlushCacheRequest(timeout_s=2.5)


def test_profile_options_that_nobody_stated_are_not_sent() -> None:
    assert SGLANG.operations[StartProfile].request(StartProfile()) == common.StartProfileRequest()


def test_profile_options_are_sent() -> None:
    asked = StartProfile("/tmp/traces", 0, 5, ("CPU",), with_stack=False, record_shapes=True, by_stage=True)
    request = SGLANG.operations[StartProfile].request(asked)
    assert request == common.StartProfileRequest(
        output_dir="/tmp/traces",
        start_step=0,
        num_steps=5,
        activities=["CPU"],
        with_stack=False,
        record_shapes=True,
        profile_by_stage=True,
    )


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (StartProfile(output_dir="/tmp/traces"), "output_dir"),
        (StartProfile(start_step=0), "start_step"),
        (StartProfile(num_steps=5), "num_steps"),
        (StartProfile(activities=("CPU",)), "activities"),
        (StartProfile(with_stack=False), "with_stack"),
        (StartProfile(record_shapes=False), "record_shapes"),
        (StartProfile(by_stage=True), "by_stage"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_profile_options_that_vllm_takes_at_its_launch_alone_are_refused(asked: StartProfile, field: str) -> None:
    with pytest.raises(TandemError) as caught:
        VLLM.operations[StartProfile].request(asked)
    assert (caught.value.reason, caught.value.field) == (Reason.RUNTIME_CANNOT_CARRY_FIELD, field)


def test_vllm_is_asked_for_a_profile_without_options() -> None:
    assert VLLM.operations[StartProfile].request(StartProfile()) == common.StartProfileRequest()


STATUSES: list[tuple[Code, str, Reason]] = [
    (Code.INTERNAL, "Stop profiling failed: Profiling is not enabled. Please set", Reason.RUNTIME_CANNOT_PROFILE),
    (Code.INTERNAL, "Start profiling failed: disk full", Reason.ENGINE_ERROR),
    (Code.INVALID_ARGUMENT, "num_steps must be at least 1, got 0", Reason.INVALID_REQUEST),
]


@pytest.mark.parametrize("kind", [StartProfile, StopProfile])
@pytest.mark.parametrize(("code", "words", "reason"), STATUSES, ids=["no profiler", "failed", "argument"])
def test_a_profile_that_was_refused_says_whether_repeating_it_helps(
    kind: type[StartProfile | StopProfile], code: Code, words: str, reason: Reason
) -> None:
    told = VLLM.operations[kind].failure(EngineFailure(Reason.ENGINE_ERROR, words, code=code))
    assert (told.reason, told.sentence, told.code) == (reason, words, code)


@every_dialect
def test_a_bad_argument_of_an_operation_is_the_operators(dialect: Dialect) -> None:
    for operation in dialect.operations.values():
        told = operation.failure(EngineFailure(Reason.ENGINE_ERROR, "x is negative", code=Code.INVALID_ARGUMENT))
        assert told.reason is Reason.INVALID_REQUEST


def test_same_adapter_gets_the_same_id_from_every_router() -> None:
    load = SGLANG.operations[LoadAdapter].request
    first, again, other = (load(LoadAdapter("a", path)) for path in ("/a", "/a", "/b"))
    assert (first.lora_id == again.lora_id, first.lora_id == other.lora_id) == (True, False)


def test_loaded_adapters_are_read() -> None:
    response = pb.ListLoadedLoRAAdaptersResponse(
        loaded_adapters=[pb.LoadedLoRAAdapter(lora_id="i", lora_name="n", lora_path="/p", pinned=True)]
    )
    assert SGLANG.operations[ListAdapters].read(response).adapters == (LoadedAdapter("n", "i", "/p", is_pinned=True),)


def test_adapter_is_asked_for_by_the_engines_own_id() -> None:
    assert SGLANG.generate_request(LEGAL, ADAPTED).lora_id == "a1b2"


def test_adapter_that_the_worker_has_not_loaded_is_not_found() -> None:
    with pytest.raises(TandemError) as caught:
        SGLANG.generate_request(LEGAL, replace(ADAPTED, adapters=()))
    assert (caught.value.reason, caught.value.field) == (Reason.ADAPTER_NOT_FOUND, "adapters[0].name")


LOADS: list[tuple[str, Reason, str | None]] = [
    ("[Errno 2] No such file or directory: '/a/adapter_config.json'", Reason.ADAPTER_NOT_LOADABLE, "path"),
    ("[Errno 13] Permission denied: '/a/adapter_config.json'", Reason.ADAPTER_NOT_LOADABLE, "path"),
    (
        "Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/no/such'. Use `repo_type` argument.",
        Reason.ADAPTER_NOT_LOADABLE,
        "path",
    ),
    ("401 Client Error. Repository Not Found for url: https://hub/x/y.", Reason.ADAPTER_NOT_LOADABLE, "path"),
    ("Cannot find an appropriate cached snapshot folder for the revision", Reason.ADAPTER_NOT_LOADABLE, "path"),
    ("/a: tensor lm_head is not of a projection that this engine can change", Reason.ADAPTER_NOT_LOADABLE, "path"),
    ("8 adapters are loaded, which is the most; unload one first", Reason.ADAPTER_NOT_LOADABLE, None),
    ("an adapter with lora_name 'poet' is loaded already", Reason.ADAPTER_NOT_LOADABLE, "name"),
    ("LoRA with name poet already exists. Loaded LoRAs: dict_keys(['poet'])", Reason.ADAPTER_NOT_LOADABLE, "name"),
    ("", Reason.ADAPTER_NOT_LOADABLE, None),
    ("LoRA is not enabled. Please set `--enable-lora` to enable LoRA.", Reason.RUNTIME_CANNOT_MANAGE_ADAPTERS, None),
]


@pytest.mark.parametrize(("words", "reason", "field"), LOADS, ids=[f"{row[0][:30]}" or "silent" for row in LOADS])
def test_a_load_that_was_refused_says_whether_the_path_or_the_name_is_at_fault(
    words: str, reason: Reason, field: str | None
) -> None:
    with pytest.raises(EngineFailure) as caught:
        SGLANG.operations[LoadAdapter].read(pb.LoadLoRAAdapterResponse(success=False, message=words))
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert words in caught.value.sentence


@every_dialect
def test_operation_that_failed_under_ok_is_a_failure(dialect: Dialect) -> None:
    for kind, operation in dialect.operations.items():
        if "success" not in operation.rpc.response.DESCRIPTOR.fields_by_name:
            continue
        with pytest.raises(EngineFailure, match="3 requests run") as caught:
            operation.read(operation.rpc.response(success=False, message="3 requests run"))
        assert caught.value.reason is (Reason.ADAPTER_NOT_LOADABLE if kind is LoadAdapter else Reason.ENGINE_ERROR)
        assert operation.read(operation.rpc.response(success=True, message="done")).message == "done"


def test_subscription_resumes_where_it_is_told() -> None:
    assert EVENTS.request(41) == common.SubscribeKvEventsRequest(start_sequence_number=41)


def test_load_alone_is_no_batch() -> None:
    assert batch(load=common.EngineLoad(load_only=True)) is None


def test_batch_without_events_still_carries_its_number() -> None:
    assert batch(load=common.EngineLoad(running_requests=1)) == KvBatch(7, ())


def test_rank_zero_is_told_from_no_rank() -> None:
    assert (batch(dp_rank=0), batch()) == (KvBatch(7, (), dp_rank=0), KvBatch(7, ()))


def test_stored_blocks_are_read_whole() -> None:
    stored = common.KvBlocksStored(
        blocks=[common.KvBlock(block_hash=-5, token_ids=[1, 2], block_size=2)],
        parent_block_hash=0,
        lora_name="legal",
        cache_salt="s",
        tier=common.KV_CACHE_TIER_DEVICE,
    )
    assert batch(common.KvCacheEvent(stored=stored)) == KvBatch(
        7, (KvStored((KvBlock(-5, (1, 2), 2),), parent_hash=0, adapter="legal", cache_salt="s"),)
    )


@pytest.mark.parametrize(
    ("fields", "is_on_device"),
    [
        ({}, True),
        ({"tier": common.KV_CACHE_TIER_DEVICE}, True),
        ({"tier": common.KV_CACHE_TIER_HOST}, False),
        ({"tier": common.KV_CACHE_TIER_EXTERNAL}, False),
        ({"locality": common.KV_CACHE_LOCALITY_LOCAL}, True),
        ({"locality": common.KV_CACHE_LOCALITY_REMOTE, "tier": common.KV_CACHE_TIER_DEVICE}, False),
        ({"cache_level": 0}, True),
        ({"cache_level": 2}, False),
    ],
)
def test_blocks_beside_the_device_are_told_apart(fields: dict[str, int], is_on_device: bool) -> None:
    removed = common.KvBlocksRemoved(block_hashes=[1, 2], **fields)
    assert batch(common.KvCacheEvent(removed=removed)) == KvBatch(7, (KvRemoved((1, 2), is_on_device),))
    level = fields.pop("cache_level", None)
    stored = common.KvBlocksStored(blocks=[common.KvBlock(block_hash=1, cache_level=level)], **fields)
    found = batch(common.KvCacheEvent(stored=stored))
    assert found is not None
    assert [event.is_on_device for event in found.events if isinstance(event, KvStored)] == [is_on_device]


def test_snapshot_begins_with_a_clear_and_says_that_it_is_one() -> None:
    found = batch(common.KvCacheEvent(cleared=common.KvCacheCleared()), snapshot=common.KvSnapshotChunk(count=1))
    assert found == KvBatch(7, (KvCleared(),), is_snapshot=True)


def test_event_of_a_newer_protocol_is_left_out() -> None:
    assert batch(common.KvCacheEvent(event_id=3)) == KvBatch(7, ())
