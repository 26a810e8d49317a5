"""An engine's address is enough to register it: what it is, is found by asking."""

from __future__ import annotations

import pytest
from tests.real_engines.house import PAIR, System
from tests.real_engines.launching import CONTEXT

from tandem.v1 import job_pb2, job_service_pb2, kv_pb2, worker_pb2, worker_spec_pb2

pytestmark = pytest.mark.e2e

VLLM = worker_spec_pb2.RUNTIME_TYPE_VLLM
STEPS = ["connect", "detect_runtime", "read_facts", "check_pairing", "probe_bootstrap", "load_tokenizer", "activate"]


def model_of(worker: worker_pb2.Worker) -> tuple[int | None, int | None, list[int]]:
    """Context length, vocabulary and end tokens."""
    [model] = worker.facts.models
    return model.context_length, model.vocab_size, list(worker.facts.eos_token_ids)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("name", "worker_type", "role"),
    [
        ("vllm-prefill", worker_spec_pb2.WORKER_TYPE_PREFILL, kv_pb2.KV_ROLE_PRODUCER),
        ("vllm-decode", worker_spec_pb2.WORKER_TYPE_DECODE, kv_pb2.KV_ROLE_CONSUMER),
    ],
)
def test_half_of_a_vllm_pair_says_all_that_pairing_needs(
    vllm_system: System, name: str, worker_type: int, role: int
) -> None:
    facts = vllm_system.worker(name).facts
    assert (facts.runtime_type, facts.worker_type, facts.kv_role) == (VLLM, worker_type, role)
    assert facts.models[0].id == PAIR
    assert model_of(vllm_system.worker(name)) == (CONTEXT, 512, [1])
    assert (facts.kv_connector, facts.kv_connector_name) == (kv_pb2.KV_CONNECTOR_NIXL, "NixlConnector")
    assert facts.kv_engine_id == name.replace("vllm", "nixl")
    assert (facts.kv_block_size, facts.kv_cache_dtype) == (128, "auto")
    assert (facts.max_running_requests, facts.dp_size) == (16, 1)


@pytest.mark.vllm
def test_vllm_without_a_connector_serves_whole_requests(vllm_system: System) -> None:
    facts = vllm_system.worker("vllm").facts
    assert (facts.runtime_type, facts.worker_type) == (VLLM, worker_spec_pb2.WORKER_TYPE_REGULAR)
    assert (facts.kv_connector_name, facts.kv_engine_id) == ("", "")


@pytest.mark.mlx
def test_mlx_says_what_it_serves(mlx_system: System) -> None:
    facts = mlx_system.worker("mlx").facts
    assert facts.runtime_type == worker_spec_pb2.RUNTIME_TYPE_MLX
    assert facts.worker_type == worker_spec_pb2.WORKER_TYPE_REGULAR
    assert model_of(mlx_system.worker("mlx")) == (CONTEXT, 512, [1])
    assert facts.kv_connector_name == ""


def test_registration_by_address_alone_is_green_step_by_step(system: System) -> None:
    for name, worker_id in system.ids.items():
        worker = system.worker(name)
        assert (worker.spec.runtime_type, worker.status) == (0, worker_pb2.WORKER_STATUS_READY)
        asked = job_service_pb2.ListJobsRequest(worker_id=worker_id)
        job = system.router.jobs.ListJobs(asked).jobs[-1]
        assert (job.type, job.state) == (job_pb2.JOB_TYPE_REGISTER_WORKER, job_pb2.JOB_STATE_SUCCEEDED)
        assert [step.name for step in job.steps] == STEPS
        is_green = {job_pb2.STEP_STATE_SUCCEEDED, job_pb2.STEP_STATE_SKIPPED}
        assert {step.state for step in job.steps} <= is_green, job
        assert str(worker_spec_pb2.RuntimeType.Name(worker.facts.runtime_type)).rpartition("_")[2].lower() in (
            job.steps[1].detail.lower()
        )
