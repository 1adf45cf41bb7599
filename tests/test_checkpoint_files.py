"""Checkpoint files as others see them, and as failing disks, kills and full filesystems leave them.

The files are written by build/tests/test_checkpoint, whose table of tensors and formula of values are repeated here, and are read
with h5py, zlib and h5dump, which know nothing of our code.
"""

import errno
import os
import random
import shutil
import signal
import subprocess
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import write_faults
from conftest import BUILD, ENV, ROOT

PROGRAM = BUILD / "tests/test_checkpoint"

TENSORS = [  # path, bits of an element, shape
    ("params/model.embed_tokens.weight", 16, (37, 13)),
    ("params/model.layers.0.mlp.up_proj.weight", 32, (64, 48)),
    ("params/model.layers.0.input_layernorm.weight", 16, (13,)),
    ("params/model.layers.1.mlp.up_proj.weight", 16, (3, 50021)),
    ("params/model.norm.weight", 32, (1,)),
    ("params/lm_head.weight", 16, (1009, 1)),
    ("optimizer/master/model.embed_tokens.weight", 32, (37, 13)),
    ("optimizer/m/model.embed_tokens.weight", 32, (37, 13)),
    ("optimizer/v/model.layers.0.input_layernorm.weight", 32, (100003,)),
]


def expected(step, t):
    """The values of tensor t, as float32."""
    _, bits, shape = TENSORS[t]
    i = np.arange(np.prod(shape), dtype=np.uint32)
    h = i * np.uint32(2654435761) + np.uint32(t * 40503) + np.uint32(step * 97)
    values = (h >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24) - np.float32(0.5)
    if bits == 16:  # to nearest even
        u = values.view(np.uint32)
        u = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
        values = u.view(np.float32)
    return values.reshape(shape)


def start(*args, ranks=0, env=None, timeout=100, under=()):
    assert PROGRAM.exists(), "build it first: make test-programs"
    launcher = ["mpirun", "-np", str(ranks), "--bind-to", "none"] if ranks else []
    return subprocess.run([*under, *launcher, PROGRAM, *map(str, args)], cwd=ROOT, env={**ENV, **(env or {})},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout, stdin=subprocess.DEVNULL)


def write(directory, step, **kwargs):
    done = start("write", directory, step, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip())


def read_status(path, **kwargs):
    """0 if the program finds the file good and all its elements right, else the exit status; never a crash."""
    done = start("read", path, **kwargs)
    assert done.returncode in (0, 3), f"exit {done.returncode}\n{done.stderr}"
    if done.returncode:
        assert done.stderr.startswith("mobilellm: ") and "HDF5-DIAG" not in done.stderr, done.stderr
    return done.returncode


def raw_bytes(f, dataset):
    """The bytes of a contiguous dataset, read past HDF5."""
    offset = dataset.id.get_offset()
    if offset is None:
        return b""
    with open(f.filename, "rb") as raw:
        raw.seek(offset)
        return raw.read(dataset.id.get_storage_size())


def check_with_h5py(path, step):
    """All of the file is right, by h5py, numpy and zlib."""
    with h5py.File(path, "r") as f:
        for t, (name, bits, shape) in enumerate(TENSORS):
            d = f[name]
            assert d.shape == shape and d.id.get_storage_size() == np.prod(shape) * bits // 8
            assert d.dtype == np.float32
            np.testing.assert_array_equal(d[()], expected(step, t))
            assert zlib.crc32(raw_bytes(f, d)) == d.attrs["crc32"], name
        for name in ("train", "heldout"):
            d = f["history"][name]
            assert d.dtype.names == ("step", "tokens", "loss", "lr", "grad_norm")
            assert zlib.crc32(raw_bytes(f, d)) == d.attrs["crc32"], name
        assert f.attrs["step"] == step


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A file of step 7."""
    return write(tmp_path_factory.mktemp("good"), 7)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_c_tests_pass_on_several_ranks(ranks):
    done = start(ranks=ranks, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_file_does_not_depend_on_the_number_of_ranks(tmp_path, good):
    for ranks in (1, 2, 3):
        assert write(tmp_path / str(ranks), 7, ranks=ranks).read_bytes() == good.read_bytes(), ranks


@pytest.mark.parametrize("writers, readers", [(1, 3), (2, 1), (3, 2), (0, 2), (3, 0)])
def test_any_number_of_ranks_reads_what_another_wrote(tmp_path, writers, readers):
    path = write(tmp_path, 12, ranks=writers)
    check_with_h5py(path, 12)
    assert read_status(path, ranks=readers) == 0
    assert read_status(tmp_path, ranks=readers) == 0  # by way of `latest`


def test_h5py_reads_attributes_and_history(good):
    with h5py.File(good, "r") as f:
        text = {name: f.attrs[name].decode() for name in ("format", "model", "config", "tokenizer_hash", "lineage", "created_by")}
        numbers = {name: int(value) for name, value in f.attrs.items() if name not in text}
        train = f["history/train"][()]
        assert len(f["history/heldout"]) == 0
        names = []
        f.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        order = list(f["params"])
    assert text["format"] == "mobilellm.c checkpoint"
    assert text["config"] == 'model: {n_layers: 2}\nname: "élève"\n'
    assert text["tokenizer_hash"] == "" and text["lineage"] == "random, seed 1"
    assert numbers == {"version": 1, "step": 7, "tokens": 7 * 4096, "samples": 2**40 + 7, "skipped_steps": 2,
                       "nonfinite_in_a_row": 1, "optimizer_step": 5, "data_seed": -7, "seq_len": 2048, "n_datasets": 11,
                       "config_crc32": zlib.crc32(text["config"].encode()),
                       "datasets_crc32": zlib.crc32("".join(name + "\n" for name in sorted(names)).encode())}
    assert list(train["step"]) == [1, 2, 3, 4, 5] and list(train["tokens"]) == [4096 * i for i in range(1, 6)]
    assert list(train["loss"]) == [10 / i for i in range(1, 6)]
    assert all(train["lr"] == 1e-4) and all(np.isnan(train["grad_norm"]))
    assert order == [name[len("params/"):] for name, _, _ in TENSORS if name.startswith("params/")]


def test_h5dump_prints_values(good):
    for t in (1, 2):  # f32 and bf16
        done = subprocess.run(["h5dump", "-y", "-w", "1", "-m", "%.9g", "-d", TENSORS[t][0], str(good)], capture_output=True, text=True,
                              check=True)
        data = done.stdout.split("DATA {")[1].split("}")[0]
        values = np.array([float(word.rstrip(",")) for word in data.split()], dtype=np.float32)
        np.testing.assert_array_equal(values, expected(7, t).ravel())


def test_every_bit_flip_is_found_or_changes_nothing(tmp_path, good):
    """400 flips, half of them in the metadata (of which the file has little), each read in full by the program."""
    data = good.read_bytes()
    with h5py.File(good, "r") as f:
        spans = [(d.id.get_offset(), d.id.get_storage_size()) for d in [f[name] for name, _, _ in TENSORS]]
    metadata = sorted(set(range(len(data))) - {i for at, n in spans for i in range(at, at + n)})
    rng = random.Random(1)
    damaged, found, harmless = tmp_path / "step_0000000007.h5", 0, 0
    for k in range(400):
        at, bit = (rng.choice(metadata) if k % 2 else rng.randrange(len(data))), rng.randrange(8)
        flipped = bytearray(data)
        flipped[at] ^= 1 << bit
        damaged.write_bytes(flipped)
        if read_status(damaged):
            found += 1
        else:
            harmless += 1
            check_with_h5py(damaged, 7)
    assert found >= 200 and harmless > 0, (found, harmless)


def test_a_file_cut_anywhere_is_refused(tmp_path, good):
    data = good.read_bytes()
    rng = random.Random(2)
    cut = tmp_path / "step_0000000007.h5"
    for length in [0, 1, 7, 8, 47, 48, 96, 512, len(data) - 1, *(rng.randrange(len(data)) for _ in range(60))]:
        cut.write_bytes(data[:length])
        assert read_status(cut) == 3, length


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_writer_killed_at_any_time_leaves_a_good_file(tmp_path, ranks):
    rng = random.Random(ranks)
    run, last = tmp_path / "run", 1
    write(run, 1, ranks=ranks)
    launcher = ["mpirun", "-np", str(ranks), "--bind-to", "none"] if ranks else []
    (tmp_path / "shared_memory").mkdir()  # of Open MPI, which killed ranks leave behind
    env = {**ENV, "OMPI_MCA_btl_vader_backing_directory": str(tmp_path / "shared_memory")}
    for _ in range(8):
        with subprocess.Popen([*launcher, PROGRAM, "loop", run, str(last + 1)], cwd=ROOT, env=env, start_new_session=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as writer:
            deadline = time.monotonic() + 60
            while not (run / f"step_{last + 2:010d}.h5").exists():  # it is at work
                assert time.monotonic() < deadline and writer.poll() is None
                time.sleep(0.002)
            time.sleep(rng.random() * 0.1)
            os.killpg(writer.pid, signal.SIGKILL)
        if ranks:  # mpirun gives its ranks groups of their own, and they end when it does not answer any more
            wait_for_end_of(f"{PROGRAM} loop {run}")
        done = start("newest", run, ranks=ranks)
        assert done.returncode == 0 and "passed over" not in done.stderr, done.stderr
        newest = Path(done.stdout.strip())
        step = int(newest.stem.split("_")[1])
        assert step > last
        check_with_h5py(newest, step)
        assert read_status(run, ranks=ranks) == 0  # `latest` is a good one as well
        names = {path.name for path in run.iterdir()} - {"latest"}
        assert not [name for name in names if name.endswith(".tmp")] and 1 <= len(names) <= 4
        last = step


def wait_for_end_of(command):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        commands = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                commands.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                pass
        if not any(c.startswith(command) for c in commands):
            return
        time.sleep(0.05)
    raise AssertionError(f"{command} still runs")


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 2 MB, enough for two files of 0.7 MB; needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """Of tests/shim_files.c."""
    return {"LD_PRELOAD": str(write_faults.build_shim(tmp_path_factory.mktemp("shim")))}


NO_FALLOCATE = {"FAULT_NAME": "fallocate", "FAULT_CODE": str(errno.EOPNOTSUPP)}  # NFS 3


def assert_untouched(directory, first, names=("latest",)):
    """The checkpoint of before is there and good, and nothing else is."""
    assert {path.name for path in directory.iterdir()} == {first.name, *names}
    check_with_h5py(first, 1)
    assert read_status(directory) == 0


@pytest.mark.parametrize("ranks", [0, 1, 2, 3])
def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(small_disk, ranks):
    first = write(small_disk, 1, ranks=ranks)
    (small_disk / "other").write_bytes(bytes(1_000_000))
    done = start("write", small_disk, 2, ranks=ranks)
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("mobilellm:") == 1
    assert "step_0000000002.h5" in done.stderr and "No space left on device" in done.stderr and "Free space" in done.stderr
    assert "the checkpoint needs 7" in done.stderr and "HDF5" not in done.stderr
    assert_untouched(small_disk, first, names=("latest", "other"))


@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("missing", [{}, NO_FALLOCATE])
def test_a_full_disk_that_does_not_say_so_before_is_found_in_writing(small_disk, shim, ranks, missing):
    """statvfs that knows nothing (quotas); then also no fallocate: the disk is full in the middle of the elements."""
    first = write(small_disk, 1, ranks=ranks)
    (small_disk / "other").write_bytes(bytes(1_000_000))
    before = time.monotonic()
    done = start("write", small_disk, 2, ranks=ranks, env={**shim, "FAULT_DIR": str(small_disk), "FAULT_ROOM": "1", **missing})
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("mobilellm:") == 1, done.stderr
    assert "step_0000000002.h5" in done.stderr and "HDF5-DIAG" not in done.stderr
    assert "No space left" in done.stderr
    assert time.monotonic() - before < 30
    assert_untouched(small_disk, first, names=("latest", "other"))


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_filesystem_without_fallocate_is_written(tmp_path, shim, good, ranks):
    assert write(tmp_path, 7, ranks=ranks, env={**shim, "FAULT_DIR": str(tmp_path), **NO_FALLOCATE}).read_bytes() == good.read_bytes()


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_read_only_directory_is_told(tmp_path, ranks):
    first = write(tmp_path, 1)
    mounted = subprocess.run(["mount", "--bind", "-o", "ro", tmp_path, tmp_path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a directory read-only here: {mounted.stderr.strip()}")
    try:
        done = start("write", tmp_path, 2, ranks=ranks)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert done.returncode == 4
    assert done.stderr.count("mobilellm:") == 1
    assert "Read-only file system" in done.stderr and "mounted read-only" in done.stderr
    assert_untouched(tmp_path, first)


def test_a_directory_without_rights_is_told(tmp_path):
    first = write(tmp_path, 1)
    tmp_path.chmod(0o555)
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and setpriv is not there to be someone else")
    under = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 0o001:
            under or pytest.skip("no way into the directory")
            parent.chmod(parent.stat().st_mode | 0o011)
    done = start("write", tmp_path, 2, under=under)
    tmp_path.chmod(0o755)
    assert done.returncode == 4, done.stderr
    assert "Permission denied" in done.stderr and "right" in done.stderr
    assert_untouched(tmp_path, first)


def test_data_are_on_the_disk_before_the_name_is(tmp_path):
    """The order of system calls: the file is synced before it is renamed, and the directory after that, before old files go."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    log = tmp_path / "log"
    under = ["strace", "-f", "-y", "-o", log, "-e", "trace=pwrite64,fsync,rename,renameat,renameat2,symlink,unlink"]
    if subprocess.run([*under, "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    write(tmp_path / "run", 1, under=under)
    wanted = {"pwrite64(": "write", "fsync(": "sync", "rename": "rename", "symlink": "symlink"}
    calls = []
    for line in log.read_text().splitlines():
        call = line.split(maxsplit=1)[1]
        kind = next((value for key, value in wanted.items() if call.startswith(key)), None)
        if kind and "/run" in call or kind == "symlink":
            what = "file" if ".h5.tmp" in call else "latest" if "latest" in call else "directory"
            if not calls or calls[-1] != (kind, what):
                calls.append((kind, what))
    assert calls[-6:] == [("sync", "file"), ("rename", "file"), ("sync", "directory"), ("symlink", "latest"),
                          ("rename", "latest"), ("sync", "directory")], calls
    assert calls.index(("write", "file")) < len(calls) - 6
