"""Small stand-ins for libraries that the docs' snippets import and that need not be installed.

Names, arguments and shapes are those of mmsegmentation 1.2 and MONAI 1.6, as far as the snippets
go.
"""

import importlib.util
import sys
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional as F


class Registry:
    """mmengine's, as a dictionary."""

    def __init__(self):
        self.classes = {}

    def register_module(self):
        return lambda cls: self.classes.setdefault(cls.__name__, cls)

    def build(self, config):
        options = dict(config)
        return self.classes[options.pop("type")](**options)


class FCNHead(nn.Module):
    """One convolution and a classifier; labels stacked to (B, 1, H, W), as in mmsegmentation."""

    def __init__(self, *, in_channels, channels, num_classes, ignore_index=255):
        super().__init__()
        self.channels, self.ignore_index = channels, ignore_index
        self.convs = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def _forward_feature(self, inputs):
        return self.convs(inputs[-1])

    def cls_seg(self, features):
        return self.conv_seg(features)

    def _stack_batch_gt(self, batch_data_samples):
        return torch.stack(batch_data_samples)

    def loss_by_feat(self, seg_logits, batch_data_samples):
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        logits = F.interpolate(seg_logits, size=labels.shape[1:], mode="bilinear")
        return {"loss_ce": F.cross_entropy(logits, labels, ignore_index=self.ignore_index)}


class BasicUNet(nn.Module):
    """Two layers, the last of which has MONAI's name."""

    def __init__(self, *, spatial_dims, in_channels, out_channels, features):
        super().__init__()
        assert spatial_dims == 3
        self.first = nn.Conv3d(in_channels, features[5], 3, padding=1)
        self.final_conv = nn.Conv3d(features[5], out_channels, 1)

    def forward(self, x):
        return self.final_conv(self.first(x).relu())


class DiceCELoss(nn.Module):
    """Its cross entropy; labels are (B, 1, *S)."""

    def __init__(self, *, to_onehot_y, softmax):
        super().__init__()
        assert to_onehot_y
        assert softmax

    def forward(self, logits, target):
        assert target.shape[1] == 1
        return F.cross_entropy(logits, target.squeeze(1).long())


MODULES = {
    "mmseg": {},
    "mmseg.registry": {"MODELS": Registry()},
    "mmseg.models": {},
    "mmseg.models.decode_heads": {"FCNHead": FCNHead},
    "monai": {},
    "monai.losses": {"DiceCELoss": DiceCELoss},
    "monai.networks": {},
    "monai.networks.nets": {"BasicUNet": BasicUNet},
}


def stand_in(monkeypatch):
    """Put stand-ins of what is not installed where `import` finds them; returns which these are."""
    missing = {name for name in ("mmseg", "monai") if importlib.util.find_spec(name) is None}
    for name, members in MODULES.items():
        if name.partition(".")[0] in missing:
            module = ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)
    return missing
