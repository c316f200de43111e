"""A checkpoint that was cut short or tampered with is refused, and nothing of it is loaded."""

import ast
import copy
import io
from pathlib import Path

import pytest
import torch

import pixcontrast
from pixcontrast import MemoryBank, PixelContrastLoss, RegionContrastLoss


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
    "a small number where nothing is": (change("pixels", (2, 3, 0), 1e-30), ["pixels", "zeros"]),
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
    if strict:
        with pytest.raises(RuntimeError) as caught:
            bank.load_state_dict(tamper(state), strict=strict, assign=assign)
        said = str(caught.value)
    else:
        with pytest.warns(UserWarning, match="not loaded, the bank stays as it is") as warned:
            found = bank.load_state_dict(tamper(state), strict=strict, assign=assign)
        said = str(warned[0].message)
        assert set(found.missing_keys) == set(bank.state_dict())
    for word in words:
        assert word in said
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
        match = f"shard: expected that of rank 0 of 1; {words}"
        with pytest.raises(RuntimeError, match=match):
            bank.load_state_dict(state)
        with pytest.warns(UserWarning, match=match):
            bank.load_state_dict(state, strict=False)
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


class Net(torch.nn.Module):
    """A model that holds a bank, as users save it."""

    def __init__(self, kind=PixelContrastLoss, **options):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 2, 1)
        options = {"pixel_slots": 4, "region_slots": 3, "pixels_per_image": 2, **options}
        self.contrast = kind(bank=MemoryBank(3, 2, **options))

    def step(self):
        emb = self.layer(torch.randn(2, 3, 6, 6))
        self.contrast(emb, torch.randint(0, 3, (2, 6, 6))).backward()
        return self


def averaged(net, average):
    """What timm's ModelEmaV2, YOLO's ModelEMA and ignite do in each step."""
    with torch.no_grad():
        pairs = zip(average.state_dict().values(), net.state_dict().values(), strict=True)
        for old, new in pairs:
            old.copy_(0.9 * old + 0.1 * new)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", [PixelContrastLoss, RegionContrastLoss])
def test_an_average_over_the_state_is_no_bank(strict, kind):
    net = Net(kind).step()
    average = copy.deepcopy(net).eval()
    for _ in range(3):
        averaged(net.step(), average)
    fresh = Net()
    before = {name: value.clone() for name, value in fresh.contrast.bank.state_dict().items()}
    if strict:
        with pytest.raises(RuntimeError, match=r"persistent=False"):
            fresh.load_state_dict(average.state_dict())
    else:
        with pytest.warns(UserWarning, match="persistent=False"):
            fresh.load_state_dict(average.state_dict(), strict=False)
        assert torch.equal(fresh.layer.weight, average.layer.weight)
    for name, value in fresh.contrast.bank.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_persistence_the_bank_is_in_no_state():
    net = Net(persistent=False).step()
    average = copy.deepcopy(net)
    kept = [buffer.clone() for buffer in average.contrast.bank.buffers()]
    assert set(net.state_dict()) == {"layer.weight", "layer.bias"}
    averaged(net.step(), average)
    assert all(
        torch.equal(one, other)
        for one, other in zip(average.contrast.bank.buffers(), kept, strict=True)
    )
    fresh = Net(persistent=False)
    assert fresh.load_state_dict(average.state_dict()) == ([], [])
    assert not any(buffer.any() for buffer in fresh.contrast.bank.buffers())
    # The entries of a bank of any options are unexpected keys, and no faults of this one.
    found = fresh.load_state_dict(Net(pixel_slots=8).step().state_dict(), strict=False)
    assert (found.missing_keys, len(found.unexpected_keys)) == ([], 6)
    assert {buffer.device.type for buffer in net.to("meta").contrast.bank.buffers()} == {"meta"}
    with pytest.raises(TypeError, match="persistent"):
        MemoryBank(3, 2, persistent=1)


@pytest.mark.parametrize("options", [{"pixel_slots": 8}, {"region_slots": 0}, {"sharded": True}])
def test_a_bank_of_other_options(options):
    """Everything else of the model is loaded, and the bank stays as it is."""
    saved, target = Net().step().state_dict(), Net(**options).step()
    bank = {name: value.clone() for name, value in target.contrast.bank.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"(?s)bank\..*strict=False leaves the bank as it is"):
        target.load_state_dict(saved)
    for state in (saved, {k: v for k, v in saved.items() if "regions" not in k}):
        with pytest.warns(UserWarning, match=r"contrast\.bank\."):
            found = target.load_state_dict(state, strict=False)
        assert set(found.missing_keys) == {f"contrast.bank.{name}" for name in bank}
        assert torch.equal(target.layer.weight, saved["layer.weight"])
        for name, value in target.contrast.bank.state_dict().items():
            assert torch.equal(value, bank[name])


def test_a_model_without_the_bank():
    """For inference: `strict=False` leaves the bank's entries out."""
    saved, target = Net().step().state_dict(), torch.nn.Module()
    target.layer = torch.nn.Conv2d(3, 2, 1)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*contrast\.bank\.pixels"):
        target.load_state_dict(saved)
    found = target.load_state_dict(saved, strict=False)
    assert (found.missing_keys, len(found.unexpected_keys)) == ([], 6)
    assert torch.equal(target.layer.weight, saved["layer.weight"])


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
                called = ast.unparse(function)
                in_kernels = path.parent.name == "kernels" and called in {"load", "tile.load"}
                of_triton = called == "tl.load" or in_kernels
                assert name not in calls or of_triton, f"{path}:{node.lineno}"


def test_an_assigned_state_has_the_dtype_and_the_layout_of_the_bank():
    saved = filled().state_dict()
    odd = {name: value.to(torch.bfloat16) for name, value in saved.items() if value.ndim == 3}
    odd = {name: value.mT.contiguous().mT for name, value in odd.items()}
    bank = MemoryBank(3, 2, pixel_slots=4, region_slots=3, pixels_per_image=2)
    bank.load_state_dict({**saved, **odd}, assign=True)
    for name, value in bank.state_dict().items():
        assert value.is_contiguous()
        assert value.dtype == saved[name].dtype
    bank.update(torch.randn(1, 2, 3), torch.full((1, 3), 2))
    assert bank.pixel_count.tolist() == [4, 4, 2]


def test_a_state_in_a_dtype_that_no_bank_has():
    saved = filled().state_dict()
    state = {**saved, "pixels": saved["pixels"].to(torch.float8_e4m3fn)}
    with pytest.raises(RuntimeError, match="pixels: expected a dense floating tensor"):
        filled().load_state_dict(state)
    with pytest.warns(UserWarning, match="not loaded") as told:
        filled().load_state_dict(state, strict=False)
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match="not loaded") as told:
        PixelContrastLoss(bank=filled()).load_state_dict(
            {f"bank.{name}": value for name, value in state.items()}, strict=False
        )
    assert told[0].filename == __file__
