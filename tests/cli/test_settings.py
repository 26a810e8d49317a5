"""Defaults < file < environment < flags, and every value knows where it came from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tandem_router.settings import ServerSettings, SettingsError, keys, resolve


def file_with(folder: Path, text: str) -> Path:
    path = folder / "tandem.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_said_gives_the_defaults() -> None:
    assert resolve(flags={}).settings == ServerSettings()


@pytest.mark.parametrize(
    ("in_file", "in_env", "in_flag", "value", "source"),
    [
        (False, False, False, 5.0, "default"),
        (True, False, False, 1.0, "file"),
        (True, True, False, 2.0, "env TANDEM_HEALTH_TIMEOUT_S"),
        (True, True, True, 3.0, "flag"),
        (False, True, True, 3.0, "flag"),
    ],
)
def test_later_source_wins_and_is_named(
    tmp_path: Path, in_file: bool, in_env: bool, in_flag: bool, value: float, source: str
) -> None:
    resolved = resolve(
        flags={"health.timeout_s": "3"} if in_flag else {},
        environ={"TANDEM_HEALTH_TIMEOUT_S": "2"} if in_env else {},
        file=file_with(tmp_path, "[health]\ntimeout_s = 1") if in_file else None,
    )
    assert resolved.settings.runtime.health.timeout_s == value
    assert resolved.sources["health.timeout_s"].startswith(source)


def test_every_key_has_a_variable_of_its_own() -> None:
    names = [key.replace(".", "_") for key in keys()]
    assert len(set(names)) == len(names)


def test_every_leaf_of_the_runtime_s_settings_is_a_key() -> None:
    assert {"rooms.slot", "retry.jitter", "jobs.max_queued", "max_in_flight", "listen"} <= set(keys())


def test_whole_number_in_a_file_is_a_float_where_a_float_is_wanted(tmp_path: Path) -> None:
    settings = resolve(flags={}, file=file_with(tmp_path, "shutdown_grace_s = 3")).settings
    assert isinstance(settings.shutdown_grace_s, float)


def test_boolean_is_read_from_text() -> None:
    assert resolve(flags={"allow_aggregated_fallback": "False"}).settings.runtime.allow_aggregated_fallback is False


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"nope": "1"}, "nope is no setting"),
        ({"max_in_flight": "many"}, "max_in_flight from flag must be a whole number"),
        ({"max_in_flight": "1.5"}, "max_in_flight"),
        ({"max_in_flight": "-1"}, "not negative"),
        ({"shutdown_grace_s": "nan"}, "or inf"),
        ({"shutdown_grace_s": "-inf"}, "not negative"),
        ({"slow_client_timeout_s": "inf"}, "finite"),
        ({"allow_aggregated_fallback": "maybe"}, "true or false"),
    ],
)
def test_bad_flag_is_named_with_its_rule(flags: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        resolve(flags=flags)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("nope = 1", "nope in .* is no setting"),
        ("[health]\nnope = 1", "health.nope in .* is no setting"),
        ("max_in_flight = true", "must be a whole number"),
        ("max_in_flight = 1.0", "must be a whole number"),
        ("listen = 5", "must be a text"),
        ("= broken", "cannot read"),
    ],
)
def test_bad_file_is_named_with_its_rule(tmp_path: Path, content: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        resolve(flags={}, file=file_with(tmp_path, content))


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        resolve(flags={}, file=tmp_path / "none.toml")


def test_foreign_variables_are_not_ours() -> None:
    # Kubernetes sets TANDEM_SERVICE_HOST for a service named tandem.
    assert resolve(flags={}, environ={"TANDEM_SERVICE_HOST": "x"}).settings == ServerSettings()


def test_grace_may_be_for_ever() -> None:
    assert resolve(flags={"shutdown_grace_s": "inf"}).settings.shutdown_grace_s == math.inf


@pytest.mark.parametrize("text", ["hot", '{"seed": 1}', '{"top_p": 2}'])
def test_default_sampling_that_makes_no_sense_names_its_key_and_source(text: str) -> None:
    with pytest.raises(SettingsError, match="default_sampling from flag"):
        resolve(flags={"default_sampling": text})


def test_default_sampling_is_read_from_the_environment() -> None:
    text = '{"temperature": 0.7}'
    resolved = resolve(flags={}, environ={"TANDEM_DEFAULT_SAMPLING": text})
    assert resolved.settings.runtime.default_sampling == text
