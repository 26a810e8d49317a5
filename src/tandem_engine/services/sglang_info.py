"""What SGLang's GetModelInfo, GetServerInfo and GetLoads say."""

from __future__ import annotations

import datetime
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb

from tandem_engine.options import Mode, Task
from tandem_engine.requests import RankLoad
from tandem_engine.services.model_facts import ModelFacts
from tandem_engine.services.station import Station

__all__ = ["SECTIONS", "loads", "model_info", "server_info"]

SECTIONS = frozenset({"core", "memory", "spec", "lora", "disagg", "queues", "all"})
"""What GetLoads can be asked to include."""

VERSION = "0.5.23+tandem"
"""The SGLang release whose habits are imitated, marked as an imitation."""

_MODES = {Mode.PREFILL: "prefill", Mode.DECODE: "decode", Mode.AGGREGATED: "null"}


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
    options, engine, life = station.options, station.engine, station.life
    settings = engine.settings
    total_tokens = settings.num_pages * settings.page_size
    arguments: dict[str, Any] = {
        "model_path": str(options.model_folder.resolve()),
        "tokenizer_path": str(options.model_folder.resolve()),
        "served_model_name": options.model_name,
        "dp_size": settings.dp_size,
        "tp_size": 1,
        "context_length": engine.context,
        "max_running_requests": settings.max_running,
        "chunked_prefill_size": settings.prefill_chunk,
        "load_balance_method": "follow_bootstrap_room",
        "disaggregation_mode": _MODES[options.mode],
        "disaggregation_bootstrap_port": station.bootstrap_port,
        "disaggregation_transfer_backend": "tandem",
        "vocab_size": engine.model.config.vocab_size,
        "page_size": settings.page_size,
        "kv_cache_dtype": "float32",
        "dtype": "float32",
        "grammar_backend": "none",
        "is_embedding": options.task is Task.EMBED,
        "enable_lora": station.adapters.capacity > 0,
        "max_loaded_loras": station.adapters.capacity,
        "kv_events_config": '{"publisher": "tandem"}' if options.kv_events else None,
        # Not SGLang's: what this engine declares to routers that know to ask.
        "sampling_seed_in_custom_params": True,
        "position_keyed_sampling": True,
        "batch_invariant": True,
        "serves_embeddings": options.task.embeds and options.mode is Mode.AGGREGATED,
        "instance": station.instance,
    }
    response = pb.GetServerInfoResponse(
        server_args=ParseDict(arguments, Struct()),
        scheduler_info=ParseDict(
            {"max_total_num_tokens": total_tokens, "max_req_input_len": engine.context - 1}, Struct()
        ),
        active_requests=life.active,
        is_paused=False,
        last_receive_timestamp=life.last_receive_s,
        uptime_seconds=life.uptime_s,
        sglang_version=VERSION,
        server_type="grpc",
        max_total_num_tokens=total_tokens,
    )
    response.start_time.FromMicroseconds(int(life.started_at_s * 1e6))
    return response


def loads(station: Station, request: pb.GetLoadsRequest) -> pb.GetLoadsResponse:
    """The ranks asked for; a dead engine answers zeros."""
    wanted = set(request.include) or {"core"}
    ranks = [load for load in station.engine.loads() if not request.HasField("dp_rank") or load.rank == request.dp_rank]
    rows = [_row(station, load, wanted) for load in ranks]
    count = max(len(rows), 1)
    return pb.GetLoadsResponse(
        timestamp=datetime.datetime.now(datetime.UTC).isoformat(),
        version=VERSION,
        dp_rank_count=len(rows),
        loads=rows,
        aggregate=pb.AggregateMetrics(
            total_running_reqs=sum(row.num_running_reqs for row in rows),
            total_waiting_reqs=sum(row.num_waiting_reqs for row in rows),
            total_reqs=sum(row.num_total_reqs for row in rows),
            avg_token_usage=sum(row.token_usage for row in rows) / count,
            avg_throughput=sum(row.gen_throughput for row in rows) / count,
            avg_utilization=sum(row.utilization for row in rows) / count,
        ),
    )


def _row(station: Station, load: RankLoad, wanted: set[str]) -> pb.SchedulerLoad:
    if station.life.is_dead:
        return pb.SchedulerLoad(dp_rank=load.rank)
    settings, mode = station.engine.settings, _MODES[station.options.mode]
    row = pb.SchedulerLoad(
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
    if wanted & {"memory", "all"}:
        row.memory.kv_cache_gb = settings.num_pages * station.engine.page_bytes / 1e9
        row.memory.token_capacity = load.max_tokens
    if wanted & {"queues", "all"}:
        row.queues.waiting = load.waiting
    if wanted & {"lora", "all"}:
        row.lora.slots_used = len(station.adapters.loaded)
        row.lora.slots_total = station.adapters.capacity
        row.lora.utilization = row.lora.slots_used / (row.lora.slots_total or 1)
    if wanted & {"disagg", "all"}:
        row.disaggregation.mode = mode
        if mode == "prefill":
            row.disaggregation.prefill_inflight_queue_reqs = len(station.bootstrap.offers)
        elif mode == "decode":
            row.disaggregation.decode_transfer_queue_reqs = station.engine.ledger().ranks[load.rank].rooms
    return row
