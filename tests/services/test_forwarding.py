"""What of a client's metadata a worker sees."""

from __future__ import annotations

import pytest

from tandem_router.server import RouterServer
from tandem_router.services.forwarding import DEFAULT, MAX_BYTES, ForwardedMetadata
from tandem_router.settings import ServerSettings, SettingsError


def test_only_what_is_listed_goes_on_in_its_order() -> None:
    metadata = (("x-team", "t"), ("tracestate", "a=1"), ("other", "x"), ("tracestate", "b=2"))
    forward = ForwardedMetadata("tracestate, X-Team")
    assert forward.of(metadata, "r") == (("x-team", "t"), ("tracestate", "a=1"), ("tracestate", "b=2"))


def test_request_id_goes_on_as_x_request_id() -> None:
    assert ForwardedMetadata().of((), "mine") == (("x-request-id", "mine"),)


def test_client_s_own_x_request_id_is_kept() -> None:
    assert ForwardedMetadata().of((("x-request-id", "theirs"),), "mine") == (("x-request-id", "theirs"),)


@pytest.mark.parametrize("keys", ["", "tracestate"])
def test_request_id_stays_behind_where_x_request_id_is_not_listed(keys: str) -> None:
    assert ForwardedMetadata(keys).of((("x-request-id", "theirs"),), "mine") == ()


def test_traceparent_is_left_to_the_router_s_own_spans() -> None:
    forward = ForwardedMetadata()
    metadata = (("traceparent", "00-abc"), ("x-request-id", "r"))
    assert (forward.traceparent(metadata), forward.of(metadata, "r")) == ("00-abc", (("x-request-id", "r"),))


def test_trace_does_not_go_on_where_traceparent_is_not_listed() -> None:
    assert ForwardedMetadata("x-request-id").traceparent((("traceparent", "00-abc"),)) is None


def test_binary_values_stay_behind() -> None:
    assert ForwardedMetadata("tracestate").of((("tracestate", b"\xff"),), "r") == ()


def test_what_exceeds_the_limit_stays_behind() -> None:
    long = "x" * (MAX_BYTES - len("tracestate"))
    metadata = (("tracestate", long), ("tracestate", "y"))
    assert ForwardedMetadata("tracestate").of(metadata, "r") == (("tracestate", long),)


@pytest.mark.parametrize(
    "key", ["authorization", "Authorization", "cookie", "x-api-key", "grpc-timeout", "user-agent", "a-bin", "a b", ":x"]
)
def test_credentials_and_grpc_s_own_keys_cannot_be_listed(key: str) -> None:
    with pytest.raises(ValueError, match=key.lower()):
        ForwardedMetadata(f"traceparent,{key}")


def test_client_s_own_authorization_is_never_forwarded() -> None:
    metadata = (("authorization", "Bearer client"), ("cookie", "c"), ("x-api-key", "k"), ("x-request-id", "r"))
    assert ForwardedMetadata().of(metadata, "mine") == (("x-request-id", "r"),)


def test_default_of_the_setting_is_the_documented_one() -> None:
    assert ServerSettings().forward_metadata == DEFAULT


async def test_router_does_not_start_with_credentials_in_the_list() -> None:
    with pytest.raises(SettingsError, match=r"forward_metadata.*authorization"):
        RouterServer(ServerSettings(forward_metadata="authorization"))
