"""vLLM's legs of a handoff, asked for without a router: for what a router never does."""

from __future__ import annotations

import re
import uuid
from typing import Any

from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc
from tests.real_engines.launching import RealEngine

from tandem_router.engines.transfer_params import ASK_FOR_TRANSFER_PARAMS

__all__ = ["begin_decode", "decode", "prefill", "transferred"]

_METRICS = re.compile(r"KV Transfer metrics: Num successful transfers=(\d+).*?Avg MB per transfer=([0-9.]+)")


def _ask(engine: RealEngine, ids: list[int], params: str, *, max_tokens: int, stream: bool) -> Any:
    request = pb.GenerateRequest(
        request_id=str(uuid.uuid4()),
        tokenized=pb.TokenizedInput(input_ids=ids),
        sampling_params=pb.SamplingParams(
            temperature=0, top_p=1, repetition_penalty=1, n=1, max_tokens=max_tokens, ignore_eos=max_tokens == 1
        ),
        stream=stream,
        kv_transfer_params_json=params,
    )
    return vllm_engine_pb2_grpc.VllmEngineStub(engine.channel).Generate(request, timeout=60)


def prefill(engine: RealEngine, ids: list[int]) -> str:
    """Compute a prompt; the parameters by which a decode worker fetches its KV."""
    [response] = _ask(engine, ids, ASK_FOR_TRANSFER_PARAMS, max_tokens=1, stream=False)
    return str(response.complete.kv_transfer_params_json)


def decode(engine: RealEngine, ids: list[int], params: str, *, max_tokens: int = 16) -> list[int]:
    """The tokens that a decode worker makes of a prompt and somebody's KV."""
    [response] = _ask(engine, ids, params, max_tokens=max_tokens, stream=False)
    return list(response.complete.output_ids)


def begin_decode(engine: RealEngine, ids: list[int], params: str) -> Any:
    """A streaming decode leg, to be cancelled."""
    return _ask(engine, ids, params, max_tokens=16, stream=True)


def transferred(engine: RealEngine) -> tuple[int, float]:
    """Transfers, and MB moved by them, that a decode worker has written into its log; some seconds late."""
    found = [(int(number), float(each)) for number, each in _METRICS.findall(engine.log.read_text(errors="replace"))]
    return sum(number for number, _ in found), sum(number * each for number, each in found)
