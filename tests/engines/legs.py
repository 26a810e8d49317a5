"""Legs and responses that the tests of this folder share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from smg_grpc_proto.generated import mlx_engine_pb2 as mlx
from smg_grpc_proto.generated import sglang_scheduler_pb2 as sglang
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as tokenspeed
from smg_grpc_proto.generated import trtllm_service_pb2 as trtllm
from smg_grpc_proto.generated import vllm_engine_pb2 as vllm

from tandem_router.engines.registry import PROBE_ORDER
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.embedding import EmbedLeg
from tandem_router.model.pairing import HandshakeKind, LegRole, Rendezvous, TransferParams
from tandem_router.model.request import LegRequest, Sampling
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import WorkerFacts

every_dialect = pytest.mark.parametrize("dialect", PROBE_ORDER, ids=lambda dialect: str(dialect.runtime_type))
"""Runs a test over all dialects."""

EMBED = EmbedLeg("embed-1", (5, 6, 7))
PARAMS = '{"do_remote_prefill": true, "remote_block_ids": [3, 4],  "remote_engine_id": "p0"}'
ROOM = Rendezvous("10.0.0.1", 8998, 2**31 - 1)
ADAPTED = WorkerFacts(
    RuntimeType.SGLANG, "m", applies_adapters=True, adapters=(LoadedAdapter("legal", "a1b2", "/adapters/legal"),)
)
MOONCAKE = WorkerFacts(RuntimeType.VLLM, "m", kv_connector="MooncakeConnector")
MOONCAKE_PREFILL = TransferParams('{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"xfer-1"}')
MOONCAKE_DECODE = TransferParams(
    '{"do_remote_decode":false,"do_remote_prefill":true,"transfer_id":"xfer-1",'
    '"remote_engine_id":"p0_dp1","remote_bootstrap_addr":"http://10.0.0.1:8998"}'
)
SEEDED = WorkerFacts(RuntimeType.SGLANG, "m", supports_seed=True)

AGGREGATE = LegRequest("leg-1", HandshakeKind.AGGREGATE, LegRole.DECODE, (5, 6, 7), Sampling())
RENDEZVOUS_PREFILL = replace(AGGREGATE, kind=HandshakeKind.RENDEZVOUS, role=LegRole.PREFILL, handoff=ROOM)
RENDEZVOUS_DECODE = replace(RENDEZVOUS_PREFILL, role=LegRole.DECODE)
HANDOFF_PREFILL = replace(AGGREGATE, kind=HandshakeKind.HANDOFF, role=LegRole.PREFILL)
LIMITED = replace(AGGREGATE, sampling=Sampling(max_tokens=64))
"""As every leg that the router builds: one engine's wire wants it."""
HANDOFF_DECODE = replace(AGGREGATE, kind=HandshakeKind.HANDOFF, handoff=TransferParams(PARAMS))

FULL = Sampling(
    temperature=0.5,
    top_p=0.9,
    top_k=40,
    min_p=0.1,
    repetition_penalty=1.1,
    frequency_penalty=0.2,
    presence_penalty=0.3,
    seed=7,
    n=2,
    max_tokens=64,
    min_tokens=2,
    stop=("END",),
    stop_token_ids=(9,),
    ignore_eos=False,
    skip_special_tokens=False,
    logit_bias={5: -1.0},
)


def sampled(leg: LegRequest, **changes: Any) -> LegRequest:
    """The leg with other sampling parameters."""
    return replace(leg, sampling=replace(leg.sampling, **changes))


def sglang_chunk(ids: list[int], total: int, index: int = 0) -> sglang.GenerateResponse:
    """A chunk with SGLang's running total."""
    return sglang.GenerateResponse(
        chunk=sglang.GenerateStreamChunk(token_ids=ids, completion_tokens=total, prompt_tokens=3, index=index)
    )


def sglang_complete(ids: list[int], total: int, reason: str = "length", index: int = 0) -> sglang.GenerateResponse:
    """A complete with SGLang's total."""
    return sglang.GenerateResponse(
        complete=sglang.GenerateComplete(
            output_ids=ids, completion_tokens=total, finish_reason=reason, prompt_tokens=3, index=index
        )
    )


def vllm_chunk(ids: list[int], index: int = 0) -> vllm.GenerateResponse:
    """A chunk that counts itself alone."""
    return vllm.GenerateResponse(
        chunk=vllm.GenerateStreamChunk(token_ids=ids, completion_tokens=len(ids), prompt_tokens=3, index=index)
    )


def vllm_complete(
    ids: list[int], reason: str = "length", index: int = 0, params: str | None = None
) -> vllm.GenerateResponse:
    """A complete that counts the ids it repeats."""
    return vllm.GenerateResponse(
        complete=vllm.GenerateComplete(
            output_ids=ids,
            completion_tokens=len(ids),
            finish_reason=reason,
            prompt_tokens=3,
            index=index,
            kv_transfer_params_json=params,
        )
    )


def tokenspeed_chunk(ids: list[int], total: int, index: int = 0) -> tokenspeed.GenerateResponse:
    """A chunk with a running total."""
    return tokenspeed.GenerateResponse(
        chunk=tokenspeed.GenerateStreamChunk(token_ids=ids, completion_tokens=total, prompt_tokens=3, index=index)
    )


def tokenspeed_complete(
    ids: list[int], total: int, reason: str = "length", index: int = 0
) -> tokenspeed.GenerateResponse:
    """A complete with the last chunk's ids and the total."""
    return tokenspeed.GenerateResponse(
        complete=tokenspeed.GenerateComplete(
            output_ids=ids, completion_tokens=total, finish_reason=reason, prompt_tokens=3, index=index
        )
    )


def trtllm_chunk(ids: list[int], total: int, index: int = 0) -> trtllm.GenerateResponse:
    """A chunk with a running total."""
    return trtllm.GenerateResponse(
        chunk=trtllm.GenerateStreamChunk(token_ids=ids, completion_tokens=total, prompt_tokens=3, sequence_index=index)
    )


def trtllm_complete(ids: list[int], reason: str = "length", index: int = 0) -> trtllm.GenerateResponse:
    """A complete with all ids."""
    return trtllm.GenerateResponse(
        complete=trtllm.GenerateComplete(
            output_token_ids=ids,
            completion_tokens=len(ids),
            finish_reason=reason,
            prompt_tokens=3,
            sequence_index=index,
        )
    )


def mlx_chunk(ids: list[int], total: int) -> mlx.GenerateResponse:
    """A chunk with a running total."""
    return mlx.GenerateResponse(chunk=mlx.GenerateStreamChunk(token_ids=ids, completion_tokens=total, prompt_tokens=3))


def mlx_complete(ids: list[int], total: int, reason: str = "length") -> mlx.GenerateResponse:
    """A complete: without ids where chunks came before, with all where the request was not streamed."""
    return mlx.GenerateResponse(
        complete=mlx.GenerateComplete(output_ids=ids, completion_tokens=total, finish_reason=reason, prompt_tokens=3)
    )
