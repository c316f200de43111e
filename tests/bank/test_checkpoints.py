"""A checkpoint that was cut short or tampered with is refused, and nothing of it is loaded."""

import ast
import io
from pathlib import Path

import pytest
import torch

import pixcontrast
from pixcontrast import MemoryBank, PixelContrastLoss


def filled(**options):
    options = {"pixel_slots": 4, "region_slots": 3, "pixels_per_image": 2, **options}
    bank = MemoryBank(3, 2, **options)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        emb = torch.randn(1, 2, 5, generator=generator)
        bank.update(emb, torch.tensor([[0, 0, 1, 1, 255]]), generator=generator)
    return bank


def change(name, at, value):
    def changed(state):
        state[name][at] = value
        return state

    return changed


def replace(name, made):
    return lambda state: {**state, name: made(state[name])}


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


CASES = {
    "a count above the slots": (change("pixel_count", 0, 5), ["pixel_count", "0 to 4", "5"]),
    "a count below 0": (change("region_count", 2, -1), ["region_count", "0 to 3", "-1"]),
    "the next slot beyond the ring": (change("pixel_next", 0, 4), ["pixel_next", "below 4", "4"]),
    "the next slot below 0": (change("pixel_next", 0, -1), ["pixel_next", "-1"]),
    "the next slot of another count": (change("region_next", 0, 0), ["region_next", "[2, 2, 0]"]),
    "NaN in a vector": (change("pixels", (0, 0, 0), float("nan")), ["pixels", "unit length"]),
    "infinity in a vector": (change("regions", (0, 0, 1), float("inf")), ["regions", "unit"]),
    "a longer vector": (change("pixels", (0, 0), 1.0), ["pixels", "unit length"]),
    "a written zero": (change("regions", (1, 1), 0.0), ["regions", "unit length"]),
    "NaN where nothing is": (change("pixels", (2, 3, 0), float("nan")), ["pixels", "zeros"]),
    "counts as floats": (replace("pixel_count", torch.Tensor.float), ["pixel_count", "float32"]),
    "counts of 32 bits": (replace("pixel_next", torch.Tensor.int), ["pixel_next", "int32"]),
    "vectors as integers": (replace("regions", torch.Tensor.long), ["regions", "floating"]),
    "complex vectors": (replace("regions", lambda t: t + 0j), ["regions", "complex64"]),
    "a list": (replace("pixels", torch.Tensor.tolist), ["pixels", "tensor", "list"]),
    "no values": (replace("region_next", lambda t: t.to("meta")), ["region_next", "values"]),
    "sparse counts": (replace("pixel_count", torch.Tensor.to_sparse), ["pixel_count", "dense"]),
    "other slots": (replace("pixels", lambda t: t[:, :2]), ["pixels", "[3, 2, 2]", "[3, 4, 2]"]),
    "one entry less": (without("region_next"), ["region_next", "missing"]),
}  # fmt: skip


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "loose"])
@pytest.mark.parametrize(("tamper", "words"), CASES.values(), ids=CASES.keys())
def test_refused_before_anything_is_changed(tamper, words, strict, assign):
    bank = MemoryBank(3, 2, pixel_slots=4, region_slots=3, pixels_per_image=2)
    state = {name: value.clone() for name, value in filled().state_dict().items()}
    with pytest.raises(RuntimeError) as caught:
        bank.load_state_dict(tamper(state), strict=strict, assign=assign)
    for word in words:
        assert word in str(caught.value)
    assert all(not buffer.any() for buffer in bank.buffers())


def test_a_queue_that_is_left_out_has_no_next_slot():
    bank = MemoryBank(3, 2, pixel_slots=0, region_slots=3)
    state = {name: value.clone() for name, value in bank.state_dict().items()}
    state["pixel_next"][1] = 1
    with pytest.raises(RuntimeError, match=r"pixel_next: expected the slot after .* below 1"):
        bank.load_state_dict(state)


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        (torch.tensor([1, 2]), "got that of rank 1 of 2"),
        (torch.tensor([0, 1, 2]), r"got \[0, 1, 2\]"),
        (torch.tensor(0), "got 0"),
    ],
)
def test_a_shard_of_others_is_refused(shard, words):
    for sharded in (False, True):
        bank = filled(sharded=sharded)
        before = {name: value.clone() for name, value in bank.state_dict().items()}
        state = {**MemoryBank(3, 2, pixel_slots=4, region_slots=3).state_dict(), "shard": shard}
        with pytest.raises(RuntimeError, match=f"shard: expected that of rank 0 of 1; {words}"):
            bank.load_state_dict(state, strict=sharded)
        assert all(torch.equal(value, before[name]) for name, value in bank.state_dict().items())


def test_the_message_names_the_bank_inside_of_a_loss():
    state = PixelContrastLoss(bank=filled()).state_dict()
    state["bank.pixel_count"] = state["bank.pixel_count"] + 9
    loss = PixelContrastLoss(bank=filled())
    with pytest.raises(RuntimeError, match=r"bank\.pixel_count: expected counts from 0 to 4"):
        loss.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_any_bank_saved_is_taken(dtype):
    for options in ({}, {"pixel_slots": 0}, {"region_slots": 0}, {"pixel_slots": 1}):
        saved = filled(dtype=dtype, **options)
        for other_dtype in (dtype, torch.float32):
            options = {"pixel_slots": 4, "region_slots": 3, "pixels_per_image": 2, **options}
            bank = MemoryBank(3, 2, dtype=other_dtype, **options)
            bank.load_state_dict(saved.state_dict())
            for one, other in zip(bank.buffers(), saved.buffers(), strict=True):
                assert torch.equal(one, other.to(one.dtype))


def test_a_state_without_the_bank_is_a_matter_of_strict():
    bank = filled()
    bank.load_state_dict({}, strict=False)
    assert bank.pixel_count.tolist() == [4, 4, 0]
    with pytest.raises(RuntimeError, match="Missing key"):
        bank.load_state_dict({})
    assert bank.pixel_count.tolist() == [4, 4, 0]


def test_a_bank_on_the_meta_device_may_be_assigned_to():
    with torch.device("meta"):
        bank = MemoryBank(3, 2, pixel_slots=4, region_slots=3, pixels_per_image=2)
    bank.load_state_dict(bank.state_dict(), assign=True)
    for name, value in filled().state_dict().items():  # some of it with values, some without
        bank.load_state_dict({**bank.state_dict(), name: value}, assign=True)
        bank.to("meta")
    bank.load_state_dict(filled().state_dict(), assign=True)
    assert bank.pixel_count.tolist() == [4, 4, 0]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_short(share):
    file = io.BytesIO()
    torch.save(filled().state_dict(), file)
    content = file.getvalue()
    with pytest.raises(Exception, match=r"archive|central directory|EOF|file"):
        torch.load(io.BytesIO(content[: int(share * len(content))]), weights_only=True)


def test_nothing_in_the_package_unpickles():
    """No module that reads pickles, and no function that runs what it reads."""
    modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "copyreg"}
    calls = {"load", "loads", "eval", "exec", "compile", "__import__", "Unpickler"}
    files = sorted(Path(pixcontrast.__file__).parent.rglob("*.py"))
    assert len(files) > 40
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not modules & {name.name.split(".")[0] for name in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in modules, path
            elif isinstance(node, ast.Call):
                function = node.func
                name = getattr(function, "id", getattr(function, "attr", None))
                of_triton = (
                    isinstance(function, ast.Attribute) and ast.unparse(function) == "tl.load"
                )
                assert name not in calls or of_triton, f"{path}:{node.lineno}"
