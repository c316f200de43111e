"""The memory bank: pixels and regions of earlier batches, in one ring buffer for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._bank.new_entries import EntryMaker, NewEntries, gather_entries
from pixcontrast._bank.ring import QUEUES, WHOLE, Shard, append_all
from pixcontrast._bank.state import BankBuffers, UpdateGuard
from pixcontrast._distributed import GroupReference, Ranks, ranks_of
from pixcontrast._pixels import maps


class MemoryBank(BankBuffers):
    """Two ring buffers for each class: embeddings of single pixels, and of regions.

    The memory of Wang et al., ICCV 2021, section 3.2. From each image and class present, the bank
    stores one region, the unit-length mean of the unit-length embeddings of that class in that
    image (of all, or of `pixels_per_region` at random), and min(`pixels_per_image`, available)
    random pixels, without replacement. The rings are first in, first out: images are written in
    batch order; a write across the end of a ring wraps; a write larger than the ring keeps the
    newest entries. Only written slots count. Class 0 is a class like any other. Pixels whose
    embedding is not finite, or zero (no component above 1e-30), are not stored and do not count in
    a region.

    Under `torch.distributed`, each rank stores the entries of all ranks, in rank order, so that
    the banks of all ranks are bit-identical. Every rank must call the update, also with an empty
    batch. The buffers are saved and moved with the module that holds the bank, but only the bank
    lists them (`named_buffers`), so DistributedDataParallel does not broadcast them.

    Args:
        num_classes (int): number of classes C, at least 1.
        dim (int): embedding size D, at least 1.
        pixel_slots (int): length of the pixel ring of each class, at least 0. With 0, the bank has
            no pixel queue. Default: 5000.
        region_slots (int): length of the region ring of each class, at least 0. With 0, the bank
            has no region queue. Default: 5000.
        pixels_per_image (int): largest number of pixels stored per image and class, at least 0.
            With 0, the bank has no pixel queue. Default: 10.
        pixels_per_region (int, optional): number of random pixels, drawn without replacement, whose
            mean is a region, at least 1 (all pixels if there are fewer). This spares the pass over
            the whole map: pixels are drawn by their labels alone, and drawn ones whose embedding
            does not count are not replaced by others. Default: None, the mean of all pixels.
        ignore_index (int): label of ignored pixels. If it is a class, the rings of that class stay
            empty. Default: 255.
        dtype (torch.dtype): dtype of the stored vectors: float32, bfloat16, float16 or float64,
            of which the kernels make a float32 copy in every call. Default: torch.float32.
        persistent (bool): if True, `state_dict` has the buffers. A state that no bank has saved,
            for example of other options or averaged, raises an error when it is loaded; with
            `strict=False` it is skipped with a warning. False suits moving averages over
            `state_dict()`. Default: True.
        sharded (bool): if True, spread the bank over W ranks: slots are per rank, and each ring is
            W times as long. Entry g of a class, counted from 0, is stored on rank g mod W. Every
            rank must call a loss with such a bank, in eval mode too. Each rank saves its own shard.
            Default: False.
        process_group (ProcessGroup, optional): the ranks that fill the bank. Default: None, which
            is the whole world, or this process alone if `torch.distributed` is not initialized.

    Attributes:
        pixels (Tensor): stored pixels of unit length, shape (C, pixel_slots, D). Persistent buffer.
        regions (Tensor): stored regions of unit length, shape (C, region_slots, D). Persistent
            buffer.
        pixel_count (Tensor): number of valid pixels of each class, shape (C,): slots 0 to
            count − 1.
        region_count (Tensor): number of valid regions of each class, shape (C,).
        pixel_next, region_next (Tensor): the slot that is written next, shape (C,). With
            `sharded=True`, the position in the whole ring: slot `position // W` of rank
            `position % W`.
        shard (Tensor): with `sharded=True`, rank and number of ranks, shape (2,). A checkpoint of
            another shard is refused.

    Raises:
        ValueError, TypeError: if an option is invalid. The message names the option.

    Example:
        >>> import torch
        >>> from pixcontrast import MemoryBank
        >>> bank = MemoryBank(2, 8, pixel_slots=100, region_slots=10, pixels_per_image=3)
        >>> bank.update(torch.randn(4, 8, 5, 5), torch.zeros(4, 5, 5, dtype=torch.long))
        >>> bank.pixel_count, bank.region_count
        (tensor([12,  0]), tensor([4, 0]))
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        pixel_slots: int = 5000,
        region_slots: int = 5000,
        pixels_per_image: int = 10,
        pixels_per_region: int | None = None,
        ignore_index: int = 255,
        dtype: torch.dtype = torch.float32,
        persistent: bool = True,
        sharded: bool = False,
        process_group: Any = None,
    ) -> None:
        check.check_flag("persistent", persistent)
        check.check_flag("sharded", sharded)
        group = GroupReference(process_group)
        super().__init__(persistent, _shard_of(ranks_of(process_group) if sharded else None))
        self.sharded, self._group = sharded, group
        self.num_classes = check.check_integer("num_classes", num_classes, 1)
        self.dim = check.check_integer("dim", dim, 1)
        pixel_slots = check.check_integer("pixel_slots", pixel_slots, 0)
        region_slots = check.check_integer("region_slots", region_slots, 0)
        self.pixels_per_image = check.check_integer("pixels_per_image", pixels_per_image, 0)
        self.pixels_per_region = pixels_per_region
        if pixels_per_region is not None:
            self.pixels_per_region = check.check_integer("pixels_per_region", pixels_per_region, 1)
        self.ignore_index = check.check_ignore_index(ignore_index)
        is_floating = isinstance(dtype, torch.dtype) and dtype in check.FLOATING
        expected = "one of " + ", ".join(map(str, check.FLOATING))
        check.expect(is_floating, "dtype", expected, dtype, error=TypeError)
        slots = (pixel_slots if self.pixels_per_image else 0, region_slots)
        for option, size in zip(("pixel_slots", "region_slots"), slots, strict=True):
            sizes = (self.num_classes, max(size, 1), self.dim)
            check.check_addressable(f"num_classes, {option}, dim", sizes, dtype)
        for queue, size in zip(QUEUES, slots, strict=True):
            self.register_queue(queue, torch.zeros(self.num_classes, size, self.dim, dtype=dtype))
        if sharded:
            self.register_own_buffer("shard", torch.tensor(self._shard))
        self.guard = UpdateGuard()

    @property
    def process_group(self) -> Any:
        return self._group.group

    @property
    def ranks(self) -> Ranks | None:
        """The ranks that fill the bank, or None if this process does so alone."""
        ranks = ranks_of(self.process_group)
        if self.sharded and self._shard != _shard_of(ranks):
            rank, size = _shard_of(ranks)
            raise RuntimeError(
                f"MemoryBank: built as shard {self._shard.rank} of {self._shard.size}; now this is "
                f"rank {rank} of {size} (build it on each rank, after "
                f"torch.distributed.init_process_group, at each start of the job)"
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
        """Return the number of slots per class of the queue `"pixels"` or `"regions"`."""
        return self._rings(queue).vectors.shape[1]

    def count(self, queue: str) -> Tensor:
        """Return the number of valid entries per class of the queue `"pixels"` or `"regions"`."""
        return self._rings(queue).counts

    def _copy_counts(self, queues: Sequence[str]) -> Tensor | None:
        """Return the number of valid entries per queue and class, or None without a queue."""
        return torch.stack([self.count(queue) for queue in queues]) if queues else None

    def entries(self, queue: str) -> tuple[Tensor, Tensor]:
        """Return a queue and its labels, as `info_nce` takes them.

        Args:
            queue (str): `"pixels"` or `"regions"`.

        Returns:
            A view of the queue, shape (C·slots, D), and int64 labels, shape (C·slots,). Slots that
            have not been written are labelled `ignore_index`.
        """
        return self._labelled(queue, self.ignore_index)

    def _labelled(self, queue: str, ignored: int) -> tuple[Tensor, Tensor]:
        """Return a queue and its labels. Slots that are not written are labelled `ignored`."""
        rings = self._rings(queue)
        return rings.vectors.view(-1, self.dim), rings.labels(ignored)

    @torch.no_grad()
    def update(
        self, emb: Tensor, labels: Tensor, *, generator: torch.Generator | None = None
    ) -> None:
        """Store the entries of a batch.

        Args:
            emb (Tensor): floating point embeddings of any length, shape (B, D, *S) with 1 to 3
                spatial dimensions, or points of shape (N, D), which count as one image.
            labels (Tensor): integer labels, shape (B, *S_any), resized to S by nearest, or (N,).
            generator (torch.Generator, optional): source of randomness for the choice of pixels, on
                the device of `emb`. Default: None, the default generator.

        Raises:
            ValueError, TypeError: if an argument is invalid. The message names it. Labels of
                num_classes or more raise on the CPU. On other devices such pixels are ignored,
                because the host would have to wait to read labels.
            RuntimeError: during a backward pass, for example from a checkpointed region.
        """
        self.guard.check_outside_backward()
        emb = maps.check_feature_map("emb", emb, "D")
        labels = maps.check_labels(labels, emb)
        check.check_generator(generator, emb.device)
        self.check_fits(emb)
        if check.values_can_be_seen(labels):
            self.check_label_range(labels)
        emb_map = maps.as_map(emb)
        options = emb_map.shape[2:], self.ignore_index, self.num_classes
        marked, _ = maps.flat_maps(labels, None, None, *options)
        drawn = self._entry_maker.draw_pixels(emb_map, marked, None, generator)
        self._store(self._entry_maker.entries_at(emb_map, drawn))

    @property
    def _entry_maker(self) -> EntryMaker:
        return EntryMaker(
            classes=self.num_classes,
            pixels=self.pixels_per_image if self.pixel_slots else 0,
            region_pixels=self.pixels_per_region if self.region_slots else 0,
        )

    @torch.no_grad()
    def _store(self, new: NewEntries) -> None:
        """Store new entries: those of all ranks, if several ranks fill the bank."""
        ranks = self.ranks
        if ranks is not None and any(queue is not None for queue in new):
            new = gather_entries(new, self.pixels.dtype, ranks, self._options())
        appends = [
            (self._rings(queue), *entries)
            for queue, entries in zip(QUEUES, new, strict=True)
            if entries is not None and entries[1].numel() > 0
        ]
        append_all(appends, self._shard)

    def check_fits(self, emb: Tensor, name: str = "emb") -> None:
        """Raise if embeddings (B, D, *S) have another D or another device than the bank."""
        found, device = emb.shape[1], self.pixels.device
        if found != self.dim:
            shape = check.shape_of(emb)
            check.refuse(name, f"D = {self.dim}, as the bank", f"D = {found} (shape {shape})")
        if emb.device != device:
            fix = f"move the bank, or the loss that holds it, with .to({str(emb.device)!r})"
            check.refuse("bank", f"the device of {name}, {emb.device}", str(device), fix)

    def check_label_range(self, labels: Tensor) -> None:
        """Raise if a label is neither a class nor `ignore_index`. Reads values."""
        expected = (
            f"classes below num_classes = {self.num_classes} or ignore_index = {self.ignore_index}"
        )
        check.check_largest_label(labels, self.ignore_index, self.num_classes - 1, expected)

    def extra_repr(self) -> str:
        shard = f", shard {self._shard.rank} of {self._shard.size}" if self.sharded else ""
        return self._options() + shard

    def _options(self) -> str:
        return (
            f"{self.num_classes}, {self.dim}, pixel_slots={self.pixel_slots}, "
            f"region_slots={self.region_slots}, pixels_per_image={self.pixels_per_image}, "
            f"pixels_per_region={self.pixels_per_region}, "
            f"ignore_index={self.ignore_index}, dtype={self.pixels.dtype}"
        )


def _shard_of(ranks: Ranks | None) -> Shard:
    return WHOLE if ranks is None else Shard(ranks.rank, ranks.size)
