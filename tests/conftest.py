"""What the whole-program tests share: the binary, mpirun, a small corpus, and ways to run and read a training run."""

import json
import os
import random
import subprocess
from pathlib import Path

import h5py
import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / os.environ.get("BUILD", "build")  # another one: the coverage build
BINARY = BUILD / "mobilellm"

ENV = dict(os.environ, OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_btl_vader_single_copy_mechanism="none",
           OMPI_MCA_mpi_yield_when_idle="1", OMP_WAIT_POLICY="passive")
if os.geteuid() == 0:
    ENV.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")


def command(*args, ranks=0):
    """The program's command line; ranks 0: without mpirun."""
    launcher = ["mpirun", "-np", str(ranks), "--bind-to", "none"] if ranks else []
    return [*launcher, str(BINARY), *map(str, args)]


def run(*args, ranks=0, threads=1, status=0, timeout=240, env=None):
    """Runs the program, checks its exit status, returns what it printed (stdout, stderr)."""
    done = subprocess.run(command(*args, ranks=ranks), cwd=ROOT, env={**ENV, "OMP_NUM_THREADS": str(threads), **(env or {})},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", timeout=timeout, stdin=subprocess.DEVNULL)
    assert done.returncode == status, f"exit {done.returncode}, expected {status}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def run_json(*args, **kwargs):
    return json.loads(run(*args, "--json", **kwargs)[0])


def tensors(path):
    """Every tensor of a checkpoint, as h5py reads it: {path in the file: array}."""
    found = {}
    with h5py.File(path, "r") as f:
        f.visititems(lambda name, item: found.update({name: item[()]}) if name.startswith(("params/", "optimizer/")) and
                     isinstance(item, h5py.Dataset) else None)
    assert found
    return found


def same_bits(a, b):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    return [name for name in a if a[name].tobytes() != b[name].tobytes()] == []


def losses(directory):
    """{step: loss} of a run's metrics."""
    rows = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def words(n, seed):
    """Text with something to learn: sentences of a few words drawn from a skewed distribution."""
    letters, draw = random.Random(7), random.Random(seed)
    vocabulary = ["".join(letters.choice("etaoinshrdlu") for _ in range(letters.randint(2, 7))) for _ in range(60)]
    return "\n".join(" ".join(vocabulary[int(60 * draw.random() ** 3)] for _ in range(draw.randint(4, 12))) + "." for _ in range(n))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A directory with the token files train, other and heldout, packed by the program from text."""
    where = tmp_path_factory.mktemp("corpus")
    for name, n, seed in [("train", 900, 1), ("other", 300, 2), ("heldout", 120, 3)]:
        with open(where / f"{name}.jsonl", "w") as f:
            for line in words(n, seed).split("\n"):
                f.write(json.dumps({"text": line}) + "\n")
        run("data", "pack", where / name, where / f"{name}.jsonl", "--format", "jsonl")
    return where


@pytest.fixture
def start(corpus, tmp_path):
    """start(name, key=value...) -> the arguments of a small training run in its own directory."""

    def arguments(name="run", **overrides):
        directory = tmp_path / name
        keys = {
            "data.train": f"[{{prefix: {corpus}/train, weight: 1}}]",
            "data.heldout": f"[{{prefix: {corpus}/heldout}}]",
            "checkpoint.dir": directory,
        }
        keys.update({key.replace("__", "."): value for key, value in overrides.items()})
        return directory, ["train", ROOT / "tests" / "small.yaml", *[f"{k}={v}" for k, v in keys.items()]]

    return arguments


def newest(directory):
    return (Path(directory) / "latest").resolve()


def flip_bit(path, dataset, where):
    """One bit of a dataset's bytes, `where` between 0 and 1 of the way through them."""
    with h5py.File(path) as f:
        at, n = f[dataset].id.get_offset(), f[dataset].id.get_storage_size()
    with open(path, "r+b") as f:
        f.seek(at + int(where * (n - 1)))
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte ^ 32]))
