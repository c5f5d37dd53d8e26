import pytest
import torch

from kernels import rotary_rows
from kernels.attention.store_kv import store_kv_reference
from kernels.attention.store_kv_kernel import launch_store_kv
from tests.kernels.attention.test_store_kv import HEADS, angles, inputs, to_device
from tests.kernels.batches import far_cache

pytestmark = pytest.mark.kernel


def assert_same(qkv, keys, values, slots, *, tolerance=1e-5, **options):
    options = {"rotary": None, "q_norm": None, "k_norm": None, "norm_eps": 1e-6} | options
    options |= {"slots": slots, "num_heads": HEADS}
    own, expected = (keys.clone(), values.clone()), (keys.clone(), values.clone())
    q, reference = (
        launch_store_kv(qkv, *own, **options),
        store_kv_reference(qkv, *expected, **options),
    )
    close = {"atol": tolerance, "rtol": tolerance, "equal_nan": True}
    torch.testing.assert_close(q, reference, **close)
    torch.testing.assert_close(own[0], expected[0], **close)
    torch.testing.assert_close(own[1], expected[1], **close)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 16])
@pytest.mark.parametrize("normed", [False, True])
def test_agrees_with_reference(interleaved, scaled, rotary_dim, normed, device):
    table = to_device(angles(rotary_dim, interleaved=interleaved, scaled=scaled), device)
    rotary = rotary_rows(table, torch.randint(0, 64, (9,), device=device))
    norms = {name: torch.rand(16, device=device) for name in ("q_norm", "k_norm")}
    assert_same(*inputs(9, 16, device=device), rotary=rotary, **(norms if normed else {}))


@pytest.mark.parametrize("dim", [64, 80])
def test_half_precision(dim, device):
    table = to_device(angles(dim), device)
    rotary = rotary_rows(table, torch.arange(5, device=device))
    eps = 4 * torch.finfo(torch.float16).eps
    assert_same(*inputs(5, dim, torch.float16, device), rotary=rotary, tolerance=eps)


def test_padding_row_is_not_written(device):
    qkv, keys, values, slots = inputs(3, 16, device=device)
    slots[1] = -1
    options = {"rotary": None, "q_norm": None, "k_norm": None, "norm_eps": 1e-6}
    launch_store_kv(qkv, keys, values, slots=slots, num_heads=HEADS, **options)
    written = (~keys.flatten(0, 1).isnan()).any(-1).any(-1)
    assert written.nonzero()[:, 0].tolist() == sorted(slots[[0, 2]].tolist())


def test_no_rows(device):
    options = {"rotary": None, "q_norm": None, "k_norm": None, "norm_eps": 1e-6}
    qkv, keys, values, slots = inputs(0, 16, device=device)
    q = launch_store_kv(qkv, keys, values, slots=slots, num_heads=HEADS, **options)
    assert q.shape == (0, HEADS, 16)


def test_slots_past_two_to_the_31(device, monkeypatch):
    keys, values = far_cache(device, monkeypatch), far_cache(device, monkeypatch)
    slots = torch.tensor([keys.shape[0] * 64 - 1], device=device)
    qkv = torch.randn(1, 20, 128).half().to(device)
    options = {"rotary": None, "q_norm": None, "k_norm": None, "norm_eps": 1e-6}
    q = launch_store_kv(qkv, keys, values, slots=slots, num_heads=4, **options)
    assert torch.equal(q, qkv[:, :4])
    assert torch.equal(keys[-1, -1], qkv[0, 4:12])
    assert torch.equal(values[-1, -1], qkv[0, 12:])
