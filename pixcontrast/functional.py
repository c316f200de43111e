"""The loss as a pure function of anchors and contrast entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._distributed import Ranks
from pixcontrast._dtypes import product_dtype, without_autocast
from pixcontrast._equation.backends import Backend, check_triton_imports, choose
from pixcontrast._equation.forms import Shards, run_form
from pixcontrast._equation.problem import (
    Denominator,
    Piece,
    Problem,
    compute_dtype,
    numbered,
)
from pixcontrast._equation.reduction import Reduction, reduce_losses
from pixcontrast._labels import mark_ignored
from pixcontrast.mining import HardNegativeSampler

__all__ = ["info_nce"]

BACKENDS = ("dense", "tiled", "triton", "auto")
DENOMINATORS = ("negatives", "all")
REDUCTIONS = ("mean", "sum", "none")

Contrast = Tensor | Sequence[Tensor | None] | None


def info_nce(
    anchors: Tensor,
    anchor_labels: Tensor,
    contrast: Contrast = None,
    contrast_labels: Contrast = None,
    *,
    temperature: float = 0.1,
    denominator: Denominator = "negatives",
    weight: Tensor | None = None,
    mining: HardNegativeSampler | None = None,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = 255,
    backend: Backend = "auto",
) -> Tensor:
    r"""Supervised InfoNCE of anchors against contrast entries.

    For anchor i, with s_ij = <a_i, k_j> / τ, P_i the entries of its label (but for itself) and
    N_i the entries of other labels:

    .. math::

        L_i = \frac{1}{|P_i|} \sum_{p \in P_i} \log\left(1 + e^{Z_i - s_{ip}}\right),
        \qquad Z_i = \log \sum_{n \in N_i} e^{s_{in}}

    which is equation 3 of Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic
    Segmentation" (ICCV 2021): each positive's denominator is itself plus all negatives. With
    `denominator="all"` it is the loss of Khosla et al., "Supervised Contrastive Learning"
    (NeurIPS 2020): Z_i sums over everything but i, and L_i = Z_i − mean over P_i of s_ip.

    Entries whose label is `ignore_index` or negative are in neither set, as anchors or as
    contrast. An anchor with no positive is left out. An anchor with no negative has the loss 0
    under `"negatives"`, and counts. With no anchor left the loss is 0 and its gradients zeros.

    The same value, for two tensors without ignored labels, in plain PyTorch::

        s = anchors @ contrast.T / temperature
        same = anchor_labels[:, None] == contrast_labels[None, :]
        z = s.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
        losses = (torch.nn.functional.softplus(z - s) * same).sum(1) / same.sum(1)
        loss = losses[same.any(1)].mean()

    Args:
        anchors: (M, D) float32, bfloat16, float16, or float64 (not on triton). Taken as they
            are: normalise them first. M may be 0.
        anchor_labels: (M,) integer.
        contrast: (N, D), or a sequence of such tensors, which are never concatenated (a bank is
            not copied). None inside the sequence stands for the anchors themselves, each but
            for itself; `contrast=None` is the same as `(None,)`.
        contrast_labels: (N,) integer, or a sequence of such tensors and None to match.
        temperature: τ, above 0.
        denominator: `"negatives"` or `"all"`.
        weight: (M,) weights of at least 0, without gradient. The mean is then
            Σ w_i L_i / Σ w_i over the anchors with positives, and 0 where Σ w_i is 0.
        mining: which entries count per anchor; None: all.
        generator: the source of randomness of `mining`, on the tensors' device.
        reduction: `"mean"`, `"sum"`, or `"none"`: (M,), 0 where an anchor has no positive.
        ignore_index: the label that takes no part.
        backend: `"dense"`, the textbook formula, which makes M×N matrices; `"tiled"`, pure
            PyTorch in memory O(M·D + N + one tile); `"triton"`, fused kernels for CUDA devices
            of compute capability 8.0 or newer and D up to 512 (or, interpreted, for the CPU
            under `TRITON_INTERPRET=1`); `"auto"`, triton on CUDA where it can run, else tiled.
            Where Triton is missing or broken on a device that it should run on, `"auto"` warns
            once. All give the same loss and gradients. A second derivative and the transforms
            of `torch.func` need `"dense"`.

    Returns:
        The loss, () or, with `reduction="none"`, (M,); float64 for float64 anchors, else
        float32. Similarities and sums are held in that dtype too; products are made in the
        anchors' dtype (inside autocast, in autocast's), where operands saturate at the largest
        number. A similarity beyond a quarter of its dtype's largest number saturates there; no
        product of two components may overflow. Gradients reach the anchors and every contrast
        tensor that requires one, in their own dtypes.

    Raises:
        TypeError, ValueError: for an argument of the wrong type, shape, device or range; the
            message names it.
        ValueError: for `backend="triton"` with float64 anchors, or D above 512.
        RuntimeError: for `backend="triton"` where it cannot run: on another device, or without
            a Triton that works; the message says why. `"auto"` never raises for this.

    Example:
        >>> import torch
        >>> from pixcontrast.functional import info_nce
        >>> anchors = torch.eye(4, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> loss = info_nce(anchors, labels, temperature=1.0)
        >>> loss.backward()
        >>> print(f"{loss.item():.4f}")  # log(1 + 2 exp(0)): one positive, two negatives
        1.0986
    """
    return info_nce_of(
        anchors,
        anchor_labels,
        contrast,
        contrast_labels,
        temperature=temperature,
        denominator=denominator,
        weight=weight,
        mining=mining,
        generator=generator,
        reduction=reduction,
        ignore_index=ignore_index,
        backend=backend,
    ).loss


class Result(NamedTuple):
    """What a call of `info_nce_of` gives back.

    Attributes:
        loss: as `info_nce` returns it.
        has_positive: (M,) bool.
        held: () int64, how many entries the shards of all ranks hold; None without shards.
    """

    loss: Tensor
    has_positive: Tensor
    held: Tensor | None = None


def info_nce_of(
    anchors: Tensor,
    anchor_labels: Tensor,
    contrast: Contrast,
    contrast_labels: Contrast,
    *,
    temperature: float,
    denominator: Denominator,
    weight: Tensor | None,
    mining: HardNegativeSampler | None,
    generator: torch.Generator | None,
    reduction: Reduction,
    ignore_index: int,
    backend: Backend,
    unit_length: bool = False,
    ranks: Ranks | None = None,
    shards: Shards | None = None,
) -> Result:
    """`info_nce` for the losses, which know more than their users say.

    With `unit_length` all vectors are of unit length, or zeros: a kernel that may not look at
    values then knows how large a similarity can be. With `ranks` the reduction is over the anchors
    of all of them. With `shards` there are as many anchors on every rank, and their entries count
    too.
    """
    pieces = _check_and_split(
        anchors, anchor_labels, contrast, contrast_labels, ignore_index=ignore_index
    )
    check.check_temperature("temperature", temperature)
    check.check_choice("denominator", denominator, DENOMINATORS)
    check.check_choice("reduction", reduction, REDUCTIONS)
    check.check_instance("mining", mining, HardNegativeSampler)
    check.check_generator(generator, anchors.device)
    if weight is not None:
        check.check_anchor_weight("weight", weight, anchors)
    check.check_choice("backend", backend, BACKENDS)
    form = choose(backend, anchors)
    if backend == "triton" and mining is not None and shards is not None:
        raise ValueError(
            'backend: expected "auto", "tiled" or "dense" for mining over a sharded bank, which '
            'the kernels cannot do; got "triton"'
        )

    problem = Problem(
        anchors=anchors,
        labels=mark_ignored(anchor_labels, ignore_index),
        pieces=pieces,
        temperature=float(temperature),
        denominator=denominator,
        mining=mining,
        seed=None if mining is None else mining.draw_seed(anchors.device, generator),
        product_dtype=product_dtype(anchors),
        compute_dtype=compute_dtype(anchors),
        unit_length=unit_length,
    )
    with without_autocast(anchors.device):
        losses, has_positive, held = run_form(form, problem, shards)
        loss = reduce_losses(losses, has_positive, weight, reduction, ranks)
        return Result(loss, has_positive, held)


def check_backend(backend: object) -> None:
    """Whether this backend exists and, as far as can be told before there are anchors, can run."""
    check.check_choice("backend", backend, BACKENDS)
    if backend == "triton":
        check_triton_imports()


def _check_and_split(
    anchors: Tensor,
    anchor_labels: Tensor,
    contrast: Contrast,
    contrast_labels: Contrast,
    *,
    ignore_index: int,
) -> tuple[Piece, ...]:
    check.check_vectors("anchors", anchors)
    check.check_vector_labels("anchor_labels", anchor_labels, "anchors", anchors)
    check.check_ignore_index(ignore_index)
    found: list[tuple[Tensor, Tensor, bool]] = []
    for name, entries, labels in _paired(contrast, contrast_labels):
        is_anchors = entries is None
        if entries is None:
            if labels is not None:
                raise ValueError(
                    f"{name.replace('contrast', 'contrast_labels', 1)}: expected None beside the "
                    f"anchors themselves ({name} is None), whose labels are anchor_labels; got "
                    f"labels"
                )
            entries, labels = anchors, anchor_labels
        else:
            check.check_vectors(name, entries)
            labels_name = name.replace("contrast", "contrast_labels", 1)
            check.check_vector_labels(labels_name, labels, name, entries)
            check.check_same_width(name, entries, "anchors", anchors)
            check.check_same_device(name, entries, "anchors", anchors)
        assert labels is not None  # check_vector_labels has seen them
        found.append((entries, mark_ignored(labels, ignore_index), is_anchors))
    return numbered(found)


def _paired(
    contrast: Contrast, contrast_labels: Contrast
) -> list[tuple[str, Tensor | None, Tensor | None]]:
    """Entries beside their labels, each with the name by which a message calls it."""
    if contrast is None or isinstance(contrast, Tensor):
        if not (contrast_labels is None or isinstance(contrast_labels, Tensor)):
            raise TypeError(
                f"contrast_labels: expected one tensor or None, as contrast is; got a "
                f"{type(contrast_labels).__name__}"
            )
        return [("contrast", contrast, contrast_labels)]
    if not isinstance(contrast, Sequence):
        raise TypeError(
            f"contrast: expected a tensor, a sequence of tensors and None, or None; got "
            f"{type(contrast).__name__}"
        )
    if contrast_labels is None and all(entries is None for entries in contrast):
        contrast_labels = [None] * len(contrast)
    if not isinstance(contrast_labels, Sequence):
        kind = "None" if contrast_labels is None else f"a {type(contrast_labels).__name__}"
        raise TypeError(
            f"contrast_labels: expected a sequence of {len(contrast)} tensors and None, to match "
            f"contrast; got {kind}"
        )
    if len(contrast_labels) != len(contrast):
        raise ValueError(
            f"contrast_labels: expected {len(contrast)} elements, as many as contrast; got "
            f"{len(contrast_labels)}"
        )
    return [
        (f"contrast[{number}]", entries, labels)
        for number, (entries, labels) in enumerate(zip(contrast, contrast_labels, strict=True))
    ]
