"""TLS to workers over real sockets: who is trusted, mutual TLS, every way to fail said in words, and rotation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority, Folder, Pair, serving
from scripted_server import ScriptedServer, until_lost

from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.spec import ChannelOptions, WorkerSpec
from tandem_router.model.worker import Credentials
from tandem_router.transport.dialer import GrpcDialer
from tandem_router.transport.tls import ConnectionTls, TlsFiles, TlsMaterial

TIMEOUT_S = 5.0
Serve = Callable[[grpc.ServerCredentials | None], Awaitable[ScriptedServer]]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def stranger() -> Authority:
    return Authority()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers that are stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(credentials: grpc.ServerCredentials | None) -> ScriptedServer:
            server = ScriptedServer(credentials=credentials)
            await server.start()
            stack.push_async_callback(server.stop)
            return server

        yield start


async def serves(url: str, credentials: Credentials | None, files: TlsFiles | None = None, **channel: Any) -> None:
    """Dial and probe once; raises what the dial raises."""
    spec = WorkerSpec(url, channel=ChannelOptions(**channel))
    client = await GrpcDialer(files).dial(spec, credentials, timeout_s=TIMEOUT_S)
    try:
        await client.probe(timeout_s=TIMEOUT_S)
    finally:
        await client.close()


async def refusal(
    url: str, credentials: Credentials | None, files: TlsFiles | None = None, **channel: Any
) -> EngineFailure:
    with pytest.raises(EngineFailure) as caught:
        await serves(url, credentials, files, **channel)
    assert not caught.value.was_sent
    return caught.value


def trusting(authority: Authority, pair: Pair | None = None) -> Credentials:
    if pair is None:
        return Credentials(tls_ca_pem=authority.pem)
    return Credentials(tls_ca_pem=authority.pem, tls_certificate_pem=pair.certificate, tls_private_key_pem=pair.key)


async def test_worker_of_a_trusted_authority_is_reached(serve: Serve, authority: Authority) -> None:
    server = await serve(serving(authority.worker()))
    await serves(server.url, trusting(authority))


async def test_client_certificate_is_shown_to_a_worker_that_asks(serve: Serve, authority: Authority) -> None:
    server = await serve(serving(authority.worker(), clients_of=authority))
    await serves(server.url, trusting(authority, authority.router()))


async def test_stated_server_name_is_checked_instead_of_the_host(serve: Serve, authority: Authority) -> None:
    server = await serve(serving(authority.worker("worker.test")))
    await serves(server.url, trusting(authority), tls_server_name="worker.test")


async def test_router_s_files_serve_workers_without_pems_of_their_own(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    server = await serve(serving(authority.worker(), clients_of=authority))
    await serves(server.url, None, Folder(tmp_path).write(authority.pem, authority.router()))


async def test_worker_s_own_ca_beats_the_router_s(
    serve: Serve, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    server = await serve(serving(authority.worker()))
    files = Folder(tmp_path).write(stranger.pem)
    await serves(server.url, trusting(authority), files)


async def test_worker_s_own_certificate_beats_the_router_s_whose_ca_still_holds(
    serve: Serve, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    server = await serve(serving(authority.worker(), clients_of=authority))
    own, files = authority.router(), Folder(tmp_path).write(authority.pem, stranger.router())
    await serves(server.url, Credentials(tls_certificate_pem=own.certificate, tls_private_key_pem=own.key), files)


async def test_untrusted_authority_is_told(serve: Serve, authority: Authority, stranger: Authority) -> None:
    server = await serve(serving(authority.worker()))
    found = await refusal(server.url, trusting(stranger))
    assert found.reason is Reason.WORKER_TLS_FAILED
    assert "not signed by a trusted authority" in found.sentence


async def test_timeout_before_the_last_try_tells_what_the_handshake_failed_with(
    serve: Serve, authority: Authority, stranger: Authority
) -> None:
    server = await serve(serving(authority.worker()))
    found = await refusal(server.url, trusting(stranger), connect_timeout_s=0.3)
    assert found.reason is Reason.WORKER_TLS_FAILED
    assert "not signed by a trusted authority" in found.sentence
    assert found.sentence.endswith("; no connection with TLS within 0.3 s")


async def test_system_roots_do_not_trust_a_private_authority(serve: Serve, authority: Authority) -> None:
    server = await serve(serving(authority.worker()))
    assert (await refusal(server.url, None)).reason is Reason.WORKER_TLS_FAILED


@pytest.mark.parametrize("name", [None, "other.test"], ids=["url", "stated"])
async def test_wrong_name_is_told(serve: Serve, authority: Authority, name: str | None) -> None:
    server = await serve(serving(authority.worker("worker.test")))
    channel = {} if name is None else {"tls_server_name": name}
    found = await refusal(server.url, trusting(authority), **channel)
    assert found.reason is Reason.WORKER_TLS_FAILED
    assert "for another name" in found.sentence


async def test_expired_certificate_is_told(serve: Serve, authority: Authority) -> None:
    server = await serve(serving(authority.expired()))
    found = await refusal(server.url, trusting(authority))
    assert found.reason is Reason.WORKER_TLS_FAILED
    assert "has expired" in found.sentence


async def test_missing_client_certificate_is_told(serve: Serve, authority: Authority) -> None:
    server = await serve(serving(authority.worker(), clients_of=authority))
    found = await refusal(server.url, trusting(authority))
    assert found.reason is Reason.WORKER_TLS_FAILED
    assert "want a client certificate" in found.sentence


async def test_client_certificate_of_a_stranger_is_told(
    serve: Serve, authority: Authority, stranger: Authority
) -> None:
    server = await serve(serving(authority.worker(), clients_of=authority))
    found = await refusal(server.url, trusting(authority, stranger.router()))
    assert found.reason is Reason.WORKER_TLS_FAILED
    assert "not accept the client certificate" in found.sentence


async def test_plain_port_dialled_with_tls_is_told(serve: Serve, authority: Authority) -> None:
    server = await serve(None)
    found = await refusal(server.url.replace("grpc://", "grpcs://"), trusting(authority))
    assert found.reason is Reason.WORKER_TLS_FAILED
    assert "does not speak TLS; use grpc://" in found.sentence


@pytest.mark.parametrize("is_mutual", [False, True], ids=["tls", "mutual"])
async def test_tls_port_dialled_in_plain_text_is_told(serve: Serve, authority: Authority, is_mutual: bool) -> None:
    server = await serve(serving(authority.worker(), clients_of=authority if is_mutual else None))
    found = await refusal(server.url.replace("grpcs://", "grpc://"), None)
    assert found.reason is Reason.WORKER_TLS_FAILED
    assert "speaks TLS; use grpcs://" in found.sentence


async def test_tls_credentials_are_never_taken_to_a_plain_url(serve: Serve, authority: Authority) -> None:
    server = await serve(None)
    found = await refusal(server.url, trusting(authority))
    assert (found.reason, server.requests) == (Reason.WORKER_TLS_FAILED, [])


async def test_key_of_another_certificate_is_told(serve: Serve, authority: Authority) -> None:
    server = await serve(serving(authority.worker(), clients_of=authority))
    mine, other = authority.router(), authority.router()
    found = await refusal(server.url, trusting(authority, Pair(mine.certificate, other.key)))
    assert found.reason is Reason.WORKER_TLS_FAILED
    assert "the key is not the certificate's" in found.sentence


@pytest.mark.parametrize(("certificate", "key"), [(b"c", None), (None, b"k")], ids=["no-key", "no-certificate"])
def test_half_of_a_pair_never_reaches_grpc_which_would_end_the_process(
    certificate: bytes | None, key: bytes | None
) -> None:
    with pytest.raises(EngineFailure, match="mutual TLS has no"):
        TlsMaterial(None, certificate, key).credentials("grpcs://w:1")


async def test_peer_that_says_nothing_in_the_handshake_is_unreachable_in_time(authority: Authority) -> None:
    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    with pytest.raises(EngineFailure) as caught:
        await GrpcDialer().dial(WorkerSpec(f"grpcs://127.0.0.1:{port}"), trusting(authority), timeout_s=0.3)
    silent.close()
    for writer in writers:
        writer.close()
    assert caught.value.reason is Reason.WORKER_UNREACHABLE
    assert "no connection with TLS within 0.3 s" in caught.value.sentence


async def test_port_that_hangs_up_is_unreachable_and_not_said_to_speak_tls() -> None:
    hanging_up = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    found = await refusal(f"grpc://127.0.0.1:{hanging_up.sockets[0].getsockname()[1]}", None)
    hanging_up.close()
    assert found.reason is Reason.WORKER_UNREACHABLE


async def test_rotated_files_are_used_by_new_connections_while_old_ones_live_on(
    serve: Serve, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    folder = Folder(tmp_path)
    dialer = GrpcDialer(folder.write(authority.pem, authority.router()))
    before = await serve(serving(authority.worker(), clients_of=authority))
    old = await dialer.dial(WorkerSpec(before.url), None, timeout_s=TIMEOUT_S)
    folder.write(stranger.pem, stranger.router())
    after = await serve(serving(stranger.worker(), clients_of=stranger))
    new = await dialer.dial(WorkerSpec(after.url), None, timeout_s=TIMEOUT_S)
    await new.probe(timeout_s=TIMEOUT_S)
    await old.probe(timeout_s=TIMEOUT_S)
    await new.close()
    await old.close()


async def test_broken_connection_is_not_made_again_with_replaced_certificates(
    serve: Serve, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    folder = Folder(tmp_path)
    files = folder.write(authority.pem, authority.router())
    server = await serve(serving(authority.worker(), clients_of=authority))
    client = await GrpcDialer(files).dial(WorkerSpec(server.url), None, timeout_s=TIMEOUT_S)
    await client.describe(timeout_s=TIMEOUT_S)
    folder.write(authority.pem, authority.router())
    server.cut()
    await until_lost(client.connection)
    with pytest.raises(EngineFailure, match="certificates have been replaced") as caught:
        await client.probe(timeout_s=TIMEOUT_S)
    await client.close()
    assert (caught.value.connection_lost, caught.value.was_sent) == (True, False)


async def test_broken_connection_is_made_again_while_nothing_was_rotated(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    files = Folder(tmp_path).write(authority.pem, authority.router())
    server = await serve(serving(authority.worker(), clients_of=authority))
    client = await GrpcDialer(files).dial(WorkerSpec(server.url), None, timeout_s=TIMEOUT_S)
    await client.describe(timeout_s=TIMEOUT_S)
    server.cut()
    await until_lost(client.connection)
    await client.probe(timeout_s=TIMEOUT_S)
    await client.close()


def test_files_that_vanish_for_a_moment_do_not_make_a_connection_outdated(authority: Authority, tmp_path: Path) -> None:
    tls = ConnectionTls(Folder(tmp_path).write(authority.pem), None)
    (tmp_path / "ca.pem").unlink()
    assert not tls.is_outdated


@pytest.mark.parametrize("content", [None, b"junk"], ids=["missing", "junk"])
async def test_file_that_cannot_be_used_is_named_without_its_content(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    found = await refusal("grpcs://127.0.0.1:1", None, TlsFiles(str(path)))
    assert found.reason is Reason.WORKER_TLS_FAILED
    assert found.sentence.startswith(f"worker_tls_ca {path}")
    assert "junk" not in found.sentence


def test_certificate_file_needs_a_key_file() -> None:
    with pytest.raises(ValueError, match="worker_tls_key"):
        TlsFiles(certificate="c.pem")


def test_nothing_secret_is_printed(authority: Authority) -> None:
    pair = authority.router()
    shown = repr(TlsMaterial(authority.pem, pair.certificate, pair.key)) + repr(trusting(authority, pair))
    assert "PRIVATE" not in shown
    assert "CERTIFICATE" not in shown
