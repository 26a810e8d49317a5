"""The router's own TLS files for workers: what is wrong with them is told before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from tandem_router.server import RouterServer
from tandem_router.settings import ServerSettings, SettingsError, resolve


@pytest.mark.parametrize("key", ["worker_tls_certificate", "worker_tls_key"])
async def test_half_of_a_pair_is_refused_at_the_start(key: str) -> None:
    with pytest.raises(SettingsError, match="belong together"):
        RouterServer(ServerSettings(**{key: "x.pem"}))  # type: ignore[arg-type]


async def test_file_that_is_not_there_is_named_at_the_start(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    with pytest.raises(SettingsError, match=f"worker_tls_ca {missing} cannot be read"):
        RouterServer(ServerSettings(worker_tls_ca=str(missing)))


def test_files_come_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(trustme.CA().cert_pem.bytes())
    found = resolve(flags={}, environ={"TANDEM_WORKER_TLS_CA": str(path)})
    assert found.settings.worker_tls_ca == str(path)
