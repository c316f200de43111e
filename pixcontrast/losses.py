"""The losses."""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._bank.new_entries import NewEntries
from pixcontrast._loss.base import ContrastLoss
from pixcontrast._loss.batch import Batch
from pixcontrast._loss.gather import Labelled
from pixcontrast._pixels.regions import classes_by_image, region_means
from pixcontrast._tensors import IGNORED

MAX_CLASSES_PER_IMAGE = 256
"""Number of regions per image without a bank: shapes must not depend on the labels."""


class PixelContrastLoss(ContrastLoss):
    """The pixel-to-pixel contrastive loss of Wang et al., ICCV 2021.

    Pixels of the same class attract each other, and pixels of different classes repel each other,
    across the images of the batch and, with a bank, across earlier batches. The loss of one anchor
    is equation 3 of the paper; see `pixcontrast.functional.info_nce`.

    Args:
        temperature (float): softmax temperature τ, must be positive. Default: 0.1.
        base_temperature (float, optional): if given, multiply the loss by
            temperature / base_temperature. Must be positive; the authors use 0.07. Default: None,
            no factor.
        ignore_index (int): label of ignored pixels. Negative labels are ignored too. Default: 255.
        anchor_sampler (callable, optional): selects the anchors: a `HardAnchorSampler`, a
            `RandomAnchorSampler`, or any object with the same call signature. Default: None, which
            is `HardAnchorSampler()`.
        negative_sampler (HardNegativeSampler, optional): selects the contrast entries of each
            anchor. Default: None, all entries.
        bank (MemoryBank, optional): memory of earlier batches. It becomes a submodule.
            Default: None.
        contrast_with (sequence of str, optional): the contrast entries, out of `"batch"` (the
            sampled anchors, except the anchor itself, with gradient on both sides), `"image"`
            (those of them in the anchor's own image, the paper's intra-image contrast; not together
            with `"batch"`, nor with points), `"pixels"` and `"regions"` (the two queues of the
            bank). `("pixels", "regions")` is the authors' memory variant. Default: None, which is
            `("batch",)` without a bank, and `"batch"` and all queues with one.
        projection (Module, optional): module that maps rows (n, C) to embeddings (n, D), for
            example a `ProjectionHead`. `emb` is then a feature map with C channels: pixels are
            sampled first, and only they are projected, which takes a small part of the time and
            memory of projecting the map. The module becomes a submodule of the loss, so its
            parameters are in `loss.parameters()`. All sampled pixels of a call (anchors, and those
            that the bank stores, detached) are projected in one call of the module; batch
            statistics are those of these pixels. Regions of all pixels (a bank with
            `pixels_per_region=None`, and the regions of `RegionContrastLoss`) are projected a chunk
            at a time, in eval mode and without a gradient. For a module without batch statistics,
            loss, gradients and bank are those of `loss(projection(emb))`. Default: None, `emb` has
            the embeddings.
        denominator (str): `"negatives"` (the paper's) or `"all"` (as in SupCon); see `info_nce`.
            Default: `"negatives"`.
        normalize (bool): if True, scale embeddings to unit length first. A zero vector stays zero,
            with zero gradient. Default: True.
        reduction (str): `"mean"`, `"sum"` or `"none"`. With `"none"`, the loss has shape (K,), in
            the order of the sampler. Default: `"mean"`.
        update_bank (bool): if True, store each batch in the bank after the loss is computed, in
            training mode and grad mode. Default: True.
        gather (bool): if True, under `torch.distributed`, `"batch"` also contains the entries of
            the other ranks, with gradient through the gather. Rank r then returns W·S_r/n, where
            S_r is its Σ w_i L_i and n is Σ w_i of all ranks (with `"sum"`: W·S_r). The mean over
            ranks of loss and gradient, which DistributedDataParallel computes, is then that of one
            rank with all anchors, also if ranks have different numbers of anchors or none. Every
            rank must call the loss, in eval mode too. Not supported with `reduction="none"`.
            Default: False.
        process_group (ProcessGroup, optional): the ranks to gather from. Default: None, the whole
            world.
        validate (bool): if True, check labels against the bank's classes on a GPU too, which makes
            the host wait. Default: False.
        backend (str): implementation of `info_nce`: `"dense"`, `"tiled"`, `"triton"` or `"auto"`.
            Default: `"auto"`.

    Call:
        `loss(emb, labels, preds=None, *, weight=None, generator=None, return_anchors=False)`

        - emb (Tensor): floating point embeddings, shape (B, D, *S) with 1 to 3 spatial dimensions,
          or points of shape (N, D). With `projection`, features (B, C, *S) or (N, C).
        - labels (Tensor): integer labels, shape (B, *S_any), resized to S as PyTorch's
          `mode="nearest"` does, or (N,).
        - preds (Tensor, optional): predicted classes, shape (B, *S_any) or (N,), or logits of at
          least 2 classes, shape (B, C, *S_any) or (N, C), resized in the same way. Default: None,
          every pixel counts as correctly predicted.
        - weight (Tensor, optional): weight of each pixel, at least 0, shape (B, *S_any), resized in
          the same way, or (N,). A pixel of weight 0 is ignored. Default: None, equal weights.
        - generator (torch.Generator, optional): source of all randomness, on the device of `emb`.
          Default: None, the default generator.
        - return_anchors (bool): if True, return `(loss, AnchorSample)`. Default: False.

    Returns:
        The loss, float32 (float64 for float64 embeddings). It is 0, connected to the graph, if no
        anchor has a positive.

    Attributes:
        stats (Stats, optional): statistics of the last call, or None before the first: a named
            tuple of tensors of one number, int64 counts and float32 fractions and means, on the
            device of the loss. Each access launches about sixty small operations on data kept from
            the call, so access it only when you log; the host waits only when a number is read.
            After the replay of a captured CUDA graph, the statistics are those of the replay.
            Without a bank, groups and similarities only include classes below 256. Fields:
            `anchors`, the number of anchors with a positive, over which the mean is;
            `entries`, the number of contrast entries that are not ignored, before any selection by
            a `negative_sampler`; `classes`, the number of classes with an anchor;
            `groups`, the number of groups in the batch (a group is the pixels of one class in one
            image), and `groups_skipped`, those without an anchor: too small, or too many groups;
            `hard_share`, the fraction of sampled pixels that are mispredicted, in [0, 1];
            `positive_similarity` and `negative_similarity`, the mean cosine similarity of two
            sampled pixels of the same class and of different classes, in [−1, 1], 0 without such a
            pair; and `bank_occupancy`, the fraction of written bank slots after the call, in
            [0, 1], 0 without a bank (of this rank's shard, if sharded).

    Raises:
        ValueError, TypeError: if an option or argument is invalid. The message names it. With a
            bank, labels of its `num_classes` or more raise on the CPU; on a GPU such pixels are
            ignored, unless `validate=True`. Labels above 16,777,215, the largest that the samplers
            support, raise on the CPU and are ignored on a GPU.
        RuntimeError: if the bank would be updated during a backward pass (call the loss outside of
            checkpointed regions); if a loss with a bank is called by a replica of nn.DataParallel;
            if `backend="triton"` cannot run; if ranks that gather are in different calls.

    Example:
        >>> import torch
        >>> from pixcontrast import HardAnchorSampler, MemoryBank, PixelContrastLoss, ProjectionHead
        >>> loss = PixelContrastLoss(
        ...     projection=ProjectionHead(32, 16),
        ...     anchor_sampler=HardAnchorSampler(max_anchors=64, max_views=8),
        ...     bank=MemoryBank(3, 16, pixel_slots=50, region_slots=50, pixels_per_region=20),
        ... )
        >>> features = torch.randn(2, 32, 12, 12, requires_grad=True)
        >>> labels = torch.randint(0, 3, (2, 48, 48))
        >>> logits = torch.randn(2, 3, 24, 24)
        >>> loss(features, labels, logits).backward()
        >>> features.grad.shape
        torch.Size([2, 32, 12, 12])
        >>> loss.stats.groups, loss.stats.anchors  # 3 classes in 2 images, 8 pixels of each
        (tensor(6), tensor(48))
    """

    contrast_choices = ("batch", "image", "pixels", "regions")


class RegionContrastLoss(ContrastLoss):
    """The pixel-to-region contrastive loss of Wang et al., ICCV 2021, section 3.2.

    Anchors are contrasted with regions: the unit-length mean of the unit-length embeddings of one
    class in one image. Options, call, result and errors are those of `PixelContrastLoss`, except:

    Args:
        contrast_with (sequence of str, optional): the contrast entries, out of `"batch"` (the
            regions of this batch, one for each image and class, detached; the anchor's own pixel is
            part of its region) and `"regions"` (the bank's). Without a bank, an image has the
            regions of its 256 lowest labels. If the bank has `pixels_per_region` and a region
            queue, a region of this batch is the mean of as many random pixels, as in the bank.
            Default: None, which is `("batch",)` without a bank, and both with one.

    Example:
        >>> import torch
        >>> from pixcontrast import RegionContrastLoss
        >>> emb = torch.randn(2, 16, 12, 12, requires_grad=True)
        >>> labels = torch.randint(0, 3, (2, 12, 12))
        >>> RegionContrastLoss()(emb, labels).backward()
    """

    contrast_choices = ("batch", "regions")

    def _contrasts_drawn_regions(self) -> bool:
        bank = self.bank
        if bank is None or "batch" not in self.contrast_with:
            return False
        return bank.region_slots > 0 and bank.pixels_per_region is not None

    def _batch_entries(self, batch: Batch, new_entries: NewEntries | None) -> Labelled:
        labels = batch.labels
        if self.bank is None:
            num_slots = min(labels.shape[1], MAX_CLASSES_PER_IMAGE)
            slots, labels_of_slots = classes_by_image(labels, num_slots)
        else:
            num_slots, slots = self.bank.num_classes, labels
            labels_of_slots = torch.arange(num_slots, device=labels.device)[None]
        if new_entries is not None and new_entries.regions is not None:
            means, present = (tensor[:, :, 0] for tensor in new_entries.regions)
        else:
            features, embed = batch.features.detach(), batch.embed_chunk()
            means, present, _ = region_means(features, slots, num_slots, embed)
        region_labels: Tensor = torch.where(present, labels_of_slots, IGNORED)
        return Labelled(means.flatten(0, 1).to(batch.features.dtype), region_labels.flatten())
