"""The watch log: no gap, no repeat, or compacted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_router.core.events import JobForgotten
from tandem_router.core.watch_log import WatchLog
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import JobId


def event(revision: int) -> JobForgotten:
    return JobForgotten(revision, 0.0, JobId("j"))


@given(st.integers(1, 20), st.integers(0, 60), st.integers(-5, 70))
def test_since_gives_every_later_event_once_or_says_compacted(capacity: int, written: int, asked: int) -> None:
    log = WatchLog(capacity)
    log.append(event(revision) for revision in range(1, written + 1))
    oldest = max(0, written - capacity)
    if oldest <= asked <= written:
        assert [found.revision for found in log.since(asked)] == list(range(asked + 1, written + 1))
    else:
        with pytest.raises(TandemError) as caught:
            log.since(asked)
        assert caught.value.reason is Reason.REVISION_COMPACTED
        assert caught.value.metadata["oldest_revision"] == str(oldest)


@pytest.mark.parametrize("revision", [0, 1, 3])
def test_a_gap_or_a_repeat_is_not_written(revision: int) -> None:
    log = WatchLog()
    log.append([event(1)])
    with pytest.raises(ValueError, match="does not follow 1"):
        log.append([event(revision)])
