"""What is compiled before the stages that launch it."""

import multiprocessing
import queue

from benchmarks._gpu import precompile


def test_calls_to_compile_are_those_of_the_stages_the_headlines_first():
    calls = list(precompile.launch_calls(rehearse=False))
    assert calls[:2] == [
        "info_nce, bf16, 1,024 x 190,000 x 256", "unit length, bf16, 1,024 x 190,000 x 256"
    ]  # fmt: skip
    # The kernels of 4,096 anchors are those of 1,024.
    assert not {name for name in calls if "info_nce, bf16, 4,096" in name}
    assert {
        "step, cityscapes, bank",
        "step, coco-stuff, mining",
        "info_nce, tf32, 1,024 x 190,000 x 256",
        "unit length, bf16, 16,384 x itself x 256",
        "flex, bf16, 1,024 x 190,000 x 256",
        "compiled, bf16, 1,024 x 190,000 x 64",
    } <= set(calls)


def test_a_call_that_fails_costs_no_other(monkeypatch):
    def fail():
        raise RuntimeError("no")

    calls = {"first": lambda: 1, "bad": fail, "third": lambda: 3, "last": lambda: 4}
    monkeypatch.setattr(precompile, "launch_calls", lambda rehearse: calls)
    found, following = queue.Queue(), multiprocessing.Value("i", 1)
    precompile.make_calls(True, following, found)
    results = dict(found.get() for _ in range(found.qsize()))
    # Another process has made the first one.
    assert list(results) == ["bad", "third", "last"]
    assert results.pop("bad") == "RuntimeError: no"
    assert all(seconds >= 0 for seconds in results.values())
