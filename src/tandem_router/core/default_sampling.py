"""What a request that states no value gets: server < model < worker < request, each over what stands before it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace

from tandem_router.model.request import Sampling

__all__ = ["RANGES", "parse_default_sampling", "with_defaults"]

RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (math.ulp(0.0), 1.0),
    "top_k": (-1.0, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (math.ulp(0.0), math.inf),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}
"""The parameters that have defaults of their own, and their least and greatest value (tandem.v1.SamplingParams)."""


def with_defaults(sampling: Sampling, *layers: Mapping[str, float]) -> Sampling:
    """The sampling, with what it leaves open taken from the layers, the least binding first.

    A name that is no such parameter is not read: engines publish others as well.
    """
    found: dict[str, float] = {}
    for layer in layers:
        found.update({name: value for name, value in layer.items() if name in RANGES})
    changes: dict[str, float] = {name: value for name, value in found.items() if getattr(sampling, name) is None}
    if not changes:
        return sampling
    if "top_k" in changes:
        changes["top_k"] = int(changes["top_k"]) or -1  # 0 is off on our wire, -1 with every engine
    return replace(sampling, **changes)  # type: ignore[arg-type]  # names and kinds are those of RANGES


def parse_default_sampling(text: str) -> Mapping[str, float]:
    """A JSON object of parameters as an operator writes it; empty for "". Raises ValueError that says what is wrong."""
    if not text.strip():
        return {}
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("it must be a JSON object")
    for name, value in values.items():
        if name not in RANGES:
            raise ValueError(f"{name!r} is none of {', '.join(RANGES)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a number and is {value!r}")
        least, most = RANGES[name]
        if not least <= value <= most or (name == "top_k" and value != int(value)):
            raise ValueError(f"{name} is outside its range and is {value!r}")
    return {str(name): float(value) for name, value in values.items()}
