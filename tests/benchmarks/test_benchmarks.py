"""The scripts that time things: what they time is what they say, and what they write is there."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from matplotlib import pyplot
from torch.nn import functional as F

from benchmarks import curves, hot_path, sampler_loop, script, step, timing
from benchmarks.authors_step import AuthorsStep, Queues, queue_entries
from benchmarks.batches import SHAPES, SHARE_WRONG, Batch, draw_noise, draw_patches
from benchmarks.sampler_timing import sampler_runs
from benchmarks.step_ways import BASE_TEMPERATURE, PARTS, TEMPERATURE, Case
from benchmarks.variants import Problem, Shape, variants
from pixcontrast import HardAnchorSampler, MemoryBank
from pixcontrast.functional import info_nce

CPU = torch.device("cpu")
SMALL = SHAPES["small"]
FACTOR = TEMPERATURE / BASE_TEMPERATURE


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_step_from_the_command_line(tmp_path, capsys):
    options = ["--shapes", "small", "--repeats", "2", "--no-memory", "--out", str(tmp_path)]
    step.main(options)
    record = json.loads((tmp_path / "step.json").read_text())
    assert [row["case"] for row in record["steps"]] == ["batch", "bank", "mining"]
    for row in record["steps"]:
        other = "unmined" if row["case"] == "mining" else "authors"
        assert list(row["measured"]) == ["step", "loss", other]
        seconds = {way: one["seconds"] for way, one in row["measured"].items()}
        for one in row["measured"].values():
            assert one["to_step"] == pytest.approx(one["seconds"] / seconds["step"])
            assert one["to_loss"] == pytest.approx(one["seconds"] / seconds["loss"])
            assert math.isfinite(one["spread"])
        assert list(row["parts"]) == list(PARTS)
        for part, taken in row["parts"].items():
            assert (taken > 0) == (row["case"] != "batch" or part != "bank update")
        assert row["anchors"] == {"step": 56, "authors": 56}
    assert [row["labels"] for row in record["samplers"]] == ["noise", "patches"]
    for row in record["samplers"]:
        assert list(row["measured"]) == ["sampler", "loop", "sorted loop"]
        assert all(one["to_sampler"] > 0 for one in row["measured"].values())
    assert record["environment"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    for words in ("authors", "unmined", "bank update", "sorted loop"):
        assert words in printed


def test_peak_of_a_way_in_this_process(capsys):
    step.main(["--peak", "step", "--shapes", "small", "--cases", "bank"])
    assert float(capsys.readouterr().out) >= 0
    found = timing.measured_peak(lambda: torch.ones(25_000_000))
    assert 90 < found < 130


def test_peak_counts_memory_that_an_earlier_run_left_behind():
    def run():
        return [torch.ones(16_000) for _ in range(1000)]

    pieces, last = run(), torch.ones(16_000)
    del pieces  # which the heap keeps, below `last`
    assert 50 < timing.measured_peak(run) < 90
    assert last.sum() == 16_000


@pytest.mark.parametrize("case", ["batch", "bank"])
def test_the_loss_alone_has_the_anchors_and_entries_of_the_step(case):
    problem = Case(SMALL, case, CPU)
    torch.manual_seed(3)
    (of_anchors,) = problem.way("loss")()
    taken = problem.way("step")
    torch.manual_seed(3)
    (of_map,) = taken()
    torch.manual_seed(3)
    with torch.no_grad():
        _, sample = problem.criterion(mined=False)(
            problem.batch.emb, problem.batch.labels, problem.batch.logits, return_anchors=True
        )
    real = sample.labels >= 0
    rows = of_map.movedim(1, -1).flatten(0, -2)[sample.indices]
    anchors = problem.batch.emb.detach().movedim(1, -1).flatten(0, -2)[sample.indices]
    # Giving unit length takes out what points along the vector.
    along = (of_anchors * anchors).sum(dim=1, keepdim=True) * anchors
    expected = FACTOR * (of_anchors - along)
    torch.testing.assert_close(rows[real], expected[real], rtol=1e-4, atol=1e-6)
    assert of_map.abs().sum() > 0
    torch.testing.assert_close(of_map.abs().sum(), rows[real].abs().sum())


def test_a_mined_step_is_another_one():
    problem, gradients = Case(SMALL, "mining", CPU), []
    for way in ("step", "unmined"):
        run = problem.way(way)
        torch.manual_seed(0)
        gradients.append(run()[0])
    # An anchor has 40 positives and 160 negatives; semi-hard mining keeps a tenth of each.
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


@pytest.mark.parametrize("with_queue", [False, True])
def test_authors_loss_is_info_nce_times_a_factor(with_queue):
    views = unit(6, 5, 16).requires_grad_()
    # Class 1 stands first in the queue, where the authors leave an entry out for each anchor.
    groups = torch.tensor([2.0, 3.0, 2.0, 0.0, 4.0, 3.0], dtype=torch.float64)
    entries = queue_entries(unit(5, 40, 16)) if with_queue else (None, None)
    authors = AuthorsStep().contrast(views, groups, *entries)
    anchors = torch.cat(views.unbind(dim=1))
    entry_labels = entries[1].long() if with_queue else None
    ours = FACTOR * info_nce(anchors, groups.long().repeat(5), entries[0], entry_labels)
    torch.testing.assert_close(authors, ours, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, views)[0] for loss in (authors, ours)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_authors_loss_of_a_batch_is_the_loss_of_what_they_sample():
    batch = Batch.draw(SMALL, CPU)
    authors = AuthorsStep(max_samples=64, max_views=8)
    torch.manual_seed(0)
    value = authors.loss(batch.emb, batch.labels, batch.logits)
    labels = batch.labels[:, ::4, ::4].flatten(1)
    numbers = torch.arange(labels.numel(), dtype=torch.float32).view(*labels.shape, 1)
    predicted = batch.logits.argmax(dim=1).flatten(1)
    torch.manual_seed(0)
    views, groups = authors.sample(numbers, labels, predicted)
    taken = views.squeeze(2).long()
    assert taken.unique().numel() == taken.numel() == 56
    assert (labels.flatten()[taken] == groups[:, None]).all()
    assert ((predicted.flatten()[taken] != groups[:, None]).sum(dim=1) <= 4).all()
    anchors = batch.emb.movedim(1, -1).flatten(0, -2)[taken.T.flatten()]
    ours = FACTOR * info_nce(anchors, groups.long().repeat(8))
    torch.testing.assert_close(value, ours, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("num_hard", "expected"), [(3, 3), (60, 4), (97, 5), (100, 8)])
def test_authors_take_half_of_each_kind_and_fill_up(num_hard, expected):
    predicted = (torch.arange(100) < num_hard).long()[None]
    numbers = torch.arange(100.0).view(1, 100, 1)
    authors = AuthorsStep(max_samples=8, max_views=8)
    views, _ = authors.sample(numbers, torch.zeros_like(predicted), predicted)
    assert int((views < num_hard).sum()) == expected
    assert views.unique().numel() == 8


def test_authors_regions_are_those_of_the_bank():
    batch = Batch.draw(SMALL, CPU)
    emb = batch.emb.detach()
    bank = MemoryBank(5, 16, pixel_slots=20, region_slots=20, ignore_index=-1)
    bank.update(emb, batch.labels)
    queues = Queues.of(torch.zeros(5, 20, 16), torch.zeros(5, 20, 16))
    AuthorsStep().enqueue(emb, batch.labels, queues)
    torch.testing.assert_close(queues.segments[1:], bank.regions[1:])
    assert torch.equal(queues.segment_next[1:], bank.region_next[1:])
    assert bank.region_count[1:].sum() > 0
    written = torch.linalg.vector_norm(queues.pixels, dim=2) > 0.5
    # Each image moves the pointer by 1, so that the second writes over nine of the first's ten.
    images = queues.segment_next
    assert written.sum(dim=1).tolist() == [0 if n == 0 else 9 + n for n in images.tolist()]


def draw_wrong(shape, generator):
    """Noise of which hardly anything is predicted right: hard pixels fill up."""
    labels, preds = draw_noise(shape, generator)
    return labels, torch.where(preds == labels, (labels + 1) % 5, labels)


@pytest.mark.parametrize("draw", [draw_noise, draw_patches, draw_wrong])
@pytest.mark.parametrize("options", [{}, {"max_anchors": 5}, {"min_pixels": 60}])
def test_loops_sample_by_the_samplers_rule(draw, options):
    sampler = HardAnchorSampler(**{"max_anchors": 640, "max_views": 40, **options})
    drawn = draw(replace(SMALL, stride=1), torch.Generator().manual_seed(0))
    labels, preds = (classes.flatten(1) for classes in drawn)
    counts = {}
    for way, run in sampler_runs(sampler, labels, preds).items():
        indices, taken = run()
        real = taken >= 0
        assert len(taken) == sampler.max_anchors
        assert torch.equal(labels.flatten()[indices[real]], taken[real])
        assert indices[real].unique().numel() == int(real.sum())
        assert (indices[~real] == 0).all()
        group = 5 * (indices // labels.shape[1]) + taken
        is_hard = preds.flatten()[indices] != taken
        counts[way] = [
            torch.bincount(chosen, minlength=10) for chosen in (group[real], group[real & is_hard])
        ]
    for way in ("loop", "sorted loop"):
        if "max_anchors" in options:
            assert counts[way][0].max() == 1
            assert counts[way][0].sum() == counts["sampler"][0].sum()
        else:
            assert torch.equal(counts[way][0], counts["sampler"][0])
            assert (counts[way][1] - counts["sampler"][1]).abs().max() <= 1


def test_groups_of_a_loop_are_those_of_the_labels():
    labels, preds = torch.tensor([[-1, 0, 2, 0], [2, 2, -1, 2]]), torch.tensor([[0, 0, 1, 1]] * 2)
    expected = [([3], [1]), ([2], []), ([4, 5, 7], [])]
    for groups in (sampler_loop.scanned_groups, sampler_loop.sorted_groups):
        found = [(hard.tolist(), easy.tolist()) for hard, easy in groups(labels, preds)]
        assert [(sorted(hard), sorted(easy)) for hard, easy in found] == expected


def test_drawn_labels_look_like_a_segmentation():
    shape = replace(SHAPES["cityscapes"], images=4, height=64, width=128)
    labels, predicted = draw_patches(shape, torch.Generator().manual_seed(0))
    seen = labels[:, ::4, ::4]
    valid = seen >= 0
    assert 0.01 < 1 - valid.float().mean() < 0.1
    right = (predicted == seen)[valid].float().mean()
    assert 1 - right == pytest.approx(SHARE_WRONG, abs=0.03)
    for of_image in labels:
        assert 5 <= of_image[of_image >= 0].unique().numel() <= 12
    same_as_neighbour = (labels[..., 1:] == labels[..., :-1]).float().mean()
    assert same_as_neighbour > 0.97


TINY = ("40x300x16x4", "80x300x16x4", "40x600x16x4")
QUICK = ("floor", "tiled", "mined", "dense", "authors")  # compiling takes seconds


def test_hot_path_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hot_path, "MOST_FOR_ALL", 23_999)
    options = ["--shapes", *TINY, "--variants", *QUICK, "--repeats", "2", "--no-memory"]
    hot_path.main([*options, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "hot_path.json").read_text())["rows"]
    assert [(row["anchors"], row["entries"]) for row in rows] == [(40, 300), (80, 300), (40, 600)]
    for row in rows:
        few = row["anchors"] * row["entries"] < 24_000
        assert list(row["measured"]) == list(QUICK if few else QUICK[:2])
        for one in row["measured"].values():
            for reference in ("floor", "tiled"):
                expected = one["seconds"] / row["measured"][reference]["seconds"]
                assert one[f"to_{reference}"] == pytest.approx(expected)
    assert "x tiled" in capsys.readouterr().out
    picture = (tmp_path / "hot_path.png").read_bytes()
    hot_path.main(["--redraw", str(tmp_path / "hot_path.json"), "--out", str(tmp_path / "again")])
    assert (tmp_path / "again" / "hot_path.png").read_bytes() == picture


def test_curves_show_time_and_memory_as_both_grow(tmp_path, monkeypatch):
    def row(anchors, entries, **extra):
        measured = {
            name: {"seconds": anchors * entries * 1e-6, "extra_mb": megabytes}
            for name, megabytes in extra.items()
        }
        shape = asdict(Shape(anchors, entries, dim=8, classes=3))
        return {**shape, "measured": measured}

    rows = [
        row(10, 400, tiled=7.0, dense=None),
        row(10, 100, tiled=0.0, dense=5.0),
        row(10, 200, tiled=6.0),
        row(30, 100, tiled=9.0, dense=8.0),
        row(99, 999, tiled=1.0),
    ]
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    curves.save_curves(tmp_path / "curves.png", rows)
    drawn = [
        {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        for axes in pyplot.gcf().axes
    ]
    monkeypatch.undo()
    pyplot.close()
    time_by_n, time_by_m, memory_by_n, memory_by_m = drawn
    assert time_by_n["tiled"] == [[100, 1.0], [200, 2.0], [400, 4.0]]
    assert time_by_n["dense"] == [[100, 1.0], [400, 4.0]]
    assert time_by_m["tiled"] == [[10, 1.0], [30, 3.0]]
    assert memory_by_n["tiled"] == [[100, 1.0], [200, 6.0], [400, 7.0]]
    assert memory_by_n["dense"] == [[100, 5.0]]
    assert memory_by_m["dense"] == [[10, 5.0], [30, 8.0]]


def test_all_ways_of_the_hot_path_make_the_same_gradient():
    runs = variants(Problem.draw(Shape(30, 200, 16, 4)))
    gradients = {name: runs[name]()[0] for name in ("tiled", "dense", "authors", "mined")}
    for name in ("dense", "authors"):
        torch.testing.assert_close(gradients[name], gradients["tiled"], rtol=1e-4, atol=1e-7)
    assert (gradients["mined"] - gradients["tiled"]).abs().max() > 1e-4


def test_a_busy_machine_is_told_of_or_refused(capsys, monkeypatch):
    monkeypatch.setattr(script, "load_average", lambda: 1e6)
    script.look_at_machine(refuse_busy=False)
    assert "busy" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--refuse-busy"):
        script.look_at_machine(refuse_busy=True)


def test_one_repeat_has_no_spread_and_is_refused(capsys):
    with pytest.raises(SystemExit):
        hot_path.main(["--repeats", "1"])
    assert "at least 2" in capsys.readouterr().err
