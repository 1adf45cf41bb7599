"""Commands, their help and figures, and what they say to bad input: file, found, expected, what to do; exit status; nothing left."""

import json
import os
import subprocess

import h5py
import numpy as np
import pytest
from conftest import BINARY, ENV, ROOT, flip_bit, newest, run, run_json, same_bits


def refused(*args, says, status, **kwargs):
    """The program exits with `status`, and its one message says all of `says`."""
    _, err = run(*args, status=status, **kwargs)
    assert err.count("mobilellm: ") == 1, err
    for fact in says:
        assert str(fact) in err, f"{fact!r} is not in: {err}"


def test_help_and_version_everywhere():
    out, _ = run("--help")
    commands = ["train", "eval", "generate", "inspect", "plan", "data"]
    for name in commands:
        assert f"mobilellm {name}" in out
        assert "Usage: mobilellm " + name in run(name, "--help")[0]
    assert "optimizer.lr" in run("train", "--help")[0]
    for name in ("pack", "info"):
        assert "Usage" in run("data", name, "--help")[0]
    for name in ["", *commands]:
        assert run(*filter(None, [name]), "--version")[0].startswith("mobilellm 0.")
    assert "75" in out, "exit statuses are documented"
    for name in ("train", "eval"):
        assert run(name, "--help", ranks=2)[0].count("Usage:") == 1


def test_unknown_commands_and_options():
    refused("trian", says=["trian", "train"], status=2)
    refused("eval", "x", "--dta", "y", says=["--dta", "--data"], status=2)
    refused("train", says=["config"], status=2)
    refused("train", "--resum", "x.yaml", says=["--resum ", "--resume"], status=2)
    refused("train", "x.yaml", "-resume", says=["-resume ", "--resume"], status=2)
    refused("train", "x.yaml", "--json", says=["--json", "--dry-run"], status=2)
    refused("generate", "x", says=["--prompt"], status=2)
    refused("plan", ROOT / "tests/small.yaml", "--ranks", "none", says=["none"], status=2)


@pytest.mark.parametrize("name, total", [("shallow-1.8b", 1800734720), ("flash-350m", 394612736), ("flash-650m", 617786880),
                                         ("flash-1.4b", 1386940416)])
def test_parameters_of_the_paper_s_networks(name, total):
    """Table 5; the exact numbers are sums of products, done by hand: see docs/results.md."""
    plan = run_json("plan", ROOT / "tests/small.yaml", f"model=configs/models/{name}.yaml", "data.train=[{prefix: none}]")
    assert plan["parameters"]["total"] == total
    parts = plan["parameters"]
    assert total == sum(parts[key] for key in ("embedding", "attention", "ffn", "head", "norms"))


def test_plan_is_what_a_run_takes(start):
    """A run's resident memory grows by what plan says, and by little more."""
    directory, arguments = start(train__tokens=4096, model__d_model=256, model__d_ffn=2048, batch__tokens=4096, data__seq_len=64,
                                 batch__micro=64)
    planned = run_json("plan", *arguments[1:])["memory_bytes_per_rank"]["total"]
    run(*arguments)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    base = run_memory_of_nothing()
    taken = max(row["memory_bytes"] for row in rows if row["kind"] == "train") - base
    assert planned * 0.8 < taken < planned * 1.2 + 40e6, (planned, taken)


def run_memory_of_nothing():
    """Resident bytes of the program with its libraries, before it takes any memory of its own."""
    command = ["/usr/bin/env", "python3", "-c", "import resource,subprocess,sys;subprocess.run(sys.argv[1:],stdout=-3);"
               "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss*1024)", str(BINARY), "--help"]
    return int(subprocess.run(command, capture_output=True, text=True, env=ENV).stdout)


def test_dry_run_trains_nothing(start):
    directory, arguments = start()
    out, _ = run(*arguments, "--dry-run")
    assert "parameters" in out and "memory" in out and "train" in out
    assert "weight_decay: 0.1" in out, "the resolved config"
    assert not directory.exists()


def test_the_resolved_config_of_a_run_makes_the_same_run(start):
    first, arguments = start("first")
    run(*arguments)
    second = first.parent / "second"
    run("train", first / "config.yaml", f"checkpoint.dir={second}")
    assert same_bits(newest(first), newest(second))


def test_inspect_tells_what_h5py_reads(start):
    directory, arguments = start(dtype="bf16")
    run(*arguments)
    told = run_json("inspect", directory, "--verify")
    assert told["verified"] and told["step"] == 20 and told["tokens"] == 20 * 384
    with h5py.File(newest(directory)) as f:
        for t in told["tensors"]:
            assert list(f[t["path"]].shape) == t["shape"]
            assert int(f[t["path"]].attrs["crc32"]) == t["crc32"]
        embedding, master = f["params/model.embed_tokens.weight"][()], f["optimizer/master/model.embed_tokens.weight"][()]
    assert np.abs(embedding - master).max() <= np.abs(master).max() * 2**-8
    assert "step" in run("inspect", directory)[0]


def test_generate_is_deterministic_and_obeys_its_options(start):
    directory, arguments = start(train__tokens=384 * 60)
    run(*arguments)

    def text(*options):
        return run("generate", directory, "--prompt", "the ", "--n-tokens", "24", *options)[0]

    assert text("--seed", "3") == text("--seed", "3")
    assert len({text("--seed", str(seed)) for seed in range(4)}) > 1
    greedy = text("--temperature", "0")
    assert greedy == text("--top-k", "1", "--seed", "9") == text("--top-p", "1e-6", "--seed", "4")
    assert greedy.startswith("the ")
    ids = run_json("generate", directory, "--prompt-tokens", "116 104,101 32", "--n-tokens", "5", "--temperature", "0")
    assert ids["n_prompt"] == 4 and ids["tokens"][:4] == [116, 104, 101, 32] and len(ids["tokens"]) <= 9
    refused("generate", directory, "--prompt-tokens", "5 260", says=["260", "259"], status=2)
    refused("generate", directory, "--prompt", "", says=["empty"], status=2)


def test_eval_adds_files_up(start, corpus):
    directory, arguments = start()
    run(*arguments)
    both = run_json("eval", directory, "--data", corpus / "heldout", corpus / "other")
    nats = sum(f["nats"] for f in both["files"])
    tokens = sum(f["tokens"] for f in both["files"])
    assert both["total"]["loss"] == pytest.approx(nats / tokens, rel=1e-9)
    assert both["total"]["perplexity"] == pytest.approx(np.exp(nats / tokens), rel=1e-9)
    card = json.loads((corpus / "heldout.json").read_text())
    assert both["files"][0]["bits_per_byte"] == pytest.approx(both["files"][0]["nats"] / np.log(2) / card["bytes"], rel=1e-9)
    assert both["files"][0]["tokens"] == card["tokens"] - 1
    for batch in (1, 3):
        again = run_json("eval", directory, "--data", corpus / "heldout", "--batch", batch)
        assert again["total"]["loss"] == pytest.approx(both["files"][0]["loss"], rel=1e-6)
    assert "bits/byte" in run("eval", directory, "--data", corpus / "heldout")[0]


def test_bad_configs(start, tmp_path):
    _, arguments = start()
    refused(*arguments, "optimizer.weigth_decay=1", says=["optimizer.weigth_decay", "optimizer.weight_decay"], status=2)
    refused(*arguments, "optimizer.lr=fast", says=["optimizer.lr", "fast"], status=2)
    refused(*arguments, "model.n_kv_heads=3", says=["n_heads", "n_kv_heads", "4", "3"], status=2)
    refused(*arguments, "model.head_dim=15", says=["head_dim", "15", "even"], status=2)
    refused(*arguments, "model.n_layers=0", says=["n_layers", "0"], status=2)
    refused(*arguments, "model.attention=fws", says=["attention", "3", "4"], status=2)
    refused(*arguments, "model.attention=fwxf", says=["attention", "x"], status=2)
    refused(*arguments, "batch.tokens=100", says=["batch.tokens", "100", "32"], status=2)
    refused(*arguments, "optimizer", says=["optimizer", "="], status=2)
    refused("train", tmp_path / "none.yaml", says=["none.yaml"], status=2)
    bad = tmp_path / "bad.yaml"
    lines = (ROOT / "tests/small.yaml").read_text().replace("train: []", f"train: [{{prefix: {tmp_path}/x}}]").split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith("optimizer:"))
    lines[at] = "optimizer: {lr: 1e-3, weigth_decay: 1}"
    bad.write_text("\n".join(lines))
    refused("train", bad, says=[f"bad.yaml:{at + 1}", "optimizer.weigth_decay", "optimizer.weight_decay"], status=2)


def test_bad_data(start, corpus, tmp_path):
    _, arguments = start()
    refused(*arguments, f"data.train=[{{prefix: {tmp_path}/none}}]", says=[f"{tmp_path}/none"], status=3)
    for name, change in [("cut", lambda b: b[:-8]), ("magic", lambda b: b"NNIDIDX" + b[7:])]:
        (tmp_path / f"{name}.bin").write_bytes((corpus / "train.bin").read_bytes())
        (tmp_path / f"{name}.idx").write_bytes(change((corpus / "train.idx").read_bytes()))
        refused(*arguments, f"data.train=[{{prefix: {tmp_path}/{name}}}]", says=[f"{name}.idx"], status=3)
    run("data", "pack", tmp_path / "short", "--format", "text", write(tmp_path / "short.txt", "few"))
    refused(*arguments, f"data.train=[{{prefix: {tmp_path}/short}}]", says=["short", "32"], status=3)
    refused(*arguments, "model.vocab_size=100", says=["train", "100"], status=3)
    assert not (tmp_path / "run" / "latest").exists()


def write(path, text):
    path.write_text(text)
    return path


def test_bad_checkpoints(start, corpus, tmp_path):
    directory, arguments = start()
    run(*arguments)
    good = newest(directory).read_bytes()
    data = ["--data", corpus / "heldout"]
    refused("eval", tmp_path / "none.h5", *data, says=["none.h5"], status=3)
    (tmp_path / "cut.h5").write_bytes(good[: len(good) // 3])
    refused("eval", tmp_path / "cut.h5", *data, says=["cut.h5"], status=3)
    (tmp_path / "text.h5").write_text("not a checkpoint")
    refused("inspect", tmp_path / "text.h5", says=["text.h5", "HDF5"], status=3)
    with h5py.File(tmp_path / "foreign.h5", "w") as f:
        f["x"] = [1, 2, 3]
    refused("eval", tmp_path / "foreign.h5", *data, says=["foreign.h5"], status=3)
    for name, dataset in [("weights.h5", "params/model.norm.weight"), ("state.h5", "optimizer/m/model.norm.weight")]:
        (tmp_path / name).write_bytes(good)
        flip_bit(tmp_path / name, dataset, 0.5)
        refused("inspect", tmp_path / name, "--verify", says=[name, dataset], status=3)
    refused("eval", tmp_path / "weights.h5", *data, says=["weights.h5", "params/model.norm.weight"], status=3)
    refused("generate", tmp_path / "weights.h5", "--prompt", "a", says=["weights.h5"], status=3)
    run("eval", tmp_path / "state.h5", *data)  # which it does not read
    refused(*arguments, "--resume", "model.d_ffn=96", says=["d_ffn", "96", "64"], status=3)
    refused(*arguments, says=["--resume", "checkpoint.dir"], status=2)


def test_too_little_memory(start):
    _, arguments = start(batch__micro=4096, batch__tokens=4096 * 32, train__tokens=4096 * 32, model__d_ffn=16384)
    limited = ["bash", "-c", 'ulimit -v 3000000; exec "$@"', "-", str(BINARY), *map(str, arguments)]
    done = subprocess.run(limited, cwd=ROOT, env={**ENV, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    assert "batch.micro" in done.stderr and "GiB" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_full_disk_keeps_the_checkpoint_before(start, tmp_path, ranks):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1600k", "none", str(disk)]).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        _, arguments = start(checkpoint__dir=disk / "run", checkpoint__every=4, checkpoint__keep=0)
        _, err = run(*arguments, ranks=ranks, status=4, timeout=60)
        assert "disk" in err and "space" in err
        told = run_json("inspect", disk / "run", "--verify")
        assert told["verified"] and told["step"] % 4 == 0 and told["step"] >= 4
        assert not [name for name in os.listdir(disk / "run") if "tmp" in name]
    finally:
        subprocess.run(["umount", str(disk)])


def test_a_directory_that_cannot_be_written(start, tmp_path):
    (tmp_path / "file").write_text("")
    _, arguments = start(checkpoint__dir=tmp_path / "file" / "run")
    refused(*arguments, says=[tmp_path / "file", "not a directory"], status=4)


@pytest.mark.parametrize("line, says", [
    ("data", ["expected pack or info"]),
    ("data unpack x", ["unpack", "pack and info"]),
    ("data pack x", ["the prefix to write and files to read"]),
    ("data pack x y --format csv", ["--format csv", "auto, text, jsonl"]),
    ("data pack x y --split words", ["--split words", "whole, lines, blank"]),
    ("data pack x y --key", ["--key", "lacks its value"]),
    ("data info", ["at least one prefix"]),
    ("data info x --vocab 2.5", ["--vocab 2.5", "whole number"]),
    ("eval x", ["eval: needs a checkpoint and token files"]),
    ("eval x --data y --dtype f16", ["--dtype f16", "f32 or bf16"]),
    ("generate x --prompt a --prompt-tokens 1", ["one of --prompt and --prompt-tokens"]),
    ("generate x --prompt a --top-p 2", ["--top-p 2", "0", "1"]),
    ("generate x --prompt a --temperature hot", ["--temperature hot", "number"]),
    ("plan x.yaml --ranks", ["--ranks", "lacks its value"]),
])
def test_command_lines_that_make_no_sense(line, says):
    refused(*line.split(), says=says, status=2)


def test_an_unknown_vocabulary_goes_by_token_ids(start, corpus, tmp_path):
    """A card with another tokenizer's hash: text cannot be translated, ids can."""
    for ending in (".bin", ".idx", ".json"):
        (tmp_path / f"ids{ending}").write_bytes((corpus / f"train{ending}").read_bytes())
    card = json.loads((tmp_path / "ids.json").read_text())
    (tmp_path / "ids.json").write_text(json.dumps({**card, "tokenizer": "bpe", "tokenizer_hash": "sha256:" + 64 * "0"}))
    directory, arguments = start(data__train=f"[{{prefix: {tmp_path}/ids}}]", train__tokens=1536)
    run(*arguments)
    refused("generate", directory, "--prompt", "the", says=["sha256:000", "data/prepare.py encode", "--prompt-tokens"], status=2)
    out, _ = run("generate", directory, "--prompt-tokens", "116 104", "--n-tokens", "3", "--temperature", "0")
    assert [int(word) for word in out.split()][:2] == [116, 104]
    assert str(tmp_path / "ids") in run("data", "info", tmp_path / "ids")[0]
