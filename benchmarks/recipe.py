"""The options of a training run, and their defaults for each data set."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes a run but the seed; both arms use the same but for the contrast."""

    size: tuple[int, int]
    steps: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight: float
    temperature: float
    max_anchors: int
    max_views: int
    flip: bool
    seeds: int
    bank: int = 0
    pixels_per_image: int = 2
    base_temperature: float = 0.07
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_power: float = 0.9


RECIPES = {
    "digits": Recipe(
        size=(48, 48),
        steps=300,
        batch_size=8,
        optimizer="adamw",
        learning_rate=0.003,
        weight=0.003,
        temperature=0.1,
        max_anchors=512,
        max_views=6,
        # A mirrored digit is another shape.
        flip=False,
        seeds=3,
    ),
    # What the paper's recipe becomes on small images: its optimiser, decay, temperature and weight.
    "camvid": Recipe(
        size=(72, 96),
        steps=700,
        batch_size=8,
        optimizer="sgd",
        learning_rate=0.3,
        weight=0.1,
        temperature=0.1,
        max_anchors=512,
        max_views=6,
        flip=True,
        seeds=5,
    ),
}
