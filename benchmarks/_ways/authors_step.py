"""One step of the authors' released code: their operations in their order, in our own words.

github.com/tfzhou/ContrastiveSeg, `loss_contrast.py` and `loss_contrast_mem.py` for anchors and
loss, `trainer_contrastive.py` for the queues. What that code gets wrong is wrong here too, where
it neither costs nor saves time; tests/losses/test_authors_defects.py says what. Here it runs on any
device, and the queues take labels at the stride of the embedding, in place of another pixel's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -1
"""The authors' label of pixels that belong to no class."""


@dataclass(frozen=True)
class Queues:
    """The authors' memory: (C, slots, D) unit vectors of both kinds, and (C,) where to write."""

    segments: Tensor
    pixels: Tensor
    segment_next: Tensor
    pixel_next: Tensor

    @classmethod
    def of(cls, segments: Tensor, pixels: Tensor) -> Queues:
        """Queues that hold copies of these vectors, the first slot being the oldest."""
        start = torch.zeros(len(segments), dtype=torch.int64, device=segments.device)
        return cls(segments.clone(), pixels.clone(), start, start.clone())


@dataclass(frozen=True)
class AuthorsStep:
    """The options of the released configuration, and the contrast part of a training step."""

    temperature: float = 0.1
    base_temperature: float = 0.07
    max_samples: int = 1024
    max_views: int = 100
    pixels_per_image: int = 10

    def loss(
        self, emb: Tensor, labels: Tensor, logits: Tensor, queues: Queues | None = None
    ) -> Tensor:
        """The loss of maps (B, D, h, w), labels (B, H, W) and logits (B, C, h, w)."""
        predicted = logits.max(dim=1).indices.flatten(1)
        resized = F.interpolate(labels[:, None].float(), size=emb.shape[2:], mode="nearest")
        pixels = emb.permute(0, 2, 3, 1).contiguous().flatten(1, 2)
        views, groups = self.sample(pixels, resized.long().flatten(1), predicted)
        if queues is None:
            return self.contrast(views, groups)
        queue = torch.cat((queues.segments, queues.pixels), dim=1)
        return self.contrast(views, groups, *queue_entries(queue))

    def sample(self, pixels: Tensor, labels: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """(G, V, D) anchors of G groups, V of each, and (G,) labels of (B, P, D) pixels.

        A group is a class of an image; one of `max_views` pixels or fewer is left out.
        """
        classes = [self._classes_to_take(of_image) for of_image in labels]
        num_groups = sum(len(of_image) for of_image in classes)
        num_views = min(self.max_samples // num_groups, self.max_views)
        views = pixels.new_zeros(num_groups, num_views, pixels.shape[2])
        groups = pixels.new_zeros(num_groups)
        place = 0
        for image, of_image in enumerate(classes):
            for label in of_image:
                is_class, is_right = labels[image] == label, predicted[image] == label
                hard = (is_class & ~is_right).nonzero()
                easy = (is_class & is_right).nonzero()
                num_hard, num_easy = _shares(len(hard), len(easy), num_views)
                hard = hard[torch.randperm(len(hard))[:num_hard].to(hard.device)]
                easy = easy[torch.randperm(len(easy))[:num_easy].to(easy.device)]
                # Each such read has a gradient of the size of the whole map.
                views[place] = pixels[image, torch.cat((hard, easy)), :].squeeze(1)
                groups[place] = label
                place += 1
        return views, groups

    def contrast(
        self,
        views: Tensor,
        groups: Tensor,
        entries: Tensor | None = None,
        entry_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of anchors against entries; None: against each other."""
        num_views = views.shape[1]
        anchors = torch.cat(views.unbind(dim=1))
        copies = 1
        if entries is None or entry_labels is None:
            entries, entry_labels, copies = anchors, groups, num_views
        same = (groups[:, None] == entry_labels[None, :]).float().repeat(num_views, copies)
        itself = torch.arange(len(anchors), device=anchors.device)[:, None]
        # Against a queue this leaves out an entry that is not the anchor: one of the defects.
        positive = same * torch.ones_like(same).scatter_(1, itself, 0)
        loss = authors_formula(anchors, entries, positive, 1 - same, self.temperature)
        return loss * (self.temperature / self.base_temperature)

    @torch.no_grad()
    def enqueue(self, emb: Tensor, labels: Tensor, queues: Queues) -> None:
        """Write what each image has of each class; class 0 never enters, as with the authors."""
        slots = queues.pixels.shape[1]
        stride = labels.shape[1] // emb.shape[2]
        for keys, key_labels in zip(emb, labels[:, ::stride, ::stride], strict=True):
            flat, flat_labels = keys.contiguous().flatten(1), key_labels.contiguous().flatten()
            for label in [found for found in torch.unique(flat_labels) if found > 0]:
                members = (flat_labels == label).nonzero()
                mean = flat[:, members].mean(dim=1).squeeze(1)
                place = int(queues.segment_next[label])
                queues.segments[label, place] = F.normalize(mean, dim=0)
                queues.segment_next[label] = (queues.segment_next[label] + 1) % slots

                count = min(len(members), self.pixels_per_image)
                # Numbers of members taken for numbers of pixels, and a step of 1: two more.
                chosen = flat[:, torch.randperm(len(members))[:count].to(flat.device)].T
                place = int(queues.pixel_next[label])
                if place + count >= slots:
                    queues.pixels[label, -count:] = F.normalize(chosen, dim=1)
                    queues.pixel_next[label] = 0
                else:
                    queues.pixels[label, place : place + count] = F.normalize(chosen, dim=1)
                    queues.pixel_next[label] = (queues.pixel_next[label] + 1) % slots

    def _classes_to_take(self, labels: Tensor) -> list[Tensor]:
        present = [label for label in torch.unique(labels) if label != IGNORE_INDEX]
        return [label for label in present if len((labels == label).nonzero()) > self.max_views]


def authors_formula(
    anchors: Tensor, entries: Tensor, positive: Tensor, negative: Tensor, temperature: float
) -> Tensor:
    """The mean loss of (M, D) anchors against (N, D) entries under 0-1 masks (M, N)."""
    logits = torch.matmul(anchors, entries.T) / temperature
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    pushed = (torch.exp(logits) * negative).sum(dim=1, keepdim=True)
    likelihoods = torch.exp(logits)
    log_probability = logits - torch.log(likelihoods + pushed)
    return -((positive * log_probability).sum(dim=1) / positive.sum(dim=1)).mean()


def queue_entries(queue: Tensor) -> tuple[Tensor, Tensor]:
    """(C·slots, D) a copy of a queue and (C·slots,) its labels, made anew for each loss.

    Class 0 is passed over: the last rows stay zero vectors, which its label is given to.
    """
    num_classes, slots, dim = queue.shape
    entries = queue.new_zeros(num_classes * slots, dim)
    labels = queue.new_zeros(num_classes * slots)
    for label in range(1, num_classes):
        rows = slice((label - 1) * slots, label * slots)
        entries[rows] = queue[label]
        labels[rows] = label
    return entries, labels


def _shares(num_hard: int, num_easy: int, num_views: int) -> tuple[int, int]:
    """How many hard and how many easy pixels, one side filling up what the other lacks."""
    if num_hard < num_views / 2:
        return num_hard, num_views - num_hard
    if num_easy < num_views / 2:
        return num_views - num_easy, num_easy
    return num_views // 2, num_views - num_views // 2
