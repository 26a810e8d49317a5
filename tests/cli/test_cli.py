"""`tandem generate` and what else has no operator: to the letter, with exit codes."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from google.protobuf import json_format
from tests.cli.fakes import FakeRouter, message, run
from tests.cli.things import W1, W2

from tandem.v1 import generate_result_pb2
from tandem_router.cli.generate import summary
from tandem_router.cli.text import table

FINISHED = message(
    generate_result_pb2.Finished,
    usage={"promptTokens": 5, "completionTokens": 7},
    servedBy={
        "handshake": "HANDSHAKE_KIND_RENDEZVOUS",
        "pairId": "p-1",
        "prefill": {"workerId": W1, "dpRank": 0},
        "decode": {"workerId": W2, "dpRank": 1},
        "bootstrapRoom": {"number": 1030},
    },
    timings={"queue": "0.0005s", "prefill": "0.010s", "decode": "0.020s", "total": "0.0305s"},
    attempts=[{"number": 1}, {"number": 2}],
)
SUMMARY = (
    "pair p-1 (rendezvous) | prefill 1a000000/0 decode 1b000000/1 | room 1030 | 5 + 7 tokens | 2 attempts | "
    "queue 0.5 ms, prefill 10.0 ms, decode 20.0 ms, total 30.5 ms"
)


def test_summary_to_the_letter() -> None:
    assert summary(FINISHED) == SUMMARY


def test_table_without_rows_is_its_head() -> None:
    assert table(("A", "B"), []) == "A  B"


def answers(request: Any) -> list[Any]:
    """Two pieces per choice, of the kind that was asked with."""
    chunks: list[Any] = []
    for index in range(max(1, request.sampling.n)):
        is_tokens = request.WhichOneof("input") == "token_ids"
        for piece in ("one ", "two"):
            content = {"tokenIds": list(request.token_ids.ids)} if is_tokens else {"text": [piece]}
            chunks.append(message(generate_result_pb2.GenerateResponse, chunk={"index": index, **content}))
    return [*chunks, generate_result_pb2.GenerateResponse(finished=FINISHED)]


@pytest.fixture
def router(fake: FakeRouter) -> str:
    fake.says(RouterService_Generate=answers)
    return fake.address


def test_generate_streams_to_stdout_and_sums_up_on_stderr(router: str) -> None:
    assert run("generate", "hi", "--router", router) == (0, "one two\n", f"{SUMMARY}\n")


def test_generate_numbers_several_answers(router: str) -> None:
    assert run("generate", "hi", "-n", "2", "--router", router)[1] == "[0] one two\n[1] one two\n"


def test_generate_of_token_ids_prints_token_ids(router: str) -> None:
    assert run("generate", "--tokens", "5,6", "--router", router)[1] == "5 6 5 6 \n"


def test_generate_as_json_is_a_message_a_line(router: str) -> None:
    out = run("generate", "hi", "-o", "json", "--router", router)[1]
    messages = [json_format.Parse(line, generate_result_pb2.GenerateResponse()) for line in out.splitlines()]
    assert [one.WhichOneof("event") for one in messages] == ["chunk", "chunk", "finished"]


def test_show_settings_names_value_and_source() -> None:
    _, out, _ = run("serve", "--set", "max_in_flight=7", "--show-settings", env={"TANDEM_LISTEN": "127.0.0.1:9"})
    lines = [line.split() for line in out.splitlines()]
    assert ["max_in_flight", "7", "flag"] in lines
    assert ["listen", "127.0.0.1:9", "env", "TANDEM_LISTEN"] in lines
    assert ["rooms.slot", "0", "default"] in lines


@pytest.mark.parametrize("pair", ["nope=1", "listen", "max_in_flight=x"])
def test_bad_setting_is_wrong_usage(pair: str) -> None:
    code, _, err = run("serve", "--set", pair)
    assert (code, err.startswith("SETTINGS: ")) == (2, True)


def test_engine_s_flags_are_the_engine_s(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run("engine", "--protocol", "nope")
    assert code == 2, sys.exc_info()
