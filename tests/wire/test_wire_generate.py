"""Each rule of a GenerateRequest accepts what it should and refuses, by path, what it should not."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from tandem.v1 import generate_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.model.adapters import AdapterUse
from tandem_router.model.request import Constraint, ConstraintKind, GenerateRequest, Output, ServingMode
from tandem_router.wire.generate import generate_of, request_id_of

USER = {"role": "CHAT_ROLE_USER", "content": "hi"}
WORKER = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"


def parse(**fields: Any) -> GenerateRequest:
    if not {"text", "token_ids", "chat"} & fields.keys() and "no_input" not in fields:
        fields["text"] = "hi"
    fields.pop("no_input", None)
    message = generate_pb2.GenerateRequest()
    json_format.ParseDict(fields, message)
    return generate_of(message, request_id="r", max_prompt_bytes=64)


ACCEPTED: list[dict[str, Any]] = [
    {"text": "x" * 64},
    {"token_ids": {"ids": list(range(16))}},
    {"token_ids": {"ids": [2**31 - 1]}},
    {"chat": {"messages": [USER]}},
    {"sampling": {"temperature": 0}},
    {"sampling": {"temperature": 100}},
    {"sampling": {"top_p": 1, "min_p": 0, "n": 128, "max_tokens": 1, "min_tokens": 0}},
    {"sampling": {"frequency_penalty": -2, "presence_penalty": 2, "repetition_penalty": 0.1}},
    {"sampling": {"stop": ["é" * 128], "stop_token_ids": [0]}},
    {"sampling": {"logit_bias": {"7": -100}}},
    {"sampling": {"typical_p": 1, "include_stop": True, "spaces_between_special_tokens": True}},
    {"logprobs": {"output": True, "top": 20}},
    {"priority": 0},
    {"priority": -100},
    {"priority": 100},
    {"queue_updates": "0.1s"},
    {"timeouts": {"total": "0.001s"}},
    {"migration": "MIGRATION_MODE_OFF"},
    {"resume_window": "0s"},
    {"cache": {"read": True, "write": True}},
    {"metadata": {"team": "x"}},
    {"target_worker": {"worker_id": WORKER.upper(), "dp_rank": 0}},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
def test_value_within_its_range_is_accepted(fields: dict[str, Any]) -> None:
    assert parse(**fields).request_id == "r"


REFUSED: list[tuple[dict[str, Any], Reason, str]] = [
    ({"no_input": True}, Reason.INVALID_REQUEST, "input"),
    ({"text": ""}, Reason.EMPTY_PROMPT, "text"),
    ({"token_ids": {}}, Reason.EMPTY_PROMPT, "token_ids.ids"),
    ({"text": "x" * 65}, Reason.PROMPT_TOO_LONG, "text"),
    ({"text": "é" * 33}, Reason.PROMPT_TOO_LONG, "text"),
    ({"token_ids": {"ids": [1] * 17}}, Reason.PROMPT_TOO_LONG, "token_ids.ids"),
    ({"token_ids": {"ids": [2**31]}}, Reason.TOKEN_OUT_OF_VOCABULARY, "token_ids.ids"),
    ({"chat": {}}, Reason.EMPTY_PROMPT, "chat.messages"),
    ({"chat": {"messages": [{"content": "hi"}]}}, Reason.INVALID_REQUEST, "chat.messages[0].role"),
    ({"chat": {"messages": [USER | {"content": "x" * 65}]}}, Reason.PROMPT_TOO_LONG, "chat.messages"),
    ({"model": "x" * 257}, Reason.INVALID_REQUEST, "model"),
    ({"sampling": {"temperature": -0.1}}, Reason.INVALID_REQUEST, "sampling.temperature"),
    ({"sampling": {"temperature": "NaN"}}, Reason.INVALID_REQUEST, "sampling.temperature"),
    ({"sampling": {"temperature": 101}}, Reason.INVALID_REQUEST, "sampling.temperature"),
    ({"sampling": {"top_p": 0}}, Reason.INVALID_REQUEST, "sampling.top_p"),
    ({"sampling": {"top_p": 1.5}}, Reason.INVALID_REQUEST, "sampling.top_p"),
    ({"sampling": {"top_k": 2**31}}, Reason.INVALID_REQUEST, "sampling.top_k"),
    ({"sampling": {"min_p": 1.1}}, Reason.INVALID_REQUEST, "sampling.min_p"),
    ({"sampling": {"repetition_penalty": 0}}, Reason.INVALID_REQUEST, "sampling.repetition_penalty"),
    ({"sampling": {"frequency_penalty": 2.5}}, Reason.INVALID_REQUEST, "sampling.frequency_penalty"),
    ({"sampling": {"presence_penalty": -2.5}}, Reason.INVALID_REQUEST, "sampling.presence_penalty"),
    ({"sampling": {"n": 0}}, Reason.INVALID_REQUEST, "sampling.n"),
    ({"sampling": {"n": 129}}, Reason.INVALID_REQUEST, "sampling.n"),
    ({"sampling": {"max_tokens": 0}}, Reason.INVALID_REQUEST, "sampling.max_tokens"),
    ({"sampling": {"max_tokens": 2, "min_tokens": 3}}, Reason.INVALID_REQUEST, "sampling.min_tokens"),
    ({"sampling": {"stop": [""]}}, Reason.INVALID_REQUEST, "sampling.stop[0]"),
    ({"sampling": {"stop": ["é" * 129]}}, Reason.INVALID_REQUEST, "sampling.stop[0]"),
    ({"sampling": {"stop": ["x"] * 17}}, Reason.INVALID_REQUEST, "sampling.stop"),
    ({"sampling": {"stop_token_ids": [1] * 65}}, Reason.INVALID_REQUEST, "sampling.stop_token_ids"),
    ({"sampling": {"logit_bias": {"7": 101}}}, Reason.INVALID_REQUEST, "sampling.logit_bias[7]"),
    ({"logprobs": {"top": 21}}, Reason.INVALID_REQUEST, "logprobs.top"),
    ({"logprobs": {"prompt_start": 1}}, Reason.INVALID_REQUEST, "logprobs.prompt_start"),
    (
        {"token_ids": {"ids": [1, 2]}, "logprobs": {"prompt": True, "prompt_start": 2}},
        Reason.INVALID_REQUEST,
        "logprobs.prompt_start",
    ),
    ({"constraint": {}}, Reason.INVALID_REQUEST, "constraint"),
    ({"constraint": {"regex": ""}}, Reason.INVALID_REQUEST, "constraint.regex"),
    ({"constraint": {"choice": {}}}, Reason.INVALID_REQUEST, "constraint.choice.values"),
    ({"constraint": {"choice": {"values": [""]}}}, Reason.INVALID_REQUEST, "constraint.choice.values[0]"),
    ({"adapters": [{}]}, Reason.INVALID_REQUEST, "adapters[0].name"),
    ({"adapters": [{"name": "x" * 257}]}, Reason.INVALID_REQUEST, "adapters[0].name"),
    ({"adapters": [{"name": "a", "scale": "NaN"}]}, Reason.INVALID_REQUEST, "adapters[0].scale"),
    ({"adapters": [{"name": "a"}, {"name": "a"}]}, Reason.INVALID_REQUEST, "adapters[1].name"),
    ({"adapters": [{"name": f"a{n}"} for n in range(9)]}, Reason.INVALID_REQUEST, "adapters"),
    ({"timeouts": {"first_token": "0s"}}, Reason.INVALID_REQUEST, "timeouts.first_token"),
    ({"timeouts": {"total": "-1s"}}, Reason.INVALID_REQUEST, "timeouts.total"),
    ({"output": 9}, Reason.INVALID_REQUEST, "output"),
    ({"metadata": {f"k{i}": "" for i in range(17)}}, Reason.INVALID_REQUEST, "metadata"),
    ({"target_worker": {"worker_id": "w"}}, Reason.INVALID_WORKER_ID, "target_worker.worker_id"),
]


@pytest.mark.parametrize(("fields", "reason", "path"), REFUSED, ids=str)
def test_value_outside_its_range_is_refused_by_path(fields: dict[str, Any], reason: Reason, path: str) -> None:
    with pytest.raises(TandemError) as caught:
        parse(**fields)
    assert (caught.value.reason, caught.value.field) == (reason, path)


CONSTRAINTS: list[tuple[dict[str, Any], Constraint]] = [
    ({"json_schema": "{}"}, Constraint(ConstraintKind.JSON_SCHEMA, "{}")),
    ({"regex": "a+"}, Constraint(ConstraintKind.REGEX, "a+")),
    ({"ebnf": "root ::= a"}, Constraint(ConstraintKind.EBNF, "root ::= a")),
    ({"gbnf": "root ::= a"}, Constraint(ConstraintKind.GBNF, "root ::= a")),
    ({"structural_tag": "{}"}, Constraint(ConstraintKind.STRUCTURAL_TAG, "{}")),
    ({"choice": {"values": ["a", "b"]}}, Constraint(ConstraintKind.CHOICE, choices=("a", "b"))),
]


@pytest.mark.parametrize(("fields", "expected"), CONSTRAINTS, ids=str)
def test_constraint_is_carried_out(fields: dict[str, Any], expected: Constraint) -> None:
    assert parse(constraint=fields).sampling.constraint == expected


def test_adapters_keep_their_order_and_their_scale_is_one_unless_said() -> None:
    asked = parse(adapters=[{"name": "b", "scale": 0.5}, {"name": "a"}]).adapters
    assert asked == (AdapterUse("b", 0.5), AdapterUse("a", 1.0))


def test_logprobs_of_prompt_and_answer_are_carried_out() -> None:
    request = parse(token_ids={"ids": [1, 2]}, logprobs={"output": True, "prompt": True, "prompt_start": 1, "top": 3})
    asked = (request.output_logprobs, request.prompt_logprobs, request.prompt_logprobs_start, request.top_logprobs)
    assert asked == (True, True, 1, 3)


NOT_YET: list[tuple[dict[str, Any], str]] = [
    ({"chat": {"messages": [USER | {"name": "x"}]}}, "chat.messages[0].name"),
    ({"chat": {"messages": [USER], "add_generation_prompt": False}}, "chat.add_generation_prompt"),
    ({"chat": {"messages": [USER], "continue_final_message": True}}, "chat.add_generation_prompt"),
    ({"chat": {"messages": [USER], "template_arguments": {"a": 1}}}, "chat.template_arguments"),
    ({"session_key": "x"}, "session_key"),
    ({"cache": {"read": False}}, "cache"),
    ({"cache": {"salt": "x"}}, "cache"),
    ({"resume_window": "1s"}, "resume_window"),
    ({"migration": "MIGRATION_MODE_EXACT"}, "migration"),
    ({"migration": "MIGRATION_MODE_CONTINUE"}, "migration"),
    ({"sampling": {"typical_p": 0.5}}, "sampling.typical_p"),
    ({"sampling": {"spaces_between_special_tokens": False}}, "sampling.spaces_between_special_tokens"),
    ({"sampling": {"banned_token_ids": [1]}}, "sampling.banned_token_ids"),
]


@pytest.mark.parametrize(("fields", "path"), NOT_YET, ids=str)
def test_what_is_not_carried_out_is_refused_by_path(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(TandemError) as caught:
        parse(**fields)
    assert (caught.value.reason, caught.value.field) == (Reason.FEATURE_NOT_IMPLEMENTED, path)


def test_absent_sampling_fields_stay_unsaid() -> None:
    sampling = parse().sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens, sampling.n) == (
        None, None, None, None, 1,
    )  # fmt: skip


def test_zero_is_a_value() -> None:
    sampling = parse(sampling={"temperature": 0, "seed": 0, "min_tokens": 0}).sampling
    assert (sampling.temperature, sampling.seed, sampling.min_tokens) == (0.0, 0, 0)


def test_top_k_zero_becomes_the_engines_off() -> None:
    assert parse(sampling={"top_k": 0}).sampling.top_k == -1


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({"text": "hi"}, Output.TEXT),
        ({"token_ids": {"ids": [1]}}, Output.TOKENS),
        ({"token_ids": {"ids": [1]}, "output": "OUTPUT_MODE_BOTH"}, Output.BOTH),
    ],
    ids=["text", "tokens", "stated"],
)
def test_output_follows_the_input_unless_stated(fields: dict[str, Any], output: Output) -> None:
    assert parse(**fields).output is output


def test_target_worker_id_is_canonical() -> None:
    request = parse(target_worker={"worker_id": WORKER.upper(), "dp_rank": 0})
    assert (request.target_worker_id, request.target_dp_rank) == (WORKER, 0)


@pytest.mark.parametrize("value", ["", "a b", "ü", "x" * 129, "a\n"])
def test_bad_request_id_is_refused(value: str) -> None:
    with pytest.raises(TandemError, match="INVALID_REQUEST: request_id"):
        request_id_of(value)


@pytest.mark.parametrize("field", [field.name for field in generate_pb2.GenerateRequest.DESCRIPTOR.fields])
def test_no_field_lets_a_client_choose_a_room(field: str) -> None:
    assert "room" not in field


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("SERVING_MODE_UNSPECIFIED", None),
        ("SERVING_MODE_AGGREGATED", ServingMode.AGGREGATED),
        ("SERVING_MODE_DISAGGREGATED", ServingMode.DISAGGREGATED),
    ],
)
def test_serving_mode_is_kept(mode: str, expected: ServingMode | None) -> None:
    message = generate_pb2.GenerateRequest(text="x", serving_mode=mode)
    assert generate_of(message, request_id="r", max_prompt_bytes=10).serving_mode is expected


def test_both_targets_are_kept_with_their_ranks() -> None:
    ids = [f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2)]
    message = generate_pb2.GenerateRequest(
        text="x",
        target_worker={"worker_id": ids[0].upper()},
        target_prefill_worker={"worker_id": ids[1], "dp_rank": 0},
    )
    request = generate_of(message, request_id="r", max_prompt_bytes=10)
    assert (request.target_worker_id, request.target_dp_rank) == (ids[0], None)
    assert (request.target_prefill_id, request.target_prefill_rank) == (ids[1], 0)


def test_one_worker_with_a_prefill_target_contradicts_itself() -> None:
    message = generate_pb2.GenerateRequest(
        text="x",
        serving_mode=generate_pb2.SERVING_MODE_AGGREGATED,
        target_prefill_worker={"worker_id": "00000000-0000-4000-8000-000000000001"},
    )
    with pytest.raises(TandemError) as refused:
        generate_of(message, request_id="r", max_prompt_bytes=10)
    assert refused.value.field == "serving_mode"
