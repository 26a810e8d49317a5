"""WorkerCredentials at the door: patch semantics, and PEM that TLS could not use refused without a byte of it."""

from __future__ import annotations

import itertools

import pytest
import trustme

from tandem.v1.worker_spec_pb2 import WorkerCredentials
from tandem_router.errors import Reason, TandemError
from tandem_router.model.worker import Credentials, CredentialsPatch
from tandem_router.wire.spec import credentials_of, credentials_patch_of

CA = trustme.CA()
LEAF = CA.issue_cert("router.test")
CA_PEM = CA.cert_pem.bytes()
CERTIFICATE = b"".join(blob.bytes() for blob in LEAF.cert_chain_pems)
KEY = LEAF.private_key_pem.bytes()
SEALED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"
NAMES = ("api_key", "tls_ca_pem", "tls_certificate_pem", "tls_private_key_pem")


def refusal(message: WorkerCredentials) -> TandemError:
    with pytest.raises(TandemError) as caught:
        credentials_of(message)
    return caught.value


def test_tls_material_comes_through_unchanged_and_is_never_printed() -> None:
    message = WorkerCredentials(tls_ca_pem=CA_PEM, tls_certificate_pem=CERTIFICATE, tls_private_key_pem=KEY)
    credentials = credentials_of(message)
    assert credentials == Credentials(None, CA_PEM, CERTIFICATE, KEY)
    assert "BEGIN" not in repr(credentials) + repr(credentials_patch_of(message))


UNUSABLE = {
    "ca-junk": ("tls_ca_pem", b"junk-s3cret"),
    "ca-key": ("tls_ca_pem", KEY),
    "ca-broken": ("tls_ca_pem", b"-----BEGIN CERTIFICATE-----\ns3cret\n-----END CERTIFICATE-----\n"),
    "ca-binary": ("tls_ca_pem", b"\xff\xfe"),
    "ca-huge": ("tls_ca_pem", CA_PEM + b"#" * 1024 * 1024),
    "certificate-junk": ("tls_certificate_pem", b"junk-s3cret"),
    "certificate-with-key": ("tls_certificate_pem", CERTIFICATE + KEY),
    "key-junk": ("tls_private_key_pem", b"junk-s3cret"),
    "key-certificate": ("tls_private_key_pem", CERTIFICATE),
    "key-sealed": ("tls_private_key_pem", SEALED),
    "key-broken": ("tls_private_key_pem", KEY[:60] + b"!!!!" + KEY[64:]),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_pem_that_cannot_be_used_is_refused_by_its_field_without_a_byte_of_it(case: str) -> None:
    field, value = UNUSABLE[case]
    pair = {"tls_certificate_pem": CERTIFICATE, "tls_private_key_pem": KEY}
    found = refusal(WorkerCredentials(**pair | {field: value}))
    assert (found.reason, found.field) == (Reason.INVALID_REQUEST, f"credentials.{field}")
    told = f"{found} {found.sentence} {dict(found.metadata)}"
    assert "s3cret" not in told
    assert not any(line.decode("latin-1") in told for line in value.splitlines() if len(line) > 20)


@pytest.mark.parametrize("key", ["s3cret\n", "s3\tcret", "s3cret\x7f", "clé-s3cret", " s3cret", "s3cret\x00"])
def test_api_key_that_no_call_could_carry_is_refused_untold(key: str) -> None:
    found = refusal(WorkerCredentials(api_key=key))
    assert (found.reason, found.field) == (Reason.INVALID_REQUEST, "credentials.api_key")
    assert "cret" not in f"{found} {found.sentence} {dict(found.metadata)}"


def test_api_key_may_have_every_printable_character() -> None:
    key = "".join(map(chr, range(0x21, 0x7F)))
    assert credentials_of(WorkerCredentials(api_key=key)) == Credentials(api_key=key)


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        (WorkerCredentials(tls_certificate_pem=CERTIFICATE), "tls_private_key_pem"),
        (WorkerCredentials(tls_private_key_pem=KEY), "tls_certificate_pem"),
        (WorkerCredentials(tls_certificate_pem=CERTIFICATE, tls_private_key_pem=b""), "tls_private_key_pem"),
    ],
    ids=["no-key", "no-certificate", "empty-key"],
)
def test_certificate_and_key_come_together_in_a_create(message: WorkerCredentials, missing: str) -> None:
    found = refusal(message)
    assert (found.reason, found.field) == (Reason.INVALID_REQUEST, f"credentials.{missing}")


STORED = Credentials("k", b"ca", b"cert", b"key")


@pytest.mark.parametrize("name", NAMES)
def test_absent_field_is_kept_an_empty_one_deleted_and_another_replaced(name: str) -> None:
    empty: str | bytes = "" if name == "api_key" else b""
    other: str | bytes = "new" if name == "api_key" else b"new"
    before = getattr(STORED, name)
    results = [CredentialsPatch(**change).onto(STORED) for change in ({}, {name: empty}, {name: other})]  # type: ignore[arg-type]
    assert [result and getattr(result, name) for result in results] == [before, None, other]
    for result in results:
        others = [each for each in NAMES if each != name]
        assert [getattr(result, each) for each in others] == [getattr(STORED, each) for each in others]


def test_nothing_is_left_once_every_field_is_deleted() -> None:
    assert CredentialsPatch("", b"", b"", b"").onto(STORED) is None


@pytest.mark.parametrize("fields", list(itertools.product([None, "", "a"], [None, "", "b"])))
def test_a_change_over_an_earlier_one_does_what_both_do_in_turn(fields: tuple[str | None, str | None]) -> None:
    first, second = (CredentialsPatch(value, None if value is None else value.encode()) for value in fields)
    assert second.over(first).onto(STORED) == second.onto(first.onto(STORED))


def test_absent_and_empty_are_told_apart_on_the_wire() -> None:
    patch = credentials_patch_of(WorkerCredentials(tls_ca_pem=b""))
    assert patch == CredentialsPatch(tls_ca_pem=b"")
    assert credentials_patch_of(WorkerCredentials()).is_empty
