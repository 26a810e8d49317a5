"""The health table and the thread that serves it: a loop that does not beat serves nothing."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem_router.offload.health_board import HealthBoard
from tandem_router.offload.health_thread import HealthThread

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HandClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def board(clock: HandClock) -> HealthBoard:
    # Watches look for a stale beat every 20 ms of real time; the beat's age is by hand.
    board = HealthBoard(stale_after_s=0.08, monotonic_s=clock)
    board.put({"": True, "liveness": True, "model/x": False})
    return board


@pytest.fixture
def stub(board: HealthBoard) -> Iterator[health_pb2_grpc.HealthStub]:
    thread = HealthThread(board, "127.0.0.1:0")
    thread.start()
    with grpc.insecure_channel(f"127.0.0.1:{thread.port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)
    thread.stop()


def check(stub: health_pb2_grpc.HealthStub, name: str) -> object:
    return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status


def test_fresh_beat_serves_what_the_table_says(board: HealthBoard) -> None:
    assert board.listed() == {"": True, "liveness": True, "model/x": False}


def test_stale_beat_serves_nothing(board: HealthBoard, clock: HandClock) -> None:
    clock.now_s += 0.081
    assert board.listed() == {"": False, "liveness": False, "model/x": False}


def test_beat_after_a_stall_serves_again(board: HealthBoard, clock: HandClock) -> None:
    clock.now_s += 60
    board.beat()
    assert board.serving("") is True


@pytest.mark.parametrize(("names", "is_told"), [(100, True), (101, False)])
def test_more_than_a_hundred_names_are_not_listed(board: HealthBoard, names: int, is_told: bool) -> None:
    board.put({f"model/{number}": True for number in range(names)})
    assert (board.listed() is not None) is is_told


def test_name_left_out_of_the_table_is_unknown(board: HealthBoard) -> None:
    board.put({"": True})
    assert board.serving("model/x") is None


def test_check_answers_while_the_loop_is_wedged(stub: health_pb2_grpc.HealthStub, clock: HandClock) -> None:
    before = check(stub, "")
    clock.now_s += 60
    assert (before, check(stub, "")) == (SERVING, NOT_SERVING)


def test_check_of_an_unknown_name_is_not_found(stub: health_pb2_grpc.HealthStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(stub, "nope")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_list_names_everything(stub: health_pb2_grpc.HealthStub) -> None:
    statuses = stub.List(health_pb2.HealthListRequest(), timeout=10).statuses  # type: ignore[attr-defined]
    assert {name: one.status for name, one in statuses.items()} == {
        "": SERVING,
        "liveness": SERVING,
        "model/x": NOT_SERVING,
    }


def test_watch_tells_now_then_every_change(stub: health_pb2_grpc.HealthStub, board: HealthBoard) -> None:
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="later"), timeout=10)
    seen = [next(watch).status]
    board.put({"later": True})
    seen.append(next(watch).status)
    watch.cancel()
    assert seen == [UNKNOWN, SERVING]


def test_watch_tells_of_a_stale_beat_that_nobody_can_announce(
    stub: health_pb2_grpc.HealthStub, clock: HandClock
) -> None:
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=10)
    seen = [next(watch).status]
    clock.now_s += 60
    seen.append(next(watch).status)
    watch.cancel()
    assert seen == [SERVING, NOT_SERVING]


def test_checks_find_a_thread_while_all_watches_are_taken(stub: health_pb2_grpc.HealthStub) -> None:
    watches = [stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=10) for _ in range(8)]
    for watch in watches:
        next(watch)
    one_more = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        next(one_more)
    status = check(stub, "")
    for watch in watches:
        watch.cancel()
    assert (caught.value.code(), status) == (grpc.StatusCode.RESOURCE_EXHAUSTED, SERVING)  # type: ignore[attr-defined]


def test_list_of_too_many_names_is_refused(stub: health_pb2_grpc.HealthStub, board: HealthBoard) -> None:
    board.put({f"model/{number}": True for number in range(101)})
    with pytest.raises(grpc.RpcError) as caught:
        stub.List(health_pb2.HealthListRequest(), timeout=10)  # type: ignore[attr-defined]
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]


def test_stop_ends_a_watch_with_unavailable(board: HealthBoard) -> None:
    thread = HealthThread(board, "127.0.0.1:0")
    thread.start()
    with grpc.insecure_channel(f"127.0.0.1:{thread.port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=10)
        next(watch)
        thread.stop()
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]


def test_taken_port_is_an_error(board: HealthBoard) -> None:
    first = HealthThread(board, "127.0.0.1:0")
    with pytest.raises(OSError, match="cannot listen on"):
        HealthThread(board, f"127.0.0.1:{first.port}")
    first.stop()
