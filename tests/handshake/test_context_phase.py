"""TensorRT-LLM is refused for what its protocol does not return, and no other protocol is refused for that."""

from __future__ import annotations

from tandem_router.errors import Reason
from tandem_router.handshake.context_phase import why_not
from tandem_router.model.spec import RuntimeType


def test_only_trtllm_is_refused_for_the_parameters_that_it_does_not_return() -> None:
    reasons = {runtime_type: why_not(runtime_type) for runtime_type in RuntimeType}
    refused = {runtime_type: why[0] for runtime_type, why in reasons.items() if why is not None}
    assert refused == {RuntimeType.TRTLLM: Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS}
