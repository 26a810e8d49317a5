"""SamplingParams and Timeouts of a request, checked against the ranges that the schema states."""

from __future__ import annotations

from collections.abc import Mapping

from tandem.v1 import generate_pb2, sampling_pb2
from tandem_router.core.default_sampling import RANGES
from tandem_router.model.request import Sampling, Timeouts
from tandem_router.wire.checks import at_most, duration, invalid, number, present, refuse_unless_default, text

__all__ = ["default_sampling_pb", "defaults_of", "sampling_of", "timeouts_of"]

_INT32_MOST = 2**31 - 1
"""Engines' own protocols hold counts and token ids as int32."""


def sampling_of(message: sampling_pb2.SamplingParams, path: str = "sampling") -> Sampling:
    """Checked sampling; raises INVALID_REQUEST or FEATURE_NOT_IMPLEMENTED with the field's path.

    top_k 0 (off on our wire) becomes -1, which is off for every engine.
    """
    refuse_unless_default(f"{path}.typical_p", message.typical_p if present(message, "typical_p") else 1.0, 1.0)
    spaces = message.spaces_between_special_tokens if present(message, "spaces_between_special_tokens") else True
    refuse_unless_default(f"{path}.spaces_between_special_tokens", spaces, True)
    refuse_unless_default(f"{path}.banned_token_ids", len(message.banned_token_ids), 0)
    at_most(f"{path}.stop", message.stop, 16)
    at_most(f"{path}.stop_token_ids", message.stop_token_ids, 64)
    at_most(f"{path}.logit_bias", message.logit_bias, 1024)
    top_k = _count(message, f"{path}.top_k", least=0)
    max_tokens = _count(message, f"{path}.max_tokens", least=1)
    min_tokens = _count(message, f"{path}.min_tokens", least=0)
    if min_tokens is not None and max_tokens is not None and min_tokens > max_tokens:
        raise invalid(f"{path}.min_tokens", f"It is {min_tokens} and must be at most max_tokens, {max_tokens}.")
    n = _count(message, f"{path}.n", least=1, most=128)
    return Sampling(
        temperature=_real(message, f"{path}.temperature", least=0, most=100),
        top_p=_real(message, f"{path}.top_p", above=0, most=1),
        top_k=-1 if top_k == 0 else top_k,
        min_p=_real(message, f"{path}.min_p", least=0, most=1),
        repetition_penalty=_real(message, f"{path}.repetition_penalty", above=0),
        frequency_penalty=_real(message, f"{path}.frequency_penalty", least=-2, most=2),
        presence_penalty=_real(message, f"{path}.presence_penalty", least=-2, most=2),
        seed=message.seed if present(message, "seed") else None,
        n=1 if n is None else n,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=tuple(
            text(f"{path}.stop[{index}]", one, least=1, most=256, in_bytes=True)
            for index, one in enumerate(message.stop)
        ),
        stop_token_ids=tuple(
            number(f"{path}.stop_token_ids[{index}]", one, most=_INT32_MOST)
            for index, one in enumerate(message.stop_token_ids)
        ),
        ignore_eos=message.ignore_eos if present(message, "ignore_eos") else None,
        skip_special_tokens=message.skip_special_tokens if present(message, "skip_special_tokens") else None,
        include_stop=message.include_stop,
        logit_bias={
            number(f"{path}.logit_bias key", key, most=_INT32_MOST): number(
                f"{path}.logit_bias[{key}]", value, least=-100, most=100
            )
            for key, value in message.logit_bias.items()
        },
    )


def defaults_of(message: sampling_pb2.SamplingParams, path: str) -> Mapping[str, float]:
    """Checked defaults by name; raises INVALID_REQUEST with the path of a value outside its range, or of no default."""
    stated = [field.name for field, _ in message.ListFields()]
    for name in stated:
        if name not in RANGES:
            raise invalid(f"{path}.{name}", "It has no default; set it in requests.")
    sampling = sampling_of(message, path)
    return {name: float(getattr(sampling, name)) for name in RANGES if name in stated}


def default_sampling_pb(defaults: Mapping[str, float]) -> sampling_pb2.SamplingParams | None:
    """Published sampling defaults by the schema's names; names it does not have are left out. None where nothing is."""
    known = sampling_pb2.SamplingParams.DESCRIPTOR.fields_by_name
    message = sampling_pb2.SamplingParams()
    for name, value in defaults.items():
        field = known.get(name)
        if field is None or field.is_repeated:
            continue
        is_whole = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
        if is_whole and value < 0:  # top_k -1 is an engine's way of saying "off", which is the schema's 0
            value = 0
        setattr(message, name, int(value) if is_whole else value)
    return message if message.ByteSize() else None


def timeouts_of(message: generate_pb2.Timeouts, path: str = "timeouts") -> Timeouts:
    """Checked limits in seconds, each above 0; raises INVALID_REQUEST with the field's path."""
    return Timeouts(
        queue_s=duration(message, f"{path}.queue", message.queue, above_zero=True),
        first_token_s=duration(message, f"{path}.first_token", message.first_token, above_zero=True),
        inter_token_s=duration(message, f"{path}.inter_token", message.inter_token, above_zero=True),
        total_s=duration(message, f"{path}.total", message.total, above_zero=True),
    )


def _count(message: sampling_pb2.SamplingParams, path: str, *, least: int, most: int = _INT32_MOST) -> int | None:
    name = path.rpartition(".")[2]
    return number(path, int(getattr(message, name)), least=least, most=most) if present(message, name) else None


def _real(
    message: sampling_pb2.SamplingParams,
    path: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> float | None:
    name = path.rpartition(".")[2]
    if not present(message, name):
        return None
    return number(path, float(getattr(message, name)), least=least, most=most, above=above)
