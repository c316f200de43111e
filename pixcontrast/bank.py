"""The memory bank: pixels and regions of earlier batches, in one ring a class."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._bank_state import faults_of_state
from pixcontrast._distributed import GroupReference, Ranks, ranks_of
from pixcontrast._intake import new_entries, of_all_ranks
from pixcontrast._labels import mark_ignored
from pixcontrast._own_buffers import OwnBuffers
from pixcontrast._pixels import as_images, flat_map
from pixcontrast._regions import Regions
from pixcontrast._ring import WHOLE, Shard, prepare_write, write_all

QUEUES = ("pixels", "regions")


class MemoryBank(OwnBuffers):
    """Two ring buffers per class: embeddings of single pixels, and of regions.

    The memory of Wang et al., ICCV 2021, section 3.2. From each image and class present it takes
    one region, the unit-length mean of that image's unit-length embeddings of the class, and
    min(`pixels_per_image`, available) of its pixels, at random without replacement. First in,
    first out: images in batch order; a write across the end of a ring wraps, a write larger than
    the ring keeps the newest. Only written slots ever count. Class 0 is a class like any other.
    Pixels whose embedding is not finite, or zero (no component above 1e-30), never enter, nor
    count in a region.

    Under `torch.distributed` every rank takes in what all ranks have, in rank order, also where a
    rank has nothing, so that the banks of all ranks hold the same bits. Every rank has to update.
    DistributedDataParallel has no part in it: the bank's buffers are saved and moved with the
    module that holds it, and listed (`named_buffers`) by the bank alone.

    Args:
        num_classes: C, at least 1.
        dim: D, the size of the embeddings, at least 1.
        pixel_slots: the length of each class's pixel ring; 0 leaves that queue out.
        region_slots: the length of each class's region ring; 0 leaves that queue out.
        pixels_per_image: the most pixels that an image gives to a class, all of them where it has
            fewer; 0 leaves the pixel queue out.
        ignore_index: the label that takes no part; no class.
        dtype: of the stored vectors: float32, bfloat16, float16 or float64.
        sharded: spread the bank over the ranks: slots are per rank, and the ring is W times as
            long. Entry number g of a class, counted from 0, lives on rank g mod W. A loss over such
            a bank is called on every rank, in eval mode too. Each rank saves its own shard.
        process_group: the ranks that fill the bank together; None: the whole world. Where
            `torch.distributed` is not initialised, the one process that there is.

    Attributes:
        pixels: (C, pixel_slots, D) stored pixels, of unit length. A persistent buffer.
        regions: (C, region_slots, D) stored regions, of unit length. A persistent buffer.
        pixel_count: (C,) how many pixels of each class are valid: those in slots 0 … count−1.
        region_count: (C,) likewise.
        pixel_next, region_next: (C,) the slot that is written next; with `sharded=True` the place
            in the whole ring, which is slot `place // W` of rank `place % W`.
        shard: (2,) with `sharded=True`, which rank of how many this bank is of. A checkpoint of
            another is refused.

    Raises:
        ValueError, TypeError: for an option out of its range; the message names it.

    Example:
        >>> import torch
        >>> from pixcontrast import MemoryBank
        >>> bank = MemoryBank(2, 8, pixel_slots=100, region_slots=10, pixels_per_image=3)
        >>> bank.update(torch.randn(4, 8, 5, 5), torch.zeros(4, 5, 5, dtype=torch.long))
        >>> bank.pixel_count, bank.region_count
        (tensor([12,  0]), tensor([4, 0]))
    """

    pixels: Tensor
    regions: Tensor
    pixel_count: Tensor
    region_count: Tensor
    pixel_next: Tensor
    region_next: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        pixel_slots: int = 5000,
        region_slots: int = 5000,
        pixels_per_image: int = 10,
        ignore_index: int = 255,
        dtype: torch.dtype = torch.float32,
        sharded: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        check.check_count("num_classes", num_classes, at_least=1)
        check.check_count("dim", dim, at_least=1)
        check.check_count("pixel_slots", pixel_slots, at_least=0)
        check.check_count("region_slots", region_slots, at_least=0)
        check.check_count("pixels_per_image", pixels_per_image, at_least=0)
        check.check_ignore_index(ignore_index)
        check.check_ignored_is_no_class(ignore_index, num_classes)
        check.check_floating_dtype("dtype", dtype)
        check.check_flag("sharded", sharded)
        check.check_process_group(process_group)
        if pixels_per_image == 0:
            pixel_slots = 0
        for name, slots in (("pixel_slots", pixel_slots), ("region_slots", region_slots)):
            sizes = (num_classes, max(slots, 1), dim)
            check.check_addressable(f"num_classes, {name}, dim", sizes, dtype)
        self.num_classes = num_classes
        self.dim = dim
        self.pixels_per_image = pixels_per_image
        self.ignore_index = ignore_index
        self.sharded = sharded
        self._group = GroupReference(process_group)
        self._shard = _shard_of(ranks_of(process_group) if sharded else None)
        for name, slots in (("pixel", pixel_slots), ("region", region_slots)):
            vectors = torch.zeros(num_classes, slots, dim, dtype=dtype)
            self.register_own_buffer(f"{name}s", vectors)
            self.register_own_buffer(f"{name}_count", torch.zeros(num_classes, dtype=torch.int64))
            self.register_own_buffer(f"{name}_next", torch.zeros(num_classes, dtype=torch.int64))
        if sharded:
            self.register_own_buffer("shard", torch.tensor(self._shard))
        self._updater: weakref.ref[object] | None = None
        self._warned = False

    @property
    def process_group(self) -> Any:
        return self._group.group

    @property
    def ranks(self) -> Ranks | None:
        """The ranks that fill the bank, or None where this process does so alone."""
        ranks = ranks_of(self.process_group)
        if self.sharded and self._shard != _shard_of(ranks):
            rank, size = _shard_of(ranks)
            raise RuntimeError(
                f"MemoryBank: built as shard {self._shard.rank} of {self._shard.size}; now this is "
                f"rank {rank} of {size} (build it on each rank, after "
                f"torch.distributed.init_process_group, once for each start of the job)"
            )
        return ranks

    @property
    def is_spread(self) -> bool:
        """Whether other ranks hold a part of the bank."""
        return self._shard.size > 1

    @property
    def pixel_slots(self) -> int:
        return self.pixels.shape[1]

    @property
    def region_slots(self) -> int:
        return self.regions.shape[1]

    def slots(self, queue: str) -> int:
        """How many slots a class has in the queue `"pixels"` or `"regions"`."""
        check.check_choice("queue", queue, QUEUES)
        return self.pixel_slots if queue == "pixels" else self.region_slots

    @property
    def num_slots(self) -> int:
        """How many slots there are, of all classes and both queues."""
        return self.num_classes * (self.pixel_slots + self.region_slots)

    def count(self, queue: str) -> Tensor:
        """(C,) how many entries of each class the queue `"pixels"` or `"regions"` holds."""
        check.check_choice("queue", queue, QUEUES)
        return self.pixel_count if queue == "pixels" else self.region_count

    def entries(self, queue: str) -> tuple[Tensor, Tensor]:
        """The queue `"pixels"` or `"regions"` as `info_nce` takes it.

        Returns:
            (C·slots, D) a view of the queue, and (C·slots,) int64 labels, `ignore_index` for
            slots that have not been written.
        """
        slots = self.slots(queue)
        vectors = self.pixels if queue == "pixels" else self.regions
        count = self.count(queue)
        written = torch.arange(slots, device=count.device) < count[:, None]
        classes = torch.arange(self.num_classes, device=count.device)[:, None]
        labels = torch.where(written, classes, self.ignore_index)
        return vectors.view(-1, self.dim), labels.flatten()

    @torch.no_grad()
    def update(
        self, emb: Tensor, labels: Tensor, *, generator: torch.Generator | None = None
    ) -> None:
        """Take in a batch.

        Args:
            emb: (B, D, *S) floating, with 1 to 3 spatial dimensions, of any length; or (N, D)
                points, one image.
            labels: (B, *S_any) integer, resized to S by nearest; or (N,).
            generator: the source of randomness of the choice of pixels, on emb's device.

        Raises:
            ValueError, TypeError: for arguments that do not fit; the message names them. Labels
                of num_classes or more raise on the CPU; elsewhere, where looking would be a
                wait, such pixels are ignored.
            RuntimeError: when asked for during a backward pass, as from a checkpointed region.
        """
        self.check_may_update()
        check.check_embeddings(emb)
        check.check_pixel_labels(labels, emb)
        check.check_generator(generator, emb.device)
        self.check_fits(emb)
        if check.values_can_be_seen(labels):
            check.check_label_range(labels, self.ignore_index, self.num_classes)

        images = as_images(emb)
        marked = mark_ignored(flat_map(labels, images), self.ignore_index, self.num_classes)
        self._take_in(images, marked, None, generator)

    @torch.no_grad()
    def _take_in(
        self,
        images: Tensor,
        labels: Tensor,
        regions: Regions | None,
        generator: torch.Generator | None,
    ) -> None:
        """`update` behind its checks, for a loss that has made them, and resized and marked labels.

        Args:
            images: (B, D, *S).
            labels: (B, P) int64 below num_classes, or `IGNORED`.
            regions: of these images and labels, with num_classes slots, where known already.
            generator: the source of randomness.
        """
        ranks = self.ranks
        nothing_to_say = labels.numel() == 0 and ranks is None
        if nothing_to_say or not (self.region_slots or self.pixel_slots):
            return
        new = new_entries(
            images,
            labels,
            regions,
            num_classes=self.num_classes,
            pixels_per_image=self.pixels_per_image if self.pixel_slots else 0,
            with_regions=self.region_slots > 0,
            dtype=self.pixels.dtype,
            generator=generator,
        )
        if ranks is not None:
            new = of_all_ranks(new, ranks, self._options())
        writes = []
        if new.regions is not None:
            rings = self.regions, self.region_count, self.region_next
            writes.append(prepare_write(*rings, *new.regions, self._shard))
        if new.pixels is not None:
            rings = self.pixels, self.pixel_count, self.pixel_next
            writes.append(prepare_write(*rings, *new.pixels, self._shard))
        # Nothing is written before everything is known: a bank is never half updated.
        write_all(writes)

    def check_may_update(self) -> None:
        """Raise inside a backward pass.

        Code that torch.compile has made cannot tell whether a backward pass runs it.
        """
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "MemoryBank: an update was asked for during a backward pass, as happens in a "
                "checkpointed region, whose forward runs twice; call the loss outside of it"
            )

    def check_fits(self, emb: Tensor) -> None:
        """Raise where embeddings (B, D, *S) are of another width or on another device."""
        check.check_bank_fits(emb, self.dim, self.pixels.device)

    def claim(self, updater: object) -> None:
        """Note which loss updates this bank, and warn once when a second one does."""
        if torch.compiler.is_compiling():
            return
        current = None if self._updater is None else self._updater()
        if current is None:
            self._updater = weakref.ref(updater)
        elif current is not updater and not self._warned:
            self._warned = True
            warnings.warn(
                "two losses update the same MemoryBank, so that each batch enters twice; build "
                "one of them with update_bank=False",
                stacklevel=6,
            )

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """PyTorch's own, but for what is no state of this bank: of that nothing is loaded."""
        faults = faults_of_state(state_dict, prefix, dict(self.named_buffers()), self._shard)
        error_msgs.extend(faults)
        if not faults:
            super()._load_from_state_dict(
                state_dict,
                prefix,
                local_metadata,
                strict,
                missing_keys,
                unexpected_keys,
                error_msgs,
            )

    def __getstate__(self) -> dict[str, Any]:
        # Who updates a bank is of this process alone, and a weak reference cannot be copied.
        return {**self.__dict__, "_updater": None}

    def extra_repr(self) -> str:
        shard = f", shard {self._shard.rank} of {self._shard.size}" if self.sharded else ""
        return self._options() + shard

    def _options(self) -> str:
        return (
            f"{self.num_classes}, {self.dim}, pixel_slots={self.pixel_slots}, "
            f"region_slots={self.region_slots}, pixels_per_image={self.pixels_per_image}, "
            f"ignore_index={self.ignore_index}, dtype={self.pixels.dtype}"
        )


def _shard_of(ranks: Ranks | None) -> Shard:
    return WHOLE if ranks is None else Shard(ranks.rank, ranks.size)
