"""Bad input at the door of real processes: its documented status; nothing reaches a worker, nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.e2e.bad_requests import MODEL, BadRequest, bad_requests
from tests.e2e.processes import EngineProcess, RouterProcess

import tandem_engine
from tandem.v1 import generate_pb2, generate_result_pb2, message_pb2, sampling_pb2
from tandem_router.wire.status import decode

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("bad input")]

CASES = bad_requests()
LOOPING = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
WARM_ROUNDS, ROUNDS = 4, 16
RSS_GROWTH_MOST_KB = 48 * 1024
"""Of the later rounds, 400 MB of requests in all, after the first have warmed buffers, pools and arenas. Keeping only
the text of 5 MiB would be 80 MB."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    """A router, a pair that serves the demo model, and a worker whose chat template never ends (model "looping")."""
    folder = tmp_path_factory.mktemp("model") / "looping"
    shutil.copytree(Path(tandem_engine.__file__).parent / "demo/model", folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": LOOPING}))
    with contextlib.ExitStack() as stack:
        router = RouterProcess()
        stack.callback(router.stop)
        for mode, model, flags in (
            ("prefill", MODEL, ()),
            ("decode", MODEL, ()),
            ("aggregated", "looping", ("--model", str(folder))),
        ):
            engine = EngineProcess("sglang", mode, *flags)
            stack.callback(engine.stop)
            router.add(engine, model=model)
        yield router


@pytest.fixture
def undisturbed(house: RouterProcess) -> Iterator[RouterProcess]:
    """The router; afterwards no engine has computed or been given anything, and no pair is left."""
    before = _books(house)
    yield house
    assert (_books(house), house.live_pairs()) == (before, [])


def _books(house: RouterProcess) -> list[tuple[int, int, int]]:
    return [(books.steps, books.prompt_tokens, books.aborted) for books in (e.ledger() for e in house.engines.values())]


def _refusal(house: RouterProcess, bad: BadRequest) -> grpc.RpcError:
    """What the router answers; fails if it answers well."""
    channel = house.channels[1] if bad.is_for_operators else house.channels[0]
    metadata = tuple(bad.metadata.items())
    call: Any = (channel.unary_stream if bad.is_stream else channel.unary_unary)(bad.path)
    with pytest.raises(grpc.RpcError) as caught:
        list(call(bad.body, metadata=metadata, timeout=30))  # an answer is bytes, or a stream of them
    return caught.value


def _say_hello(house: RouterProcess) -> str:
    answer = house.generate(house.request(text="1 2 3 ", model=MODEL, temperature=0, max_tokens=4))
    assert answer.error is None, answer.error
    return answer.text


@pytest.mark.parametrize("name", CASES)
def test_bad_request_gets_its_documented_status_and_reaches_no_worker(undisturbed: RouterProcess, name: str) -> None:
    bad = CASES[name]
    error: Any = _refusal(undisturbed, bad)
    message = str(error.details())
    assert (error.code().name, message[: len(bad.says)]) == (bad.code, bad.says), message


@pytest.mark.parametrize("name", [name for name, bad in CASES.items() if bad.says])
def test_details_of_a_refusal_say_what_its_message_says(house: RouterProcess, name: str) -> None:
    error: Any = _refusal(house, CASES[name])
    decoded = decode(error.trailing_metadata())
    assert decoded is not None
    assert str(error.details()) == str(decoded)


def test_template_that_loops_is_stopped_and_refused(undisturbed: RouterProcess) -> None:
    chat = message_pb2.ChatInput(messages=[message_pb2.ChatMessage(role=message_pb2.CHAT_ROLE_USER, content="hi")])
    request = generate_pb2.GenerateRequest(model="looping", chat=chat)
    answer = undisturbed.generate(request)
    error: Any = answer.error
    assert str(error.details()).startswith("INVALID_REQUEST: chat.messages: the chat template did not end within")


def test_unknown_field_is_ignored_as_protobuf_has_it(house: RouterProcess) -> None:
    request = house.request(text="1 2 3 ", model=MODEL, temperature=0, max_tokens=4)
    plain = _tokens(house.router.Generate(request))
    # Field 5000, a varint: what a client of a later schema, or one with a room of its own, would send.
    call: Any = house.channels[0].unary_stream(
        "/tandem.v1.RouterService/Generate",
        response_deserializer=generate_result_pb2.GenerateResponse.FromString,
    )
    assert _tokens(call(request.SerializeToString() + b"\xc0\xb8\x02\x4d")) == plain


def _tokens(answer: Iterable[generate_result_pb2.GenerateResponse]) -> list[int]:
    """All of them: where one chunk ends and the next begins is nobody's promise."""
    return [token for message in answer for token in message.chunk.token_ids]


def test_token_ids_beyond_the_vocabulary_in_text_settings_reach_no_worker(undisturbed: RouterProcess) -> None:
    request = undisturbed.request(text="x", model=MODEL)
    request.sampling.CopyFrom(sampling_pb2.SamplingParams(logit_bias={2**31: 1.0}))
    error: Any = undisturbed.generate(request).error
    assert str(error.details()).startswith("INVALID_REQUEST: sampling.logit_bias")


def test_router_keeps_no_memory_of_bad_requests_and_still_serves(house: RouterProcess) -> None:
    before = _say_hello(house)

    def go_round(times: int) -> int:
        for _ in range(times):
            for bad in CASES.values():
                _refusal(house, bad)
        return _rss_kb(house.pid)

    warm_kb = go_round(WARM_ROUNDS)
    grown_kb = go_round(ROUNDS) - warm_kb
    print(f"RSS {warm_kb} kB after {WARM_ROUNDS} rounds, {grown_kb} kB more after {ROUNDS} further ones")
    assert (grown_kb < RSS_GROWTH_MOST_KB, _say_hello(house)) == (True, before)


def _rss_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
