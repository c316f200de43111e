"""The entries that a batch adds to a bank: regions and pixels of each class.

Which pixels are drawn depends on the labels alone, so that they can be drawn before they have an
embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, agree, gather, pad
from pixcontrast._pixels import groups, regions
from pixcontrast._pixels.take_pixels import take_pixels
from pixcontrast._tensors import at_least_float32, unit_length
from pixcontrast._triton import takes_kernels


class DrawnPixels(NamedTuple):
    """At most E pixels of each image and class, in random order. Each queue uses the first of them.

    The index of a pixel that does not exist is arbitrary.
    """

    indices: Tensor  # int64 flat index in [0, B·P), (B·C·E,)
    valid: Tensor  # whether the pixel exists, (B, C, E)
    regions: regions.Regions | None  # regions of all pixels, if the bank needs them


class NewEntries(NamedTuple):
    """New entries of each queue, or None if the bank does not have the queue or adds nothing.

    Each is a pair: unit vectors in at least float32, shape (B, C, E, D), and which of them are
    valid, shape (B, C, E).
    """

    pixels: tuple[Tensor, Tensor] | None
    regions: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class EntryMaker:
    """Makes the new entries of a bank, in no-grad mode. The number of a missing queue is 0."""

    classes: int  # number of classes C
    pixels: int  # largest number of pixels of each image and class that are stored
    region_pixels: int | None  # largest number of pixels whose mean is a region; None: all

    def draw_pixels(
        self,
        feature_map: Tensor,
        labels: Tensor,
        embed: regions.Embed | None,
        generator: torch.Generator | None,
    ) -> DrawnPixels:
        """Draw the pixels that both queues need, at random and without replacement.

        `embed` computes the embeddings of `feature_map` (B, C, *S); None: they are the features.
        Marked labels (B, P) are below `self.classes`.
        """
        feature_map = feature_map.detach()
        if labels.numel() == 0:  # images without a pixel add nothing
            feature_map, labels = feature_map[:0], labels[:0]
        of_all = usable = None
        if self.region_pixels is None:
            of_all = regions.region_means(feature_map, labels, self.classes, embed)
            usable = of_all.usable
        elif self.pixels and not self.region_pixels and embed is None:
            usable = regions.usable_pixels(feature_map)
        num_images = labels.shape[0] if labels.shape[1] > 0 else 0
        num_drawn = min(max(self.pixels, self.region_pixels or 0), labels.shape[1])
        shape = num_images, self.classes, num_drawn
        if num_images == 0 or num_drawn == 0:
            nothing = torch.zeros(shape, device=labels.device)
            return DrawnPixels(labels.new_empty(0), nothing.to(torch.bool), of_all)
        draw = groups.draw_integers(labels, groups.DRAW_BITS, generator).flatten()
        pixels = groups.sort_pixels(labels, self.classes, draw, groups.DRAW_BITS, usable=usable)
        indices, valid = pixels.take_first(num_drawn)
        return DrawnPixels(indices.flatten(), valid.view(shape), of_all)

    def entries_at(self, feature_map: Tensor, drawn: DrawnPixels) -> NewEntries:
        """Make the entries of both queues from a map (B, D, *S) of embeddings."""
        if takes_kernels(feature_map):
            from pixcontrast._pixels import row_kernels

            if row_kernels.supports(feature_map):
                given = feature_map, drawn.indices, drawn.valid.flatten()
                unit, usable = row_kernels.gather_usable_rows(*given)
                return self._entries(unit, usable, drawn)
        return self.entries_of(take_pixels(feature_map, drawn.indices), drawn)

    def entries_of(self, rows: Tensor, drawn: DrawnPixels) -> NewEntries:
        """Make the entries of both queues from the embeddings (B·C·E, D) of the drawn pixels.

        Pixels whose embedding is zero or not finite do not count.
        """
        unit = unit_length(rows.to(at_least_float32(rows)))
        usable = unit.abs().amax(dim=1) > 0  # False for NaN
        return self._entries(unit, drawn.valid.flatten() & usable, drawn)

    def _entries(self, unit: Tensor, usable: Tensor, drawn: DrawnPixels) -> NewEntries:
        """Make the entries from the unit vectors of the drawn pixels, and which of them count."""
        valid = usable.view(drawn.valid.shape)
        unit = unit.view(*valid.shape, unit.shape[1])
        new_pixels = new_regions = None
        if self.pixels:
            kept, of_kept = unit, valid
            if valid.shape[2] > self.pixels:
                # The first valid ones: some that were drawn may not count.
                first = (~valid).to(torch.uint8).argsort(dim=2, stable=True)[:, :, : self.pixels]
                kept, of_kept = unit.take_along_dim(first[..., None], 2), valid.gather(2, first)
            new_pixels = (kept, of_kept)
        if drawn.regions is not None:
            new_regions = (drawn.regions.means[:, :, None], drawn.regions.present[:, :, None])
        elif self.region_pixels:
            of_region = valid[:, :, : self.region_pixels, None]
            sums = torch.where(of_region, unit[:, :, : self.region_pixels], 0.0).sum(dim=2)
            means, present = regions.mean_directions(sums, of_region.sum(dim=(2, 3)))
            new_regions = (means[:, :, None], present[:, :, None])
        return NewEntries(new_pixels, new_regions)


def gather_entries(new: NewEntries, dtype: torch.dtype, ranks: Ranks, options: str) -> NewEntries:
    """Gather the new entries of all ranks in the bank's dtype, in rank order, in one message.

    Ranks with fewer images, or with fewer pixels per image, pad their entries. `options` are those
    of the bank, which must be the same on every rank.
    """
    queues = [queue for queue in new if queue is not None]
    sizes = agree(ranks, f"MemoryBank.update, {options}", list(queues[0][1].shape[::2]))
    max_images, max_pixels = (max(column) for column in zip(*sizes, strict=True))
    if max_images == 0:
        return NewEntries(None, None)
    tensors = [
        pad(tensor, max_images)
        for vectors, valid in queues
        for tensor in (vectors.to(dtype), valid)
    ]
    if new.pixels is not None:
        tensors[:2] = [pad(tensor, max_pixels, dim=2) for tensor in tensors[:2]]
    of_all = iter([tensor.flatten(0, 1) for tensor in gather(ranks, tensors)])
    return NewEntries(*(None if queue is None else (next(of_all), next(of_all)) for queue in new))
