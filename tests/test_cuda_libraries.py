"""Where NVIDIA's libraries are looked for, and what is said of those that do not fit."""

import subprocess

import pytest
from conftest import BUILD, ENV

PROGRAM = BUILD / "emu-cov/tests/test_cuda_libraries"
FILE = "libmobilellm-probe.so.7"  # no machine has it
NVRTC = "int nvrtcVersion(int *major, int *minor) { *major = MAJOR; *minor = 7; return 0; }"


def call(*args, **variables):
    assert PROGRAM.exists(), "build it first: make emu EMU=cov"
    env = {k: v for k, v in ENV.items() if k not in ("LD_LIBRARY_PATH", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX")}
    env.update({k: str(v) for k, v in variables.items()})
    done = subprocess.run([PROGRAM, *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return done.returncode, done.stdout.strip()


def make(path, source="int nothing;", **defined):
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = [f"-D{name}={value}" for name, value in defined.items()]
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, *flags, "-x", "c", "-"], input=source, text=True, check=True)
    return path


@pytest.fixture(scope="module")
def major():
    """Of the CUDA that the program was built with."""
    return int(call("open", "cuBLASLt")[1].split(".")[0])


@pytest.mark.parametrize("variable, below", [
    ("LD_LIBRARY_PATH", "."),
    ("CUDA_HOME", "lib64"),
    ("CUDA_HOME", "lib"),
    ("VIRTUAL_ENV", "lib/python3.11/site-packages/nvidia/cu13/lib"),
    ("VIRTUAL_ENV", "lib/python3.9/site-packages/nvidia/cuda_nvrtc/lib"),
    ("CONDA_PREFIX", "lib"),
    ("CONDA_PREFIX", "lib/python3.12/site-packages/nvidia/nccl/lib"),
])  # fmt: skip
def test_found_where_toolkits_pip_and_conda_put_it(tmp_path, variable, below):
    path = make(tmp_path / below / FILE)
    assert call("find", FILE, **{variable: tmp_path}) == (0, str(path))


def test_found_beside_the_program(tmp_path):
    path = make(tmp_path / "lib" / FILE)
    program = tmp_path / "bin/program"
    program.parent.mkdir()
    program.write_bytes(PROGRAM.read_bytes())
    program.chmod(0o755)
    done = subprocess.run([program, "find", FILE], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == f"{tmp_path}/bin/../lib/{FILE}"
    assert path.samefile(done.stdout.strip())


def test_the_loaders_path_comes_first(tmp_path):
    first = make(tmp_path / "first" / FILE)
    make(tmp_path / "home/lib64" / FILE)
    assert call("find", FILE, LD_LIBRARY_PATH=first.parent, CUDA_HOME=tmp_path / "home") == (0, str(first))


def test_a_missing_library_is_told_with_where_and_what_to_do(tmp_path):
    status, said = call("find", FILE, VIRTUAL_ENV=tmp_path, LD_LIBRARY_PATH=tmp_path)
    assert status == 1
    assert said.startswith(f"{FILE} (The Library) was not found. Looked in: the loader's path, LD_LIBRARY_PATH, /usr/local/cuda/lib64, ")
    assert f"{tmp_path}/lib/python3*/site-packages/nvidia/*/lib." in said
    assert "pip install the-package" in said and "name its folder in LD_LIBRARY_PATH" in said


@pytest.mark.parametrize("variable", ["LD_LIBRARY_PATH", "CONDA_PREFIX"])
def test_a_library_that_does_not_load_says_why(tmp_path, variable):
    below = "." if variable == "LD_LIBRARY_PATH" else "lib"
    path = make(tmp_path / below / FILE, "int missing(void); int call(void) { return missing(); }")
    status, said = call("find", FILE, **{variable: tmp_path})
    assert status == 1
    assert said.startswith(f"{FILE} (The Library) does not load: {path}: undefined symbol: missing"), said
    path.write_bytes(b"<html>not found</html>")
    status, said = call("find", FILE, **{variable: tmp_path})
    assert status == 1 and str(path) in said, said


def test_another_major_version_is_refused_with_both(tmp_path, major):
    path = make(tmp_path / f"libnvrtc.so.{major}", NVRTC, MAJOR=major - 1)
    status, said = call("open", "NVRTC", LD_LIBRARY_PATH=tmp_path)
    assert status == 1
    assert f"{path} is NVRTC {major - 1}.7.0, and this program was compiled for NVRTC {major}" in said
    assert "first in LD_LIBRARY_PATH" in said


def test_the_right_major_version_is_taken(tmp_path, major):
    path = make(tmp_path / f"libnvrtc.so.{major}", NVRTC, MAJOR=major)
    assert call("open", "NVRTC", LD_LIBRARY_PATH=tmp_path) == (0, f"{major}.7.0 {path}")


def test_what_is_not_the_library_is_named(tmp_path, major):
    path = make(tmp_path / f"libnvrtc.so.{major}")
    assert call("open", "NVRTC", LD_LIBRARY_PATH=tmp_path) == (1, f"{path} is not NVRTC: it has no nvrtcVersion.")
