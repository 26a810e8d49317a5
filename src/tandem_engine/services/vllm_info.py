"""What vLLM's GetModelInfo, GetServerInfo and GetLoads say."""

from __future__ import annotations

import datetime

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from tandem_engine.options import Mode
from tandem_engine.requests import RankLoad
from tandem_engine.services.model_facts import ModelFacts
from tandem_engine.services.station import Station

__all__ = ["KV_CONNECTOR", "PAIRING_PROTOCOL", "loads", "model_info", "server_info"]

VERSION = "0.32.0+tandem"
"""The vLLM release whose habits are imitated, marked as an imitation."""

KV_CONNECTOR = "NixlConnector"
"""The connector whose transfer parameters are imitated."""

PAIRING_PROTOCOL = "tandem-kv-1"
"""Keeps this engine apart from real vLLM workers: the parameters look alike, the side channels do not."""

_ROLES = {Mode.PREFILL: "kv_producer", Mode.DECODE: "kv_consumer", Mode.AGGREGATED: ""}


def model_info(station: Station) -> pb.GetModelInfoResponse:
    facts = ModelFacts.read(station.options.model_folder, station.engine)
    return pb.GetModelInfoResponse(
        model_path=facts.path,
        tokenizer_path=facts.path,
        is_generation=station.options.task.generates,
        served_model_name=station.options.model_name,
        max_context_length=facts.context,
        vocab_size=facts.vocab_size,
        model_type=facts.model_type,
        eos_token_ids=facts.eos_token_ids,
        pad_token_id=facts.pad_token_id,
        bos_token_id=facts.bos_token_id,
        max_req_input_len=facts.context - 1,
        architectures=facts.architectures,
        default_sampling_params_json=facts.default_sampling_json,
    )


def server_info(station: Station) -> pb.GetServerInfoResponse:
    options, settings, life = station.options, station.engine.settings, station.life
    is_pair = options.mode is not Mode.AGGREGATED
    return pb.GetServerInfoResponse(
        active_requests=life.active,
        is_paused=False,
        last_receive_timestamp=life.last_receive_s,
        uptime_seconds=life.uptime_s,
        server_type="vllm-grpc",
        kv_connector=KV_CONNECTOR if is_pair else "",
        kv_role=_ROLES[options.mode],
        kv_engine_id=(options.name or station.instance) if is_pair else "",
        data_parallel_size=settings.dp_size,
        kv_cache_dtype="float32",
        block_size=settings.page_size,
        attention_backend="TANDEM_NUMPY",
        model_dtype="torch.float32",
        pairing_protocol=PAIRING_PROTOCOL,
        max_num_seqs=settings.max_running,
    )


def loads(station: Station, request: pb.GetLoadsRequest) -> pb.GetLoadsResponse:
    """The ranks asked for; a dead engine answers zeros, as vLLM does."""
    rows = [
        _row(station, load)
        for load in station.engine.loads()
        if not request.HasField("dp_rank") or load.rank == request.dp_rank
    ]
    return pb.GetLoadsResponse(
        timestamp=datetime.datetime.now(datetime.UTC).isoformat(),
        version=VERSION,
        dp_rank_count=len(rows),
        loads=rows,
    )


def _row(station: Station, load: RankLoad) -> pb.SchedulerLoad:
    if station.life.is_dead:
        return pb.SchedulerLoad(dp_rank=load.rank)
    return pb.SchedulerLoad(
        dp_rank=load.rank,
        num_running_reqs=load.running,
        num_waiting_reqs=load.waiting,
        num_total_reqs=load.running + load.waiting,
        num_used_tokens=load.used_tokens,
        max_total_num_tokens=load.max_tokens,
        token_usage=load.token_usage,
        gen_throughput=load.gen_throughput,
        cache_hit_rate=load.cache_hit_rate,
        utilization=load.running / load.max_running,
        max_running_requests=load.max_running,
    )
