import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch

import pixcontrast
from pixcontrast import functional

PUBLIC_NAMES = Path(__file__).with_name("public_names.json")
"""What users may rely on, as it was last agreed on; docs/releasing.md says what a change takes."""

CLASSES = {name: value for name, value in vars(pixcontrast).items() if inspect.isclass(value)}
SIGNED = {**CLASSES, "functional.info_nce": functional.info_nce}
METHODS = {"forward", "__call__", "update", "entries"}


def written(signature):
    """A signature without its types, which Python versions print in ways of their own."""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def names_found():
    """Every public name and its signature; what a bank saves; what a loss tells of a call."""
    signatures = {name: written(inspect.signature(value)) for name, value in SIGNED.items()}
    for name, public in CLASSES.items():
        defined = {m for base in public.__mro__ for m in vars(base) if ours(base)}
        for method in METHODS & defined:
            signatures[f"{name}.{method}"] = written(inspect.signature(getattr(public, method)))
    bank = pixcontrast.MemoryBank(1, 1)
    loss = pixcontrast.PixelContrastLoss()
    loss(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))
    return {
        "signatures": dict(sorted(signatures.items())),
        "MemoryBank.state_dict": sorted(bank.state_dict()),
        "PixelContrastLoss.stats": list(loss.stats._fields),
    }


def ours(public):
    return public.__module__.partition(".")[0] == "pixcontrast"


def test_public_names():
    assert set(pixcontrast.__all__) == set(CLASSES) | {"functional"}
    assert functional.__all__ == ["info_nce"]
    shown = {name for name in vars(pixcontrast) if not name.startswith("_")}
    modules = {name for name in shown if inspect.ismodule(getattr(pixcontrast, name))}
    assert shown - modules == set(CLASSES)


def test_public_names_are_those_agreed_on():
    agreed = json.loads(PUBLIC_NAMES.read_text(encoding="utf-8"))
    assert names_found() == agreed, (
        "a public name or signature changed: see docs/releasing.md for what that takes, and where "
        "it is meant, run `python tests/api/test_public_api.py` and commit public_names.json"
    )


@pytest.mark.parametrize("name", SIGNED)
def test_every_option_is_documented(name):
    documented = SIGNED[name].__doc__
    if SIGNED[name] is pixcontrast.AnchorSample:
        for field in ("indices", "labels"):
            assert re.search(rf"{field} \(Tensor\): [^.]*shape\s+\(K,\)", documented)
        return
    assert "Args:" in documented
    assert ">>>" in documented
    if SIGNED[name] is pixcontrast.RegionContrastLoss:
        documented += pixcontrast.PixelContrastLoss.__doc__
    for option in inspect.signature(SIGNED[name]).parameters:
        assert re.search(rf"\b{option}\b", documented), option


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


if __name__ == "__main__":
    PUBLIC_NAMES.write_text(json.dumps(names_found(), indent=2) + "\n", encoding="utf-8")
