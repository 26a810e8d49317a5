"""Who may talk to an engine: TLS, client certificates, and the API key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2, vllm_engine_pb2_grpc
from wire_fixtures import demo_model, messages, prompt, vllm_request

from tandem_engine.credentials import TlsFiles
from tandem_engine.main import main, parse_options
from tandem_engine.options import EngineOptions, Protocol
from tandem_engine.server import ServedEngine, serve

NO_ANSWER = grpc.StatusCode.UNAVAILABLE
KEY = "k3y-0f-th3-engine"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_files(authority: trustme.CA, folder: Path, *, mutual: bool = False) -> TlsFiles:
    pair = authority.issue_cert("127.0.0.1")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
    (folder / "key.pem").write_bytes(pair.private_key_pem.bytes())
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())
    return TlsFiles(folder / "cert.pem", folder / "key.pem", folder / "ca.pem" if mutual else None)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[ServedEngine]:
    async with serve(EngineOptions(protocol=Protocol.VLLM, **options), model=demo_model()) as served:
        yield served


async def health(channel: grpc.aio.Channel) -> bool | grpc.StatusCode:
    """Whether the engine says it is well, or why it said nothing."""
    try:
        reply = await vllm_engine_pb2_grpc.VllmEngineStub(channel).HealthCheck(  # type: ignore[no-untyped-call]
            vllm_engine_pb2.HealthCheckRequest(), timeout=30.0
        )
    except grpc.aio.AioRpcError as error:
        return error.code()
    return bool(reply.healthy)


async def test_tls_serves_those_who_trust_it_and_nobody_in_plain_text(authority: trustme.CA, tmp_path: Path) -> None:
    async with serving(tls=tls_files(authority, tmp_path)) as served:
        trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        foreign = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
        async with (
            grpc.aio.secure_channel(served.listen, trusting) as good,
            grpc.aio.secure_channel(served.listen, foreign) as bad,
            grpc.aio.insecure_channel(served.listen) as plain,
        ):
            assert [await health(channel) for channel in (good, bad, plain)] == [True, NO_ANSWER, NO_ANSWER]


async def test_mutual_tls_wants_a_certificate_of_its_own_authority(authority: trustme.CA, tmp_path: Path) -> None:
    def client(signer: trustme.CA | None) -> grpc.ChannelCredentials:
        if signer is None:
            return grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        pair = signer.issue_cert("router.example")
        chain = b"".join(blob.bytes() for blob in pair.cert_chain_pems)
        return grpc.ssl_channel_credentials(authority.cert_pem.bytes(), pair.private_key_pem.bytes(), chain)

    async with serving(tls=tls_files(authority, tmp_path, mutual=True)) as served:
        answers = []
        for signer in (authority, trustme.CA(), None):
            async with grpc.aio.secure_channel(served.listen, client(signer)) as channel:
                answers.append(await health(channel))
    assert answers == [True, NO_ANSWER, NO_ANSWER]


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", KEY),),
        (("authorization", "Bearer "),),
        (("authorization", f"bearer {KEY}"),),
        (("authorization", f"Bearer {KEY}x"),),
        (("authorization", f"Bearer {KEY}"), ("authorization", "Bearer other")),
        (("x-api-key", KEY),),
    ],
    ids=["none", "bare", "empty", "lower-case", "longer", "two", "other-header"],
)
async def test_a_call_without_the_key_is_unauthenticated(metadata: tuple[tuple[str, str], ...]) -> None:
    async with serving(api_key=KEY) as served, grpc.aio.insecure_channel(served.listen) as channel:
        stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)  # type: ignore[no-untyped-call]
        refused = []
        for call in (
            messages(stub.Generate(vllm_request(prompt(3)), metadata=metadata)),
            messages(stub.GetTokenizer(common_pb2.GetTokenizerRequest(), metadata=metadata)),
            stub.HealthCheck(vllm_engine_pb2.HealthCheckRequest(), metadata=metadata),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            refused.append(caught.value)
        assert served.station.engine.ledger().prompt_tokens == 0
    assert {error.code() for error in refused} == {grpc.StatusCode.UNAUTHENTICATED}
    assert all(KEY not in (error.details() or "") for error in refused)


async def test_reflection_needs_the_key_too() -> None:
    async with serving(api_key=KEY) as served, grpc.aio.insecure_channel(served.listen) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await messages(call)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_key_opens_every_door_and_health_needs_none() -> None:
    async with serving(api_key=KEY) as served, grpc.aio.insecure_channel(served.listen) as channel:
        stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)  # type: ignore[no-untyped-call]
        metadata = (("authorization", f"Bearer {KEY}"),)
        assert len(await messages(stub.Generate(vllm_request(prompt(3)), metadata=metadata))) == 9
        checked = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        watched = await health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()).read()
    assert checked.status == watched.status == health_pb2.HealthCheckResponse.SERVING


def test_the_key_comes_from_a_file_or_the_environment_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_ENGINE_API_KEY", "from-the-environment")
    (tmp_path / "key").write_text(f"{KEY}\n")
    from_file = parse_options(["--api-key-file", str(tmp_path / "key")])
    assert (from_file.api_key, parse_options([]).api_key) == (KEY, "from-the-environment")
    assert KEY not in repr(from_file)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tls-certificate", "c.pem"], "--tls-certificate and --tls-key belong together"),
        (["--tls-client-ca", "ca.pem"], "--tls-certificate and --tls-key belong together"),
        (["--api-key-file", "no-such-file"], "--api-key-file no-such-file: No such file"),
        (["--max-adapters", "-1"], "max_adapters must not be negative"),
    ],
)
def test_flags_that_cannot_be_end_the_engine_with_two(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "\n", "zwei\nzeilen", "schlüssel"], ids=["empty", "blank", "lines", "not-ascii"])
def test_a_key_that_no_header_can_carry_ends_the_engine_with_two(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text(text, encoding="utf-8")
    assert main(["--api-key-file", str(tmp_path / "key")]) == 2
    assert "api_key must" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("no-such.pem", "key.pem", "no-such.pem: No such file"),
        ("cert.pem", "garbage", "garbage are not a PEM certificate and its unencrypted key"),
        ("garbage", "key.pem", "garbage and "),
        ("cert.pem", "other.pem", "other.pem are not a PEM certificate and its unencrypted key: key values mismatch"),
        ("cert.pem", "locked.pem", "locked.pem are not a PEM certificate and its unencrypted key"),
    ],
    ids=["missing", "garbage-key", "garbage-certificate", "foreign-key", "encrypted-key"],
)
def test_tls_files_that_cannot_serve_end_the_engine_with_two(
    authority: trustme.CA, tmp_path: Path, capfd: pytest.CaptureFixture[str], certificate: str, key: str, words: str
) -> None:
    files = tls_files(authority, tmp_path)
    (tmp_path / "garbage").write_text("s3cret, and not PEM")
    (tmp_path / "other.pem").write_bytes(trustme.CA().issue_cert("127.0.0.1").private_key_pem.bytes())
    locked = load_pem_private_key(files.key.read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase")
    )
    (tmp_path / "locked.pem").write_bytes(locked)
    flags = ["--tls-certificate", str(tmp_path / certificate), "--tls-key", str(tmp_path / key)]
    assert main(flags) == 2
    told = capfd.readouterr().err
    assert (told.startswith("tandem_engine: "), told.count("\n"), words in told) == (True, 1, True)
    assert "s3cret" not in told


def test_an_authority_without_a_certificate_ends_the_engine_with_two(
    authority: trustme.CA, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tls_files(authority, tmp_path)
    (tmp_path / "ca.pem").write_text("nothing")
    own = ["--tls-certificate", str(files.certificate), "--tls-key", str(files.key)]
    assert main([*own, "--tls-client-ca", str(tmp_path / "ca.pem")]) == 2
    assert "ca.pem has no PEM certificate" in capsys.readouterr().err


def test_a_key_that_is_not_text_ends_the_engine_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    assert main(["--api-key-file", str(tmp_path / "key")]) == 2
    assert "key: the key is not UTF-8 text" in capsys.readouterr().err
