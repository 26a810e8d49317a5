"""Real processes for end-to-end tests: engines and a router on free loopback ports, ended with their test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import grpc

from tandem.engine.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from tandem.v1 import (
    generate_pb2,
    generate_result_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    message_pb2,
    model_card_pb2,
    pair_service_pb2,
    pair_service_pb2_grpc,
    router_service_pb2_grpc,
    sampling_pb2,
    worker_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
    worker_spec_pb2,
)

__all__ = ["Answer", "EngineProcess", "RouterProcess", "eventually", "system"]

START_TIMEOUT_S = 60.0
"""Two busy cores may start six interpreters at once."""


def eventually(claim: Callable[[], bool], *, within_s: float, what: str) -> float:
    """Wait until a claim holds and say how long it took; fails by name when it does not hold in time."""
    began = time.monotonic()
    while not claim():
        assert time.monotonic() - began < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


def _spawn(arguments: list[str], stderr: IO[str] | None = None) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start a module of ours and read the one JSON line that says where it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments, "--parent-pid", str(os.getpid())],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.stdout.close()
        raise RuntimeError(f"{arguments} did not start: exit {process.wait(5)}")
    return process, json.loads(line)


@dataclass
class _Process:
    process: subprocess.Popen[str]
    channels: list[grpc.Channel] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        for channel in self.channels:
            channel.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def channel(self, address: str) -> grpc.Channel:
        channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.channels.append(channel)
        return channel


class EngineProcess(_Process):
    """One reference engine."""

    def __init__(self, protocol: str, mode: str, *flags: str) -> None:
        process, where = _spawn(["tandem_engine", "--protocol", protocol, "--mode", mode, *flags])
        super().__init__(process)
        self.protocol, self.mode = protocol, mode
        self.address: str = where["listen"]
        self._debug = ledger_service_pb2_grpc.LedgerServiceStub(self.channel(self.address))

    def ledger(self) -> ledger_pb2.LedgerCounts:
        """The engine's own books."""
        return self._debug.GetLedger(ledger_service_pb2.GetLedgerRequest()).ledger.totals

    def set_faults(self, **plan: Any) -> None:
        """Replace the fault plan; no argument removes all faults."""
        self._debug.SetFaults(ledger_service_pb2.SetFaultsRequest(plan=ledger_pb2.FaultPlan(**plan)))

    def is_idle(self) -> bool:
        """Nothing runs, no page is held, no room is open."""
        books = self.ledger()
        return books.running == books.waiting == books.held_pages == books.open_rooms == 0


@dataclass
class Answer:
    """What one call to Generate gave."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    finished: generate_result_pb2.Finished | None = None
    error: grpc.RpcError | None = None
    first_token_at: float | None = None
    ended_at: float = 0.0

    @property
    def text(self) -> str:
        return self.texts.get(0, "")


class RouterProcess(_Process):
    """One router."""

    def __init__(self, *flags: str, stderr: IO[str] | None = None) -> None:
        names = ("--listen", "--admin-listen", "--health-listen", "--metrics-listen")
        listeners = [part for name in names for part in (name, "127.0.0.1:0")]
        process, where = _spawn(["tandem_router", "serve", *listeners, "--print-ports", *flags], stderr)
        super().__init__(process)
        self.where: dict[str, str] = where
        self.engines: dict[str, EngineProcess] = {}
        """The engines that were added, by worker id."""
        public, admin = self.channel(where["listen"]), self.channel(where["admin_listen"])
        self.router = router_service_pb2_grpc.RouterServiceStub(public)
        self.workers = worker_service_pb2_grpc.WorkerServiceStub(admin)
        self.jobs = job_service_pb2_grpc.JobServiceStub(admin)
        self.pairs = pair_service_pb2_grpc.PairServiceStub(admin)

    def add(self, engine: EngineProcess, *, model: str | None = None) -> str:
        """Register an engine and wait until it is READY; its id."""
        kinds = {
            "prefill": worker_spec_pb2.WORKER_TYPE_PREFILL,
            "decode": worker_spec_pb2.WORKER_TYPE_DECODE,
            "aggregated": worker_spec_pb2.WORKER_TYPE_REGULAR,
        }
        spec = worker_spec_pb2.WorkerSpec(url=f"grpc://{engine.address}", worker_type=kinds[engine.mode])
        if model is not None:
            spec.models.append(model_card_pb2.ModelCard(id=model))
        worker = self.workers.CreateWorker(worker_service_pb2.CreateWorkerRequest(spec=spec)).worker
        self.engines[worker.id] = engine
        eventually(lambda: self.is_ready(worker.id), within_s=30, what=f"worker {engine.address} is READY")
        return str(worker.id)

    def status(self, worker_id: str) -> int:
        return self.workers.GetWorker(worker_service_pb2.GetWorkerRequest(worker_id=worker_id)).worker.status

    def is_ready(self, worker_id: str) -> bool:
        status = self.status(worker_id)
        assert status != worker_pb2.WORKER_STATUS_FAILED, self.jobs.ListJobs(job_service_pb2.ListJobsRequest())
        return status == worker_pb2.WORKER_STATUS_READY

    def live_pairs(self) -> list[Any]:
        return list(self.pairs.ListPairs(pair_service_pb2.ListPairsRequest()).pairs)

    def request(
        self, *, text: str | None = None, token_ids: list[int] | None = None, model: str = "", **sampling: Any
    ) -> generate_pb2.GenerateRequest:
        """A request for tokens and text."""
        request = generate_pb2.GenerateRequest(
            model=model,
            sampling=sampling_pb2.SamplingParams(**sampling),
            output=generate_pb2.OUTPUT_MODE_BOTH,
        )
        if text is not None:
            request.text = text
        else:
            request.token_ids.CopyFrom(message_pb2.TokenIds(ids=token_ids or []))
        return request

    def generate(
        self,
        request: generate_pb2.GenerateRequest,
        *,
        on_first: Callable[[], None] | None = None,
        timeout_s: float = 60.0,
    ) -> Answer:
        """Carry a request out to its end; `on_first` is called when the first token has come."""
        answer = Answer()
        try:
            for response in self.router.Generate(request, timeout=timeout_s):
                match response.WhichOneof("event"):
                    case "chunk":
                        chunk = response.chunk
                        answer.tokens.setdefault(chunk.index, []).extend(chunk.token_ids)
                        answer.texts[chunk.index] = answer.texts.get(chunk.index, "") + "".join(chunk.text)
                        assert chunk.next_offset == len(answer.tokens[chunk.index])
                        if answer.first_token_at is None:
                            answer.first_token_at = time.monotonic()
                            if on_first is not None:
                                on_first()
                    case "finished":
                        answer.finished = response.finished
        except grpc.RpcError as error:
            answer.error = error
        answer.ended_at = time.monotonic()
        return answer


@contextlib.contextmanager
def system(
    protocol: str, *, prefill: int = 1, decode: int = 1, alone: bool = False, engine_flags: tuple[str, ...] = ()
) -> Iterator[tuple[RouterProcess, list[EngineProcess], list[EngineProcess]]]:
    """A router with registered engines of one protocol: (router, prefill engines, decode engines).

    alone: also an aggregated engine, registered as model "alone".
    """
    with contextlib.ExitStack() as stack:

        def start(mode: str) -> EngineProcess:
            engine = EngineProcess(protocol, mode, *engine_flags)
            stack.callback(engine.stop)
            return engine

        router = RouterProcess()
        stack.callback(router.stop)
        prefills = [start("prefill") for _ in range(prefill)]
        decodes = [start("decode") for _ in range(decode)]
        for engine in (*prefills, *decodes):
            router.add(engine)
        if alone:
            router.add(start("aggregated"), model="alone")
        yield router, prefills, decodes
