"""The promise of `Chunk`: what a slow client's queue does with bytes alone is right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem.v1 import failure_pb2, generate_result_pb2, router_service_pb2
from tandem_router.errors import Code

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=5)
TEXT = st.lists(st.text(max_size=5), max_size=3)


def responses(parts: list[tuple[list[int], list[str]]]) -> list[generate_result_pb2.GenerateResponse]:
    """One response per part, with the offsets that a router gives them."""
    made, offset, text_offset = [], 0, 0
    for tokens, text in parts:
        offset += len(tokens)
        text_offset += len("".join(text).encode())
        chunk = generate_result_pb2.Chunk(
            index=1, token_ids=tokens, text=text, next_offset=offset, next_text_offset=text_offset
        )
        made.append(generate_result_pb2.GenerateResponse(chunk=chunk))
    return made


@given(parts=st.lists(st.tuples(TOKENS, TEXT), min_size=1, max_size=6))
def test_concatenated_responses_of_one_choice_are_one_right_response(parts: list[tuple[list[int], list[str]]]) -> None:
    joined = b"".join(response.SerializeToString() for response in responses(parts))
    chunk = generate_result_pb2.GenerateResponse.FromString(joined).chunk
    tokens = [token for part, _ in parts for token in part]
    text = "".join("".join(part) for _, part in parts)
    assert (chunk.index, list(chunk.token_ids), "".join(chunk.text)) == (1, tokens, text)
    assert (chunk.next_offset, chunk.next_text_offset) == (len(tokens), len(text.encode()))


def test_one_token_costs_at_most_ten_bytes_beyond_its_text() -> None:
    chunk = generate_result_pb2.Chunk(token_ids=[511], next_offset=2_000)
    assert len(generate_result_pb2.GenerateResponse(chunk=chunk).SerializeToString()) <= 10


def test_fields_of_every_token_have_one_byte_tags() -> None:
    rare = {"prompt_logprobs"}
    fields = generate_result_pb2.Chunk.DESCRIPTOR.fields
    assert {field.name for field in fields if field.number > 15} == rare


def test_resumed_answer_has_the_fields_of_an_answer() -> None:
    def shape(message: type) -> list[tuple[str, int, int]]:
        return [(field.name, field.number, field.type) for field in message.DESCRIPTOR.fields]  # type: ignore[attr-defined]

    assert shape(router_service_pb2.ResumeGenerateResponse) == shape(generate_result_pb2.GenerateResponse)


def test_status_codes_are_those_of_grpc() -> None:
    ours = {name.removeprefix("STATUS_CODE_"): number for name, number in failure_pb2.StatusCode.items() if number}
    assert ours == {code.name: int(code) for code in Code if code is not Code.OK}
