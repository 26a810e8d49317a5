"""Changes of some fields of a spec, as data: they are laid over whatever the spec is when their turn comes.

A caller that read a spec, changed it and wrote it back would lose what others changed in between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tandem_router.model.spec import WorkerSpec

__all__ = ["SpecPatch"]


@dataclass(frozen=True, slots=True)
class SpecPatch:
    """New values of named fields. Laying it over a spec twice is laying it over once."""

    values: Mapping[tuple[str, ...], Any] = field(default_factory=dict)
    """By path: (field,) or (group, field), for example ("health", "timeout_s"). Never "url" and never "labels"."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Merged into the spec's."""
    remove_labels: tuple[str, ...] = ()
    """Keys taken away before that; unknown ones are ignored."""

    def apply(self, spec: WorkerSpec) -> WorkerSpec:
        """The spec after the change."""
        for path, value in self.values.items():
            if len(path) == 1:
                spec = replace(spec, **{path[0]: value})
            else:
                group, name = path
                spec = replace(spec, **{group: replace(getattr(spec, group), **{name: value})})
        if self.labels or self.remove_labels:
            kept = {key: value for key, value in spec.labels.items() if key not in self.remove_labels}
            spec = replace(spec, labels={**kept, **self.labels})
        return spec

    def only(self, fields: Collection[str]) -> SpecPatch:
        """The part of it that changes these fields of the spec, and labels."""
        return replace(self, values={path: value for path, value in self.values.items() if path[0] in fields})
