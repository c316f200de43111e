"""One checked call of `info_nce`: the argument of every form of the equation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, gather
from pixcontrast._tensors import at_least_float32, product_dtype
from pixcontrast._triton import Form, is_eager
from pixcontrast.samplers import HardNegativeSampler

Denominator = Literal["negatives", "all"]

LOG2_E = 1.4426950408889634
"""Factor that converts exponents from base e to base 2, which the hardware computes."""


class ContrastTensor(NamedTuple):
    """One tensor of contrast entries. Only `dense` concatenates them.

    Attributes:
        entries: (n, D), as the caller passed it; the anchors if `is_anchors`.
        labels: (n,) int64, `IGNORED` for ignored entries.
        is_anchors: whether entry j is anchor j, which is then not its own positive.
        first_id: id of the first entry; the others have consecutive ids. Ids of entries that other
            ranks may hold are negative.
    """

    entries: Tensor
    labels: Tensor
    is_anchors: bool
    first_id: int


class Shards(NamedTuple):
    """Contrast entries that are distributed over ranks.

    Attributes:
        ranks: the ranks.
        entries: (n, D) each, the shard of this rank. The shapes are the same on every rank.
        labels: (n,) int64 each, `IGNORED` for ignored entries.
    """

    ranks: Ranks
    entries: Sequence[Tensor]
    labels: Sequence[Tensor]


@dataclass(eq=False)  # nothing changes a field; `frozen` would take 4 µs a call
class Problem:
    """One call of `info_nce`, with checked and resolved arguments.

    The fields are the arguments of the operators, in the order of `SCHEMA`.

    Attributes:
        anchors (Tensor): (M, D), as the caller passed it.
        labels (Tensor): (M,) int64, `IGNORED` for ignored anchors.
        seed (Tensor, optional): () int64, seed of the random choice of `negative_sampler`.
        entries (sequence of Tensor): (n, D), contrast tensors that are not the anchors.
        entry_labels (sequence of Tensor): (n,) int64, their labels, `IGNORED` for ignored entries.
        shard_entries (sequence of Tensor): (n, D), further entries that are distributed over ranks.
        shard_labels (sequence of Tensor): (n,) int64, their labels.
        is_anchors (sequence of bool): for each contrast tensor, whether it is the anchors.
        first_entry_id (int): id of the first contrast entry; see `ContrastTensor`.
        first_anchor_id (int): id of the first anchor among the anchors of all ranks.
        want_gradient (bool): whether the gradient of the anchors is requested.
        form (str): `"dense"`, `"tiled"` or `"triton"`.
        group (str, optional): name of the ranks that hold the shards; None without shards.
        temperature (float): softmax temperature τ.
        denominator (str): what Z sums over, see `pixcontrast.functional.info_nce`.
        product_dtype (torch.dtype): dtype of the operands of matrix products.
        unit_length (bool): whether every vector, ignored ones too, is known to have unit length or
            to be zero. This bounds the similarities for kernels that must not read values on the
            host.
        negative_sampler (HardNegativeSampler, optional): selects entries for each anchor; None: all
            entries.
    """

    anchors: Tensor
    labels: Tensor
    seed: Tensor | None
    entries: Sequence[Tensor]
    entry_labels: Sequence[Tensor]
    shard_entries: Sequence[Tensor]
    shard_labels: Sequence[Tensor]
    is_anchors: Sequence[bool]
    first_entry_id: int
    first_anchor_id: int
    want_gradient: bool
    form: Form
    group: str | None
    temperature: float
    denominator: Denominator
    product_dtype: torch.dtype
    unit_length: bool
    negative_sampler: HardNegativeSampler | None

    @classmethod
    def of(
        cls,
        anchors: Tensor,
        labels: Tensor,
        contrast: Iterable[tuple[Tensor | None, Tensor | None]],
        *,
        form: Form,
        temperature: float = 0.1,
        denominator: Denominator = "negatives",
        negative_sampler: HardNegativeSampler | None = None,
        seed: Tensor | None = None,
        unit_length: bool = False,
        shards: Shards | None = None,
    ) -> Problem:
        """Create a problem.

        Args:
            contrast (iterable of pairs): entries and marked labels of each contrast tensor; None
                for the anchors.
            shards (Shards, optional): further entries, distributed over ranks. Every rank makes
                this call, with the same number of anchors. Default: None.

        The other arguments are the attributes.
        """
        pairs = list(contrast)
        shard_entries = [] if shards is None else [e.detach() for e in shards.entries]
        if form == "triton":
            # Tiles of float64 do not fit in the shared memory of a GPU.
            pairs = [(None if e is None else _not_float64(e), names) for e, names in pairs]
            shard_entries = list(map(_not_float64, shard_entries))
        first_anchor_id = 0
        if shards is not None:
            first_anchor_id = shards.ranks.rank * labels.numel()
            if seed is not None:
                # One seed: the entries of an anchor are selected among those of all ranks.
                (seeds,) = gather(shards.ranks, [seed])
                seed = seeds[0]
        return cls(
            anchors=anchors,
            labels=labels,
            seed=seed,
            entries=[entries for entries, _ in pairs if entries is not None],
            entry_labels=[names for _, names in pairs if names is not None],
            shard_entries=shard_entries,
            shard_labels=[] if shards is None else list(shards.labels),
            is_anchors=[entries is None for entries, _ in pairs],
            first_entry_id=0,
            first_anchor_id=first_anchor_id,
            # Decided here, because grad mode is always off inside an operator.
            want_gradient=torch.is_grad_enabled() and anchors.requires_grad,
            form=form,
            group=None if shards is None else shards.ranks.name,
            temperature=temperature,
            denominator=denominator,
            product_dtype=product_dtype(anchors),
            unit_length=unit_length,
            negative_sampler=negative_sampler,
        )

    @classmethod
    def of_arguments(cls, *arguments: Any) -> Problem:
        """Create the problem whose `arguments()` these are."""
        *fields, strategy, ratio, num_negatives, num_positives = arguments
        sampler = None
        if strategy is not None:
            sampler = HardNegativeSampler(
                strategy=strategy,
                ratio=ratio,
                num_negatives=num_negatives,
                num_positives=num_positives,
            )
        fields.append(sampler)
        return cls(*fields)

    def arguments(self) -> tuple[Any, ...]:
        """Return the arguments of the operators, in the order of `SCHEMA`."""
        sampler = self.negative_sampler
        return (
            *(getattr(self, name) for name in _FIELDS),
            None if sampler is None else sampler.strategy,
            1.0 if sampler is None else sampler.ratio,
            None if sampler is None else sampler.num_negatives,
            None if sampler is None else sampler.num_positives,
        )

    @property
    def contrast(self) -> tuple[ContrastTensor, ...]:
        """The contrast tensors of this rank, without shards."""
        others = iter(zip(self.entries, self.entry_labels, strict=True))
        tensors = []
        first_id = self.first_entry_id
        for own in self.is_anchors:
            entries, labels = (self.anchors, self.labels) if own else next(others)
            tensors.append(ContrastTensor(entries, labels, own, first_id))
            first_id += labels.shape[0]
        return tuple(tensors)

    def first_shard_id(self, rank: int) -> int:
        """Return the id of the first shard entry of a rank: negative, and different on each."""
        return -(rank + 1) * sum(labels.numel() for labels in self.shard_labels)

    @property
    def is_self_contrast(self) -> bool:
        """Whether the kernels compute the anchors against themselves alone, without mining.

        The backward then computes their gradient in both roles, and the forward none.
        """
        is_plain = self.negative_sampler is None and self.group is None
        return is_plain and self.form == "triton" and list(self.is_anchors) == [True]

    @property
    def has_forward_gradient(self) -> bool:
        """Whether the forward computes a gradient of the anchors."""
        return self.want_gradient and not self.is_self_contrast

    @property
    def entries_gradient_dtype(self) -> torch.dtype:
        """The dtype of the backward's gradients: the anchors' if nothing is added to them."""
        return self.anchors.dtype if self.is_self_contrast else self.compute_dtype

    @property
    def is_eager(self) -> bool:
        """Whether the call is neither compiled nor traced, and its tensors have values."""
        return is_eager(self.labels)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of similarities, softmax, sums and the loss."""
        return at_least_float32(self.anchors)

    @property
    def inverse_temperature(self) -> float:
        """1/τ, kept finite in the dtype that multiplies, because 0 · inf is NaN."""
        return min(1.0 / self.temperature, torch.finfo(self.compute_dtype).max)

    @property
    def logit_limit(self) -> float:
        """Similarities saturate here, so that the difference of two of them is finite."""
        return torch.finfo(self.compute_dtype).max / 4

    def operand(self, vectors: Tensor) -> Tensor:
        """Round vectors to the product's dtype, and return them in the dtype that accumulates.

        The product of two 16-bit numbers is exact in float32, so the result is that of a matrix
        unit that multiplies in 16 bits and accumulates in 32 bits.
        """
        return self.saturate(vectors).to(self.product_dtype).to(self.compute_dtype)

    def saturate(self, vectors: Tensor) -> Tensor:
        """Clamp vectors to the range of the product's dtype, because 0 · inf is NaN."""
        limit = torch.finfo(self.product_dtype).max
        if torch.finfo(vectors.dtype).max <= limit:
            return vectors
        # In the wider dtype: bfloat16 would round the limit of float16 up.
        return vectors.to(self.compute_dtype).clamp(-limit, limit)


def _not_float64(entries: Tensor) -> Tensor:
    """Convert float64 to float32, without overflow."""
    if entries.dtype != torch.float64:
        return entries
    limit = torch.finfo(torch.float32).max
    return entries.clamp(-limit, limit).to(torch.float32)


_FIELDS = tuple(name for name in Problem.__dataclass_fields__ if name != "negative_sampler")
options_of = attrgetter(*_FIELDS[_FIELDS.index("is_anchors") :], "negative_sampler")
"""Return the fields of a problem that are not tensors."""
SCHEMA = (
    "Tensor anchors, Tensor labels, Tensor? seed, Tensor[] entries, Tensor[] entry_labels, "
    "Tensor[] shard_entries, Tensor[] shard_labels, bool[] is_anchors, SymInt first_entry_id, "
    "SymInt first_anchor_id, bool want_gradient, str form, str? group, float temperature, "
    "str denominator, ScalarType product_dtype, bool unit_length, str? strategy, float ratio, "
    "SymInt? num_negatives, SymInt? num_positives"
)
NUM_ARGUMENTS = SCHEMA.count(",") + 1
