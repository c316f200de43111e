"""Supervised pixel contrast for semantic segmentation, after Wang et al., ICCV 2021.

Data flows one way: embeddings and labels → `samplers` → anchors → contrast entries (the batch,
the `bank`) → `functional.info_nce` → loss → `bank`.
"""

from pixcontrast import functional
from pixcontrast.bank import MemoryBank
from pixcontrast.losses import PixelContrastLoss, RegionContrastLoss
from pixcontrast.projection import ProjectionHead
from pixcontrast.samplers import (
    AnchorSample,
    HardAnchorSampler,
    HardNegativeSampler,
    RandomAnchorSampler,
)

__version__ = "0.1.0"

__all__ = [
    "AnchorSample",
    "HardAnchorSampler",
    "HardNegativeSampler",
    "MemoryBank",
    "PixelContrastLoss",
    "ProjectionHead",
    "RandomAnchorSampler",
    "RegionContrastLoss",
    "functional",
]
