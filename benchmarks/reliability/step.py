"""The call of a loss, and its answer, as the judge reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from benchmarks.reliability.calls import Call
from benchmarks.reliability.options import EVERYTHING
from benchmarks.reliability.perform import Answer, copy_of, plain
from benchmarks.reliability.plain import (
    directions,
    expect,
    flat,
    pixels_of,
    rounding_of,
    same_bits,
)
from pixcontrast import AnchorSample, ProjectionHead, RegionContrastLoss

LARGEST_FEATURE = 1e15
"""A float32 holds the sum of the squares of such features."""


class Step:
    """The call of a loss on one rank, and its answer, as flat plain tensors.

    Attributes:
        options: the loss's, with all defaults filled in.
        labels, preds: (B, P) at the resolution of the embedding; `preds` may be None.
        weight: (K,) of the anchors, or None.
        sample: the anchors' indices and labels.
        head: the layers of the projection in float64 and eval mode, or None.
        pixels: (B, P, D) embeddings in float64, of any length.
        normalize: whether the anchors have unit length.
        off: allowed error of a component of a unit vector; infinite if it is not known.
        vectors: (K, D) sampled pixels of `pixels`; zeros for padding.
        images: (K,) the image of each sampled pixel.
        updates: whether the call updates the bank.
        draw: state of the generator when a negative sampler draws; None if it is not comparable.
    """

    def __init__(self, call: Call, answer: Answer, ranks: int) -> None:
        given, self.options = call.given["call"], answer["options"]
        self.ignore = int(self.options["ignore_index"])
        tau, base = (self.options[name] for name in ("temperature", "base_temperature"))
        self.factor = float(tau) / float(base or tau)
        self.emb = plain(given["emb"])
        self.normalize = self.options["normalize"] or answer["head"] is not None
        norm = call.given["head"]["norm"] if "head" in call.given else None
        self._project(answer["head"], norm == "batch" and call.training)
        self.labels = flat(plain(given["labels"]).to(torch.int64), self.emb)
        self.preds = None
        if given["preds"] is not None:
            preds = plain(given["preds"])
            if preds.is_floating_point():
                preds = preds.argmax(dim=1) if preds.numel() else preds[:, 0]
            self.preds = flat(preds.to(torch.int64), self.emb)
        self.loss, self.anchors, self.gradient = (
            answer[name] for name in ("loss", "anchors", "gradient")
        )
        self.sample = AnchorSample(answer["indices"], answer["labels"])
        self.weight = None
        if given["weight"] is not None:
            weight = flat(plain(given["weight"]).double(), self.emb)
            self.labels = self.labels.masked_fill(weight == 0, self.ignore)
            self.weight = weight.flatten()[self.sample.indices]
        self.is_anchor = self.sample.labels != self.ignore
        self.images = self.sample.indices // max(1, self.labels.shape[1])
        vectors = self.pixels.flatten(0, 1)[self.sample.indices]
        self.vectors = torch.where(self.is_anchor[:, None], vectors, 0.0)
        # A gradient of 0 through a head is NaN where features are not finite, and a batch statistic
        # is infinite if their square is.
        used = self.vectors if self.head is None else self.pixels
        self.is_finite = bool(torch.isfinite(used).all())
        if self.head is not None and self.off == math.inf:
            largest = min(LARGEST_FEATURE, math.sqrt(torch.finfo(self.emb.dtype).max))
            self.is_finite &= bool((self.emb.double().abs() <= largest).all())
        self.bank: Mapping[str, Tensor] = answer["before"]
        self.bank_after: Mapping[str, Tensor] = answer["after"]
        self.updates = call.training and self.options["update_bank"]
        self.regions_of = call.given.get("bank", {}).get("pixels_per_region") or EVERYTHING
        self.of_regions = issubclass(call.function, RegionContrastLoss)  # type: ignore[arg-type]
        self.draw: Tensor | None = self._draw_again(answer["draw"])
        mining = self.options["negative_sampler"]
        # Ranks number pairs differently from one process, and so do the equations of several
        # images: random selections are not compared.
        several = ranks > 1 or "image" in self.options["contrast_with"]
        if several and mining is not None and mining.strategy != "hardest":
            numbers = (mining.num_negatives, mining.num_positives)
            if not all(number in (None, EVERYTHING) for number in numbers):
                self.draw = None

    def _draw_again(self, state: Tensor) -> Tensor:
        """Sample again from the same state; returns the state that is left."""
        draw, labels = copy_of(state), torch.where(self.labels < 0, self.ignore, self.labels)
        sampler = self.options["anchor_sampler"]
        again = sampler(labels, self.preds, ignore_index=self.ignore, generator=draw)
        same = same_bits(again._asdict(), self.sample._asdict())
        expect(same, "from the same state another sample is drawn")
        return draw.get_state()

    def _project(self, head: ProjectionHead | None, batch_statistics: bool) -> None:
        """Compute the embeddings of all pixels, in float64 and in the head's own dtype.

        Batch statistics depend on the rows of a call, which are not repeated here.
        """
        features = pixels_of(self.emb)
        self.head: nn.Module | None = None
        self.pixels, self.off = features, 0.0
        if head is None:
            return
        self.head = deepcopy(head).double().layers
        rows = features.flatten(0, 1)
        with torch.no_grad():
            embeddings, own = self.head(rows), head(rows.to(self.emb.dtype)).double()
        embeddings = embeddings.masked_fill(~torch.isfinite(own), torch.nan)
        self.pixels = embeddings.view(*features.shape[:2], embeddings.shape[1])
        unit, usable = directions(embeddings)
        off = (own - unit)[usable].abs()
        # The same rounding errors, in another order of operations.
        self.off = 8 * float(off.max()) if off.numel() else 0.0
        self.off += 8 * (features.shape[2] + 8) * rounding_of(self.emb.dtype)
        if batch_statistics or not self.off < math.inf:
            self.off = math.inf
