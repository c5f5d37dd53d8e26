import pytest
import torch

from kernels import RotaryTable, rotary_rows, store_kv
from kernels.attention.store_kv import store_kv_reference
from kernels.rotary import rotate, rotate_reference

HEADS, KV_HEADS, PAGES, PAGE_SIZE = 4, 2, 5, 16


def angles(rotary_dim, *, interleaved=False, scaled=False, positions=64):
    turns = torch.outer(torch.arange(positions), 10_000 ** (-torch.arange(rotary_dim // 2) / 8))
    scale = 1 + torch.rand(positions) if scaled else None
    return RotaryTable(turns.cos(), turns.sin(), interleaved, scale)


def inputs(rows, dim, dtype=torch.float32, device="cpu"):
    qkv = torch.randn(rows, HEADS + 2 * KV_HEADS, dim).to(dtype).to(device)
    cache = torch.full((2, PAGES, PAGE_SIZE, KV_HEADS, dim), float("nan"), dtype=dtype).to(device)
    slots = torch.randperm(PAGES * PAGE_SIZE)[:rows].to(device)
    return qkv, cache[0], cache[1], slots


def assert_same(qkv, keys, values, slots, tolerance=1e-5, **options):
    own, expected = (keys.clone(), values.clone()), (keys.clone(), values.clone())
    options |= {"slots": slots, "num_heads": HEADS}
    q = store_kv(qkv, *own, **options)
    reference = store_kv_reference(qkv, *expected, **options)
    close = {"atol": tolerance, "rtol": tolerance, "equal_nan": True}
    torch.testing.assert_close(q, reference, **close)
    torch.testing.assert_close(own[0], expected[0], **close)
    torch.testing.assert_close(own[1], expected[1], **close)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 16])
@pytest.mark.parametrize("normed", [False, True])
def test_agrees_with_reference(interleaved, scaled, rotary_dim, normed, device):
    qkv, keys, values, slots = inputs(9, 16, device=device)
    table = angles(rotary_dim, interleaved=interleaved, scaled=scaled)
    positions = torch.randint(0, 64, (9,))
    norms = {"q_norm": torch.rand(16), "k_norm": torch.rand(16)} if normed else {}
    norms = {name: weight.to(device) for name, weight in norms.items()}
    rotary = rotary_rows(to_device(table, device), positions.to(device))
    assert_same(qkv, keys, values, slots, rotary=rotary, **norms)


def to_device(table, device):
    scale = None if table.query_scale is None else table.query_scale.to(device)
    return RotaryTable(table.cos.to(device), table.sin.to(device), table.interleaved, scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_round_once(dtype, device):
    qkv, keys, values, slots = inputs(5, 16, dtype, device)
    rotary = rotary_rows(to_device(angles(16), device), torch.arange(5, device=device))
    assert_same(qkv, keys, values, slots, tolerance=2 * torch.finfo(dtype).eps, rotary=rotary)


def test_without_rotary_keys_are_copied(device):
    qkv, keys, values, slots = inputs(3, 16, device=device)
    q = store_kv(qkv, keys, values, slots=slots, num_heads=HEADS)
    assert torch.equal(q, qkv[:, :HEADS])
    assert torch.equal(keys.flatten(0, 1)[slots], qkv[:, HEADS : HEADS + KV_HEADS])
    assert torch.equal(values.flatten(0, 1)[slots], qkv[:, HEADS + KV_HEADS :])


def test_other_slots_stay_untouched(device):
    qkv, keys, values, slots = inputs(6, 16, device=device)
    store_kv(qkv, keys, values, slots=slots, num_heads=HEADS)
    untouched = torch.ones(PAGES * PAGE_SIZE, dtype=torch.bool, device=device)
    untouched[slots] = False
    assert keys.flatten(0, 1)[untouched].isnan().all()
    assert values.flatten(0, 1)[untouched].isnan().all()


def test_no_rows(device):
    qkv, keys, values, slots = inputs(0, 16, device=device)
    rotary = rotary_rows(to_device(angles(16), device), slots)
    q = store_kv(qkv, keys, values, slots=slots, num_heads=HEADS, rotary=rotary)
    assert q.shape == (0, HEADS, 16)
    assert keys.isnan().all()


def test_quarter_turn_by_hand():
    table = RotaryTable(torch.zeros(1, 1), torch.ones(1, 1))
    turned = rotate(torch.tensor([[[3.0, 5.0]]]), rotary_rows(table, torch.tensor([0])))
    assert turned.tolist() == [[[-5.0, 3.0]]]


def test_rotation_keeps_relative_positions():
    table = angles(16)
    q, k = torch.randn(1, 1, 16).expand(2, 1, 16), torch.randn(1, 1, 16).expand(2, 1, 16)
    first = rotate(q, rotary_rows(table, torch.tensor([9, 40])))
    second = rotate(k, rotary_rows(table, torch.tensor([4, 35])))
    products = (first * second).sum(-1)
    torch.testing.assert_close(products[0], products[1], atol=1e-4, rtol=1e-4)


def test_rest_of_a_head_does_not_turn():
    x = torch.randn(3, 2, 16)
    turned = rotate_reference(x, rotary_rows(angles(8), torch.tensor([1, 2, 3])))
    assert torch.equal(turned[..., 8:], x[..., 8:])


def test_wrong_head_count_is_refused():
    qkv, keys, values, slots = inputs(2, 16)
    with pytest.raises(ValueError, match=r"qkv must be \[rows, 3 \+ 2 \* 2, 16\]"):
        store_kv(qkv, keys, values, slots=slots, num_heads=3)


def test_one_norm_alone_is_refused():
    qkv, keys, values, slots = inputs(2, 16)
    with pytest.raises(ValueError, match="given together"):
        store_kv(qkv, keys, values, slots=slots, num_heads=HEADS, q_norm=torch.ones(16))
