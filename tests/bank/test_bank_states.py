"""A bank and its loss against deques, through any sequence of what may be done to them.

The suite goes through a few hundred steps. By hand, ten thousand, and how many there were:

    python -m pytest tests/bank/test_bank_states.py -s --hypothesis-profile=campaign
"""

import copy
import io
from collections import deque

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch.nn import functional as F

from pixcontrast import MemoryBank, PixelContrastLoss, RandomAnchorSampler, RegionContrastLoss
from pixcontrast.functional import info_nce

IGNORE, DIM = 255, 3
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
steps = 0


class Bank(RuleBasedStateMachine):
    """The model: for each class a deque of what its ring must hold, oldest first."""

    @initialize(
        classes=st.integers(1, 3),
        pixel_slots=st.integers(0, 6),
        region_slots=st.integers(0, 4),
        per_image=st.integers(0, 3),
        dtype=st.sampled_from(DTYPES),
        form=st.sampled_from([PixelContrastLoss, RegionContrastLoss]),
        denominator=st.sampled_from(["negatives", "all"]),
    )
    def build(self, classes, pixel_slots, region_slots, per_image, dtype, form, denominator):
        pixel_slots = pixel_slots if per_image else 0
        self.make_bank = lambda: MemoryBank(
            classes,
            DIM,
            pixel_slots=pixel_slots,
            region_slots=region_slots,
            pixels_per_image=per_image,
        )
        self.form, self.denominator, self.per_image = form, denominator, per_image
        self.classes = classes
        self.model = {
            "pixels": [deque(maxlen=pixel_slots) for _ in range(classes)],
            "regions": [deque(maxlen=region_slots) for _ in range(classes)],
        }
        self.adopt(self.make_bank().to(dtype))

    def adopt(self, bank):
        self.bank = bank
        self.loss = self.form(
            bank=bank,
            denominator=self.denominator,
            anchor_sampler=RandomAnchorSampler(max_anchors=8, max_views=2),
        )

    # What may be done.

    @rule(
        images=st.integers(0, 3),
        pixels=st.integers(0, 6),
        present=st.sets(st.integers(0, 2)),
        bad=st.sampled_from([None, 0.0, float("nan"), float("inf")]),
        length=st.sampled_from([1e-20, 1.0, 1e20]),
        label_dtype=st.sampled_from([torch.int64, torch.int32, torch.uint8, torch.uint16]),
        weighted=st.booleans(),
        how=st.sampled_from(["update", "loss", "eval", "no_grad"]),
        seed=st.integers(0, 1 << 20),
    )
    def take_in(self, images, pixels, present, bad, length, label_dtype, weighted, how, seed):
        generator = torch.Generator().manual_seed(seed)
        emb = torch.randn(images, DIM, pixels, generator=generator) * length
        choices = torch.tensor([*sorted(c for c in present if c < self.classes), IGNORE])
        picked = torch.randint(0, len(choices), (images, pixels), generator=generator)
        labels = choices[picked]
        if bad is not None and emb.numel():
            # Such pixels are no anchors: a loss takes embeddings as they are.
            emb[-1, :, -1] = bad
            if how != "update" and bad != 0.0:
                labels[-1, -1] = IGNORE
        before = [buffer.clone() for buffer in self.bank.buffers()]
        given = labels.to(label_dtype)
        if how == "update":
            self.bank.update(emb, given, generator=generator)
        else:
            weight = torch.rand(images, pixels, generator=generator) < 0.6 if weighted else None
            labels = labels if weight is None else labels.masked_fill(~weight, IGNORE)
            self.call_the_loss(emb, given, weight, labels, how, generator)
        if how in ("eval", "no_grad"):
            for buffer, old in zip(self.bank.buffers(), before, strict=True):
                assert torch.equal(buffer, old)
        else:
            self.expect_taken_in(emb.detach(), labels)

    @rule(
        seed=st.integers(0, 1 << 20), what=st.sampled_from(["label", "width", "rank", "integers"])
    )
    def be_refused(self, seed, what):
        emb = torch.randn(1, DIM, 4, generator=torch.Generator().manual_seed(seed))
        labels = torch.zeros(1, 4, dtype=torch.int64)
        wrong = {
            "label": (emb, labels + self.classes),
            "width": (emb[:, :2], labels),
            "rank": (emb, labels[0]),
            "integers": (emb.long(), labels),
        }[what]
        for function in (self.bank.update, self.loss):
            with pytest.raises((TypeError, ValueError)):
                function(*wrong)

    @rule()
    def save_and_load(self):
        file = io.BytesIO()
        torch.save(self.loss.state_dict(), file)
        file.seek(0)
        self.adopt(self.make_bank().to(self.dtype))
        self.loss.load_state_dict(torch.load(file, weights_only=True))

    @rule()
    def copy_it(self):
        self.adopt(copy.deepcopy(self.bank))

    @rule(dtype=st.sampled_from(DTYPES))
    def change_dtype(self, dtype):
        self.loss.to(dtype)
        for rings in self.model.values():
            for label, ring in enumerate(rings):
                rings[label] = deque((vector.to(dtype) for vector in ring), maxlen=ring.maxlen)

    @rule()
    def move(self):
        self.loss.to("cpu")

    # What must hold.

    @property
    def dtype(self):
        return self.bank.pixels.dtype

    def held(self, queue, label):
        """What the ring of a class holds, oldest first."""
        rings = self.bank.pixels if queue == "pixels" else self.bank.regions
        count = int(self.bank.count(queue)[label])
        following = self.bank.pixel_next if queue == "pixels" else self.bank.region_next
        if count < rings.shape[1]:
            assert int(following[label]) == count
            return rings[label, :count]
        return rings[label].roll(-int(following[label]), 0)

    @invariant()
    def rings_are_the_deques(self):
        global steps
        steps += 1
        for queue, deques in self.model.items():
            for label, expected in enumerate(deques):
                found = self.held(queue, label)
                assert len(found) == len(expected)
                assert all(
                    torch.equal(one, other) for one, other in zip(found, expected, strict=True)
                )

    def expect_taken_in(self, emb, labels):
        """Looks at what is new in the rings, and puts it into the deques."""
        usable = torch.isfinite(emb).all(dim=1) & (emb != 0).any(dim=1)
        largest = emb.double().abs().amax(dim=1, keepdim=True).clamp(min=1e-300)
        unit = F.normalize(emb.double() / largest, dim=1)
        rounding = 2 * max(torch.finfo(self.dtype).eps, torch.finfo(torch.float32).eps)
        for label in range(self.classes):
            means, chosen = [], []
            for image in range(len(emb)):
                own = unit[image][:, usable[image] & (labels[image] == label)].T
                if len(own):
                    means.append((own.sum(dim=0), len(own)))
                    chosen.append((own, min(self.per_image, len(own))))
            self.expect_regions(label, means, rounding)
            self.expect_pixels(label, chosen, rounding)

    def expect_regions(self, label, sums, rounding):
        ring = self.model["regions"][label]
        new = self.held("regions", label)[-min(len(sums), ring.maxlen) :] if sums else []
        for vector, (total, count) in zip(new, sums[-len(new) :] if len(new) else [], strict=True):
            # Of vectors that nearly cancel the sum is small beside its rounding.
            allowed = rounding + 2e-6 * count / float(total.norm())
            assert (vector.double() - F.normalize(total, dim=0)).abs().max() < allowed
        ring.extend(new)

    def expect_pixels(self, label, chosen, rounding):
        ring = self.model["pixels"][label]
        total = sum(count for _, count in chosen)
        new = list(self.held("pixels", label)[-min(total, ring.maxlen) :]) if total else []
        ring.extend(new)
        for own, count in reversed(chosen):  # the newest are of the last images
            first = max(0, len(new) - count)
            of_image, new = new[first:], new[:first]
            left = list(own)
            for vector in of_image:
                distances = [float((vector.double() - one).abs().max()) for one in left]
                nearest = min(range(len(left)), key=distances.__getitem__)
                assert distances[nearest] < rounding
                del left[nearest]  # without replacement

    def call_the_loss(self, emb, given, weight, labels, how, generator):
        """Call the loss with labels and weights; `labels` are ignored where the weight is 0."""
        entries = [
            (torch.stack(list(ring)).double(), torch.full((len(ring),), label))
            for queue in self.loss.contrast_with
            if queue != "batch"
            for label, ring in enumerate(self.model[queue])
            if len(ring)
        ]
        emb.requires_grad_()
        self.loss.train(how != "eval")
        with torch.set_grad_enabled(how != "no_grad"):
            options = {"weight": weight, "generator": generator, "return_anchors": True}
            loss, sample = self.loss(emb, given, **options)
        flat = emb.detach().transpose(1, 2).flatten(0, 1).double()
        there = sample.labels != IGNORE
        anchors, anchor_labels = flat[sample.indices][there], sample.labels[there]
        largest = anchors.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)
        anchors = F.normalize(anchors / largest, dim=1)
        batch, batch_labels = None, None
        if self.form is RegionContrastLoss:
            batch, batch_labels = self.regions_of(emb.detach(), labels)
        expected = info_nce(
            anchors,
            anchor_labels,
            [batch, *(vectors for vectors, _ in entries)],
            [batch_labels, *(own for _, own in entries)],
            denominator=self.denominator,
            backend="dense",
        )
        # Similarities up to 10 in float32, each off by at most (3 + 8) · 1.2e-7 · 10, four times
        # (docs/numerics.md); regions that nearly cancel are off by more, and so left out.
        assert torch.isfinite(loss)
        assert abs(float(loss.detach()) - float(expected)) < 1e-4
        if how in ("loss",):
            (gradient,) = torch.autograd.grad(loss, emb)
            assert torch.isfinite(gradient[torch.isfinite(emb)]).all()

    def regions_of(self, emb, labels):
        largest = emb.double().abs().amax(dim=1, keepdim=True).clamp(min=1e-300)
        unit = F.normalize(emb.double() / largest, dim=1)
        made, own = [torch.zeros(0, DIM).double()], []
        for image in range(len(emb)):
            for label in range(self.classes):
                usable = torch.isfinite(emb[image]).all(0) & (emb[image] != 0).any(0)
                member = (labels[image] == label) & usable
                if member.any():
                    made.append(F.normalize(unit[image][:, member].mean(1), dim=0)[None])
                    own.append(label)
        return torch.cat(made), torch.tensor(own, dtype=torch.int64)


TestBank = pytest.mark.filterwarnings("ignore:labels. no anchor had a negative:UserWarning")(
    Bank.TestCase
)
if settings._current_profile != "campaign":
    TestBank.settings = settings(
        max_examples=12, stateful_step_count=25, suppress_health_check=list(HealthCheck)
    )


@pytest.fixture(autouse=True, scope="module")
def _count():
    yield
    print(f"\n{steps} steps without a difference")
