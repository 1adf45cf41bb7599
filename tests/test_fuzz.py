"""The fuzz targets of tests/fuzz for some seconds each, where clang has libFuzzer: `make fuzz` installs it.

CI sets FUZZ_SECONDS, and then nothing is skipped.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUILD, ROOT

sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
import run as fuzzing  # noqa: E402

SECONDS = int(os.environ.get("FUZZ_SECONDS", 5))


def has_libfuzzer(folder):
    """Can clang make a fuzz target?"""
    source = folder / "probe.c"
    source.write_text("int LLVMFuzzerTestOneInput(const char *d, long n) { return 0; }\n")
    try:
        done = subprocess.run(["clang", "-fopenmp", "-fsanitize=fuzzer,address,undefined", source, "-o", folder / "probe"], capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What came of each target. They run in a folder of their own: what they find and keep stays out of the way of `make fuzz`."""
    folder = tmp_path_factory.mktemp("fuzz")
    if not has_libfuzzer(folder):
        (pytest.fail if "FUZZ_SECONDS" in os.environ else pytest.skip)("clang with libFuzzer and OpenMP is not here: `make fuzz` installs it")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}  # of a make that runs us
    built = subprocess.run(["make", "-s", "fuzz-programs"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    for target in fuzzing.TARGETS:
        (folder / f"fuzz_{target}").symlink_to(BUILD / "fuzz" / f"fuzz_{target}")
    return dict(zip(fuzzing.TARGETS, fuzzing.fuzz_all(folder, fuzzing.TARGETS, SECONDS)))


@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_no_input_breaks(results, target):
    ok, line, output = results[target]
    assert ok, line + "\n" + output


def test_every_target_is_run_and_has_seeds():
    folder = Path(fuzzing.__file__).parent
    assert {path.stem for path in folder.glob("fuzz_*.c")} == {f"fuzz_{target}" for target in fuzzing.TARGETS}
    for target in fuzzing.TARGETS:
        assert any((folder / "seeds" / target).iterdir()), target
