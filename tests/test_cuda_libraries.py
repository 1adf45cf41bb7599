"""Where NVIDIA's libraries are looked for, and what is said of those that do not fit. NVRTC stands for all: the emulation of the
GPU does not bring one."""

import os
import subprocess

import pytest
from conftest import BUILD, ENV

PROGRAM = BUILD / "emu/tests/test_cuda_libraries"
CALL = "int nvrtcVersion(int *major, int *minor) { *major = MAJOR; *minor = 7; return 0; }"


def open_nvrtc(**variables):
    assert PROGRAM.exists(), "build it first: make emu"
    env = {k: v for k, v in ENV.items() if k not in ("LD_LIBRARY_PATH", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX")}
    env.update({k: str(v) for k, v in variables.items()})
    done = subprocess.run([PROGRAM, "open", "NVRTC"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return done.returncode, done.stdout.strip()


@pytest.fixture(scope="module")
def system():
    """What is found without our help: the version the program was built for, if the machine has one; else None."""
    status, said = open_nvrtc()
    return None if status else said


@pytest.fixture(scope="module")
def major():
    """Of the CUDA that the program was built with."""
    out = subprocess.run([PROGRAM, "open", "cuBLASLt"], env=ENV, stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(out.split(".")[0])


def make(folder, major, version=None, source=CALL):
    """A library of NVRTC's file name, which says it is of that version."""
    folder.mkdir(parents=True)
    path = folder / f"libnvrtc.so.{major}"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, f"-DMAJOR={version or major}", "-x", "c", "-"], input=source, text=True, check=True)
    return path


def test_the_loaders_path_comes_first(tmp_path, major):
    path = make(tmp_path / "first", major)
    make(tmp_path / "home/lib64", major)
    status, said = open_nvrtc(LD_LIBRARY_PATH=path.parent, CUDA_HOME=tmp_path / "home")
    assert (status, said) == (0, f"{major}.7.0 {path}")


@pytest.mark.parametrize("variable, below", [
    ("CUDA_HOME", "lib64"),
    ("CUDA_HOME", "lib"),
    ("VIRTUAL_ENV", "lib/python3.11/site-packages/nvidia/cu13/lib"),
    ("VIRTUAL_ENV", "lib/python3.9/site-packages/nvidia/cuda_nvrtc/lib"),
    ("CONDA_PREFIX", "lib"),
])  # fmt: skip
def test_found_where_toolkits_pip_and_conda_put_it(tmp_path, major, system, variable, below):
    if system and (variable != "CUDA_HOME" or "/usr/local/cuda" not in system):
        pytest.skip("this machine's own is found before: " + system)
    path = make(tmp_path / below, major)
    assert open_nvrtc(**{variable: tmp_path}) == (0, f"{major}.7.0 {path}")


def test_another_major_version_is_refused_with_both(tmp_path, major):
    path = make(tmp_path / "lib", major, version=major - 1)
    status, said = open_nvrtc(LD_LIBRARY_PATH=path.parent)
    assert status == 1
    assert f"{path} is NVRTC {major - 1}.7.0" in said
    assert f"compiled for NVRTC {major}" in said and "LD_LIBRARY_PATH" in said


def test_what_is_not_the_library_is_named(tmp_path, major):
    path = make(tmp_path / "lib", major, source="int something;")
    assert open_nvrtc(LD_LIBRARY_PATH=path.parent) == (1, f"{path} is not NVRTC: it has no nvrtcVersion.")


def test_a_library_that_does_not_load_says_why(tmp_path, major, system):
    path = make(tmp_path / "lib", major, source=CALL + "int missing(void); int call(void) { return missing(); }")
    status, said = open_nvrtc(LD_LIBRARY_PATH=path.parent)
    if system:  # the loader goes on to the next place
        assert status in (0, 1)
    if status:
        assert "missing" in said and str(path) in said, said


def test_a_missing_library_is_told_with_where_and_what_to_do(system, major, tmp_path):
    if system:
        pytest.skip("this machine has one: " + system)
    status, said = open_nvrtc(VIRTUAL_ENV=tmp_path)
    assert status == 1
    assert said.startswith(f"libnvrtc.so.{major} (NVRTC) was not found. Looked in: the loader's path, /usr/local/cuda/lib64, ")
    assert f"{os.fspath(tmp_path)}/lib/python3*/site-packages/nvidia/*/lib" in said
    assert "pip install nvidia-cuda-nvrtc" in said and "LD_LIBRARY_PATH" in said
