"""The emulation of the GPU finds what it is there to find: faults planted in kernels and in host code (tests/emu/faults.cu), each
in the builds and orders that have to find it; and the correct twin of each is right in all of them."""

import os
import subprocess

import pytest
from conftest import BUILD

FAST, ASAN, TSAN = "emu", "emu-asan", "emu-tsan"
WRONG, REFUSED, RIGHT, RACE = "a wrong result", "refused", "right", "ThreadSanitizer: data race"

ALL = [(FAST, ""), (FAST, "CUEMU_ORDER=rev"), (ASAN, ""), (TSAN, "")]
REVERSE = [(FAST, "CUEMU_ORDER=rev")]
BOTH_TSAN = [(TSAN, "CUEMU_ORDER=fwd"), (TSAN, "CUEMU_ORDER=rand:2")]
LAZY = [(FAST, "CUEMU_STREAMS=lazy")]

# (case, as what it is found, where)
FOUND = [
    ("reduction", WRONG, REVERSE),
    ("reduction", RACE, BOTH_TSAN),
    ("scratch_reuse", RACE, BOTH_TSAN),
    ("broadcast", WRONG, REVERSE),
    ("broadcast", RACE, BOTH_TSAN),
    ("syncwarp", WRONG, [(FAST, ""), (FAST, "CUEMU_ORDER=rev"), (ASAN, "")]),
    ("syncwarp", RACE, BOTH_TSAN),
    ("between_blocks", RACE, BOTH_TSAN),
    ("global_bounds", "AddressSanitizer: heap-buffer-overflow", [(ASAN, "")]),
    ("static_bounds", "runtime error: index 64 out of bounds", [(ASAN, "")]),
    ("dynamic_bounds", "AddressSanitizer: heap-buffer-overflow", [(ASAN, "")]),
    ("local_bounds", "runtime error: index 8 out of bounds", [(ASAN, "")]),
    ("alignment", "runtime error: ", [(ASAN, "")]),
    ("unwritten_static", WRONG, [(TSAN, "")]),
    ("unwritten_dynamic", WRONG, ALL),
    ("unwritten_global", WRONG, ALL),
    ("unwritten_maximum", WRONG, [(FAST, "CUEMU_FRESH=1"), (ASAN, "CUEMU_FRESH=2"), (TSAN, "CUEMU_FRESH=3")]),
    ("async_copy", WRONG, [(FAST, ""), (ASAN, "")]),
    ("async_copy", RACE, BOTH_TSAN),
    ("tensor_core", WRONG, ALL),
    ("divergent_barrier", "cuemu: kernel diverging: divergent barriers: thread ", ALL),
    ("early_return", "cuemu: kernel returning: thread ", ALL),
    ("absent_lanes", "cuemu: kernel neighbours, tests/emu/faults.cu:", ALL),
    ("host_pointer", "cuemu: kernel add: argument 1 (", ALL),
    ("shared_limit", REFUSED, ALL),
    ("host_reads_device", "SIGSEGV", [(FAST, "CUEMU_GUARD=1")]),
    ("stream_sync", WRONG, LAZY),
    ("pinned_reuse", WRONG, LAZY),
    ("event_wait", WRONG, LAZY),
]

# What one order finds by luck, one of some random orders finds.
SEEDS = range(1, 13)
FOUND_BY_SEEDS = [(case, "CUEMU_ORDER") for case in ("reduction", "scratch_reuse", "broadcast", "syncwarp")] + [
    (case, "CUEMU_STREAMS") for case in ("stream_sync", "pinned_reuse", "event_wait")]

SETTINGS = ["", "CUEMU_ORDER=fwd", "CUEMU_ORDER=rev", "CUEMU_ORDER=rand:1", "CUEMU_ORDER=rand:2", "CUEMU_STREAMS=eager", "CUEMU_STREAMS=lazy", "CUEMU_STREAMS=rand:1", "CUEMU_GUARD=1", "CUEMU_FRESH=1"]
CORRECT = [(flavour, setting) for flavour in (FAST, ASAN, TSAN) for setting in SETTINGS if (flavour, setting) != (TSAN, "CUEMU_GUARD=1")]


def run(flavour, setting, *cases):
    """RIGHT, or what was found."""
    program = BUILD / flavour / "faults"
    if flavour == TSAN and not program.exists():
        pytest.skip("not built: it needs clang")
    env = {name: value for name, value in os.environ.items() if not name.startswith("CUEMU_")}
    env.update({"OMP_NUM_THREADS": "2", "TSAN_OPTIONS": "atexit_sleep_ms=0:halt_on_error=1"})
    env.update([setting.split("=")] if setting else [])
    done = subprocess.run([program, *cases], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    for line in done.stdout.splitlines():
        for message in ("cuemu: ", "AddressSanitizer: ", "ThreadSanitizer: ", "runtime error: "):
            if message in line and (message != "cuemu: " or line.startswith(message)):
                return line[line.index(message):]
    return {0: RIGHT, 3: WRONG, 4: REFUSED, -11: "SIGSEGV"}.get(done.returncode) or f"exit {done.returncode}: {done.stdout}"


@pytest.mark.parametrize("case, found, flavour, setting", [(case, found, *place) for case, found, places in FOUND for place in places])
def test_a_fault_is_found(case, found, flavour, setting):
    assert run(flavour, setting, case + "!")[:len(found)] == found


@pytest.mark.parametrize("case, variable", FOUND_BY_SEEDS)
def test_some_random_order_finds_it(case, variable):
    assert WRONG in {run(FAST, f"{variable}=rand:{seed}", case + "!") for seed in SEEDS}


@pytest.mark.parametrize("flavour, setting", CORRECT)
def test_the_correct_twins_raise_no_alarm(flavour, setting):
    assert run(flavour, setting) == RIGHT
