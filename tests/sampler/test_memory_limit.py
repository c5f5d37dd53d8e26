import pytest
import torch

from sampler.border.engine_config import EngineConfig
from sampler.engine_process import load_engine
from sampler.memory_limit import check_cache_bytes, machine_bytes, memory_bytes

GIB = 2**30


def test_a_cache_larger_than_the_machine_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"900\.0 GiB are asked for, but this machine has 23\.0"):
        check_cache_bytes(900 * GIB, has_bytes=23 * GIB, where="this machine")


@pytest.mark.parametrize("cache_bytes", [None, 1, 23 * GIB])
def test_a_cache_that_may_fit_is_taken(cache_bytes):
    check_cache_bytes(cache_bytes, has_bytes=23 * GIB, where="this machine")


def test_the_engine_refuses_before_it_reads_the_model():
    config = EngineConfig(model="nothing", device="cpu", cache_bytes=900 * 1024 * GIB)
    with pytest.raises(ValueError, match="kv_cache_memory"):
        load_engine(config)


@pytest.mark.parametrize(("said", "is_less"), [("1000\n", True), ("max\n", False)])
def test_a_container_may_hold_the_machine_to_less(tmp_path, said, is_less):
    limit = tmp_path / "memory.max"
    limit.write_text(said)
    found = machine_bytes(limit)
    assert (found == 1000) == is_less
    assert found <= machine_bytes(tmp_path / "none")


def test_the_cpu_has_the_machines_memory():
    has_bytes, where = memory_bytes(torch.device("cpu"))
    assert has_bytes > 2**28
    assert where == "this machine"
