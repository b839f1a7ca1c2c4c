"""Muon for the layers' matrices, AdamW for everything else.

Muon orthogonalises the momentum of each matrix (Jordan et al. 2024, "Muon: an optimizer for hidden layers"); its
update is scaled so that its root mean square is that of AdamW's (Liu et al. 2025, "Muon is scalable for LLM
training", section 2.2), and one learning rate serves both. It needs markedly fewer tokens than AdamW alone, which
counts when the tokens are a processor's.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def orthogonalise(stack: Tensor) -> Tensor:
    """Roughly the nearest semi-orthogonal matrix of each matrix in [count, rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    x = stack.bfloat16()
    flipped = x.shape[1] > x.shape[2]
    if flipped:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if flipped else x


class Optimiser:
    """Steps a model at a learning rate given per step."""

    def __init__(self, model: nn.Module, decay: float = 0.1, momentum: float = 0.95) -> None:
        self.decay, self.momentum = decay, momentum
        self.matrices = [
            (name, p) for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("layers.")
        ]
        taken = {name for name, _ in self.matrices}
        rest = [p for name, p in model.named_parameters() if name not in taken]
        self.adam = torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.ndim == 2], "weight_decay": 0.01},
                {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            fused=True,
        )
        self.buffers = {name: torch.zeros_like(p) for name, p in self.matrices}
        self.groups: dict[torch.Size, list[tuple[str, nn.Parameter]]] = defaultdict(list)
        for name, p in self.matrices:
            self.groups[p.shape].append((name, p))
        self.parameters = [p for _, p in self.matrices] + rest

    @torch.no_grad()
    def step(self, rate: float) -> float:
        """Clips, updates and clears the gradients; returns their norm before clipping."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        for shape, members in self.groups.items():
            directions = []
            for name, p in members:
                assert p.grad is not None
                buffer = self.buffers[name]
                buffer.lerp_(p.grad, 1 - self.momentum)
                directions.append(p.grad.lerp(buffer, self.momentum))
            updates = orthogonalise(torch.stack(directions)).float()
            scale = 0.2 * max(shape) ** 0.5
            for (_, p), update in zip(members, updates, strict=True):
                p.mul_(1 - rate * self.decay)
                p.sub_(update, alpha=rate * scale)
        for p in self.parameters:
            p.grad = None
        return norm

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"adam": self.adam.state_dict(), "momentum": self.buffers}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.adam.load_state_dict(state["adam"])
        for name, buffer in self.buffers.items():
            buffer.copy_(state["momentum"][name])
