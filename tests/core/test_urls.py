"""canonical_url: which spellings are one worker, and which are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_router.core.urls import canonical_url, split_url
from tandem_router.errors import Reason, TandemError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grpc://host:1", "grpc://host:1"),
        ("GRPC://HOST:65535", "grpc://host:65535"),
        ("grpcs://Host.Example.:050051/", "grpcs://host.example:50051"),
        ("grpc://10.0.0.1:30000", "grpc://10.0.0.1:30000"),
        ("grpc://[::1]:30000", "grpc://[::1]:30000"),
        ("grpc://[2001:DB8:0:0:0:0:0:1]:1", "grpc://[2001:db8::1]:1"),
        ("grpc://under_score-name:1", "grpc://under_score-name:1"),
    ],
)
def test_spellings_of_one_address_have_one_canonical_form(text: str, expected: str) -> None:
    assert canonical_url(text) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "scheme://host:port"),
        ("host:1", "scheme://host:port"),
        ("http://host:1", "scheme 'http'"),
        ("grpc://:1", "no host"),
        ("grpc://host", "no port"),
        ("grpc://host:", "not a number"),
        ("grpc://host:x", "not a number"),
        ("grpc://host:0", "1..65535"),
        ("grpc://host:65536", "1..65535"),
        ("grpc://host:-1", "not a number"),
        ("grpc://host:1/path", "path"),
        ("grpc://host:1?q", "path"),
        ("grpc://host:1#f", "path"),
        ("grpc://user@host:1", "user info"),
        ("grpc://user:secret@host:1", "user info"),
        ("grpc://host:1@2", "user info"),
        ("grpc://[::1:1", "no host"),
        ("grpc://[nonsense]:1", "IPv6"),
        ("grpc://[fe80::1%25eth0]:1", "IPv6"),
        ("grpc://999.1.1.1:1", "IPv4"),
        ("grpc://1.2.3:1", "IPv4"),
        ("grpc://-host:1", "host name"),
        ("grpc://ho..st:1", "host name"),
        ("grpc://ho st:1", "space"),
        ("grpc://host:1\n", "space"),
        ("grpc://hést:1", "host name"),
        ("grpc://" + "h" * 3000 + ":1", "characters long"),
        ("grpc://host:\u0661", "not a number"),
    ],
)
def test_anything_else_is_refused_with_what_is_wrong(text: str, part: str) -> None:
    with pytest.raises(TandemError) as caught:
        canonical_url(text)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_WORKER_URL, "spec.url")
    assert part in caught.value.sentence


def test_user_info_is_never_repeated_in_the_message() -> None:
    with pytest.raises(TandemError) as caught:
        canonical_url("grpc://user:hunter2@host:1")
    assert "hunter2" not in str(caught.value)


@given(st.text(alphabet="grpcsGRPC:/[]@.?#%-_abf019 \x00é", max_size=40) | st.text(max_size=40))
def test_any_text_is_either_refused_or_canonical_for_good(text: str) -> None:
    try:
        once = canonical_url(text)
    except TandemError:
        return  # which reason and field is tested above
    assert canonical_url(once) == once


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_ip_address_survives(address: object, port: int) -> None:
    text = f"[{address}]" if ":" in str(address) else str(address)
    parts = split_url(canonical_url(f"grpc://{text}:{port}"))
    assert (parts.host, parts.port) == (str(address), port)
