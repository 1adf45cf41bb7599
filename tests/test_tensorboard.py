"""TensorBoard itself reads the event files that train/tensorboard.c writes.

tests/test_metrics.c logs steps 1 to 30, is killed, resumes from step 20 and goes on to 40. train/loss is 10 / (step + first_step),
eval/heldout/wiki/loss the same with 11, every 10 steps, first_step being 0, then 20.
"""

import os
import struct
import subprocess
from pathlib import Path

import pytest
from conftest import BUILD
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = BUILD / "tests" / "test_metrics"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    done = subprocess.run([PROGRAM], env={**os.environ, "METRICS_TEST_DIR": str(directory)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def f32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def scalars(path):
    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: {e.step: e.value for e in accumulator.Scalars(tag)} for tag in accumulator.Tags()["scalars"]}


def test_each_file_holds_what_was_logged(run_dir):
    first, second = sorted(run_dir.glob("events.out.tfevents.*"))
    assert scalars(first)["train/loss"] == {i: f32(10 / i) for i in range(1, 31)}
    assert scalars(second)["train/loss"] == {i: f32(10 / (i + 20)) for i in range(21, 41)}


def test_a_resumed_run_replaces_the_steps_after_its_checkpoint(run_dir):
    loaded = scalars(run_dir)
    before, after = range(1, 21), range(21, 41)
    assert loaded["train/loss"] == {**{i: f32(10 / i) for i in before}, **{i: f32(10 / (i + 20)) for i in after}}
    assert loaded["eval/heldout/wiki/loss"] == {10: f32(1.1), 20: f32(11 / 20), 30: f32(11 / 50), 40: f32(11 / 60)}


def test_every_figure_has_its_chart(run_dir):
    loaded = scalars(run_dir)
    train = ["tokens", "loss", "z_loss", "lr", "grad_norm", "step_s", "data_wait_s", "tokens_per_s", "gflops", "peak_share",
             "memory_bytes", "skipped_steps"]
    evaluated = ["loss", "perplexity", "bits_per_byte"]
    assert set(loaded) == {f"train/{name}" for name in train} | {f"eval/heldout/wiki/{name}" for name in evaluated}
    expected = {"tokens": 62914560, "z_loss": 0.25, "lr": 3.1e-4, "grad_norm": 0.84, "step_s": 2, "data_wait_s": 0.01,
                "tokens_per_s": 5410, "gflops": 212, "peak_share": 0.51, "memory_bytes": 1975684956, "skipped_steps": 0}
    assert {name: loaded[f"train/{name}"][40] for name in expected} == {name: f32(v) for name, v in expected.items()}
    assert loaded["eval/heldout/wiki/perplexity"][40] == f32(40.77)
    assert loaded["eval/heldout/wiki/bits_per_byte"][40] == f32(1.31)


def test_files_open_with_a_version_and_a_session(run_dir):
    for path, purge_step in zip(sorted(run_dir.glob("events.out.tfevents.*")), [0, 21]):
        events = list(EventFileLoader(str(path)).Load())
        assert events[0].file_version == "brain.Event:2"
        assert events[1].session_log.status == events[1].session_log.START and events[1].step == purge_step
        times = [e.wall_time for e in events]
        assert times == sorted(times) and abs(times[0] - path.stat().st_mtime) < 3600


def test_a_damaged_record_is_noticed(run_dir, tmp_path):
    """The checksums are ours: TensorBoard must accept them only while the bytes are."""
    data = bytearray(sorted(run_dir.glob("events.out.tfevents.*"))[0].read_bytes())
    whole, damaged = tmp_path / "whole" / "events.out.tfevents.1.x", tmp_path / "damaged" / "events.out.tfevents.1.x"
    for path in (whole, damaged):
        path.parent.mkdir()
        path.write_bytes(data)
        data[len(data) // 2] ^= 1
    assert len(scalars(whole.parent)["train/loss"]) == 30
    assert 0 < len(scalars(damaged.parent)["train/loss"]) < 30
