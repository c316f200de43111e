"""How far products in TF32 may be from exact ones: bounds on the loss and its gradients.

A matrix unit that multiplies in TF32 reads 10 of the 23 stored bits of a float32's mantissa. Triton
hands it float32 numbers unchanged, so the other 13 bits are cut off. Let t = 2⁻¹⁰. Truncation turns
x into x·(1 − e) with 0 ≤ e < t; rounding to the nearest turns it into x·(1 + e) with |e| ≤ t/2.
What follows holds for both. Sums are in float32; their error comes on top.

Let r be the relative error of the vectors: t, or 0 where TF32 represents them exactly.

1. Similarities. Each product a_d·k_d is off by at most 2r of itself, so
   |Δs_ij| ≤ δ_ij = 2r Σ_d |a_id·k_jd| / τ. Let δ_i be the largest δ_ij of a row.
2. Z_i is a log-sum-exp of similarities, each off by at most δ_i: |ΔZ_i| ≤ δ_i.
3. The loss. L_i is a mean of softplus(Z_i − s_ip), or Z_i less a mean of s_ip. Both have slopes of
   at most 1: |ΔL_i| ≤ |ΔZ_i| + max_p |Δs_ip| ≤ 2δ_i.
4. Coefficients. ∂L_i/∂s_ij = pushed_ij − pulled_ij. Each part is a product of at most a probability
   exp(s − Z) and a sigmoid of Z − s. Both exponents are off by at most 2δ_i, and neither function
   changes by more than the exponential does, so each part changes by a factor within e^(±4δ_i).
5. Gradients. ∂L_i/∂a_i = Σ_j (pushed_ij − pulled_ij)·k_j / τ is a product in TF32 too. It reads the
   coefficients with an error of t and the vectors with an error of r, so each term is off by at
   most f_i = e^(4δ_i)·(1 + t)·(1 + r) − 1 of pushed_ij·k_j and of pulled_ij·k_j:
   |Δ∂L_i/∂a_id| ≤ f_i Σ_j (pushed_ij + pulled_ij)·|k_jd| / τ. The gradient of an entry is the sum
   over the anchors in place of the entries, and has the same bound, with f_i inside the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IGNORE = 255
CUT = 2.0**-10
"""t: the largest relative error of a truncated operand."""
KEPT = -(1 << 13)
"""Mask of the bits of a float32 that TF32 has."""


def truncated(values: Tensor) -> Tensor:
    """float32 values as a matrix unit reads them: without the last 13 bits."""
    return (values.view(torch.int32) & KEPT).view(torch.float32)


def rounded(values: Tensor) -> Tensor:
    """The nearest values that TF32 represents, ties away from zero."""
    return ((values.view(torch.int32) + (1 << 12)) & KEPT).view(torch.float32)


def representable(arguments: Any) -> Any:
    """The same arguments, with float32 vectors that TF32 represents exactly."""
    if isinstance(arguments, (list, tuple)):
        return type(arguments)(representable(part) for part in arguments)
    is_vectors = isinstance(arguments, Tensor) and arguments.dtype == torch.float32
    return rounded(arguments) if is_vectors else arguments


def tf32_bounds(
    arguments: Sequence[Any],
    upstream: Tensor,
    *,
    exact_vectors: bool,
    denominator: str = "negatives",
    temperature: float = 0.1,
) -> list[Tensor]:
    """Bounds in float64, in the order of `loss_and_gradients`, for one upstream factor an anchor.

    Args:
        arguments: anchors, their labels, contrast and its labels, as `info_nce` takes them.
        upstream: (M,) the gradient of each anchor's loss.
        exact_vectors: whether TF32 represents the vectors exactly.
        denominator, temperature: as in `info_nce`.

    Returns:
        A bound on the error of each element: of the losses (M,), of the anchors' gradient, and of
        the gradients of the contrast tensors.
    """
    anchors, labels, *contrast = arguments
    pieces, piece_labels = (
        list(part) if isinstance(part, (list, tuple)) else [part] for part in contrast
    )
    vectors = [anchors if piece is None else piece for piece in pieces]
    entries = torch.cat([piece.double() for piece in vectors])
    entry_labels = torch.cat([labels if part is None else part for part in piece_labels])
    is_self = torch.cat([_self_columns(piece, anchors) for piece in pieces], dim=1)
    anchors = anchors.double()

    pushed, pulled = coefficients(
        anchors @ entries.T / temperature, labels, entry_labels, is_self, denominator
    )
    relative = 0.0 if exact_vectors else CUT
    largest = (anchors.abs() @ entries.abs().T).amax(dim=1) * (2 * relative / temperature)
    factor = torch.exp(4 * largest) * ((1 + CUT) * (1 + relative)) - 1
    weight = (pushed + pulled) * (factor * upstream.double().abs() / temperature)[:, None]
    by_anchor = weight @ entries.abs()
    by_entry = (weight.T @ anchors.abs()).split([len(piece) for piece in vectors])
    by_piece = []
    for piece, bound in zip(pieces, by_entry, strict=True):
        if piece is None:
            by_anchor = by_anchor + bound
        else:
            by_piece.append(bound)
    return [2 * largest, by_anchor, *by_piece]


def coefficients(
    logits: Tensor, labels: Tensor, entry_labels: Tensor, is_self: Tensor, denominator: str
) -> tuple[Tensor, Tensor]:
    """Both parts of ∂L_i/∂s_ij, (M, N) each and not negative: it is `pushed - pulled`."""
    present = _is_valid(labels)[:, None] & _is_valid(entry_labels)[None, :]
    same = labels[:, None] == entry_labels[None, :]
    positive, negative = present & same & ~is_self, present & ~same
    count = positive.sum(dim=1, keepdim=True)
    share = positive / count.clamp(min=1)
    if denominator == "negatives":
        z = logits.masked_fill(~negative, -math.inf).logsumexp(dim=1, keepdim=True)
        pulled = share * torch.sigmoid(z - logits)
        pushed = pulled.sum(dim=1, keepdim=True) * torch.exp(logits - z)
        return torch.where(negative, pushed, 0.0), pulled
    among = positive | negative
    z = logits.masked_fill(~among, -math.inf).logsumexp(dim=1, keepdim=True)
    return torch.where(among & (count > 0), torch.exp(logits - z), 0.0), share


def _is_valid(labels: Tensor) -> Tensor:
    return (labels >= 0) & (labels != IGNORE)


def _self_columns(piece: Tensor | None, anchors: Tensor) -> Tensor:
    """(M, n) True where an entry is the anchor itself."""
    if piece is None:
        return torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    return torch.zeros(len(anchors), len(piece), dtype=torch.bool, device=anchors.device)
