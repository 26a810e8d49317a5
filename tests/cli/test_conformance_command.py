"""`tandem conformance` as an operator sees it: facts, a verdict per line, a sum, an exit code."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.fakes import run

from tandem_router.cli.conformance import _NAME_ROOM
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.testing.conformance import ENGINE_CHECKS, PAIR_CHECKS
from tandem_router.testing.grpc_engines import GrpcScript, Meeting, ScriptedGrpcEngine


@contextmanager
def served(*scripts: GrpcScript) -> Iterator[list[ScriptedGrpcEngine]]:
    """Scripted engines on a loop of their own, since a command blocks its thread."""
    loop, meeting = asyncio.new_event_loop(), Meeting()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(body: Any) -> None:
        asyncio.run_coroutine_threadsafe(body, loop).result(20)

    async def rest() -> None:
        """Let what grpc still does for closed calls come to its end."""
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    engines = [ScriptedGrpcEngine(script, meeting) for script in scripts]
    try:
        for engine in engines:
            wait(engine.start())
        yield engines
    finally:
        for engine in engines:
            wait(engine.stop())
        wait(rest())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def script(**fields: Any) -> GrpcScript:
    return GrpcScript(RuntimeType.VLLM, token_s=0.001, **fields)


def test_engine_that_conforms_is_exit_0_with_facts_verdicts_and_a_sum() -> None:
    with served(script()) as [engine]:
        code, out, err = run("conformance", engine.url, "--only", "answer/*", "--only", "connect/*", "--seed", "3")
    facts, verdicts, total = (block.splitlines() for block in out.strip().split("\n\n"))
    assert (code, err) == (0, "")
    assert facts[0].split() == ["url", engine.url]
    assert facts[1].startswith("runtime ")
    assert facts[-1].split() == ["seed", "3"]
    assert [line.split()[:2] for line in verdicts] == [
        ["PASS", "connect/detected"],
        ["PASS", "answer/greedy-repeats"],
        ["PASS", "answer/streamed-equals-whole"],
        ["PASS", "answer/counts"],
        ["PASS", "answer/two-choices"],
    ]
    assert total == ["conforms: 5 PASS, 0 FAIL, 0 SKIP, 0 NOTE"]


def test_engine_that_fails_is_exit_1_and_says_what_was_found() -> None:
    with served(script(is_dead=True)) as [engine]:
        code, out, _ = run("conformance", engine.url, "--only", "health/own-rpc")
    assert code == 1
    assert "FAIL  health/own-rpc" in out
    assert "the engine is not healthy" in out
    assert out.endswith("does not conform: 0 PASS, 1 FAIL, 0 SKIP, 0 NOTE\n")


@pytest.mark.parametrize(("word", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_document_for_programs_is_all_there_is(word: str, read: Any) -> None:
    with served(script()) as [engine]:
        code, out, _ = run("conformance", engine.url, "--only", "stream/*", "--skip", "*/one-end", "-o", word)
    document = read(out)
    assert code == 0
    assert document["facts"]["runtime"].startswith("VLLM")
    assert [one["name"] for one in document["checks"]] == ["stream/chunk-counts", "stream/end-ids"]
    assert document["checks"][0]["measured"] == {"counts": "per chunk"}
    assert document["counts"] == {"PASS": 2, "FAIL": 0, "SKIP": 0, "NOTE": 0}
    assert document["conforms"] is True


def test_pair_says_what_differs_between_its_halves() -> None:
    halves = [script(mode=mode) for mode in (WorkerType.PREFILL, WorkerType.DECODE)]
    with served(*halves) as [prefill, decode]:
        code, out, _ = run("conformance", prefill.url, "--decode", decode.url, "--only", "pair/compatible")
    assert code == 0
    assert f"prefill url {' ' * 6}" in out
    assert "decode mode" in out
    assert "prefill model" not in out
    assert "HANDOFF over NixlConnector; aborting a decode in transfer is SAFE" in out


def test_api_key_comes_from_a_file_and_is_never_printed(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("kx-secret\n")
    with served(script(api_key="kx-secret")) as [engine]:
        code, out, err = run("conformance", engine.url, "--api-key-file", str(key), "--only", "*/counts", "-o", "wide")
        refused, _, complaint = run("conformance", engine.url)
    assert code == 0
    assert "kx-secret" not in out + err
    assert refused == 1
    assert complaint.startswith("WORKER_REFUSED: ")
    assert "--api-key-file" in complaint


def test_nobody_there_is_exit_3() -> None:
    with served(script()) as [engine]:
        url = engine.url
    code, out, err = run("conformance", url)
    assert (code, out) == (3, "")
    assert err.startswith("WORKER_UNREACHABLE: ")
    assert "Repeat the call" not in err


def test_half_of_a_pair_alone_is_told_to_be_unchecked() -> None:
    half = GrpcScript(RuntimeType.SGLANG, WorkerType.PREFILL, bootstrap_port=9)
    with served(half) as [engine]:
        code, out, _ = run("conformance", engine.url, "--only", "connect/*", "--only", "answer/*")
        _, document, _ = run("conformance", engine.url, "--only", "connect/*", "-o", "json")
    assert code == 0
    assert out.splitlines()[-1] == "half of a pair: no answer was asked for; name the other half with --decode"
    assert "--decode" in json.loads(document)["remark"]


def test_nothing_chosen_is_no_success() -> None:
    with served(script()) as [engine]:
        code, out, _ = run("conformance", engine.url, "--only", "answer/*", "--skip", "answer/*")
    assert code == 1
    assert out.endswith("nothing was checked: 0 PASS, 0 FAIL, 0 SKIP, 0 NOTE\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("not a url",),
        ("http://127.0.0.1:1",),
        ("grpc://127.0.0.1:1", "--alone", "grpc://127.0.0.1:2"),
        ("grpc://127.0.0.1:1", "--only", "answer/greedy"),
        ("grpc://127.0.0.1:1", "--only", "pair/*"),
        ("grpc://127.0.0.1:1", "--skip", "hazards/*"),
    ],
    ids=["no-url", "http", "alone-without-decode", "no-such-check", "pair-without-decode", "nothing-to-skip"],
)
def test_wrong_usage_is_told_before_anything_is_sent(arguments: tuple[str, ...]) -> None:
    code, out, err = run("conformance", *arguments)
    assert code in (1, 2)
    assert out == ""
    assert err


def test_every_name_fits_its_column() -> None:
    assert max(len(check.name) for check in (*ENGINE_CHECKS, *PAIR_CHECKS)) <= _NAME_ROOM
