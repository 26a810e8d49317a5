"""Every rpc that an operator has is a verb, every verb says how it is used, and its words are the API's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pytest
import typer
from tests.cli.fakes import FakeRouter, run
from tests.cli.fleet import furnish
from tests.cli.things import J1, P1, W1

from tandem.v1 import (
    adapter_service_pb2,
    cache_service_pb2,
    generate_pb2,
    job_pb2,
    job_service_pb2,
    pair_pb2,
    pair_service_pb2,
    profile_service_pb2,
    worker_pb2,
    worker_service_pb2,
    worker_spec_pb2,
)
from tandem_router.cli import words
from tandem_router.cli.app import app

SERVICES = (
    worker_service_pb2,
    job_service_pb2,
    pair_service_pb2,
    adapter_service_pb2,
    cache_service_pb2,
    profile_service_pb2,
)
VERBS = {
    "WorkerService/CreateWorker": f"workers add grpc://a:1 --request-id {W1}",
    "WorkerService/GetWorker": f"workers get {W1}",
    "WorkerService/ListWorkers": "workers list",
    "WorkerService/ReplaceWorker": f"workers replace {W1}",
    "WorkerService/UpdateWorker": f"workers update {W1} --set priority=80",
    "WorkerService/DeleteWorker": f"workers delete {W1} --no-wait",
    "WorkerService/DrainWorker": f"workers drain {W1} --no-wait",
    "WorkerService/UndrainWorker": f"workers undrain {W1}",
    "WorkerService/WatchWorkers": "workers watch",
    "JobService/GetJob": f"jobs get {J1}",
    "JobService/ListJobs": "jobs list",
    "JobService/WatchJob": f"jobs watch {J1}",
    "JobService/CancelJob": f"jobs cancel {J1}",
    "PairService/PlanPair": "plan hello",
    "PairService/ReservePair": "pairs reserve",
    "PairService/ReleasePair": f"pairs release {P1} --outcome succeeded",
    "PairService/ListPairs": "pairs list",
    "PairService/WatchPairs": "pairs watch",
    "AdapterService/LoadAdapter": "adapters load de /a/de --model tiny",
    "AdapterService/UnloadAdapter": "adapters unload de",
    "AdapterService/GetAdapter": "adapters get de",
    "AdapterService/ListAdapters": "adapters list",
    "CacheService/FlushCache": "cache flush --model tiny",
    "ProfileService/StartProfile": "profile start --model tiny",
    "ProfileService/StopProfile": "profile stop --model tiny",
    "RouterService/ListModels": "models",
    "RouterService/GetModel": "models tiny",
}


def test_every_operator_rpc_has_a_verb() -> None:
    rpcs = {
        f"{service.name}/{method.name}"
        for module in SERVICES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert rpcs | {"RouterService/ListModels", "RouterService/GetModel"} == set(VERBS)


@pytest.mark.parametrize(("rpc", "line"), VERBS.items())
def test_verb_calls_its_rpc(fake: FakeRouter, rpc: str, line: str) -> None:
    furnish(fake)
    run(*line.split())
    assert rpc in [name for name, _ in fake.asked]


def commands(group: Any, path: str = "tandem") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        elif name != "engine":  # its help is the engine's own
            yield f"{path} {name}", command


TREE = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", TREE)
def test_help_has_an_example_of_the_command(path: str) -> None:
    code, out, _ = run(*path.split()[1:], "--help")
    assert (code, f"    {path}" in out.partition("Example:")[2]) == (0, True)


@pytest.mark.parametrize("path", TREE)
def test_summary_of_the_command_fits_in_the_list(path: str) -> None:
    assert not TREE[path].get_short_help_str(limit=60).endswith("...")


def test_exit_codes_are_in_the_help() -> None:
    _, out, _ = run("--help")
    assert re.findall(r"^ +(\d+) +\S", out.partition("Exit codes:")[2], re.MULTILINE) == ["0", "1", "2", "3", "130"]


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in run("--help")[1]


@pytest.mark.parametrize(
    ("words_", "enum"),
    [
        (words.TypeWord, worker_spec_pb2.WorkerType),
        (words.RuntimeWord, worker_spec_pb2.RuntimeType),
        (words.StatusWord, worker_pb2.WorkerStatus),
        (words.JobTypeWord, job_pb2.JobType),
        (words.JobStateWord, job_pb2.JobState),
        (words.PairStateWord, pair_pb2.PairState),
        (words.OutcomeWord, pair_service_pb2.PairOutcome),
        (words.ModeWord, generate_pb2.ServingMode),
    ],
)
def test_words_are_the_proto_s_values(words_: type[StrEnum], enum: Any) -> None:
    assert [words.number(enum, word) for word in words_] == [value for value in enum.values() if value != 0]


def test_value_of_a_newer_server_is_shown_by_its_number() -> None:
    assert words.state(worker_pb2.WorkerStatus, 99) == "99"
