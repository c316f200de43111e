import importlib.metadata
import inspect
import subprocess
import sys
import typing

import pytest
import torch

import pixcontrast
from pixcontrast import functional

PUBLIC = {
    "AnchorSample",
    "HardAnchorSampler",
    "HardNegativeSampler",
    "MemoryBank",
    "PixelContrastLoss",
    "ProjectionHead",
    "RandomAnchorSampler",
    "RegionContrastLoss",
    "functional",
}
LOSS_OPTIONS = {
    "temperature": 0.1, "base_temperature": None, "ignore_index": 255, "anchor_sampler": None,
    "negative_sampler": None, "bank": None, "contrast": None, "denominator": "negatives",
    "normalize": True, "reduction": "mean", "update_bank": True, "gather": False,
    "process_group": None, "validate": False, "backend": "auto",
}  # fmt: skip
DEFAULTS = {
    pixcontrast.PixelContrastLoss: LOSS_OPTIONS,
    pixcontrast.RegionContrastLoss: LOSS_OPTIONS,
    pixcontrast.HardAnchorSampler: {
        "max_anchors": 1024, "max_views": 100, "hard_fraction": 0.5, "min_pixels": 1,
    },
    pixcontrast.RandomAnchorSampler: {"max_anchors": 1024, "max_views": 100, "min_pixels": 1},
    pixcontrast.HardNegativeSampler: {
        "strategy": "semi-hard", "ratio": 0.1, "num_negatives": 2048, "num_positives": 1024,
    },
    pixcontrast.MemoryBank: {
        "pixel_slots": 5000, "region_slots": 5000, "pixels_per_image": 10, "ignore_index": 255,
        "dtype": torch.float32, "sharded": False, "process_group": None,
    },
    pixcontrast.ProjectionHead: {"dim": 256, "hidden": None, "kind": "mlp"},
    functional.info_nce: {
        "contrast": None, "contrast_labels": None, "temperature": 0.1,
        "denominator": "negatives", "weight": None, "mining": None, "generator": None,
        "reduction": "mean", "ignore_index": 255, "backend": "auto",
    },
}  # fmt: skip


def test_public_names():
    assert set(pixcontrast.__all__) == PUBLIC
    assert functional.__all__ == ["info_nce"]
    shown = {name for name in vars(pixcontrast) if not name.startswith("_")}
    modules = {name for name in shown if inspect.ismodule(getattr(pixcontrast, name))}
    assert shown - modules == PUBLIC - {"functional"}


@pytest.mark.parametrize("public", DEFAULTS, ids=lambda public: public.__name__)
def test_options_and_defaults(public):
    parameters = inspect.signature(public).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert defaults == DEFAULTS[public]
    assert public.__doc__
    assert "Args:" in public.__doc__
    assert ">>>" in public.__doc__


@pytest.mark.parametrize("public", DEFAULTS, ids=lambda public: public.__name__)
def test_every_option_is_documented(public):
    documented = public.__doc__
    if public is pixcontrast.RegionContrastLoss:
        documented += pixcontrast.PixelContrastLoss.__doc__
    for name in DEFAULTS[public]:
        assert f"{name}" in documented


def test_the_package_is_typed():
    hints = typing.get_type_hints(functional.info_nce)
    assert hints["return"] is torch.Tensor
    assert importlib.metadata.version("pixcontrast") == pixcontrast.__version__
    files = [str(path) for path in importlib.metadata.files("pixcontrast") or []]
    assert any(path.endswith((".pth", "py.typed")) for path in files)


def test_importing_imports_nothing_but_torch():
    program = """
import sys, time, torch
before, known = time.perf_counter(), set(sys.modules)
import pixcontrast
seconds = time.perf_counter() - before
new = sorted({name.partition(".")[0] for name in set(sys.modules) - known})
print(seconds, "triton" in sys.modules, *new)
"""
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert output[1] == "False"
    third_party = {name for name in output[2:] if name not in sys.stdlib_module_names}
    assert third_party == {"pixcontrast"}
    print(f"import pixcontrast after import torch: {float(output[0]):.3f} s")
