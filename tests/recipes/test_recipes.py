"""Every recipe of docs/recipes, run as a script against the real library."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes"
RUNNER = Path(__file__).with_name("run_recipe.py")
NEEDS = {
    "forward_hook": ["torchvision"],
    "lightning_segmentation": ["lightning"],
    "point_clouds": [],
    "pytorch_amp": [],
    "self_training": [],
    "smp_unet": ["segmentation_models_pytorch"],
    "timm_backbone": ["timm"],
    "transformers_segformer": ["transformers", "accelerate"],
    "volumes_3d": [],
}
WITH_BANK = set(NEEDS) - {"forward_hook", "point_clouds", "smp_unet"}


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
            "PYTHONPATH": str(ROOT),
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


def test_every_recipe_is_run():
    assert {path.stem for path in RECIPES.glob("*.py")} == {*NEEDS, "ddp"}


def test_recipes_are_not_part_of_the_package():
    for path in (ROOT / "pixcontrast").rglob("*.py"):
        used = re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.M)
        assert not set(used) & {"lightning", "timm", "torchvision", "transformers"}, path
