"""Every recipe of docs/recipes, run as a script against the real library."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes"
RUNNER = Path(__file__).with_name("run_recipe.py")
SEARCH_PATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
NEEDS = {
    "forward_hook": ["torchvision"],
    "lightning_segmentation": ["lightning"],
    "monai_deep_supervision": ["monai"],
    "new_class": [],
    "point_clouds": [],
    "pytorch_amp": [],
    "self_training": [],
    "smp_unet": ["segmentation_models_pytorch"],
    "timm_backbone": ["timm"],
    "transformers_segformer": ["transformers", "accelerate"],
    "volumes_3d": [],
}
WITH_BANK = set(NEEDS) - {
    *("forward_hook", "monai_deep_supervision", "new_class", "point_clouds", "smp_unet"),
}


def run_recipe(
    name: str, folder: Path, launcher: tuple[str, ...] = (), options: tuple[str, ...] = ()
) -> tuple[str, list[dict]]:
    """What a recipe prints, and the facts of each of its ranks."""
    recipe = str(RECIPES / f"{name}.py")
    done = subprocess.run(
        [sys.executable, *launcher, str(RUNNER), recipe, str(folder / "{rank}.json"), *options],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=240,
        env={
            **os.environ,
            "PYTHONPATH": SEARCH_PATH,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",  # a recipe that wants weights must fail, not fetch them
        },
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return done.stdout, ranks


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def check_training(facts: dict, *, bank: bool) -> None:
    """It trained: losses are finite, classes separate, the network is reached, the bank filled."""
    calls = len(facts["contrast"])
    assert calls >= 20
    assert facts["finite"]
    quarter = calls // 4
    assert mean(facts["contrast"][-quarter:]) < mean(facts["contrast"][:quarter])
    assert mean(facts["separation"][-quarter:]) > mean(facts["separation"][:quarter]) + 0.05
    assert min(facts["anchors"]) > 50
    # The gradient goes through the head and on into the network, at every step.
    assert facts["head_moved"]
    assert len(facts["feature_gradients"]) == calls
    assert min(facts["feature_gradients"]) > 0
    assert facts["has_bank"] == bank
    assert (facts["occupancy"] > 0.9) == bank


def check_prediction(output: str, facts: dict) -> None:
    """It predicts held-out data well, and without the head."""
    (accuracy,) = re.findall(r"^held-out (?:pixel|voxel|point) accuracy (\S+)$", output, re.M)
    assert float(accuracy) > 0.9
    assert facts["head_outside_of_training"] == 0


@pytest.mark.parametrize("name", NEEDS)
def test_recipe(name, tmp_path):
    for module in NEEDS[name]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: pip install -e '.[recipes]'")
    output, (facts,) = run_recipe(name, tmp_path)
    check_training(facts, bank=name in WITH_BANK)
    check_prediction(output, facts)
    assert any(facts["weighted"]) == (name == "self_training")
    if name == "new_class":
        (recognized,) = re.findall(r"^new class: (\S+) of its pixels", output, re.M)
        (found,) = re.findall(r"^search: (\d+) of the first 100 ", output, re.M)
        assert float(recognized) > 0.5
        assert int(found) > 90


RANKS = 2


@pytest.mark.parametrize("options", [(), ("--wrap-loss",)], ids=["shared head", "wrapped loss"])
def test_recipe_of_several_ranks(tmp_path, options):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS))
    output, ranks = run_recipe("ddp", tmp_path, launcher, options)
    assert len(ranks) == RANKS
    for facts in ranks:
        check_training(facts, bank=True)
    check_prediction(output, ranks[0])
    # One bank and one head, though each rank has pixels of its own.
    for what in ("bank_sums", "head_sums"):
        assert all(facts[what] == ranks[0][what] for facts in ranks)
    assert ranks[0]["contrast"] != ranks[1]["contrast"]


@pytest.fixture(scope="module")
def patterns():
    spec = importlib.util.spec_from_file_location("patterns", RECIPES / "patterns.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recorded:
    """The object, the arguments and the options of each call of a method."""

    def __init__(self, monkeypatch, owner, name):
        self.calls = []
        method = getattr(owner, name)

        def recorded(instance, *args, **options):
            self.calls.append((instance, args, options))
            return method(instance, *args, **options)

        monkeypatch.setattr(owner, name, recorded)


@pytest.fixture
def calls(patterns, monkeypatch):
    torch.manual_seed(0)
    return Recorded(monkeypatch, patterns.PixelContrastLoss, "forward").calls


def test_patterns_are_run_as_a_script(tmp_path, patterns):
    done = subprocess.run(
        [sys.executable, str(RECIPES / "patterns.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
        env={**os.environ, "PYTHONPATH": SEARCH_PATH, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    printed = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert printed == {pattern.__name__ for pattern in patterns.PATTERNS}


@pytest.mark.parametrize("ignored", [-1, 254])
def test_patterns_take_another_ignored_label(patterns, calls, monkeypatch, ignored):
    monkeypatch.setattr(patterns, "IGNORE", ignored)
    for pattern in patterns.PATTERNS:
        pattern()
    assert {instance.ignore_index for instance, _, _ in calls} == {ignored}
    assert all(int(instance.stats.anchors) > 40 for instance, _, _ in calls)


def test_a_teacher_fills_the_bank(patterns, calls, monkeypatch):
    updates = Recorded(monkeypatch, patterns.MemoryBank, "update").calls
    loss = patterns.teacher_keys()
    assert len(updates) == len(calls) == patterns.STEPS
    assert not any(args[0].requires_grad for _, args, _ in updates)
    # 10 pixels and a region of each class of 2 images a step, and nothing of the student.
    assert loss.bank.pixel_count.tolist() == [40] * patterns.CLASSES
    assert loss.bank.region_count.tolist() == [2 * patterns.STEPS] * patterns.CLASSES
    last = updates[-1][1][0].movedim(1, -1).reshape(-1, patterns.DIM)
    assert (loss.bank.pixels[0, 20:] @ last.T).amax(1).min() > 1 - 1e-5


def test_each_map_has_a_loss_of_its_own(patterns, calls):
    losses = patterns.deep_supervision()
    seen = [(instance, args[0].shape[1:]) for instance, args, _ in calls]
    assert seen[:2] == [(losses[0], (16, 16, 16)), (losses[1], (32, 8, 8))]
    assert all(p.grad.abs().sum() > 0 for p in losses[1].projection.layers[-1].parameters())


def test_micro_batches_meet_in_the_bank(patterns, calls):
    loss = patterns.gradient_accumulation(micro_batches=2)
    assert len(calls) == 2 * patterns.STEPS
    assert loss.bank.region_count.tolist() == [2 * len(calls)] * patterns.CLASSES


def test_a_temperature_set_later_is_used(patterns, calls):
    loss = patterns.temperature_schedule()
    assert loss.temperature == pytest.approx(0.07)
    emb, labels = torch.randn(2, 16, 9, 9), torch.randint(0, 4, (2, 9, 9))
    found = loss(emb, labels, generator=torch.Generator().manual_seed(0))
    again = patterns.make_loss(temperature=0.07)
    again.projection = loss.projection
    expected = again(emb, labels, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, expected)


def test_class_weights_leave_ignored_pixels_ignored(patterns, calls):
    loss = patterns.class_weights()
    _, (features, labels), options = calls[-1]
    assert (labels == patterns.IGNORE).any()
    weight = options["weight"]
    assert weight[labels == 0].max() == 0
    assert weight[labels == 3].min() == 3
    _, sample = loss(features, labels, weight=weight, return_anchors=True)
    valid = set(sample.labels.tolist()) - {patterns.IGNORE}
    assert valid == {1, 2, 3}


def test_tokens_become_a_map_in_order(patterns, calls):
    patterns.transformer_tokens()
    for _, (features, _), _ in calls:
        assert features.shape == (2, patterns.WIDTH, 8, 8)
    # The same steps by hand: the token of row i and column j comes to pixel (i, j).
    numbers = torch.arange(64.0).view(1, 1, 8, 8)
    tokens = torch.cat([torch.zeros(1, 1, 1), numbers.flatten(2).movedim(1, -1)], 1)
    assert torch.equal(tokens[:, 1:].movedim(-1, 1).unflatten(2, (8, 8)), numbers)


def test_every_recipe_is_run():
    assert {path.stem for path in RECIPES.glob("*.py")} == {*NEEDS, "ddp", "patterns"}


def test_recipes_name_the_ignored_label_once():
    for path in RECIPES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("255") == 1, path.name
        losses = text.count("PixelContrastLoss(\n") + text.count("MemoryBank(\n")
        losses += text.count("cross_entropy(")
        assert text.count("ignore_index=IGNORE") >= losses, path.name


def test_recipes_train_the_head():
    """The optimizer gets the head: with the parameters of the loss, or as a part of the model."""
    for path in RECIPES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "projection=" in text, path.name
        assert "head(" not in text.replace("_head(", "("), path.name


def test_recipes_are_not_part_of_the_package():
    for path in (ROOT / "pixcontrast").rglob("*.py"):
        used = re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.M)
        assert not set(used) & {"lightning", "timm", "torchvision", "transformers"}, path
