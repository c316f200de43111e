"""Problems for the kernels in the interpreter, and how far they are from float64."""

import pytest
import torch
from problems import DENOMINATORS, IGNORE, labels, loss_and_gradients, vectors, worst_error

BOUND = 1e-5  # relative, float32
each_denominator = pytest.mark.parametrize("denominator", DENOMINATORS)


def draw(pieces, num_anchors=36, dim=5, seed=3, dtype=torch.float32):
    """Anchors and contrast of 5 classes: a sorted bank, the anchors themselves, or several."""
    generator = torch.Generator().manual_seed(seed)
    anchors, anchor_labels = vectors(num_anchors, dim, generator), labels(num_anchors, 5, generator)
    bank, bank_labels = vectors(140, dim, generator), torch.arange(140) // 28
    bank_labels[25:28] = bank_labels[40:56] = bank_labels[64:112] = IGNORE  # not yet written
    other, other_labels = vectors(37, dim, generator), labels(37, 7, generator)
    chosen = {
        "bank": (bank, bank_labels),
        "itself": (None, None),
        "several": ([other, None, bank], [other_labels, None, bank_labels]),
    }[pieces]
    return cast((anchors, anchor_labels, *chosen), dtype)


def cast(value, dtype):
    if isinstance(value, (list, tuple)):
        return type(value)(cast(one, dtype) for one in value)
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


def errors(arguments, reference="dense", **options):
    """How far the fused form, and `reference` in the same dtype, are from float64."""
    options.setdefault("generator", torch.Generator().manual_seed(7))

    def run(backend, given):
        generator = torch.Generator().manual_seed(7)
        return loss_and_gradients(backend, *given, **{**options, "generator": generator})

    truth = run("dense", cast(arguments, torch.float64))
    return [worst_error(run(backend, arguments), truth) for backend in ("triton", reference)]
