"""Pages of a list: a token names the last item given out, so what comes and goes elsewhere does not shift the rest."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from tandem_router.errors import TandemError
from tandem_router.wire.checks import invalid

__all__ = ["ordered_page", "page"]

Item = TypeVar("Item")

DEFAULT_SIZE = 100
MOST = 1000


def page(
    items: Sequence[Item], key: Callable[[Item], str], *, size: int, token: str, filters: Message
) -> tuple[Sequence[Item], str]:
    """The items after the token's one, at most `size` (default 100, at most 1,000), and the next page's token or "".

    items: in the list's stable order. key: unique; an item's place in the order never changes. filters: what the
    request asked for besides its page; a token of other filters is refused (INVALID_REQUEST "page_token").
    """
    digest = _digest(filters)
    start = 0
    if token:
        last = _last_of(token, digest)
        keys = [key(item) for item in items]
        if last not in keys:
            raise invalid("page_token", "The item where the page began is gone; begin again without a token.")
        start = keys.index(last) + 1
    rest = items[start:]
    chosen = rest[: _size(size)]
    if len(chosen) == len(rest):
        return chosen, ""
    return chosen, _token(digest, key(chosen[-1]))


def ordered_page(
    items: Iterable[Item], order: Callable[[Item], tuple[float, str]], *, size: int, token: str, filters: Message
) -> tuple[Sequence[Item], str]:
    """As `page`, of items that have a place in an order of their own: (number, then id), both rising.

    The page after a token begins behind the place of the last item given out, whether that item is still there or not.
    """
    digest = _digest(filters)
    chosen = sorted(items, key=order)
    if token:
        number, _, last = _last_of(token, digest).partition(" ")
        try:
            behind = (float(number), last)
        except ValueError:
            raise _foreign() from None
        chosen = [item for item in chosen if order(item) > behind]
    limit = _size(size)
    if len(chosen) <= limit:
        return chosen, ""
    number_of_last, id_of_last = order(chosen[limit - 1])
    return chosen[:limit], _token(digest, f"{number_of_last!r} {id_of_last}")


def _size(size: int) -> int:
    if size > MOST:
        raise invalid("page_size", f"It is {size} and must be at most {MOST}.")
    return size or DEFAULT_SIZE


def _digest(filters: Message) -> str:
    named = filters.DESCRIPTOR.full_name.encode() + b" " + filters.SerializeToString(deterministic=True)
    return hashlib.sha256(named).hexdigest()[:16]


def _token(digest: str, place: str) -> str:
    return base64.urlsafe_b64encode(f"{digest} {place}".encode()).decode().rstrip("=")


def _last_of(token: str, digest: str) -> str:
    try:
        padded = token + "=" * (-len(token) % 4)
        stated, _, last = base64.urlsafe_b64decode(padded.encode()).decode().partition(" ")
    except (binascii.Error, UnicodeError):
        stated, last = "", ""
    if stated != digest or not last:
        raise _foreign()
    return last


def _foreign() -> TandemError:
    return invalid("page_token", "It is not a token of this list with this filter.")
