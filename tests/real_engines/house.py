"""The engines of one test run and the routers in front of them, each started when a test first needs it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from tests.e2e.processes import EngineProcess, RouterProcess, eventually
from tests.real_engines.launching import EngineCommand, RealEngine, mlx, mooncake_half, vllm, vllm_half

from tandem.v1 import model_card_pb2, worker_pb2, worker_service_pb2, worker_spec_pb2

__all__ = ["ALONE", "PAIR", "REFERENCE", "House", "System"]

PAIR, ALONE, REFERENCE = "tandem-demo", "alone", "reference"
"""The models that a router of ours serves: a pair, the same engine alone, and the reference engine. The first two names
are those of the end-to-end tests of the reference engine, which run here as they are."""

_HEALTH = {"check_interval": {"seconds": 1}, "timeout": {"seconds": 10}}
"""vLLM compiles for seconds at its first request with log probabilities, and then answers late; an engine that is dead
says so at once."""


@dataclass(slots=True)
class System:
    """A router and what it serves."""

    name: str
    router: RouterProcess
    ids: dict[str, str]
    """Worker id by the name of the engine."""
    engines: dict[str, RealEngine]
    """The real ones, by name."""

    def worker(self, name: str, *, include_load: bool = False) -> worker_pb2.Worker:
        """The worker as the router shows it."""
        request = worker_service_pb2.GetWorkerRequest(worker_id=self.ids[name], include_load=include_load)
        return self.router.workers.GetWorker(request).worker

    def epoch(self, name: str) -> int:
        """Of the worker."""
        return int(self.worker(name).epoch)

    def is_idle(self) -> bool:
        """Nothing runs or waits on any engine, and no pair is open."""
        return self.router.live_pairs() == [] and all(engine.is_idle() for engine in self.engines.values())


class House:
    """Starts things once, and ends them all."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._engines: dict[str, RealEngine] = {}
        self._systems: dict[str, System] = {}
        self.start_s: dict[str, float] = {}
        """From start to SERVING, by engine."""

    def close(self) -> None:
        """End everything: engines take seconds, so all at once."""
        for engine in self._engines.values():
            engine.let_go()
        self._stack.close()

    def vllm(self) -> System:
        """Models: a pair over NIXL, the same vLLM alone, and the reference engine."""
        if "vllm" not in self._systems:
            # All at once: loading is mostly waiting.
            for command in (vllm_half("prefill"), vllm_half("decode"), vllm()):
                self._launch(command)
            router = self._router("vllm", "vllm-prefill", "vllm-decode", "vllm")
            self._register("vllm", "vllm-prefill")
            self._register("vllm", "vllm-decode")
            self._register("vllm", "vllm", ALONE, "demo")
            self._reference(router)
            self._warm_up(router)
        return self._systems["vllm"]

    def mlx(self) -> System:
        """MLX under both names, as it has no pairs, and the reference engine."""
        if "mlx" not in self._systems:
            self._launch(mlx())
            router = self._router("mlx", "mlx")
            self._register("mlx", "mlx", ALONE, PAIR, "demo")
            self._reference(router)
        return self._systems["mlx"]

    def mooncake(self) -> System:
        """Models: a pair over Mooncake, and the reference engine."""
        if "mooncake" not in self._systems:
            halves = [self._launch(mooncake_half(mode)) for mode in ("prefill", "decode")]
            router = self._router("mooncake", *(half.command.name for half in halves))
            for half in halves:
                self._register("mooncake", half.command.name, bootstrap_port=half.side_port)
            self._reference(router)
        return self._systems["mooncake"]

    def restart(self, name: str) -> RealEngine:
        """Another process of the same engine at the same address; it is not waited for."""
        old = self._engines[name]
        old.stop()
        engine = self._launch(old.command, port=old.port)
        for system in self._systems.values():
            if name in system.engines:
                system.engines[name] = engine
        return engine

    def _launch(self, command: EngineCommand, *, port: int | None = None) -> RealEngine:
        engine = RealEngine(command, port=port)
        self._stack.callback(engine.stop)
        self._engines[command.name] = engine
        return engine

    def _router(self, system: str, *names: str) -> RouterProcess:
        router = RouterProcess()
        self._stack.callback(router.stop)
        engines = {name: self._engines[name] for name in names}
        for name, engine in engines.items():
            self.start_s[name] = engine.wait_until_serving()
        self._systems[system] = System(system, router, {}, engines)
        return router

    def _register(self, system: str, name: str, *models: str, bootstrap_port: int | None = None) -> None:
        """Register an engine by its address alone, under names of ours and with a bootstrap port where given."""
        house = self._systems[system]
        spec = worker_spec_pb2.WorkerSpec(url=f"grpc://{house.engines[name].address}")
        spec.health.CopyFrom(worker_spec_pb2.WorkerSpec(health=_HEALTH).health)
        if bootstrap_port is not None:
            spec.bootstrap_port = bootstrap_port
        if models:
            spec.models.append(model_card_pb2.ModelCard(id=models[0], aliases=models[1:]))
        worker = house.router.workers.CreateWorker(worker_service_pb2.CreateWorkerRequest(spec=spec)).worker
        house.ids[name] = worker.id
        eventually(lambda: house.router.is_ready(worker.id), within_s=30, what=f"{name} is READY")

    def _warm_up(self, router: RouterProcess) -> None:
        """The first request over a new NIXL connection may take longer than any test allows."""
        answer = router.generate(router.request(text="1 2 3 ", model=PAIR, temperature=0, max_tokens=2), timeout_s=120)
        assert answer.error is None, answer.error

    def _reference(self, router: RouterProcess) -> None:
        engine = EngineProcess("vllm", "aggregated")
        self._stack.callback(engine.stop)
        router.add(engine, model=REFERENCE)
