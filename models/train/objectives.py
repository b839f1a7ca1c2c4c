"""Losses and their gradients with respect to the logits, block by block.

Written out instead of left to autograd: a row of logits is sixteen kilobytes, a micro-batch of them leaves every
cache, and each elementwise operation would read it from memory again. A block of rows stays in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64  # rows; one megabyte of f32 at 4096 tokens.


@dataclass(frozen=True)
class Weights:
    """What a student's loss is made of."""

    # KL(target || student), Hinton et al. 2015.
    kl: float = 1.0
    # Total variation: one minus it bounds acceptance (Leviathan et al. 2023, corollary 3.6), and it spends no effort
    # where a token is hopeless for the student (Zhou et al. 2024, DistillSpec, train on it).
    tv: float = 0.5
    # Cross-entropy with the text.
    ce: float = 0.1


@torch.no_grad()
def text_loss(logits: Tensor, text: Tensor) -> tuple[float, Tensor, Tensor]:
    """Cross-entropy with the text: its mean, its gradient [rows, vocabulary], and the probabilities (bf16)."""
    rows = len(text)
    gradient = torch.empty_like(logits)
    probabilities = torch.empty_like(logits, dtype=torch.bfloat16)
    total = 0.0
    for start in range(0, rows, BLOCK):
        block = slice(start, start + BLOCK)
        z, ids = logits[block].float(), text[block, None]
        p = F.softmax(z, dim=-1)
        probabilities[block] = p
        total -= p.gather(1, ids).clamp_min(1e-30).log().sum().item()
        p.scatter_add_(1, ids, p.new_full((1, 1), -1.0).expand_as(ids))
        gradient[block] = p.div_(rows)
    return total / rows, gradient, probabilities


@torch.no_grad()
def probabilities(logits: Tensor) -> Tensor:
    """Softmax as bf16."""
    result = torch.empty_like(logits, dtype=torch.bfloat16)
    for start in range(0, len(logits), BLOCK):
        block = slice(start, start + BLOCK)
        result[block] = F.softmax(logits[block].float(), dim=-1)
    return result


@torch.no_grad()
def student_loss(logits: Tensor, teacher: Tensor, text: Tensor, weights: Weights) -> tuple[float, Tensor]:
    """A student's mean loss without the teacher's entropy, which no student can change, and its gradient.

    `teacher` holds probabilities [rows, vocabulary].
    """
    rows = len(text)
    gradient = torch.empty_like(logits)
    total = 0.0
    for start in range(0, rows, BLOCK):
        block = slice(start, start + BLOCK)
        z, ids, p = logits[block].float(), text[block, None], teacher[block].float()
        partition = z.logsumexp(-1)
        q = (z - partition[:, None]).exp_()
        distance = q - p
        side = distance.sign()
        total += weights.kl * (partition - torch.linalg.vecdot(p, z)).sum().item()
        total += weights.ce * (partition - z.gather(1, ids)[:, 0]).sum().item()
        total += weights.tv * 0.5 * torch.linalg.vecdot(distance, side).sum().item()
        # d TV / d z = q (s - <q, s>) / 2 with s = sign(q - p).
        side.sub_(torch.linalg.vecdot(q, side)[:, None]).mul_(0.5 * weights.tv).add_(weights.ce)
        distance.mul_(weights.kl).addcmul_(q, side)
        distance.scatter_add_(1, ids, distance.new_full((1, 1), -weights.ce).expand_as(ids))
        gradient[block] = distance.div_(rows)
    return total / rows, gradient
