"""Runs a recipe as a user would, as a script, and writes down what its pixcontrast parts did.

    python tests/recipes/run_recipe.py docs/recipes/NAME.py FACTS.json [OPTION ...]

The recipe knows nothing of this: facts are taken by hooks on all modules.
"""

import importlib.util
import json
import math
import os
import runpy
import sys
from pathlib import Path

import torch
from torch import nn

from pixcontrast import PixelContrastLoss, ProjectionHead


class Facts:
    """What was seen of the losses, the head and the bank, call by call."""

    def __init__(self) -> None:
        self.contrast: list[float] = []
        self.separation: list[float] = []
        self.anchors: list[int] = []
        self.weighted: list[bool] = []
        self.occupancy = 0.0
        self.head_outside_of_training = 0
        self.feature_gradients: list[float] = []
        self.head: ProjectionHead | None = None
        self.first_head: dict[str, torch.Tensor] = {}
        self.loss: PixelContrastLoss | None = None

    def before(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if not isinstance(module, ProjectionHead):
            return None
        if not (module.training and torch.is_grad_enabled()):
            self.head_outside_of_training += 1
            return None
        if self.head is None:
            self.head = module
            self.first_head = {k: v.clone() for k, v in module.state_dict().items()}
        # A view of its own: the gradient that comes through the head, not the classifier's.
        features = inputs[0].view_as(inputs[0])
        features.register_hook(lambda grad: self.feature_gradients.append(float(grad.norm())))
        return (features,)

    def after(self, module: nn.Module, inputs: object, options: dict, output: torch.Tensor) -> None:
        if not isinstance(module, PixelContrastLoss):
            return
        self.loss = module
        stats = module.stats
        self.contrast.append(float(output.detach()))
        self.separation.append(float(stats.positive_similarity - stats.negative_similarity))
        self.anchors.append(int(stats.anchors))
        self.occupancy = float(stats.bank_occupancy)
        weight = options.get("weight")
        self.weighted.append(weight is not None and bool((weight != 1).any()))

    def summary(self) -> dict[str, object]:
        bank = None if self.loss is None else self.loss.bank
        head = {} if self.head is None else self.head.state_dict()
        return {
            "contrast": self.contrast,
            "separation": self.separation,
            "anchors": self.anchors,
            "weighted": self.weighted,
            "occupancy": self.occupancy,
            "has_bank": bank is not None,
            "bank_sums": [] if bank is None else [float(b.double().sum()) for b in bank.buffers()],
            "head_sums": [float(value.double().sum()) for value in head.values()],
            "head_moved": any(not v.equal(self.first_head[k]) for k, v in head.items()),
            "head_outside_of_training": self.head_outside_of_training,
            "feature_gradients": self.feature_gradients,
            "finite": all(map(math.isfinite, self.contrast + self.feature_gradients)),
        }


def mend_torchvision() -> None:
    """Lets PyPI's torchvision be imported beside a PyTorch that it was not compiled for.

    timm, segmentation_models_pytorch and more import torchvision. Its wheel on PyPI is compiled for
    PyTorch's CUDA build; beside the CPU build its operators do not load, which it allows for, but
    for the two that it declares Python versions of on import. So these are declared, without
    an implementation: no recipe calls them.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as reason:
        if "operator torchvision::nms does not exist" not in str(reason):
            raise
    else:
        return
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    KEPT.append(operators)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the import that failed left behind


KEPT: list[torch.library.Library] = []
"""Operators live as long as the library that declared them."""


def main(recipe: str, facts_to: str, *options: str) -> None:
    mend_torchvision()
    torch.set_num_threads(1)
    facts = Facts()
    nn.modules.module.register_module_forward_pre_hook(facts.before)
    nn.modules.module.register_module_forward_hook(facts.after, with_kwargs=True)
    sys.argv = [recipe, *options]
    runpy.run_path(recipe, run_name="__main__")
    target = Path(facts_to.format(rank=os.environ.get("RANK", "0")))
    target.write_text(json.dumps(facts.summary()), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
