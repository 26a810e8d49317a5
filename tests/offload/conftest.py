"""A small archive of a tokenizer that is made here."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def tokenizer_json() -> str:
    """Every byte is a token, no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: number for number, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str())


def zipped(template: str | None) -> bytes:
    """The archive, with a chat template or without."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        written.writestr("tokenizer.json", tokenizer_json())
        written.writestr("tokenizer_config.json", json.dumps({"chat_template": template} if template else {}))
    return buffer.getvalue()


@pytest.fixture
def archive() -> bytes:
    return zipped(TEMPLATE)


@pytest.fixture
def plain_archive() -> bytes:
    return zipped(None)
