"""The losses: which pixels are pulled together, and which are pushed apart."""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._contrast_loss import ContrastLoss
from pixcontrast._entries import BatchPiece
from pixcontrast._labels import IGNORED
from pixcontrast._regions import classes_by_image, region_means

# Without a bank the number of classes is not known, and shapes must not depend on labels.
MOST_CLASSES_OF_AN_IMAGE = 256


class PixelContrastLoss(ContrastLoss):
    """The pixel-to-pixel contrastive loss of Wang et al., ICCV 2021.

    Pixels of one class are pulled together and pushed from those of other classes, across the
    images of the batch and, with a bank, across those of earlier batches. The loss of one anchor
    is equation 3 of the paper, given at `pixcontrast.functional.info_nce`.

    Args:
        temperature: τ, above 0.
        base_temperature: multiplies the loss by τ/base_temperature (the authors use 0.07);
            None: no factor.
        ignore_index: the label of pixels that take no part.
        anchor_sampler: which pixels become anchors; None: `HardAnchorSampler()`. Any callable
            of the same signature will do.
        negative_sampler: which entries count per anchor; None: all of them.
        bank: the memory of earlier batches. It becomes a part of this module.
        contrast: what to contrast with, a tuple out of `"batch"` (the sampled anchors, each but
            for itself, with gradient on both sides), `"pixels"` and `"regions"` (the bank's two
            queues). None: `("batch",)` without a bank, all that there are with one.
            `("pixels", "regions")` is the authors' memory variant.
        denominator: `"negatives"` (the paper's) or `"all"` (SupCon's), see `info_nce`.
        normalize: give embeddings unit length first; a zero vector stays zero, with zero
            gradient.
        reduction: `"mean"`, `"sum"`, or `"none"`: (K,) in the sampler's order.
        update_bank: whether the bank takes in each batch, after the loss, in training mode
            and grad mode.
        gather: under `torch.distributed`, contrast with the entries that the other ranks' batches
            contribute too, with gradient through the gather. Rank r then returns W·S_r/n, with S_r
            its Σ w_i L_i and n the Σ w_i of all ranks (`"sum"`: W·S_r), so that the mean over ranks
            of loss and gradient, which DistributedDataParallel takes, is that of one rank with all
            anchors, also where ranks have unequal numbers or none. Every rank has to call the
            loss, in eval mode too. Not beside `reduction="none"`.
        process_group: the ranks to gather from; None: the whole world.
        validate: check labels against the bank's classes on a GPU too, at the price of a wait.
        backend: which form of `info_nce` to run.

    Call:
        `loss(emb, labels, preds=None, *, weight=None, generator=None, return_anchors=False)`

        - `emb`: (B, D, *S) floating, with 1 to 3 spatial dimensions, or (N, D) points.
        - `labels`: (B, *S_any) integer, resized to S as PyTorch's `mode="nearest"` does; or
          (N,). Those of `ignore_index`, or negative, take no part.
        - `preds`: (B, *S_any) predicted classes, or (B, C, *S_any) logits of at least 2 classes,
          resized likewise; or (N,), or (N, C). None: every pixel counts as correctly predicted.
        - `weight`: (B, *S_any), or (N,): a weight of at least 0 for each pixel, resized likewise.
        - `generator`: the source of all randomness, on emb's device; None: the default one.
        - `return_anchors`: also return the `AnchorSample`.

    Returns:
        The loss, float32 (float64 for float64 embeddings); with `return_anchors=True` the pair
        `(loss, AnchorSample)`. 0, connected to the graph, where no anchor has a positive.

    Attributes:
        stats: what the last call did, or None before the first: a named tuple of tensors of one
            number, which cost no wait until one is read. `anchors` and `entries` that took part,
            `groups` of the batch and `groups_skipped`, which gave no anchor, `hard_share` of the
            sampled pixels, `positive_similarity` and `negative_similarity`, the mean cosines of
            two sampled pixels of one class and of two, and `bank_occupancy`, the share of written
            slots after the call (of a bank in shards, of this rank's). Without a bank, groups and
            similarities are of classes below 256.

    Raises:
        ValueError, TypeError: for options or arguments that do not fit; the message names them.
            With a bank, labels of its `num_classes` or more raise on the CPU; on a GPU such
            pixels are ignored unless `validate=True`. Likewise labels above 16,777,215, for which
            the samplers have no room. Also for `backend="triton"` beside a `negative_sampler` and a
            bank in shards, over which the kernels cannot select.
        RuntimeError: where the bank would be updated during a backward pass: a loss belongs
            outside of checkpointed regions. Also for `backend="triton"` where it cannot run, and
            where ranks that gather are in different calls.

    Example:
        >>> import torch
        >>> from pixcontrast import HardAnchorSampler, MemoryBank, PixelContrastLoss
        >>> loss = PixelContrastLoss(
        ...     anchor_sampler=HardAnchorSampler(max_anchors=64, max_views=8),
        ...     bank=MemoryBank(3, 16, pixel_slots=50, region_slots=50),
        ... )
        >>> emb = torch.randn(2, 16, 12, 12, requires_grad=True)
        >>> labels = torch.randint(0, 3, (2, 48, 48))
        >>> logits = torch.randn(2, 3, 24, 24)
        >>> loss(emb, labels, logits).backward()
        >>> emb.grad.shape
        torch.Size([2, 16, 12, 12])
        >>> loss.stats.groups, loss.stats.anchors  # 3 classes of 2 images, 8 pixels of each
        (tensor(6), tensor(48))
    """

    contrast_choices = ("batch", "pixels", "regions")

    def _batch_piece(self, images: Tensor, labels: Tensor) -> BatchPiece:
        return BatchPiece()


class RegionContrastLoss(ContrastLoss):
    """The pixel-to-region contrastive loss of Wang et al., ICCV 2021, section 3.2.

    As `PixelContrastLoss`, but anchors are contrasted with regions: the unit-length mean of the
    unit-length embeddings of one class in one image. Options, call, result and errors are those
    of `PixelContrastLoss`, but for these:

    Args:
        contrast: a tuple out of `"batch"` (the regions of this batch, one for each image and
            class, detached; the anchor's own pixel is part of its region) and `"regions"` (the
            bank's). None: `("batch",)` without a bank, both with one. Without a bank the regions
            of an image are those of its 256 lowest labels.

    Example:
        >>> import torch
        >>> from pixcontrast import RegionContrastLoss
        >>> emb = torch.randn(2, 16, 12, 12, requires_grad=True)
        >>> labels = torch.randint(0, 3, (2, 12, 12))
        >>> RegionContrastLoss()(emb, labels).backward()
    """

    contrast_choices = ("batch", "regions")

    def _batch_piece(self, images: Tensor, labels: Tensor) -> BatchPiece:
        if self.bank is None:
            num_slots = min(labels.shape[1], MOST_CLASSES_OF_AN_IMAGE)
            slots, labels_of_slots = classes_by_image(labels, num_slots)
        else:
            num_slots, slots = self.bank.num_classes, labels
            labels_of_slots = torch.arange(num_slots, device=labels.device)[None]
        regions = region_means(images.detach(), slots, num_slots)
        region_labels = torch.where(regions.present, labels_of_slots, IGNORED)
        return BatchPiece(
            regions.means.flatten(0, 1).to(images.dtype),
            region_labels.flatten(),
            None if self.bank is None else regions,
        )
