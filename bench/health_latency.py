"""How long a health probe waits, idle and under load: `python bench/health_latency.py`, about 45 seconds.

A real `tandem serve` with a prefill and a decode worker that emit on time (metronome.py), clients that read
(readers.py), and three probers in this process: one on the probe port with a connection that stays, one on the probe
port that dials anew each time (as the kubelet does), and for comparison one on the public listener, which the loop
serves. Each asks on a fixed beat; a beat that passes while an answer is awaited counts as if it had asked and was
answered at the same moment, so that a stall counts for as long as it lasts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.v1 import worker_pb2, worker_service_pb2, worker_service_pb2_grpc, worker_spec_pb2

HERE = Path(__file__).parent
WARM_UP_S = 4.0
START_TIMEOUT_S = 20.0
LIMIT_S = 0.1
"""Issue "Operators": p99 on the probe port under load."""
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Prober:
    """Asks one address on a beat."""

    name: str
    address: str
    interval_s: float
    dials: bool = False
    latencies_s: list[float] = field(default_factory=list)
    not_serving: int = 0

    def run(self, until_s: float) -> None:
        channel = None if self.dials else self._dial()
        beat_s = time.monotonic()
        while beat_s < until_s:
            time.sleep(max(0.0, beat_s - time.monotonic()))
            through = channel or self._dial()
            stub: Any = health_pb2_grpc.HealthStub(through)
            answer = stub.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=30, wait_for_ready=True)
            answered_s = time.monotonic()
            self.not_serving += answer.status != health_pb2.HealthCheckResponse.SERVING
            if channel is None:
                through.close()
            while beat_s <= answered_s:
                self.latencies_s.append(answered_s - beat_s)
                beat_s += self.interval_s
        if channel is not None:
            channel.close()

    def _dial(self) -> grpc.Channel:
        return grpc.insecure_channel(self.address, options=_OWN_CONNECTION)

    def row(self, phase: str) -> list[str]:
        ordered = sorted(self.latencies_s)
        cells = [
            f"{1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.1f}" for share in (0.5, 0.95, 0.99)
        ]
        return [phase, self.name, str(len(ordered)), *cells, f"{1000 * ordered[-1]:.1f}", str(self.not_serving)]


HEAD = ["load", "probe", "n", "p50 ms", "p95 ms", "p99 ms", "max ms", "not serving"]


def probe(where: dict[str, str], duration_s: float) -> list[Prober]:
    """All probers at once for `duration_s`."""
    probers = [
        Prober("probe port, kept connection", where["health_listen"], 0.02),
        Prober("probe port, dialled anew", where["health_listen"], 0.1, dials=True),
        Prober("public listener (the loop)", where["listen"], 0.05),
    ]
    until_s = time.monotonic() + duration_s
    threads = [threading.Thread(target=prober.run, args=(until_s,)) for prober in probers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return probers


@contextlib.contextmanager
def child(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ours, ended with the block."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    line: dict[str, str] = json.loads(process.stdout.readline())
    return line


def register(operators: grpc.Channel, address: str, kind: worker_spec_pb2.WorkerType.ValueType) -> None:
    """Add a worker and wait until it is READY."""
    stub = worker_service_pb2_grpc.WorkerServiceStub(operators)
    spec = worker_spec_pb2.WorkerSpec(url=f"grpc://{address}", worker_type=kind)
    worker = stub.CreateWorker(worker_service_pb2.CreateWorkerRequest(spec=spec)).worker
    until_s = time.monotonic() + START_TIMEOUT_S
    while worker.status != worker_pb2.WORKER_STATUS_READY:
        assert time.monotonic() < until_s, f"worker {address} is not READY: {worker}"
        time.sleep(0.05)
        worker = stub.GetWorker(worker_service_pb2.GetWorkerRequest(worker_id=worker.id)).worker


def cpu_s(pid: int) -> float | None:
    """Seconds of CPU that a process has used; None where /proc does not say."""
    try:
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """One line about where this ran."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} x {model}, {platform.system()}, Python {platform.python_version()}, "
        f"grpcio {grpc.__version__}, load average before {load}"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


@dataclass
class Readers:
    """The clients' process, and what it has said since the last `mark`."""

    process: subprocess.Popen[str]
    lines: list[dict[str, Any]] = field(default_factory=list)

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if "error" in said:
                print(f"a stream failed: {said['error']}", file=sys.stderr)
            else:
                self.lines.append(said)


def measure(streams: int, rate: float, idle_s: float, loaded_s: float, settings: Sequence[str]) -> float:
    """Measure, print, and return p99 of the kept connection under load, in seconds."""
    print(machine())
    listeners = [f"--{name}=127.0.0.1:0" for name in ("listen", "admin-listen", "health-listen", "metrics-listen")]
    serve = ["-m", "tandem_router", "serve", "--print-ports", "--quiet", *listeners]
    for one in settings:
        serve += ["--set", one]
    with child(str(HERE / "metronome.py"), f"--step={1 / rate}") as engines, child(*serve) as router:
        workers, where = first_line(engines), first_line(router)
        with grpc.insecure_channel(where["admin_listen"]) as operators:
            register(operators, workers["kv_producer"], worker_spec_pb2.WORKER_TYPE_PREFILL)
            register(operators, workers["kv_consumer"], worker_spec_pb2.WORKER_TYPE_DECODE)
        rows = [HEAD, *(prober.row("idle") for prober in probe(where, idle_s))]
        with child(str(HERE / "readers.py"), where["listen"], f"--streams={streams}") as clients:
            readers = Readers(clients)
            threading.Thread(target=readers.listen, daemon=True).start()
            time.sleep(WARM_UP_S)
            before, used_s, began_s = len(readers.lines), cpu_s(router.pid), time.monotonic()
            probers = probe(where, loaded_s)
            took_s, now_used_s = time.monotonic() - began_s, cpu_s(router.pid)
            said = readers.lines[before:]
    offered = f"{streams} x {rate:g}/s"
    rows += [prober.row(offered) for prober in probers]
    delivered = sum(line["tokens"] for line in said) / max(1, len(said))
    cpu = ""
    if used_s is not None and now_used_s is not None:
        cores = (now_used_s - used_s) / took_s
        cpu = f"; the router used {cores:.2f} cores, {1e6 * cores / max(1.0, delivered):.0f} us per token"
    print(f"offered {streams * rate:,.0f} tokens/s on {streams} streams, delivered {delivered:,.0f} tokens/s", end="")
    print(f" on {said[-1]['streams']} streams, {said[-1]['failed']} failed{cpu}")
    print(table(rows))
    return sorted(probers[0].latencies_s)[int(0.99 * len(probers[0].latencies_s))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens per second of each stream")
    parser.add_argument("--idle", type=float, default=8.0, help="seconds without load")
    parser.add_argument("--loaded", type=float, default=20.0, help="seconds with load")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the router")
    given = parser.parse_args()
    p99_s = measure(given.streams, given.rate, given.idle, given.loaded, given.set)
    print(f"p99 on the probe port under load: {1000 * p99_s:.1f} ms (limit {1000 * LIMIT_S:.0f} ms)")
    return 0 if p99_s < LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
