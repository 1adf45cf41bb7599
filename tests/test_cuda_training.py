"""Training by the CUDA backend as a whole program: the CPU backend's losses, and the same bits however it is interrupted.

On machines without a GPU it runs on the emulated one (tests/emu), in random orders of threads and streams, others each time:
CUEMU_SEED, which every failure tells, repeats them. make test-gpu runs it on a real one: MOBILELLM_CUDA names the program then."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import conftest
import numpy as np
import pytest
from conftest import ENV, ROOT, flip_bit, losses, newest, run_json, same_bits

PROGRAM = Path(os.environ.get("MOBILELLM_CUDA") or conftest.BUILD / "emu" / "mobilellm").absolute()
GPUS = int(os.environ.get("MOBILELLM_GPUS", 8))  # of a machine that is not emulated
# Six steps of six rows: unlike micro-batches, unlike ranks. An emulated GPU takes some 600 tokens/s.
SHORT = {"data__heldout": "[]", "batch__tokens": 192, "train__tokens": 192 * 6}
# A few steps of few tokens, for sanitizers and many orders: still two micro-batches or two ranks, every kind of layer, documents.
TINY = {"data__mask_documents": "true", "data__heldout": "[]", "batch__tokens": 128, "batch__micro": 2, "train__tokens": 3 * 128,
        "schedule__warmup_tokens": 128}
SEED = os.environ.get("CUEMU_SEED") or str(random.SystemRandom().randrange(1, 10**9))
ORDERS = {
    "fwd": {"CUEMU_ORDER": "fwd", "CUEMU_STREAMS": "eager"},
    "rev": {"CUEMU_ORDER": "rev", "CUEMU_STREAMS": "lazy"},
    "rand": {"CUEMU_ORDER": "rand", "CUEMU_STREAMS": "rand"},
    "fresh": {"CUEMU_ORDER": "rand", "CUEMU_STREAMS": "lazy", "CUEMU_FRESH": "1"},
    "threads": {"CUEMU_ORDER": "rand:11", "CUEMU_STREAMS": "rand:12", "CUEMU_MULTIPROCESSORS": "7", "OMP_NUM_THREADS": "2"},
}

# As tests/run.py says it to C tests.
SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=1:fast_unwind_on_malloc=0", "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
              "LSAN_OPTIONS": f"suppressions={ROOT}/tests/lsan.supp:print_suppressions=0",
              "TSAN_OPTIONS": "ignore_noninstrumented_modules=1"}

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason=f"{PROGRAM} is not there: make emu")
only_emulated = pytest.mark.skipif("MOBILELLM_CUDA" in os.environ, reason="a machine that is not this one")
not_emulated = pytest.mark.skipif("MOBILELLM_CUDA" not in os.environ, reason="two ranks show it where GPUs cost nothing")


def gpus(n):
    if "MOBILELLM_CUDA" in os.environ and n > GPUS:
        pytest.skip(f"{n} ranks need {n} GPUs")


def run_program(arguments, *more, program=PROGRAM, ranks=0, status=0, **variables):
    launcher = ["mpirun", "-np", str(ranks), "--bind-to", "none"] if ranks else []
    env = {**ENV, "OMP_NUM_THREADS": "1", "CUEMU_DEVICES": str(max(ranks, 1)), "CUEMU_SEED": SEED,
           "XDG_CACHE_HOME": str(ROOT / "build" / "emu" / "cache"), **variables}
    done = subprocess.run([*launcher, str(program), *map(str, arguments), *map(str, more)], cwd=ROOT, env=env,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", timeout=240,
                          stdin=subprocess.DEVNULL)
    assert done.returncode == status, f"exit {done.returncode}, expected {status}, {told(variables)}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def told(variables):
    return " ".join(f"{name}={value}" for name, value in [("CUEMU_SEED", SEED), *variables.items()])


def run_cuda(arguments, *more, **how):
    """Where the GPU is emulated: a random order, and lazy streams unless told otherwise; they find a missing wait."""
    return run_program(arguments, "--device", "cuda", *more, **{"CUEMU_ORDER": "rand", "CUEMU_STREAMS": "lazy", **how})


def run_cpu(arguments, *more, **how):
    return run_program(arguments, "--device", "cpu", *more, **how)


def worst(a, b):
    assert a.keys() == b.keys() and a
    return max(abs(a[k] - b[k]) / abs(b[k]) for k in a)


@pytest.mark.parametrize("dtype, ranks", [("f32", 1), ("f32", 2), ("f32", 3), ("bf16", 2),
                                          pytest.param("bf16", 1, marks=not_emulated)])
def test_twenty_steps_have_the_losses_of_the_cpu(start, dtype, ranks):
    """Layers of every kind, packed documents."""
    gpus(ranks)
    keys = {"dtype": dtype, "data__mask_documents": "true"}
    cpu, arguments = start("cpu", **keys)
    run_cpu(arguments)
    cuda, arguments = start("cuda", **keys)
    run_cuda(arguments, ranks=ranks if ranks > 1 else 0)
    assert len(losses(cpu)) == 20
    assert worst(losses(cuda), losses(cpu)) <= 1e-4


def test_a_global_batch_may_be_split_in_any_way(start):
    """12 rows a step, and 2: several ranks reduce the tied embedding's gradient in two parts, whatever each has of the last
    micro-batch: as much as the others, less, nothing."""
    for rows, splits in [(12, [(2, 4), (3, 3), (5, 2)]), (2, [(3, 4)])]:
        keys = {"data__mask_documents": "true", "data__heldout": "[]", "batch__tokens": 32 * rows, "train__tokens": 32 * rows * 4,
                "schedule__warmup_tokens": 32 * rows}
        directory, arguments = start(f"whole{rows}", batch__micro=12, **keys)
        run_cuda(arguments)
        whole = losses(directory)
        for ranks, micro in splits:
            gpus(ranks)
            directory, arguments = start(f"split{rows}-{ranks}", batch__micro=micro, **keys)
            run_cuda(arguments, ranks=ranks)
            assert worst(losses(directory), whole) <= 1e-6, f"{rows} rows on {ranks} ranks, micro-batches of {micro}"


@only_emulated
@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_no_order_of_threads_blocks_and_streams_changes_a_bit(start, dtype, ranks):
    first = None
    for name, variables in ORDERS.items():
        if ranks and variables["CUEMU_STREAMS"].startswith("rand"):  # an emulated collective holds its host until all ranks are there,
            variables = {**variables, "CUEMU_STREAMS": "lazy"}  # so each rank must come to it at the same place
        directory, arguments = start(name, dtype=dtype, **TINY)
        run_cuda(arguments, ranks=ranks, **variables)
        first = first or directory
        assert same_bits(newest(first), newest(directory)), told(variables)
        assert losses(first) == losses(directory), told(variables)


@only_emulated
@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("flavour", ["asan", "tsan"])
def test_sanitizers_find_nothing_in_whole_steps(start, flavour, dtype, ranks):
    """And the losses are the CPU's there too."""
    program = conftest.BUILD / f"emu-{flavour}" / "mobilellm"
    if not program.exists():
        pytest.skip(f"{program} is not there: make emu EMU={flavour}")
    cpu, arguments = start("cpu", dtype=dtype, **TINY)
    run_cpu(arguments)
    cuda, arguments = start("cuda", dtype=dtype, **TINY)
    run_cuda(arguments, program=program, ranks=ranks, **SANITIZERS)
    assert worst(losses(cuda), losses(cpu)) <= 1e-4


@pytest.mark.parametrize("ranks", [pytest.param(0, marks=not_emulated), 2])
def test_stop_and_resume_is_bit_equal(start, ranks):
    gpus(ranks)
    whole, arguments = start("whole", dtype="bf16", **SHORT)
    run_cuda(arguments, ranks=ranks)
    halves, arguments = start("halves", dtype="bf16", **SHORT)
    run_cuda(arguments, "train.stop_after=3", ranks=ranks)
    run_cuda(arguments, "--resume", ranks=ranks)
    assert same_bits(newest(whole), newest(halves))
    assert losses(whole) == losses(halves)


def test_a_checkpoint_goes_from_one_backend_to_the_other_and_back(start):
    """Two steps on the CPU, two on the GPU, two on the CPU."""
    whole, arguments = start("whole", **SHORT)
    run_cpu(arguments)
    both, arguments = start("both", **SHORT)
    run_cpu(arguments, "train.stop_after=2")
    run_cuda(arguments, "train.stop_after=4", "--resume")
    run_cpu(arguments, "--resume")
    assert worst(losses(both), losses(whole)) <= 1e-4


def test_damage_is_found_on_its_way_into_the_device(start):
    """A bit of each kind of dataset of a bf16 run, as two ranks read it: the run goes on from the file before. And of one that an f32
    run does not read: its parameters are the master weights."""
    gpus(2)
    first, arguments = start("first", dtype="bf16", checkpoint__every=1, **SHORT)
    run_cuda(arguments, "train.stop_after=3", ranks=2)
    expected, arguments = start("expected", dtype="bf16", **SHORT)
    shutil.copytree(first, expected, symlinks=True)
    (expected / "step_0000000003.h5").unlink()
    run_cuda(arguments, "train.stop_after=4", "--resume", ranks=2)
    tensor = "model.embed_tokens.weight"
    for kind in ("params", "optimizer/master", "optimizer/m", "optimizer/v"):
        damaged, arguments = start(kind.replace("/", "-"), dtype="bf16", **SHORT)
        shutil.copytree(first, damaged, symlinks=True)
        flip_bit(damaged / "step_0000000003.h5", f"{kind}/{tensor}", 0.9)
        _, err = run_cuda(arguments, "train.stop_after=4", "--resume", ranks=2)
        assert err.count("passed over") == 1 and f"{kind}/{tensor} is damaged" in err, err
        assert same_bits(newest(expected), newest(damaged)), kind
        assert losses(expected) == losses(damaged), kind
    other, arguments = start("other", **SHORT)
    shutil.copytree(first, other, symlinks=True)
    flip_bit(other / "step_0000000003.h5", f"params/{tensor}", 0.9)
    _, err = run_cpu(arguments, "train.stop_after=4", "--resume", ranks=2)
    assert err.count("passed over") == 1 and f"params/{tensor} is damaged" in err, err


def test_evaluation_is_that_of_the_cpu(start, corpus):
    directory, arguments = start("run", **SHORT)
    run_cpu(arguments)
    for extra in ([], ["--mask-documents"]):
        cpu = run_json("eval", directory, "--data", corpus / "heldout", "--device", "cpu", *extra)["total"]["loss"]
        out, _ = run_cuda(["eval", directory, "--data", corpus / "heldout", "--json", *extra])
        cuda = conftest.json.loads(out)["total"]["loss"]
        assert abs(cuda / cpu - 1) < 1e-6


@only_emulated
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_plan_is_what_is_taken(start, ranks):
    """Of the device's memory: what `plan` says is what the emulated device has handed out, no more and no less."""
    directory, arguments = start("run", **SHORT)
    run_cuda(arguments, ranks=ranks if ranks > 1 else 0)
    taken = {row["memory_bytes"] for row in map(conftest.json.loads, (Path(directory) / "metrics.jsonl").read_text().splitlines())
             if row["kind"] == "train"}
    out, _ = run_cuda(["plan", *arguments[1:], "--ranks", ranks, "--json"])
    assert taken == {conftest.json.loads(out)["memory_bytes_per_rank"]["total"]}


def told_bits(directory):
    """What a run has told of itself, but for times."""
    rows = map(conftest.json.loads, (Path(directory) / "metrics.jsonl").read_text().splitlines())
    return [(row["kind"], row["step"], row["loss"]) for row in rows]


@only_emulated
@pytest.mark.parametrize("ranks", [0, 2])
def test_the_run_that_chooses_algorithms_has_the_bits_of_those_that_know_them(start, tmp_path, ranks):
    """Timings fall as they may, on each rank and in each run: all steps have the choices of rank 0 in the first run. The ranks have
    other numbers of rows, in the last micro-batch and in the evaluation; the last chunk of the head only ever adds."""
    keys = {"batch__tokens": 32 * 5, "batch__micro": 2, "batch__head_chunk": 24, "train__tokens": 32 * 5 * 2, "schedule__warmup_tokens": 32,
            "train__eval_tokens": 32 * 3}
    runs = []
    for number, cache in enumerate(["one", "one", "other"]):
        directory, arguments = start(f"run{number}", **keys)
        run_cuda(arguments, ranks=ranks, XDG_CACHE_HOME=str(tmp_path / cache), MOBILELLM_GEMM_TIMING="1", CUEMU_TIMES=str(1 + number))
        runs.append(directory)
        files = list((tmp_path / cache / "mobilellm").iterdir())
        assert len(files) == 1
        text = files[0].read_text()
        if number == 0:
            chosen = text
        assert (text == chosen) == (cache == "one"), "what is in the file stays as it is"
    assert same_bits(newest(runs[0]), newest(runs[1])) and told_bits(runs[0]) == told_bits(runs[1])
    assert not same_bits(newest(runs[0]), newest(runs[2])), "the choices make no difference: this test tests nothing"


@only_emulated
@pytest.mark.parametrize("timing", ["1", "0"])
def test_a_rank_that_fails_while_it_chooses_ends_the_run(start, tmp_path, timing):
    directory, arguments = start("run", **SHORT)
    _, err = run_cuda(arguments, ranks=2, status=1, XDG_CACHE_HOME=str(tmp_path), MOBILELLM_GEMM_TIMING=timing, CUEMU_FAIL="30")
    assert "illegal" in err.lower() and "of 2 on" in err
    assert not list(Path(directory).glob("*.h5"))


@only_emulated
@pytest.mark.parametrize("keys, said", [
    ({"model__d_model": 8200}, ["model.d_model: found 8200", "at most 8192", "device: cpu"]),
    ({"model__head_dim": 258}, ["model.head_dim: found 258", "at most 256"]),
    ({"model__head_dim": 136}, ["model.head_dim: found 136", "at most 128", "cuDNN"]),
    ({"model__head_dim": 136, "dtype": "bf16"}, ["model.head_dim: found 136", "at most 128", "cuDNN"]),
    ({"data__seq_len": 1, "batch__tokens": 65536, "batch__micro": 65536}, ["batch.micro", "found 65536", "at most 65535"]),
])  # fmt: skip
def test_sizes_beyond_the_kernels_are_errors_of_the_config(start, keys, said):
    """For the device at hand as for one that is not here; nothing is started."""
    directory, arguments = start("run", **keys)
    for command in (["train"], ["train", "--dry-run"], ["plan"], ["plan", "--device", "h100"]):
        if "--device" in command and keys.get("dtype") == "bf16":
            continue  # cuDNN, if it is there, may take such heads
        _, err = run_cuda([command[0], *arguments[1:]], *command[1:], status=2)
        assert "small.yaml: " in err and all(word in err for word in said), err
    assert not Path(directory).exists()


@only_emulated
@pytest.mark.parametrize("keys, said", [
    ({"dtype": "f32"}, "our own kernels: cuDNN is asked in bf16 only"),
    ({"dtype": "bf16", "data__mask_documents": "true"}, "our own kernels: rows of several documents (data.mask_documents)"),
    ({"dtype": "bf16", "model__head_dim": 20}, "our own kernels: cuDNN takes heads whose size is a multiple of 8"),
    ({"dtype": "bf16"}, "our own kernels: MOBILELLM_ATTENTION is own"),
    ({"dtype": "f32", "model__attention": "ssss"}, None),
])  # fmt: skip
def test_what_attention_runs_by_is_told_once(start, keys, said):
    _, arguments = start("run", data__heldout="[]", batch__tokens=64, train__tokens=64, schedule__warmup_tokens=32, **keys)
    out, _ = run_cuda(arguments, ranks=2, MOBILELLM_ATTENTION="own")
    told = [line.split(None, 1)[1] for line in out.splitlines() if line.startswith("  attention ")]
    assert told == ([said] if said else [])


@only_emulated
def test_a_plan_for_a_device_elsewhere_counts_what_cudnn_may_take(start):
    """The gradients of the scores (in bf16, by far the most of it) of all rows, or as many as fit in 512 MiB."""
    _, arguments = start("run", data__seq_len=2048, batch__tokens=2048 * 16, batch__micro=16, dtype="bf16")

    def scratch(*keys):
        """In MiB."""
        out, _ = run_cuda(["plan", *arguments[1:], *keys], "--device", "h100")
        assert "at most" in out and "known on the GPU only" in out
        number, unit = out.split("+ scratch ")[1].split()[:2]
        assert unit == "MiB"
        return float(number)

    scores = 4 * 2048 * 2048 * 2 / 2**20
    assert 4 * scores < scratch("batch.micro=4") < 1.1 * 4 * scores
    assert scratch() == 512
    assert scratch("model.attention=wwww", "batch.micro=4") == scratch("batch.micro=4")
    for keys in (["dtype=f32"], ["data.mask_documents=true"], ["model.attention=ssss"], ["model.head_dim=20"]):
        assert scratch(*keys) == 32, keys
    assert "at most" not in run_cuda(["plan", *arguments[1:]])[0]
    out, _ = run_cuda(["plan", *arguments[1:], "--json"], "--device", "h100")
    assert conftest.json.loads(out)["memory_is_upper_bound"]


@only_emulated
def test_a_machine_without_a_gpu_is_told_so(start):
    _, arguments = start("none")
    _, err = run_cuda(arguments, status=4, CUEMU_DEVICES="0")
    assert "GPU" in err


@only_emulated
def test_more_ranks_than_gpus_are_refused(start):
    _, arguments = start("crowd")
    _, err = run_cuda(arguments, ranks=2, status=4, CUEMU_DEVICES="1")
    assert "each rank needs one" in err


@only_emulated
def test_a_device_too_small_is_refused_before_anything_starts(start):
    """Whether the GPU has too little, or what it has lies in pieces."""
    for name, variables in [("small", {"CUEMU_MEMORY": str(8 << 20)}), ("pieces", {"CUEMU_LARGEST": str(8 << 20)})]:
        directory, arguments = start(name)
        _, err = run_cuda(arguments, status=4, **variables)
        out, _ = run_cuda(["plan", *arguments[1:], "--json"])
        planned = conftest.json.loads(out)["memory_bytes_per_rank"]
        assert "8.00 MiB" in err if name == "small" else "refused 0.03 GiB" in err and "not in one piece" in err
        for part in planned.keys() - {"total"}:
            assert f" {part} " in err.split("It is for")[1].split("(see `mobilellm plan`)")[0]
        assert "Lower batch.micro" in err and "nvidia-smi" in err + "nvidia-smi" * (name == "small")
        assert not list(Path(directory).glob("*.h5"))


def philox(key, high, low):
    """Philox4x32-10 [Salmon et al. 2011] of one key and a counter whose upper half is a number, the lower an array: (n, 4) words."""
    word = 0xFFFFFFFF
    low = np.asarray(low, np.uint64)
    x = [low & word, low >> 32, np.full_like(low, high & word), np.full_like(low, high >> 32)]
    k = [key & word, key >> 32]
    for _ in range(10):
        a, b = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57  # of 32 bits each
        x = [(b >> 32) ^ x[1] ^ k[0], b & word, (a >> 32) ^ x[3] ^ k[1], a & word]
        k = [k[0] + 0x9E3779B9 & word, k[1] + 0xBB67AE85 & word]
    return np.stack(x, -1)


def mixed(a, b):
    words = philox(a, 0, [b])[0]
    return int(words[1]) << 32 | int(words[0])


def hashed(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def rounded_by_chance(master, name, seed, t):
    """As docs/step.md says: bf16 numbers, as the upper halves of floats."""
    block = philox(mixed(mixed(seed, hashed("stochastic rounding")), hashed(name)), t, np.arange((master.size + 7) // 8))
    random = np.stack([block & 0xFFFF, block >> 16], -1).reshape(-1)[: master.size]
    bits = master.reshape(-1).view(np.uint32).astype(np.uint64)
    return ((bits + random >> 16).astype(np.uint32) << 16).view(np.float32).reshape(master.shape)


@pytest.mark.parametrize("ranks", [pytest.param(0, marks=not_emulated), 2, 3])
def test_stochastic_rounding_is_philox_s_on_any_ranks(start, ranks):
    """Of the step, the tensor and the element alone, stopped and resumed or not."""
    gpus(ranks)
    keys = dict(dtype="bf16", optimizer__stochastic_rounding="true", init__seed=7, **SHORT)
    whole, arguments = start("whole", **keys)
    run_cuda(arguments, ranks=ranks)
    found = conftest.tensors(newest(whole))
    for name in [name.split("/", 1)[1] for name in found if name.startswith("params/")]:
        assert (found[f"params/{name}"] == rounded_by_chance(found[f"optimizer/master/{name}"], name, 7, 6)).all(), name
    if ranks == 3:
        return
    halves, arguments = start("halves", **keys)
    run_cuda(arguments, "train.stop_after=3", ranks=ranks)
    run_cuda(arguments, "--resume", ranks=ranks)
    assert same_bits(newest(whole), newest(halves))
    assert losses(whole) == losses(halves)
