"""ModelCard, both ways, with its ranges."""

from __future__ import annotations

from google.protobuf import json_format

from tandem.v1 import model_card_pb2 as pb
from tandem_router.model.spec import ModelCard
from tandem_router.wire.checks import at_most, invalid, number, present, text
from tandem_router.wire.sampling import default_sampling_pb, defaults_of

__all__ = ["card_of", "card_pb"]

_NAME_MOST = 256
_METADATA_MOST_BYTES = 16 * 1024
_PATH_MOST = 4096
_TEMPLATE_MOST = 256 * 1024
"""Characters; the longest published chat templates have about 20,000."""


def card_of(message: pb.ModelCard, path: str) -> ModelCard:
    """A checked card; raises INVALID_REQUEST with the field's path."""
    at_most(f"{path}.aliases", message.aliases, 32)
    if pb.MODEL_CAPABILITY_UNSPECIFIED in message.capabilities:
        raise invalid(f"{path}.capabilities", "MODEL_CAPABILITY_UNSPECIFIED is not a capability.")
    unknown = [value for value in message.capabilities if value not in pb.ModelCapability.values()]
    if unknown:
        raise invalid(f"{path}.capabilities", f"{unknown[0]} is no capability that this release knows.")
    if message.metadata.ByteSize() > _METADATA_MOST_BYTES:
        raise invalid(f"{path}.metadata", f"It has over {_METADATA_MOST_BYTES} bytes.")
    return ModelCard(
        id=text(f"{path}.id", message.id, least=1, most=_NAME_MOST),
        aliases=tuple(text(f"{path}.aliases", alias, least=1, most=_NAME_MOST) for alias in message.aliases),
        display_name=message.display_name or None,
        context_length=_size(message, f"{path}.context_length"),
        tokenizer_path=_path(message, f"{path}.tokenizer_path"),
        chat_template=text(f"{path}.chat_template", message.chat_template, most=_TEMPLATE_MOST) or None,
        capabilities=tuple(
            pb.ModelCapability.Name(value).removeprefix("MODEL_CAPABILITY_") for value in message.capabilities
        ),
        hf_model_type=message.hf_model_type or None,
        architectures=tuple(message.architectures),
        provider=message.provider or None,
        reasoning_parser=message.reasoning_parser or None,
        tool_parser=message.tool_parser or None,
        id2label=dict(message.id2label),
        num_labels=message.num_labels if present(message, "num_labels") else None,
        vocab_size=_size(message, f"{path}.vocab_size"),
        default_sampling=defaults_of(message.default_sampling, f"{path}.default_sampling"),
        metadata=json_format.MessageToDict(message.metadata),
    )


def card_pb(card: ModelCard) -> pb.ModelCard:
    """The message of a card."""
    message = pb.ModelCard(
        id=card.id,
        display_name=card.display_name or "",
        aliases=card.aliases,
        capabilities=[pb.ModelCapability.Value(f"MODEL_CAPABILITY_{name}") for name in card.capabilities],
        hf_model_type=card.hf_model_type or "",
        architectures=card.architectures,
        provider=card.provider or "",
        context_length=card.context_length,
        tokenizer_path=card.tokenizer_path or "",
        chat_template=card.chat_template or "",
        reasoning_parser=card.reasoning_parser or "",
        tool_parser=card.tool_parser or "",
        id2label=card.id2label,
        num_labels=card.num_labels,
        vocab_size=card.vocab_size,
        default_sampling=default_sampling_pb(card.default_sampling),
    )
    if card.metadata:
        json_format.ParseDict(dict(card.metadata), message.metadata)
    return message


def _path(message: pb.ModelCard, path: str) -> str | None:
    value = text(path, message.tokenizer_path, most=_PATH_MOST)
    # It must mean the same place whatever folder the router was started in, and be one to read at a glance.
    if value and (not value.startswith("/") or ".." in value.split("/") or not value.isprintable()):
        raise invalid(path, 'It must be an absolute path on the router\'s machine, without "..".')
    return value or None


def _size(message: pb.ModelCard, path: str) -> int | None:
    name = path.rpartition(".")[2]
    return number(path, int(getattr(message, name)), least=1) if present(message, name) else None
