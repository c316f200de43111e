"""What is compiled before the stages that launch it."""

import json

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

    monkeypatch.setattr(precompile, "launch_calls", lambda rehearse: {"bad": fail, "good": int})
    assert precompile.make_call(True, "bad") == ("bad", "RuntimeError: no")
    name, seconds = precompile.make_call(True, "good")
    assert name == "good"
    assert seconds >= 0


def test_without_time_left_no_call_is_finished(tmp_path):
    options = ["--rehearse", "--processes", "1", "--budget", "0"]
    assert precompile.main([*options, "--out", str(tmp_path)]) == 0
    calls = json.loads((tmp_path / "precompile.json").read_text())["calls"]
    assert set(calls.values()) == {precompile.NOT_FINISHED}
