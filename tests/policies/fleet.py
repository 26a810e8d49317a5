"""Workers for policy tests, built from what differs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tandem_router.model.ids import WorkerId
from tandem_router.model.pairing import BootstrapEndpoint, HandshakeKind
from tandem_router.model.spec import RuntimeType, WorkerSpec, WorkerType
from tandem_router.model.worker import Rank, Worker, WorkerFacts, WorkerStatus

__all__ = ["fleet", "worker"]


def worker(
    number: int, worker_type: WorkerType, *, dp_size: int = 1, status: WorkerStatus = WorkerStatus.READY, **facts: Any
) -> Worker:
    """A READY worker of model "m" whose protocol meets at rooms, with the facts given changed."""
    found = WorkerFacts(
        runtime_type=RuntimeType.SGLANG,
        model_id="m",
        handshake=HandshakeKind.RENDEZVOUS,
        kv_connector="tcp",
        kv_block_size=16,
        kv_dtype="float32",
        bootstrap=BootstrapEndpoint("127.0.0.1", 9000 + number),
        dp_size=dp_size,
        supports_seed=True,
    )
    url = f"grpc://127.0.0.1:{7000 + number}"
    return Worker(
        id=WorkerId(f"00000000-0000-4000-8000-{number:012d}"),
        spec=WorkerSpec(url=url, worker_type=worker_type),
        url=url,
        status=status,
        revision=number,
        generation=1,
        epoch=1,
        created_at_s=0.0,
        updated_at_s=0.0,
        facts=replace(found, **facts),
        ranks=tuple(Rank(rank) for rank in range(dp_size)),
    )


def fleet(*workers: Worker) -> dict[WorkerId, Worker]:
    """A snapshot as the control loop gives it."""
    return {each.id: each for each in workers}
