"""Conformance traps of what is written to engines (smg 13.1: 1-7, 11, 12), through the whole router over real gRPC."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import grpc
import pytest
from tests.conformance.router_world import QUICK, RouterWorld, pair, router

from tandem.v1 import generate_pb2, message_pb2, worker_rank_pb2
from tandem_router.core.rooms import MAX_ROOM, MIN_ROOM, SLOTS
from tandem_router.model.settings import RoomSettings, RuntimeSettings
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.testing.grpc_engines import Failing, GrpcScript, ScriptedGrpcEngine

RENDEZVOUS_ENGINES = [RuntimeType.SGLANG, RuntimeType.TOKENSPEED]
PAIRED_ENGINES = [*RENDEZVOUS_ENGINES, RuntimeType.VLLM]


def room_of(message: object) -> tuple[str, int, int]:
    """Bootstrap host, port and room of a leg, in either protocol."""
    name = "disaggregated_params" if hasattr(message, "disaggregated_params") else "kv_bootstrap_info"
    params = getattr(message, name)
    return params.bootstrap_host, params.bootstrap_port, params.bootstrap_room


@pytest.mark.parametrize("is_paired", [False, True], ids=["aggregated", "paired"])
async def test_trap_01_sglang_sampling_zero_defaults_are_always_filled(is_paired: bool) -> None:
    async def sent(world: RouterWorld, *engines: ScriptedGrpcEngine) -> None:
        answer = await world.generate(
            generate_pb2.GenerateRequest(
                model="tiny", token_ids=message_pb2.TokenIds(ids=[5, 6]), output=generate_pb2.OUTPUT_MODE_TOKENS
            )
        )
        assert answer.code is grpc.StatusCode.OK, answer.message
        for engine in engines:
            (request,) = engine.generated
            sampling = request.sampling_params
            assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, -1)
            assert (sampling.repetition_penalty, sampling.n, sampling.skip_special_tokens) == (1.0, 1, True)
            assert sampling.max_new_tokens == QUICK.default_max_tokens

    if is_paired:
        async with pair(RuntimeType.SGLANG) as at:
            await sent(at.world, at.prefill, at.decode)
    else:
        async with ScriptedGrpcEngine(GrpcScript(RuntimeType.SGLANG)) as engine, router() as world:
            await world.add(engine)
            await sent(world, engine)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("runtime", PAIRED_ENGINES)
async def test_trap_02_data_parallel_rank_is_sent_with_presence(runtime: RuntimeType, rank: int) -> None:
    async with ScriptedGrpcEngine(GrpcScript(runtime, dp_size=2)) as engine, router() as world:
        worker_id = await world.add(engine)
        request = world.request(5, 6)
        request.target_worker.CopyFrom(worker_rank_pb2.WorkerRank(worker_id=worker_id, dp_rank=rank))
        answer = await world.generate(request)
        assert answer.code is grpc.StatusCode.OK, answer.message
        (sent,) = engine.generated
        assert (sent.HasField("data_parallel_rank"), sent.data_parallel_rank) == (True, rank)


async def test_trap_03_bootstrap_port_is_8998_where_nobody_states_one() -> None:
    assert RuntimeSettings().default_bootstrap_port == 8998
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.SGLANG, mode=WorkerType.PREFILL)) as engine, router() as world:
        registered = await world.register(engine)
        steps = {step.name: step.detail + step.failure.message for step in registered.job.steps}
        assert "127.0.0.1:8998" in steps["probe_bootstrap"]


@pytest.mark.parametrize("runtime", RENDEZVOUS_ENGINES)
async def test_trap_03_bootstrap_endpoint_is_the_urls_host_and_the_engines_port(runtime: RuntimeType) -> None:
    async with pair(runtime) as at:
        await at.world.generate(at.world.request(5, 6))
        legs = [room_of(engine.generated[0]) for engine in (at.prefill, at.decode)]
        assert legs[0] == legs[1]
        assert legs[0][:2] == ("127.0.0.1", at.prefill.script.bootstrap_port)


@pytest.mark.parametrize("runtime", RENDEZVOUS_ENGINES)
async def test_trap_03_ipv6_bootstrap_host_is_in_brackets(runtime: RuntimeType) -> None:
    async with pair(runtime, host="::1") as at:
        answer = await at.world.generate(at.world.request(5, 6))
        assert answer.code is grpc.StatusCode.OK, answer.message
        hosts = {room_of(engine.generated[0])[0] for engine in (at.prefill, at.decode)}
        # Engines put ":port" behind it as it is; only newer ones bracket a bare address themselves.
        assert hosts == {"[::1]"}
        assert at.prefill.url.startswith("grpc://[::1]:")


async def test_trap_03_url_with_a_rank_behind_an_at_sign_is_refused_not_dialled() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.SGLANG)) as engine, router() as world:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.register(engine, url=f"{engine.url}@1")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("runtime", PAIRED_ENGINES)
async def test_trap_04_decode_never_gets_pixels(runtime: RuntimeType) -> None:
    # The public request has no media yet. When it gets some, this list changes and so must this test.
    inputs = generate_pb2.GenerateRequest.DESCRIPTOR.oneofs_by_name["input"].fields
    assert [field.name for field in inputs] == ["text", "token_ids", "chat"]
    async with pair(runtime) as at:
        await at.world.generate(at.world.request(5, 6))
        (seen,) = at.decode.seen("Generate")
        media = ("mm_inputs", "extra_mm_inputs", "media_refs", "multimodal_input", "encode_bootstrap_info")
        assert not [field for field in seen.fields if field.split(".")[0] in media]


async def test_trap_05_vllm_prefill_has_its_stops_cleared_and_ignores_eos() -> None:
    async with pair(RuntimeType.VLLM) as at:
        request = at.world.request(5, 6, min_tokens=3, stop=["x"], stop_token_ids=[9], ignore_eos=False, max_tokens=8)
        answer = await at.world.generate(request)
        assert answer.code is grpc.StatusCode.OK, answer.message
        (prefill,), (decode,) = at.prefill.generated, at.decode.generated
        params = prefill.sampling_params
        assert (params.max_tokens, params.min_tokens, params.n, params.ignore_eos) == (1, 0, 1, True)
        assert (list(params.stop), list(params.stop_token_ids), prefill.stream) == ([], [], False)
        assert (decode.sampling_params.max_tokens, decode.sampling_params.min_tokens) == (8, 3)
        assert list(decode.sampling_params.stop_token_ids) == [9]


async def test_trap_05_prefill_whose_first_token_is_a_stop_still_hands_its_kv_over() -> None:
    async with pair(RuntimeType.VLLM, answer_tokens=0) as at:
        answer = await at.world.generate(at.world.request(5, 6))
        assert answer.code is grpc.StatusCode.OK, answer.message
        assert "remote_block_ids" in at.decode.generated[0].kv_transfer_params_json


@pytest.mark.parametrize("runtime", PAIRED_ENGINES)
async def test_trap_06_each_of_n_choices_is_a_pair_of_its_own(runtime: RuntimeType) -> None:
    async with pair(runtime) as at:
        answer = await at.world.generate(at.world.request(5, 6, n=3))
        assert answer.code is grpc.StatusCode.OK, answer.message
        assert sorted(answer.tokens) == [0, 1, 2]
        assert {len(tokens) for tokens in answer.tokens.values()} == {4}
        for engine in (at.prefill, at.decode):
            assert [sent.sampling_params.n for sent in engine.generated] == [1, 1, 1]
        if runtime is RuntimeType.VLLM:
            handles = [json.loads(sent.kv_transfer_params_json)["remote_request_id"] for sent in at.decode.generated]
            assert sorted(handles) == sorted(sent.request_id for sent in at.prefill.generated)
        else:
            assert len({room_of(sent)[2] for sent in at.decode.generated}) == 3
        await at.world.until_idle([at.prefill, at.decode])


@pytest.mark.parametrize(("dp_size", "rank", "suffix"), [(1, 0, ""), (2, 0, "_dp0"), (2, 1, "_dp1")])
async def test_trap_07_mooncake_engine_id_names_the_prefills_rank(dp_size: int, rank: int, suffix: str) -> None:
    spec = {"kv_engine_id": "prefill-a"}
    connector = {"kv_connector": "MooncakeConnector", "dp_size": dp_size}
    async with pair(RuntimeType.VLLM, spec=spec, **connector) as at:
        request = at.world.request(5, 6)
        request.target_prefill_worker.CopyFrom(worker_rank_pb2.WorkerRank(worker_id=at.prefill_id, dp_rank=rank))
        answer = await at.world.generate(request)
        assert answer.code is grpc.StatusCode.OK, answer.message
        asked = json.loads(at.prefill.generated[0].kv_transfer_params_json)
        told = json.loads(at.decode.generated[0].kv_transfer_params_json)
        assert told["remote_engine_id"] == f"prefill-a{suffix}"
        assert (told["do_remote_prefill"], told["do_remote_decode"]) == (True, False)
        assert asked["transfer_id"] == told["transfer_id"]
        assert told["transfer_id"].startswith("xfer-")


@pytest.mark.parametrize("slot", [0, SLOTS - 1])
@pytest.mark.parametrize("runtime", RENDEZVOUS_ENGINES)
async def test_trap_11_rooms_fit_into_int32_and_are_never_used_twice(runtime: RuntimeType, slot: int) -> None:
    settings = replace(QUICK, rooms=RoomSettings(slot=slot))
    async with pair(runtime, settings) as at:
        for number in range(12):
            answer = await at.world.generate(at.world.request(5, number + 6, n=2, max_tokens=1))
            assert answer.code is grpc.StatusCode.OK, answer.message
        rooms = [room_of(sent)[2] for sent in at.prefill.generated]
        assert len(rooms) == len(set(rooms)) == 24
        assert all(MIN_ROOM <= room <= MAX_ROOM == 2**31 - 1 for room in rooms)
        assert at.prefill.deaths == at.decode.deaths == []


@pytest.mark.parametrize("runtime", PAIRED_ENGINES)
async def test_trap_12_each_try_has_fresh_request_ids_that_are_prefix_free(runtime: RuntimeType) -> None:
    failing = Failing(grpc.StatusCode.UNAVAILABLE, "queue is full", times=2)
    async with pair(runtime) as at:
        at.decode.turn(failing=failing)
        answers = [await at.world.generate(at.world.request(5, 6, n=2, max_tokens=2)) for _ in range(8)]
        assert [answer.code for answer in answers] == [grpc.StatusCode.OK] * 8
        assert sum(len(answer.finished.attempts) for answer in answers if answer.finished is not None) > 8
        await at.world.until_idle([at.prefill, at.decode])
        # On one engine every id is new; a pair's legs are on two.
        for engine in (at.prefill, at.decode):
            ids = sorted(sent.request_id for sent in engine.generated)
            assert len(ids) >= 17
            assert not [one for one, other in itertools.pairwise(ids) if other.startswith(one)]
