"""Feed-forward layers of a mixture of experts: each row goes through the few experts it chose.

Shapes: T rows, d entries of the residual stream, E experts, I intermediate size, k experts a row.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.dispatch import runs_triton
from kernels.grouped_experts_kernel import launch_grouped_experts
from kernels.swiglu import swiglu


def grouped_experts(
    x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, expert_weights: Tensor
) -> Tensor:
    """The weighted sum [T, d] of the chosen experts' outputs.

    x [T, d], gate_up [E, 2 I, d] (gate first), down [E, d, I] of one floating type;
    expert_ids [T, k] int64, no expert twice in a row; expert_weights [T, k] float32

    Raises ValueError when the shapes do not fit.
    """
    _check(x, gate_up, down, expert_ids, expert_weights)
    if runs_triton(x):
        return launch_grouped_experts(x, gate_up, down, expert_ids, expert_weights)
    return _grouped_experts_cpu(x, gate_up, down, expert_ids, expert_weights)


def _check(
    x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, expert_weights: Tensor
) -> None:
    experts, double, width = gate_up.shape
    if x.shape[1] != width or down.shape != (experts, width, double // 2):
        raise ValueError(
            f"x {tuple(x.shape)}, gate_up {tuple(gate_up.shape)} and down {tuple(down.shape)} "
            "must be [T, d], [E, 2 I, d] and [E, d, I]"
        )
    if expert_ids.shape != expert_weights.shape or expert_ids.shape[0] != x.shape[0]:
        raise ValueError(
            f"expert_ids {tuple(expert_ids.shape)} and expert_weights "
            f"{tuple(expert_weights.shape)} must both be [{x.shape[0]}, k]"
        )


def grouped_experts_reference(
    x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, expert_weights: Tensor
) -> Tensor:
    """Define the operation row by row in float32."""
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for row, experts in enumerate(expert_ids.tolist()):
        for choice, expert in enumerate(experts):
            gate, up = (gate_up[expert].float() @ x[row].float()).chunk(2)
            hidden = gate / (1 + torch.exp(-gate)) * up
            total[row] += expert_weights[row, choice] * (down[expert].float() @ hidden)
    return total.to(x.dtype)


def _grouped_experts_cpu(
    x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, expert_weights: Tensor
) -> Tensor:
    """One product per expert that anybody chose, over the rows that chose it."""
    chosen = expert_ids.shape[1]
    order = expert_ids.flatten().argsort(stable=True)
    counts = torch.bincount(expert_ids.flatten(), minlength=gate_up.shape[0]).tolist()
    inputs = x[order // chosen] if chosen > 0 else x[:0]
    outputs = torch.empty_like(inputs)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            rows = slice(start, start + count)
            outputs[rows] = functional.linear(
                swiglu(functional.linear(inputs[rows], gate_up[expert])), down[expert]
            )
            start += count
    by_choice = torch.empty_like(outputs)
    by_choice[order] = outputs
    weighted = by_choice.view(x.shape[0], chosen, x.shape[1]) * expert_weights[:, :, None]
    return weighted.sum(1).to(x.dtype)
