"""One of everything that the command line shows."""

from __future__ import annotations

from tests.cli.fakes import message

from tandem.v1 import (
    adapter_pb2,
    job_pb2,
    model_pb2,
    pair_pb2,
    pair_plan_pb2,
    worker_pb2,
    worker_selection_pb2,
    worker_service_pb2,
)

__all__ = ["ADAPTERS", "OUTCOMES"]
__all__ += ["COUNTS", "FAILED_JOB", "J1", "MODEL", "NOW_S", "P1", "PAIR", "PLAN", "W1", "W2", "WORKERS", "drain_job"]

NOW_S = 1_800_000_000.0
"""2027-01-15T08:00:00Z."""
W1, W2, P1, J1 = (f"{head}000000-0000-4000-8000-000000000001" for head in ("1a", "1b", "50", "90"))
"""The ids of the two workers begin alike."""

WORKERS = [
    message(
        worker_pb2.Worker,
        id=W1,
        status="WORKER_STATUS_READY",
        spec={"url": "grpc://a:1", "workerType": "WORKER_TYPE_PREFILL", "labels": {"zone": "a", "gpu": "h100"}},
        facts={
            "runtimeType": "RUNTIME_TYPE_SGLANG",
            "runtimeVersion": "0.5.2",
            "models": [{"id": "tiny", "contextLength": 4096}],
            "kvConnector": "KV_CONNECTOR_RENDEZVOUS",
            "bootstrapEndpoint": {"host": "a", "port": 8998},
            "kvBlockSize": 16,
            "kvCacheDtype": "float32",
            "mismatches": [{"field": "kv_block_size", "stated": "32", "found": "16"}],
            "labels": {"tp_size": "1"},
            "capabilities": {"seed": True, "kvEvents": True, "adapters": True, "constraints": ["regex", "choice"]},
        },
        conditions=[
            {"type": "CONNECTED", "status": "CONDITION_STATUS_TRUE", "transitionTime": "2027-01-15T07:59:15Z"},
            {
                "type": "PAIRABLE",
                "status": "CONDITION_STATUS_FALSE",
                "failure": {"reason": "NO_COMPATIBLE_PAIR", "message": "no decode worker has page size 32"},
            },
        ],
        ranks=[
            {
                "dpRank": 0,
                "routable": True,
                "breaker": "BREAKER_STATE_CLOSED",
                "inFlight": 2,
                "window": 8,
                "load": {"runningRequests": 2, "waitingRequests": 1, "tokenUsage": 0.25},
            },
            {
                "dpRank": 1,
                "inFlight": 3,
                "failure": {"reason": "ENGINE_ERROR", "message": "device-side assert"},
                "outageTime": "2027-01-15T07:59:48Z",
                "trialTime": "2027-01-15T08:00:18Z",
            },
        ],
        epoch=3,
        generation=4,
        createTime="2027-01-15T05:55:00Z",
    ),
    message(
        worker_pb2.Worker,
        id=W2,
        status="WORKER_STATUS_FAILED",
        spec={"url": "grpc://b:20"},
        failure={"reason": "RUNTIME_NOT_DETECTED", "message": "nothing answers"},
        drain={"startTime": "2027-01-15T07:59:59Z", "reason": "new driver", "remainingLegs": 2},
        currentJob={"id": J1, "type": "JOB_TYPE_REGISTER_WORKER", "state": "JOB_STATE_FAILED"},
        generation=1,
        createTime="2027-01-15T07:59:48Z",
    ),
]

COUNTS = [
    message(worker_service_pb2.WorkerCount, workerType=f"WORKER_TYPE_{kind}", status="WORKER_STATUS_READY", count=count)
    for kind, count in (("PREFILL", 4), ("DECODE", 12))
]

FAILED_JOB = message(
    job_pb2.Job,
    id=J1,
    type="JOB_TYPE_REGISTER_WORKER",
    state="JOB_STATE_FAILED",
    workerId=W1,
    workerGeneration=1,
    steps=[
        {"name": "connect", "state": "STEP_STATE_SUCCEEDED", "attempts": 3, "detail": "grpc://a:1"},
        {
            "name": "detect_runtime",
            "state": "STEP_STATE_FAILED",
            "attempts": 1,
            "failure": {"reason": "RUNTIME_NOT_DETECTED", "message": "nothing answers"},
        },
        {"name": "activate", "state": "STEP_STATE_PENDING"},
    ],
    failure={"reason": "RUNTIME_NOT_DETECTED", "message": "nothing answers"},
    createTime="2027-01-15T07:56:56Z",
    startTime="2027-01-15T07:56:56Z",
    endTime="2027-01-15T07:56:56.250Z",
)


def drain_job(legs: int, *, is_done: bool = False) -> job_pb2.Job:
    """A drain that waits for so many legs."""
    state = "SUCCEEDED" if is_done else "RUNNING"
    detail = "idle" if is_done else f"waiting for {legs} legs"
    job: job_pb2.Job = message(
        job_pb2.Job,
        id=J1,
        type="JOB_TYPE_DRAIN_WORKER",
        state=f"JOB_STATE_{state}",
        workerId=W1,
        steps=[{"name": "drain", "state": f"STEP_STATE_{state}", "attempts": 1, "detail": detail}],
    )
    return job


PAIR = message(
    pair_pb2.Pair,
    id=P1,
    requestId="r-1",
    attempt=1,
    model="tiny",
    state="PAIR_STATE_DECODING",
    prefill={"worker": {"workerId": W1, "dpRank": 0}, "state": "LEG_STATE_CLOSED"},
    decode={"worker": {"workerId": W2}, "state": "LEG_STATE_RUNNING"},
    connector="KV_CONNECTOR_RENDEZVOUS",
    handoff={"rendezvous": {"room": {"number": 1030}}},
    abortInTransfer="ABORT_IN_TRANSFER_DEFER",
    createTime="2027-01-15T07:59:58Z",
)

PLAN = message(
    pair_plan_pb2.PairPlan,
    servingMode="SERVING_MODE_DISAGGREGATED",
    servingModeReason="DEFAULT",
    prefill={"workerId": W1, "dpRank": 0},
    decode={"workerId": W2},
    connector="KV_CONNECTOR_RENDEZVOUS",
    promptTokens=12,
    prefillCandidates=[
        {
            "worker": {"workerId": W1, "dpRank": 0},
            "scores": [{"scorer": "least_load", "value": 0.5, "weight": 1}],
            "total": 0.5,
            "picked": True,
        }
    ],
    decodeCandidates=[
        {"worker": {"workerId": W2}, "scores": [{"scorer": "least_load", "value": 1}], "total": 1, "picked": True},
        {"worker": {"workerId": J1}, "refusal": {"reason": "WORKER_NOT_READY", "message": "it is DRAINING"}},
    ],
    refusals=[
        {
            "prefillWorkerId": W1,
            "decodeWorkerId": J1,
            "reasons": [{"reason": "NO_COMPATIBLE_PAIR", "message": "page size 16 is not 32"}],
        }
    ],
)

MODEL = message(
    model_pb2.Model,
    id="tiny",
    card={
        "id": "tiny",
        "aliases": ["t"],
        "contextLength": 4096,
        "vocabSize": 512,
        "architectures": ["LlamaForCausalLM"],
        "capabilities": ["MODEL_CAPABILITY_GENERATE"],
    },
    available=True,
    capacity={"prefillWorkers": 2, "decodeWorkers": 1, "connectors": ["KV_CONNECTOR_RENDEZVOUS"]},
    createTime="2027-01-15T07:00:00Z",
)

ADAPTERS = [
    message(
        adapter_pb2.Adapter,
        name="german",
        placements=[
            {"workerId": W1, "engineId": "7f3a", "path": "/adapters/german", "pinned": True},
            {"workerId": W2, "path": "/adapters/german"},
        ],
    ),
    message(adapter_pb2.Adapter, name="law", placements=[{"workerId": W1, "engineId": "90c1"}]),
]

OUTCOMES = [
    message(worker_selection_pb2.WorkerOutcome, workerId=W1, message="done"),
    message(
        worker_selection_pb2.WorkerOutcome,
        workerId=W2,
        failure={"reason": "ENGINE_ERROR", "message": "requests are running"},
    ),
]
"""Well on one worker, badly on the other."""
