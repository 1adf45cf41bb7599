"""Training as a whole program: the same bits and losses however a run is split, killed or resumed."""

import os
import random
import shutil
import signal
import subprocess
import time
import zlib

import h5py
import numpy as np
import pytest
from conftest import ENV, ROOT, command, flip_bit, losses, newest, run, run_json, same_bits, tensors


def relative(a, b):
    assert a.keys() == b.keys() and a
    return max(abs(a[k] - b[k]) / abs(b[k]) for k in a)


def test_loss_falls(start):
    directory, arguments = start()
    run(*arguments)
    curve = losses(directory)
    assert len(curve) == 20
    assert curve[1] == pytest.approx(np.log(260), rel=0.02), "a random network is as good as a guess"
    assert curve[20] < 0.75 * curve[1]


def test_two_identical_runs_are_bit_equal(start):
    for threads in (1, 2):
        (a, first), (b, second) = start(f"a{threads}"), start(f"b{threads}")
        run(*first, threads=threads)
        run(*second, threads=threads)
        assert same_bits(newest(a), newest(b))
        assert losses(a) == losses(b)


@pytest.mark.parametrize("masked", ["false", "true"])
def test_a_global_batch_may_be_split_in_any_way(start, masked):
    """12 rows a step: on 1 to 5 ranks (5 does not divide 12, nor 3 and 5 the tensors), in micro-batches of 1, 2, 4."""
    directory, arguments = start("whole", batch__micro=12, data__mask_documents=masked)
    run(*arguments)
    whole = losses(directory)
    for ranks, micro in [(0, 1), (0, 2), (0, 4), (2, 4), (3, 4), (4, 2), (5, 2)]:
        directory, arguments = start(f"split{ranks}-{micro}", batch__micro=micro, data__mask_documents=masked)
        run(*arguments, ranks=ranks)
        worst = relative(losses(directory), whole)
        assert worst <= 1e-6, f"{ranks} ranks, micro-batches of {micro}: {worst}"


def test_more_ranks_than_rows(start):
    directory, arguments = start("whole", batch__tokens=64, train__tokens=1280)
    run(*arguments)
    whole = losses(directory)
    directory, arguments = start("three", batch__tokens=64, train__tokens=1280)
    run(*arguments, ranks=3)
    assert relative(losses(directory), whole) <= 1e-6


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_stop_and_resume_is_bit_equal(start, dtype):
    whole, arguments = start("whole", dtype=dtype)
    run(*arguments)
    halves, arguments = start("halves", dtype=dtype)
    run(*arguments, "train.stop_after=7")
    out, _ = run(*arguments, "--resume")
    assert "step 7" in out
    assert same_bits(newest(whole), newest(halves))
    assert losses(whole) == losses(halves)
    with h5py.File(newest(halves)) as f, h5py.File(newest(whole)) as g:
        assert (f["history/train"][()] == g["history/train"][()]).all()


@pytest.mark.parametrize("before, after", [("f32", "bf16"), ("bf16", "f32")])
def test_a_run_may_go_on_in_the_other_dtype(start, before, after):
    """From bf16 to f32 the master weights become the parameters; from f32 to bf16 the parameters become master weights."""
    whole, arguments = start("whole", dtype=before)
    run(*arguments)
    halves, arguments = start("halves")
    run(*arguments, f"dtype={before}", "train.stop_after=10")
    run(*arguments, f"dtype={after}", "--resume")
    assert losses(halves)[11] == pytest.approx(losses(whole)[11], rel=2e-3)
    assert losses(halves)[20] == pytest.approx(losses(whole)[20], rel=5e-3)
    assert ("optimizer/master/model.norm.weight" in tensors(newest(halves))) == (after == "bf16")


def kill_after(arguments, seconds, number, ranks=0):
    child = subprocess.Popen(command(*arguments, ranks=ranks), cwd=ROOT, env={**ENV, "OMP_NUM_THREADS": "1"},
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, number) if number == signal.SIGKILL else os.kill(child.pid, number)
    return child.wait(timeout=60)


def test_kill_at_random_moments_and_resume_is_bit_equal(start):
    long = {"train__tokens": 384 * 60, "checkpoint__every": 3}
    whole, arguments = start("whole", **long)
    began = time.time()
    run(*arguments)
    duration = time.time() - began
    killed, arguments = start("killed", **long)
    draw = random.Random(5)
    for _ in range(5):
        kill_after([*arguments, "--resume"], duration * draw.uniform(0.2, 0.6), signal.SIGKILL)
    run(*arguments, "--resume")
    assert same_bits(newest(whole), newest(killed))
    assert losses(whole) == losses(killed)


@pytest.mark.parametrize("number, ranks", [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 0), (signal.SIGUSR1, 2)])
def test_a_signal_writes_a_checkpoint_and_exits_with_75(start, number, ranks):
    """Under mpirun SIGUSR1 is the signal that is passed on to the ranks."""
    whole, arguments = start("whole", train__tokens=384 * 200, train__log_every=50)
    run(*arguments, ranks=ranks)
    stopped, arguments = start("stopped", train__tokens=384 * 200, train__log_every=50)
    child = subprocess.Popen(command(*arguments, ranks=ranks), cwd=ROOT, env={**ENV, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                             text=True)
    for line in child.stdout:
        if line.startswith("step"):
            child.send_signal(number)
            break
    rest = child.stdout.read()
    assert child.wait(timeout=30) == 75, rest
    assert number.name in rest and newest(stopped).exists()
    run(*arguments, "--resume", ranks=ranks)
    assert same_bits(newest(whole), newest(stopped))


def test_the_time_limit_stops_with_a_checkpoint(start):
    directory, arguments = start(train__tokens=384 * 100000, train__time_limit=2.5)
    out, _ = run(*arguments, status=75)
    assert "time limit" in out and newest(directory).exists()


def test_three_ranks_write_what_h5py_reads_and_two_resume(start, corpus):
    whole, arguments = start("whole", checkpoint__keep=0)
    run(*arguments, ranks=3)
    moved, arguments = start("moved", checkpoint__keep=0)
    run(*arguments, "train.stop_after=10", ranks=3)
    run(*arguments, "--resume", ranks=2)
    assert relative(losses(moved), losses(whole)) <= 1e-6
    names = {name.split("/", 2)[0] for name in tensors(newest(whole))}
    assert names == {"params", "optimizer"}


def test_eval_is_what_numpy_computes_from_the_tensors(start, corpus):
    """The checkpoint is read by h5py alone; the network is written a second time, in numpy, in double precision."""
    from numpy_network import mean_loss

    directory, arguments = start()
    run(*arguments, ranks=3)
    expected = mean_loss(newest(directory), corpus / "heldout", seq_len=32)
    for ranks in (0, 2, 3):
        measured = run_json("eval", directory, "--data", corpus / "heldout", ranks=ranks)["total"]["loss"]
        assert measured == pytest.approx(expected, rel=1e-6)


def test_heldout_loss_of_the_run_is_that_of_eval(start, corpus):
    directory, arguments = start()
    run(*arguments, ranks=2)
    with h5py.File(newest(directory)) as f:
        last = f["history/heldout"][-1]
    measured = run_json("eval", directory, "--data", corpus / "heldout")["total"]
    assert last["step"] == 20
    assert last["loss"] == pytest.approx(measured["loss"], rel=1e-6)


def test_a_damaged_newest_checkpoint_is_passed_over(start):
    whole, arguments = start("whole")
    run(*arguments)
    damaged, arguments = start("damaged", checkpoint__every=5)
    run(*arguments, "train.stop_after=15")
    path = newest(damaged)
    with open(path, "r+b") as f:
        f.truncate(path.stat().st_size // 2)
    _, err = run(*arguments, "--resume")
    assert path.name in err
    assert same_bits(newest(whole), newest(damaged))


@pytest.mark.parametrize("ranks", [0, 2, 3])
def test_a_flipped_bit_is_found_on_resume_and_the_run_goes_on_from_before(start, ranks):
    """In each kind of dataset of the newest file, then of the two newest: the bits and losses of a run that never had them."""
    first, arguments = start("first", checkpoint__every=5)
    run(*arguments, "train.stop_after=15")
    expected = {}
    for lost in (1, 2):
        lacking, arguments = start(f"lacking{lost}")
        shutil.copytree(first, lacking, symlinks=True)
        for step in (15, 10)[:lost]:
            (lacking / f"step_{step:010d}.h5").unlink()
        run(*arguments, "--resume", ranks=ranks)
        expected[lost] = lacking
    embedding, last = "model.embed_tokens.weight", "model.norm.weight"
    flips = {"params": (f"params/{embedding}", 0.5), "m": (f"optimizer/m/{last}", 0), "v": (f"optimizer/v/{embedding}", 1),
             "history": ("history/train", 0.7)}
    for kind, (dataset, where) in flips.items():
        lost = 2 if kind == "v" else 1
        damaged, arguments = start(f"damaged-{kind}")
        shutil.copytree(first, damaged, symlinks=True)
        files = [damaged / f"step_{step:010d}.h5" for step in (15, 10)[:lost]]
        for path in files:
            flip_bit(path, dataset, where)
        out, err = run(*arguments, "--resume", ranks=ranks)
        assert err.count("mobilellm: ") == lost and [err.count(path.name) for path in files] == [1] * lost, err
        assert err.count(f"{dataset} is damaged") == lost, err
        assert f"step {15 - 5 * lost}," in out
        assert same_bits(newest(expected[lost]), newest(damaged)), kind
        assert losses(expected[lost]) == losses(damaged), kind


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_run_whose_only_checkpoint_is_damaged_starts_anew(start, ranks):
    """With nothing left of what was read from it."""
    new, arguments = start("new")
    run(*arguments, ranks=ranks)
    damaged, arguments = start("damaged")
    run(*arguments, "train.stop_after=10", ranks=ranks)
    flip_bit(newest(damaged), "optimizer/v/model.norm.weight", 1)
    _, err = run(*arguments, "--resume", ranks=ranks)
    assert err.count("passed over") == 1, err
    assert same_bits(newest(new), newest(damaged))
    assert [losses(damaged)[step] for step in (1, 20)] == [losses(new)[step] for step in (1, 20)]


def test_a_checkpoint_of_another_network_is_refused_whatever_came_before_it(start):
    """It is not damaged: an older file is no way out."""
    directory, arguments = start()
    run(*arguments, "train.stop_after=5")
    _, err = run(*arguments, "model.d_ffn=80", "--resume", status=3)
    assert "passed over" not in err and "d_ffn" in err


def test_weights_alone_need_no_optimizer_state(start, corpus):
    """Neither eval nor a run from init.checkpoint reads m and v; damage in the parameters is found by both."""
    first, arguments = start("first")
    run(*arguments, "train.stop_after=5")
    flip_bit(newest(first), "optimizer/m/model.norm.weight", 0)
    second, new = start("second", init__checkpoint=first)
    run("eval", first, "--data", corpus / "heldout")
    run(*new, "train.stop_after=1")
    flip_bit(newest(first), "params/model.norm.weight", 0)
    third, new = start("third", init__checkpoint=first)
    for command_line in (["eval", first, "--data", corpus / "heldout"], new):
        for ranks in (0, 2):
            _, err = run(*command_line, status=3, ranks=ranks)
            assert err.count("params/model.norm.weight is damaged") == 1, err


def test_resume_without_a_checkpoint_starts_anew(start):
    directory, arguments = start()
    run(*arguments, "--resume")
    assert len(losses(directory)) == 20


def test_weights_of_a_checkpoint_start_a_new_run(start):
    first, arguments = start("first")
    run(*arguments)
    second, arguments = start("second", init__checkpoint=first)
    run(*arguments)
    assert losses(second)[1] < losses(first)[10]
    assert "first" in run_json("inspect", second)["lineage"]


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_run_that_diverges_ends(start, ranks):
    first, arguments = start("first")
    run(*arguments)
    with h5py.File(newest(first), "r+") as f:
        norm = f["params/model.norm.weight"]
        norm[3] = np.nan
        norm.attrs["crc32"] = np.uint32(zlib.crc32(norm[()].tobytes()))
    directory, arguments = start("poisoned", init__checkpoint=first, train__max_nonfinite=3)
    _, err = run(*arguments, ranks=ranks, status=5)
    assert "3 steps in a row" in err and err.count("steps in a row had") == 1
    assert not (directory / "latest").exists()


def test_the_death_of_a_rank_ends_all(start):
    directory, arguments = start(train__tokens=384 * 100000, train__log_every=50)
    child = subprocess.Popen(command(*arguments, ranks=3), cwd=ROOT, env={**ENV, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    for line in child.stdout:
        if line.startswith("step"):
            break
    ranks = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True).stdout.split()
    assert len(ranks) == 3
    os.kill(int(ranks[1]), signal.SIGKILL)
    began = time.time()
    child.communicate(timeout=20)
    assert child.returncode != 0 and time.time() - began < 10
    while alive := [pid for pid in ranks if os.path.exists(f"/proc/{pid}")]:
        assert time.time() - began < 10, f"{alive} still run"
        time.sleep(0.05)


def test_an_error_on_one_rank_ends_all_with_its_message(start, corpus, tmp_path):
    """One token beyond the vocabulary, met by one rank."""
    for suffix in (".bin", ".idx"):
        (tmp_path / f"bad{suffix}").write_bytes((corpus / f"train{suffix}").read_bytes())
    with open(tmp_path / "bad.bin", "r+b") as f:
        f.seek(2 * 3000)
        f.write((999).to_bytes(2, "little"))
    _, arguments = start(data__train=f"[{{prefix: {tmp_path}/bad}}]", train__tokens=384 * 400)
    _, err = run(*arguments, ranks=3, status=3, timeout=60)
    assert "999" in err and "260" in err and "bad" in err and "rank" in err


def test_gradient_clipping_bounds_the_step(start):
    """With a tiny clip and plain decay-free AdamW the curve differs, and the logged norm is that before clipping."""
    free, arguments = start("free", optimizer__grad_clip=0)
    run(*arguments)
    clipped, arguments = start("clipped", optimizer__grad_clip=0.05)
    run(*arguments)
    assert losses(free)[1] == losses(clipped)[1]
    with h5py.File(newest(clipped)) as f:
        assert f["history/train"]["grad_norm"][0] > 0.05
    assert losses(free)[20] != losses(clipped)[20]


def test_z_loss_pulls_the_normaliser_towards_one(start, corpus):
    import json

    directory, arguments = start(optimizer__z_loss=1e-2)
    run(*arguments)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    z = [row["z_loss"] for row in rows if row["kind"] == "train"]
    assert z[0] == pytest.approx(1e-2 * np.log(260) ** 2, rel=0.1), "of a random network: lse is about log V"
    assert z[-1] < z[0]
