"""The loss as a pure function of anchors and contrast entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._info_nce.dispatch import reduced_loss
from pixcontrast._info_nce.problem import Denominator, Problem
from pixcontrast._info_nce.reduction import Reduction
from pixcontrast._tensors import mark_ignored
from pixcontrast._triton import Backend, check_triton_imports, choose
from pixcontrast.samplers import HardNegativeSampler, draw_seed

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
    negative_sampler: HardNegativeSampler | None = None,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = 255,
    backend: Backend = "auto",
) -> Tensor:
    r"""Compute the supervised InfoNCE loss of anchors against contrast entries.

    For anchor i, let s_ij = <a_i, k_j> / τ, let P_i be the entries with the label of the anchor
    (the anchor itself excluded), and N_i the entries with other labels:

    .. math::

        L_i = \frac{1}{|P_i|} \sum_{p \in P_i} \log\left(1 + e^{Z_i - s_{ip}}\right),
        \qquad Z_i = \log \sum_{n \in N_i} e^{s_{in}}

    This is equation 3 of Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic
    Segmentation" (ICCV 2021): the denominator of each positive is the positive itself plus all
    negatives. With `denominator="all"` it is the loss of Khosla et al., "Supervised Contrastive
    Learning" (NeurIPS 2020): Z_i sums over all entries but i, and L_i = Z_i − mean_p s_ip.

    Anchors and entries whose label is `ignore_index` or negative are ignored. An anchor without a
    positive is left out of the mean. An anchor without a negative has loss 0 with `"negatives"`,
    and counts. If no anchor is left, the loss is 0 and its gradients are zeros.

    For two tensors without ignored labels, the loss is the same in plain PyTorch::

        s = anchors @ contrast.T / temperature
        same = anchor_labels[:, None] == contrast_labels[None, :]
        z = s.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
        losses = (torch.nn.functional.softplus(z - s) * same).sum(1) / same.sum(1)
        loss = losses[same.any(1)].mean()

    Args:
        anchors (Tensor): (M, D), M may be 0; float32, bfloat16, float16, or float64 (not with
            `backend="triton"`). The vectors are not normalised here.
        anchor_labels (Tensor): (M,), any integer dtype.
        contrast (Tensor or sequence of Tensor and None, optional): (N, D) contrast entries, or
            several such tensors, which are never concatenated (a bank is not copied). None in the
            sequence stands for the anchors, each of which excludes itself. Default: None, the same
            as `(None,)`.
        contrast_labels (Tensor or sequence of Tensor and None, optional): (N,) labels of any
            integer dtype, in the structure of `contrast`. Default: None.
        temperature (float): softmax temperature τ, must be positive. Default: 0.1.
        denominator (str): `"negatives"` or `"all"`, what Z_i sums over. Default: `"negatives"`.
        weight (Tensor, optional): (M,) weights w_i ≥ 0, without gradient. The mean is then
            Σ w_i L_i / Σ w_i over the anchors with positives, and 0 if Σ w_i is 0. Default: None,
            all weights 1.
        negative_sampler (HardNegativeSampler, optional): selects positives and negatives for each
            anchor. Default: None, all entries.
        generator (torch.Generator, optional): source of randomness of `negative_sampler`, on the
            device of the tensors. Default: None, the default generator.
        reduction (str): `"mean"`, `"sum"`, or `"none"`, which returns w_i L_i, 0 for an anchor
            without a positive. Default: `"mean"`.
        ignore_index (int): label of ignored anchors and entries. Default: 255.
        backend (str): the implementation; all have the same loss and gradients. `"dense"` is the
            textbook formula and stores M×N matrices. `"tiled"` is pure PyTorch in memory
            O(M·D + N + one tile). `"triton"` has fused kernels for CUDA devices of compute
            capability 8.0 or newer and D up to 512; under `TRITON_INTERPRET=1` they run on the CPU.
            `"auto"` uses triton on CUDA if it can run, else tiled; it warns once if Triton is
            missing or broken on a supported device. Second derivatives and the transforms of
            `torch.func` need `"dense"`. Default: `"auto"`.

    Returns:
        Tensor: the loss, (), or (M,) with `reduction="none"`; float64 for float64 anchors, else
        float32. Similarities and sums have the same dtype; products are computed in the anchors'
        dtype (inside autocast, in autocast's dtype), where operands saturate at the largest number.
        A similarity beyond a quarter of the largest number of its dtype saturates there; the
        product of two components must not overflow. Gradients reach the anchors and every contrast
        tensor that requires one, in their own dtypes.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, shape, device or range; the
            message names it.
        ValueError: if `backend="triton"` gets float64 anchors or D above 512.
        RuntimeError: if `backend="triton"` cannot run: on another device, or without a working
            Triton; the message says why. `"auto"` never raises for this reason.

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
    anchors = check.check_vectors("anchors", anchors)
    anchor_labels = check.check_vector_labels("anchor_labels", anchor_labels, "anchors", anchors)
    tensors = _check_contrast(anchors, contrast, contrast_labels)
    check.check_ignore_index(ignore_index)
    check.check_temperature("temperature", temperature)
    check.check_choice("denominator", denominator, DENOMINATORS)
    check.check_choice("reduction", reduction, REDUCTIONS)
    check.check_instance("negative_sampler", negative_sampler, HardNegativeSampler)
    check.check_generator(generator, anchors.device)
    if weight is not None:
        weight = check.check_anchor_weight("weight", weight, anchors)
    check.check_choice("backend", backend, BACKENDS)
    form = choose(backend, anchors)
    problem = Problem.of(
        anchors,
        mark_ignored(anchor_labels, ignore_index),
        [
            (entries, None if labels is None else mark_ignored(labels, ignore_index))
            for entries, labels in tensors
        ],
        form=form,
        temperature=float(temperature),
        denominator=denominator,
        negative_sampler=negative_sampler,
        seed=draw_seed(negative_sampler, anchors.device, generator),
    )
    return reduced_loss([problem], weight, reduction).loss


def check_backend(backend: object) -> None:
    """Raise if the backend does not exist or cannot run, as far as known without anchors."""
    check.check_choice("backend", backend, BACKENDS)
    if backend == "triton":
        check_triton_imports()


def _check_contrast(
    anchors: Tensor, contrast: Contrast, contrast_labels: Contrast
) -> list[tuple[Tensor | None, Tensor | None]]:
    """Check the contrast entries and their labels, and return the pairs of both."""
    checked: list[tuple[Tensor | None, Tensor | None]] = []
    for name, entries, labels in _pairs(contrast, contrast_labels):
        labels_name = name.replace("contrast", "contrast_labels", 1)
        if entries is not None:
            entries = check.check_vectors(name, entries)
            labels = check.check_vector_labels(labels_name, labels, name, entries)
            check.check_same_width(name, entries, "anchors", anchors)
            check.check_same_device(name, entries, "anchors", anchors)
        elif labels is not None:
            raise ValueError(
                f"{labels_name}: expected None beside the anchors themselves ({name} is None), "
                f"whose labels are anchor_labels; got labels"
            )
        checked.append((entries, labels))
    return checked


def _pairs(
    contrast: Contrast, contrast_labels: Contrast
) -> list[tuple[str, Tensor | None, Tensor | None]]:
    """Return (name for error messages, entries, labels) of each contrast tensor."""
    if contrast is None or isinstance(contrast, Tensor):
        if not (contrast_labels is None or isinstance(contrast_labels, Tensor)):
            raise TypeError(
                f"contrast_labels: expected one tensor or None, as contrast is; got a "
                f"{type(contrast_labels).__name__}"
            )
        return [("contrast", contrast, contrast_labels)]
    if not isinstance(contrast, Sequence) or isinstance(contrast, str):
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
        (f"contrast[{index}]", entries, labels)
        for index, (entries, labels) in enumerate(zip(contrast, contrast_labels, strict=True))
    ]
