"""Real engines as processes of one test run: what they are started with, and that none outlives it.

Every engine runs unmodified, from its own venv, on loopback, from a folder that holds nothing named like a Python
package, on the end of a leash (leash.py). The flags are those of docs/engines.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto.generated import mlx_engine_pb2, mlx_engine_pb2_grpc, vllm_engine_pb2, vllm_engine_pb2_grpc

from tandem_engine.demo import MODEL_DIR

__all__ = [
    "MLX_PYTHON",
    "VLLM_PYTHON",
    "EngineCommand",
    "RealEngine",
    "free_port",
    "mlx",
    "mooncake_half",
    "vllm",
    "vllm_half",
]

_ROOT = Path(__file__).parents[2]
VLLM_PYTHON = Path(os.environ.get("TANDEM_VLLM_VENV", _ROOT / ".venv-vllm")) / "bin/python"
MLX_PYTHON = Path(os.environ.get("TANDEM_MLX_VENV", _ROOT / ".venv-mlx")) / "bin/python"
_LEASH = Path(__file__).with_name("leash.py")
_STAND_INS = Path(__file__).with_name("stand_ins")

LIFE_S = 1_500.0
"""No engine lives longer, whatever becomes of the test run: `make test-engines` takes less than half of it."""
START_S = 400.0
"""vLLM takes 40 s on two idle cores. Three at once on cores that others use took more than three minutes."""
CONTEXT = 4096
"""--max-model-len: of the demo model."""

_VLLM_ENVIRONMENT = {
    # Loopback only: without these it listens on, and looks for, other interfaces.
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
    "UCX_TLS": "tcp,self",
    "UCX_NET_DEVICES": "lo",
    # Nothing is fetched and nobody is told.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Two cores are shared by three engines, a router and the tests.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # A warm-up with an image model's inputs is of no use here.
    "SMG_VLLM_SERVICER_WARMUP": "off",
    # Read by sitecustomize.py there, which says what for.
    "PYTHONPATH": str(_STAND_INS),
    "TANDEM_STAND_INS": "yield",
    # The log is where vLLM's gRPC server tells of KV transfers: it has no metrics port.
    "VLLM_LOG_STATS_INTERVAL": "1",
}


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """How one engine is started."""

    name: str
    mode: str
    """"prefill", "decode" or "aggregated"; the words of the reference engine's --mode."""
    arguments: tuple[str, ...]
    """Python first, without the port."""
    environment: dict[str, str] = field(default_factory=dict)
    side_channel: str | None = None
    """The environment variable that takes one more port."""


def free_port() -> int:
    """A loopback port that nobody has just now: real engines take a number and do not say which one they took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mlx() -> EngineCommand:
    """MLX on the demo model."""
    server = (str(MLX_PYTHON), "-m", "smg_grpc_servicer.mlx.server", "--model", str(MODEL_DIR), "--host", "127.0.0.1")
    return EngineCommand("mlx", "aggregated", server, {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})


def vllm(*flags: str, name: str = "vllm", mode: str = "aggregated") -> EngineCommand:
    """vLLM on the demo model, on the CPU."""
    server = (
        *(str(VLLM_PYTHON), "-m", "vllm.entrypoints.launchers.grpc_server"),
        *("--model", str(MODEL_DIR), "--served-model-name", "tandem-demo", "--host", "127.0.0.1"),
        *("--dtype", "float32", "--max-model-len", str(CONTEXT), "--max-num-seqs", "16", "--enforce-eager"),
        *("--seed", "0"),
    )
    return EngineCommand(name, mode, (*server, *flags), _VLLM_ENVIRONMENT)


def vllm_half(mode: str) -> EngineCommand:
    """One half of a vLLM pair whose KV moves over NIXL; mode: "prefill" or "decode"."""
    transfer = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer" if mode == "prefill" else "kv_consumer",
        "kv_buffer_device": "cpu",
        "engine_id": f"nixl-{mode}",
        # By default each worker's NIXL polls with four threads more, without pause: on two cores transfers then stand
        # still for as long as the lease.
        "kv_connector_extra_config": {"num_threads": 0},
    }
    # Few blocks to decode into: what one request leaves is the next one's, so a late write into it would show.
    few = ("--num-gpu-blocks-override", "64") if mode == "decode" else ()
    plain = vllm("--kv-transfer-config", json.dumps(transfer), *few, name=f"vllm-{mode}", mode=mode)
    return EngineCommand(plain.name, mode, plain.arguments, plain.environment, "VLLM_NIXL_SIDE_CHANNEL_PORT")


def mooncake_half(mode: str) -> EngineCommand:
    """One half of a vLLM pair whose KV moves over Mooncake's TCP transport; mode: "prefill" or "decode".

    Its bootstrap server and its transport listen on every interface, whatever they are told: for a network namespace of
    its own (make test-engines).
    """
    transfer = {
        "kv_connector": "MooncakeConnector",
        "kv_role": "kv_producer" if mode == "prefill" else "kv_consumer",
        "kv_buffer_device": "cpu",
        "engine_id": f"mooncake-{mode}",
        "kv_connector_extra_config": {"mooncake_protocol": "tcp"},
    }
    plain = vllm("--kv-transfer-config", json.dumps(transfer), name=f"vllm-mooncake-{mode}", mode=mode)
    environment = plain.environment | {"TANDEM_STAND_INS": "yield accelerator"}
    return EngineCommand(plain.name, mode, plain.arguments, environment, "VLLM_MOONCAKE_BOOTSTRAP_PORT")


class RealEngine:
    """One running engine."""

    def __init__(self, command: EngineCommand, *, port: int | None = None) -> None:
        self.command, self.mode = command, command.mode
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="tandem-engine-")
        self.log = Path(self._folder.name) / "engine.log"
        ours = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"}
        environment = {name: value for name, value in os.environ.items() if name not in ours} | command.environment
        self.side_port = free_port()
        if command.side_channel is not None:
            environment[command.side_channel] = str(self.side_port)
        if "mooncake" in command.name:
            environment["LD_LIBRARY_PATH"] = self._ibverbs()
        arguments = [*command.arguments, "--port", str(self.port)]
        if "vllm" in command.name:
            endpoint = {"endpoint": f"ipc://{self._folder.name}/kv", "replay_endpoint": f"ipc://{self._folder.name}/re"}
            events = {"enable_kv_cache_events": True, "publisher": "zmq", **endpoint}
            # Its workers poll without pause: on two cores the router and the tests go before them.
            arguments = ["nice", "-n", "10", *arguments, "--kv-events-config", json.dumps(events)]
        work = Path(self._folder.name) / "empty"
        work.mkdir()
        with self.log.open("w") as log:
            self._leash = subprocess.Popen(
                [sys.executable, str(_LEASH), str(LIFE_S), *arguments],
                cwd=work,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._leash.stdout is not None
        self.pid = int(self._leash.stdout.readline())
        self._began = time.monotonic()
        self.channel = grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def _ibverbs(self) -> str:
        """Where Mooncake finds libibverbs.so.1, which it wants also where there is no RDMA: NIXL has one."""
        [libraries] = VLLM_PYTHON.parents[1].glob("lib/python*/site-packages/nixl_cu12.libs")
        [library] = libraries.glob("libibverbs-*")
        link = Path(self._folder.name) / "lib" / "libibverbs.so.1"
        link.parent.mkdir()
        link.symlink_to(library)
        return f"{link.parent}:{libraries}"

    def wait_until_serving(self, within_s: float = START_S) -> float:
        """Seconds from its start to SERVING; fails with the end of its log."""
        health = health_pb2_grpc.HealthStub(self.channel)
        while True:
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    self._put_pollers_last()
                    return time.monotonic() - self._began
            except grpc.RpcError:
                pass
            if self._leash.poll() is not None or time.monotonic() - self._began > within_s:
                raise AssertionError(f"{self.command.name} does not serve:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)

    def _put_pollers_last(self) -> None:
        """Let everything go before the threads of vLLM's workers that poll without pause (NIXL's, one per worker).

        Nobody has named them, so they are called what their process is called.
        """
        for pid, command in self.processes().items():
            if not command.startswith("VLLM::Worker"):
                continue
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if int(thread.name) != pid and (thread / "comm").read_text().startswith("VLLM::"):
                        os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)

    def loads(self) -> tuple[int, int, int]:
        """What the engine says of itself: requests running, requests waiting, KV tokens in use (MLX: 0)."""
        if self.command.name == "mlx":
            mlx_stub = mlx_engine_pb2_grpc.MlxEngineStub(self.channel)
            info = mlx_stub.GetServerInfo(mlx_engine_pb2.GetServerInfoRequest(), timeout=10)
            return info.active_requests, 0, 0
        stub = vllm_engine_pb2_grpc.VllmEngineStub(self.channel)
        answer = stub.GetLoads(vllm_engine_pb2.GetLoadsRequest(include=["core"]), timeout=10)
        [load] = answer.loads
        return load.num_running_reqs, load.num_waiting_reqs, load.num_used_tokens

    def is_idle(self) -> bool:
        """Nothing runs or waits."""
        return self.loads()[:2] == (0, 0)

    def processes(self) -> dict[int, str]:
        """Command line by pid of everything in its process group."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.getpgid(int(entry.name)) == self.pid:
                        found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
                except (ProcessLookupError, FileNotFoundError):
                    continue
        return found

    def kill(self) -> float:
        """SIGKILL of the process that serves; when. The rest of its group follows in a moment."""
        os.kill(self.pid, signal.SIGKILL)
        return time.monotonic()

    def kill_core(self) -> float:
        """SIGKILL of vLLM's EngineCore alone, behind the process that serves; when."""
        [core] = [pid for pid, command in self.processes().items() if command.startswith("VLLM::EngineCore")]
        os.kill(core, signal.SIGKILL)
        return time.monotonic()

    def let_go(self) -> None:
        """Have the leash end it and all that it started; returns at once."""
        assert self._leash.stdin is not None
        self._leash.stdin.close()

    def stop(self) -> None:
        """End it and all that it started, and wait for that."""
        assert self._leash.stdout is not None
        self.let_go()
        self.channel.close()
        self._leash.wait(15)
        self._leash.stdout.close()
        self._folder.cleanup()
