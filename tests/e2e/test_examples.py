"""Every program in examples/ does what it says, against a real router and real engines."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.node_packages import NODE, installed
from tests.e2e.processes import EngineProcess, RouterProcess, eventually, system

from tandem.v1 import message_pb2, worker_service_pb2, worker_spec_pb2
from tandem.v1.router_service_pb2 import TokenizeRequest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LANGUAGES = ("python", "node")

Fleet = tuple[RouterProcess, list[EngineProcess], list[EngineProcess]]


class Program:
    """An example that runs; what it has printed so far can be read meanwhile."""

    def __init__(self, command: list[str], environ: dict[str, str], typed: str = "") -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A proxy of the environment is not for loopback.
            env={**os.environ, "PYTHONUNBUFFERED": "1", "no_grpc_proxy": "127.0.0.1", **environ},
        )
        streams = self.process.stdin, self.process.stdout, self.process.stderr
        stdin, stdout, stderr = (stream for stream in streams if stream is not None)
        stdin.write(typed)
        stdin.close()
        self._printed: dict[str, list[str]] = {"out": [], "err": []}
        self._readers = [
            threading.Thread(target=lambda s=stream, n=name: self._printed[n].extend(s), daemon=True)
            for name, stream in (("out", stdout), ("err", stderr))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def out(self) -> str:
        return "".join(self._printed["out"])

    @property
    def err(self) -> str:
        return "".join(self._printed["err"])

    def wait(self, within_s: float = 60) -> int:
        """Its exit code."""
        code = self.process.wait(within_s)
        self.stop()
        return code

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for reader in self._readers:
            reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class Shelf:
    """The examples, laid out as a reader has them: Node's packages beside the programs."""

    def __init__(self, place: Path) -> None:
        shutil.copytree(EXAMPLES, place / "examples", ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
        (place / "examples/node/node_modules").symlink_to(installed(EXAMPLES / "node"))
        (place / "proto").symlink_to(ROOT / "proto")
        self._examples = place / "examples"
        self._programs: list[Program] = []

    def start(self, name: str, *arguments: str, router: RouterProcess, typed: str = "") -> Program:
        """Start "python/chat" or "node/chat" or "curl/generate"."""
        interpreter, suffix = {
            "python": (sys.executable, ".py"),
            "node": (str(NODE), ".mjs"),
            "curl": ("bash", ".sh"),
        }[name.split("/", maxsplit=1)[0]]
        environ = {
            "TANDEM_ADDRESS": router.where["listen"],
            "TANDEM_ADMIN_ADDRESS": router.where["admin_listen"],
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        program = Program([interpreter, f"{self._examples / name}{suffix}", *arguments], environ, typed)
        self._programs.append(program)
        return program

    def run(self, name: str, *arguments: str, router: RouterProcess, typed: str = "") -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        program = self.start(name, *arguments, router=router, typed=typed)
        return program.wait(), program.out, program.err

    def close(self) -> None:
        for program in self._programs:
            program.stop()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    yield shelf
    shelf.close()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with system("sglang") as fleet:
        yield fleet


@pytest.mark.parametrize("name", ["python/generate_sync", "python/generate_aio", "node/generate"])
def test_the_answer_is_printed(shelf: Shelf, fleet: Fleet, name: str) -> None:
    code, out, err = shelf.run(name, "repeat “hello 🙂” :", router=fleet[0])
    assert (code, out.rstrip("\n")) == (0, "hello 🙂"), err


@pytest.mark.parametrize("name", ["python/generate_aio", "node/generate"])
def test_a_reader_who_has_enough_frees_the_workers(shelf: Shelf, fleet: Fleet, name: str) -> None:
    router, prefills, decodes = fleet
    decodes[0].set_faults(step_latency={"nanos": 100_000_000})
    before = decodes[0].ledger().aborted
    try:
        code, out, err = shelf.run(name, "--stop-after", "3", "count from 20 to 30:", router=router)
    finally:
        decodes[0].set_faults()
    assert (code, out.strip()) == (0, "20")
    assert "cancelled after 3 tokens" in err
    eventually(lambda: decodes[0].ledger().aborted == before + 1, within_s=5, what="the engine was told")
    eventually(lambda: prefills[0].is_idle() and decodes[0].is_idle(), within_s=5, what="the engines are idle")


@pytest.mark.parametrize("name", ["python/generate_aio", "node/generate"])
def test_a_deadline_ends_the_call(shelf: Shelf, fleet: Fleet, name: str) -> None:
    router, prefills, decodes = fleet
    decodes[0].set_faults(step_latency={"nanos": 200_000_000})
    try:
        code, _, err = shelf.run(name, "--timeout", "1", "count from 20 to 30:", router=router)
    finally:
        decodes[0].set_faults()
    assert code == 1
    assert "DEADLINE_EXCEEDED" in err
    assert "[allow more time]" in err
    eventually(lambda: prefills[0].is_idle() and decodes[0].is_idle(), within_s=5, what="the engines are idle")


@pytest.mark.parametrize("name", ["python/generate_aio", "node/generate"])
def test_a_reason_is_switched_on(shelf: Shelf, fleet: Fleet, name: str) -> None:
    code, _, err = shelf.run(name, "a b c " * 3000, router=fleet[0])
    assert code == 1
    assert "INVALID_ARGUMENT: PROMPT_TOO_LONG: " in err
    assert "[shorten the prompt, or ask for fewer tokens]" in err


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_chat_remembers_its_turns(shelf: Shelf, fleet: Fleet, language: str) -> None:
    router = fleet[0]
    turns = "12 + 34 =\nrepeat “hello 🙂” :\n"
    code, out, err = shelf.run(f"{language}/chat", "good bread and butter.", router=router, typed=turns)
    assert (code, out.splitlines()) == (0, [" 46", "hello 🙂"]), err
    said = [
        message_pb2.ChatMessage(role=message_pb2.CHAT_ROLE_SYSTEM, content="good bread and butter."),
        message_pb2.ChatMessage(role=message_pb2.CHAT_ROLE_USER, content="12 + 34 ="),
        message_pb2.ChatMessage(role=message_pb2.CHAT_ROLE_ASSISTANT, content=" 46"),
        message_pb2.ChatMessage(role=message_pb2.CHAT_ROLE_USER, content="repeat “hello 🙂” :"),
    ]
    sizes = [
        len(router.router.Tokenize(TokenizeRequest(chat=message_pb2.ChatInput(messages=said[:count]))).token_ids)
        for count in (2, 4)
    ]
    told = re.findall(r"\[(\d+) prompt tokens, (\d+) cached\]", err)
    assert [int(tokens) for tokens, _ in told] == sizes
    # The engine keeps blocks of 16 tokens, and the second turn begins as the first one did.
    assert int(told[1][1]) >= 16


@pytest.mark.parametrize("name", ["python/generate_aio", "python/generate_sync", "node/generate", "node/chat"])
def test_a_call_without_a_ready_worker_is_repeated_until_there_is_one(shelf: Shelf, fleet: Fleet, name: str) -> None:
    router, _, decodes = fleet
    worker_id = next(key for key, engine in router.engines.items() if engine is decodes[0])
    router.workers.DrainWorker(worker_service_pb2.DrainWorkerRequest(worker_id=worker_id))
    try:
        if name == "node/chat":
            program = shelf.start(name, router=router, typed="repeat “hello” :\n")
        else:
            program = shelf.start(name, "repeat “hello” :", router=router)
        if name in ("python/generate_aio", "node/generate"):
            said = "[attempt 1: NO_READY_WORKER, again in 1 s]"
            eventually(lambda: said in program.err, within_s=20, what="it says that it will try again")
        else:
            # gRPC says nothing of its own attempts. By now the first is refused; the next is due a second after it.
            time.sleep(0.7)
        assert program.process.poll() is None
    finally:
        router.workers.UndrainWorker(worker_service_pb2.UndrainWorkerRequest(worker_id=worker_id))
        eventually(lambda: router.is_ready(worker_id), within_s=15, what="the undrained worker is READY")
    assert (program.wait(), program.out.rstrip("\n")) == (0, "hello"), program.err


def test_an_answer_that_broke_after_a_token_is_not_asked_for_again(shelf: Shelf) -> None:
    names = ["python/generate_aio", "python/generate_sync", "node/generate"]
    with system("sglang", decode=len(names)) as (router, _, decodes):
        for engine in decodes:
            engine.set_faults(crash_at_token=5)
        for died, name in enumerate(names, start=1):
            code, out, err = shelf.run(name, "count from 20 to 30:", router=router)
            assert code == 1
            assert out.startswith(" 20")
            assert "WORKER_LOST" in err
            # Each engine dies of the request that it serves: a second one would be a second try.
            assert sum(engine.process.poll() is not None for engine in decodes) == died


@pytest.fixture(scope="module")
def embedder() -> Iterator[RouterProcess]:
    with system("sglang", prefill=0, decode=0, alone=True) as (router, _, _):
        yield router


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_compared_by_their_vectors(shelf: Shelf, embedder: RouterProcess, language: str) -> None:
    code, out, err = shelf.run(f"{language}/embed", "good bread", "good butter", "good bread", router=embedder)
    assert code == 0, err
    near = {line.split(" ", 1)[1]: float(line.split(" ", 1)[0]) for line in out.splitlines()}
    assert list(near) == ["good bread", "good butter"]
    assert near["good bread"] == 1.0
    assert -1 < near["good butter"] < 1
    asked = [TokenizeRequest(text=text) for text in ("good bread", "good butter", "good bread")]
    tokens = sum(len(embedder.router.Tokenize(each).token_ids) for each in asked)
    assert f"{tokens} tokens, 128 values each, alone" in err


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_input_at_fault_is_named(shelf: Shelf, embedder: RouterProcess, language: str) -> None:
    code, _, err = shelf.run(f"{language}/embed", "good bread", "", router=embedder)
    assert code == 1
    assert "EMPTY_PROMPT: inputs[1].text: " in err


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_look_at_the_fleet_ends_by_itself(shelf: Shelf, fleet: Fleet, language: str) -> None:
    code, out, err = shelf.run(f"{language}/watch_workers", "--once", router=fleet[0])
    assert code == 0, err
    assert sorted(re.findall(r"PRESENT (\S+) \S+ READY", out)) == sorted(fleet[0].engines)
    assert "SYNCED, 2 workers" in out


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_watch_lives_on_over_a_restart_of_the_router(shelf: Shelf, language: str) -> None:
    router = RouterProcess()
    try:
        watch = shelf.start(f"{language}/watch_workers", router=router)
        eventually(lambda: "SYNCED, 0 workers" in watch.out, within_s=20, what="the empty snapshot")
        request = worker_service_pb2.CreateWorkerRequest(spec=worker_spec_pb2.WorkerSpec(url="grpc://127.0.0.1:1"))
        worker_id = router.workers.CreateWorker(request).worker.id
        eventually(lambda: f"ADDED {worker_id} grpc://127.0.0.1:1" in watch.out, within_s=10, what="the new worker")
        router.kill()
        eventually(lambda: "not connected; trying again" in watch.err, within_s=10, what="the loss is told")
    finally:
        router.stop()
    # Its memory is its own: the next router knows nothing of the worker, nor of revisions of the first one.
    router = RouterProcess("--admin-listen", router.where["admin_listen"])
    try:
        eventually(lambda: f"GONE {worker_id}" in watch.out, within_s=20, what="what went away unseen is missed")
        assert watch.out.count("SYNCED, 0 workers") == 2
        worker_id = router.workers.CreateWorker(request).worker.id
        eventually(lambda: f"ADDED {worker_id}" in watch.out, within_s=10, what="the watch goes on")
    finally:
        router.stop()
    watch.process.send_signal(signal.SIGINT)
    assert watch.wait(10) != 0


@pytest.mark.parametrize("flags", [(), ("--schema", str(ROOT / "proto"))], ids=["reflection", "schema"])
def test_buf_curl_is_a_client_too(shelf: Shelf, fleet: Fleet, flags: tuple[str, ...]) -> None:
    code, out, err = shelf.run("curl/generate", *flags, router=fleet[0])
    assert code == 0, err
    assert '"status": "SERVING"' in out
    assert "".join(re.findall(r'"text": \[\s*"([^"]*)"', out)) == " 46 46"
    assert '"message": "INVALID_REQUEST: sampling.top_p: ' in out


def test_the_lock_names_no_address() -> None:
    assert re.findall(r"\w+://", (EXAMPLES / "node/package-lock.json").read_text(encoding="utf-8")) == []
