"""What is run on machines with GPUs (make gpu-check, test-gpu, bench-gpu), tried on the emulated GPU: that it measures, counts,
and finds what is wrong."""

import json
import os
import re
import shutil
import subprocess

import pytest
from conftest import BUILD, ENV, ROOT

EMULATED = BUILD / "emu"

pytestmark = pytest.mark.skipif(not (EMULATED / "bench" / "gpu_kernels").exists(), reason="build/emu/bench/gpu_kernels is not there: make emu")


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def run(tmp_path, *command, status=0, **variables):
    """Output of a script that finds tmp_path/bin first."""
    env = {**ENV, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "GPU_CHECK_TINY": "1",
           "XDG_CACHE_HOME": str(tmp_path / "cache"), **variables}
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", timeout=240, stdin=subprocess.DEVNULL)
    assert done.returncode == status, f"exit {done.returncode}, expected {status}\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize("bundled", [False, True])
def test_a_sound_machine_is_found_sound(tmp_path, bundled):
    """Two GPUs: driver, libraries, speeds, the links between them, and twenty steps. A bundle has its programs in bin."""
    script(tmp_path / "bin/nvidia-smi", "echo GPU 0, 580.82.07")
    folder = EMULATED
    if bundled:
        folder = tmp_path / "bundle"
        folder.mkdir()
        (folder / "bin").symlink_to(EMULATED)
    out = run(tmp_path, "scripts/gpu_check.sh", folder, CUEMU_DEVICES="2")
    assert "FAILED" not in out
    for what in ("driver", "cuBLASLt", "NCCL", "GEMM", "memory", "NCCL: .* between 2 GPUs", "training: 20 steps"):
        assert re.search(f"^ok +{what}", out, re.M), f"no line for {what} in\n{out}"


def test_a_slow_gpu_and_a_broken_driver_are_found(tmp_path):
    """The emulated GPU under the name of a real one, whose speed it does not have."""
    script(tmp_path / "bin/nvidia-smi", "echo NVML: Driver/library version mismatch; exit 18")
    out = run(tmp_path, "scripts/gpu_check.sh", EMULATED, status=1, CUEMU_NAME="NVIDIA H200")
    assert re.search(r"^FAILED +driver: .*version mismatch", out, re.M)
    assert re.search(r"^FAILED +GEMM: .* less than half of the data sheet's 989", out, re.M)
    assert re.search(r"^left out +NCCL: one GPU", out, re.M)


@pytest.mark.parametrize("name", ["gpu_check.sh", "test_gpu.sh"])
def test_without_a_gpu_one_line_says_so(tmp_path, name):
    out = run(tmp_path, f"scripts/{name}", EMULATED, status=4, CUEMU_DEVICES="0")
    assert out.startswith("no GPU here: ") and out.count("\n") == 1


def test_wrong_losses_are_found(tmp_path):
    """A program that on a GPU trains at another rate."""
    script(tmp_path / "wrong", f'case "$*" in *"--device cuda"*) set -- "$@" optimizer.lr=4e-3 ;; esac\nexec {EMULATED}/mobilellm "$@"\n')
    out = run(tmp_path, "scripts/gpu_parity.py", "--quick", tmp_path / "wrong", status=1)
    assert re.search("losses differ by .* from the CPU's, allowed 1e-04", out)


def folder_of_tests(tmp_path):
    """The program, the real test of collectives, and tests that do as a test may."""
    folder = tmp_path / "folder"
    script(folder / "tests/test_cuda_ops", 'echo 1..2; echo "ok 1 - a"; echo "ok 2 - b"')
    script(folder / "tests/test_cuda_attention", 'echo 1..2; echo "ok 1 - a"; echo "not ok 2 - b"; exit 1')
    script(folder / "tests/test_cuda_gemm", "echo 1..2; kill -SEGV $$")
    (folder / "mobilellm").symlink_to(EMULATED / "mobilellm")
    shutil.copy(BUILD / "emu-cov/tests/test_cuda_collectives", folder / "tests")
    return folder


def test_all_that_passes_fails_or_is_left_out_is_counted(tmp_path):
    """Two of ops pass; of attention one, and one fails; gemm crashes; 6 of collectives pass alone, 5 on two GPUs; for training
    there is no time; of four runs under the sanitizer one finds something."""
    folder = folder_of_tests(tmp_path)
    script(tmp_path / "bin/compute-sanitizer", 'case "$*" in *racecheck*attention*) echo "= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)"; exit 99 ;;\n'
           '*) echo "========= ERROR SUMMARY: 0 errors" ;; esac')
    out = run(tmp_path, "scripts/test_gpu.sh", folder, status=1, CUEMU_DEVICES="2", TEST_GPU_SECONDS="30")
    assert out.splitlines()[-1] == "17 passed, 3 failed, 1 skipped", out
    assert "killed by SIGSEGV" in out and "3 hazards" in out and "no time left" in out


def test_a_page_is_written_with_steps_and_kernels(tmp_path):
    """Whatever stood there stays, but that nothing has been measured."""
    page = tmp_path / "results.md"
    page.write_text((ROOT / "docs/results-gpu.md").read_text())
    run(tmp_path, "scripts/bench/gpu.py", "--tiny", "--binaries", EMULATED, "--page", page, "--torch", "none")
    text = page.read_text()
    assert text.startswith("# Results on GPUs") and "Nothing has been measured yet" not in text
    row = re.search(r"^\| tiny \| 2 x 32 \| (.*) \|$", text, re.M).group(1).split(" | ")
    assert float(row[0].replace(",", "")) > 0 and row[3] == row[4], f"memory {row[3]} GiB, planned {row[4]} GiB"
    assert len(re.findall(r"\| (?:compute|memory) \| \d+ % \|$", text, re.M)) == 32


def test_kernels_refuse_what_they_do_not_know(tmp_path):
    kernels = EMULATED / "bench/gpu_kernels"
    assert "usage" in run(tmp_path, kernels, status=2)
    assert "usage" in run(tmp_path, kernels, "ops", "V=10", status=2)
    assert "q=1 is not an argument" in run(tmp_path, kernels, "device", "q=1", status=2)
    assert json.loads(run(tmp_path, kernels, "device", "gemm=64", "mib=1", "seconds=0.001"))["gemm"] == 64
