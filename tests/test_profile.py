"""train --profile: it changes nothing, and what it says adds up."""

import json
from statistics import mean

import pytest
from conftest import ROOT, losses, newest, run, run_json, same_bits

# Large enough that ops take longer than what lies between them; all five matrices differ in shape.
WIDE = dict(model__d_model=128, model__d_ffn=448, model__n_heads=4, model__n_kv_heads=2, model__head_dim=48, model__window=20,
            data__seq_len=96, batch__tokens=768, batch__micro=3, train__tokens=768 * 8)
ATTENTION = "fwsf"  # of tests/small.yaml


def matrix_flops():
    """Of a step, by matrix: two operations for each weight that touches a token, in each of three passes."""
    C, F, Q, KV, tokens = 128, 448, 4 * 48, 2 * 48, 768
    attended = len(ATTENTION.replace("s", ""))
    weights = {"qkv": attended * C * (Q + 2 * KV), "o": attended * Q * C, "gate|up": 4 * C * 2 * F, "down": 4 * F * C}
    weights["head"] = C * 260
    return {f"{name} {which}": 2 * n * tokens for name, n in weights.items() for which in ("forward", "d input", "d weight")}


def attention_flops(products):
    """Each product takes 2 D operations for a query head and a key that it sees."""
    seen = sum(min(i + 1, 20 if kind == "w" else 96) for kind in ATTENTION if kind != "s" for i in range(96))
    return products * 2 * 4 * 48 * seen * (768 // 96)


def read(directory):
    profile = json.loads((directory / "profile.json").read_text())
    return profile, {part["part"]: part for part in profile["parts"]}


@pytest.fixture(scope="module")
def wide(corpus, tmp_path_factory):
    """One profiled run: the arguments of its config, its directory, what it printed."""
    directory = tmp_path_factory.mktemp("wide")
    keys = {"data.train": f"[{{prefix: {corpus}/train}}]", "data.heldout": f"[{{prefix: {corpus}/heldout}}]",
            "checkpoint.dir": directory}
    config = [ROOT / "tests" / "small.yaml", *[f"{k.replace('__', '.')}={v}" for k, v in {**keys, **WIDE}.items()]]
    out, _ = run("train", *config, "--profile")
    return config, directory, out


@pytest.mark.parametrize("dtype, ranks", [("f32", 0), ("bf16", 0), ("f32", 2)])
def test_a_profiled_run_has_the_same_bits(start, dtype, ranks):
    plain, arguments = start("plain", dtype=dtype)
    run(*arguments, ranks=ranks)
    directory, arguments = start("profiled", dtype=dtype)
    run(*arguments, "--profile", ranks=ranks)
    assert losses(directory) == losses(plain)
    assert same_bits(newest(directory), newest(plain))


def test_operations_are_those_of_the_formula(wide):
    config, directory, _ = wide
    profile, parts = read(directory)
    expected = {**matrix_flops(), "attention forward": attention_flops(2), "attention backward": attention_flops(4)}
    counted = {name: part["flops_per_step"] for name, part in parts.items() if part["flops_per_step"]}
    assert counted == pytest.approx(expected, rel=1e-12)
    assert sum(counted.values()) == pytest.approx(run_json("plan", *config)["flops_per_token"] * 768, rel=1e-12)
    assert profile["steps"] == 7, "the first step is left out"


def test_calls_and_bytes_are_counted(wide):
    """3 micro-batches, of 3, 3 and 2 rows."""
    config, directory, _ = wide
    _, parts = read(directory)
    for name, calls in [("qkv forward", 3 * 3), ("down d weight", 3 * 4), ("attention backward", 3 * 3), ("cross-entropy", 3),
                        ("embedding", 3 * 2), ("norms", 3 * 3 * (3 + 4) + 3 * 2), ("SwiGLU", 3 * 4 * 2)]:
        assert parts[name]["calls_per_step"] == calls, name
    assert parts["SwiGLU"]["bytes_per_step"] == 4 * 768 * 448 * 4 * (3 + 6)
    assert parts["AdamW"]["bytes_per_step"] == run_json("plan", *config)["parameters"]["total"] * 4 * 7


def test_times_add_up_to_the_step(wide):
    _, directory, out = wide
    profile, parts = read(directory)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    measured = 1e3 * mean(row["step_s"] for row in rows if row["kind"] == "train" and row["step"] > 1)
    in_parts = sum(part["ms_per_step"] for part in parts.values() if part["in_step"])
    assert in_parts == pytest.approx(measured, rel=0.1)
    assert in_parts + profile["other_ms_per_step"] == pytest.approx(measured, rel=0.001)
    assert parts["evaluation"]["ms_per_step"] > 0 and not parts["evaluation"]["in_step"]
    assert all(label in out for label in ("gate|up d weight", "AdamW", "other", "checkpoint"))


def test_matrices_of_one_shape_share_a_row_and_ranks_report_collectives(start):
    """In tests/small.yaml both qkv and gate|up are 128 x 32, both o and down 32 x 64. Each of two ranks has two micro-batches."""
    directory, arguments = start()
    run(*arguments, "--profile", ranks=2)
    _, parts = read(directory)
    assert parts["qkv, gate|up forward"]["calls_per_step"] == 2 * (3 + 4)
    assert parts["o, down d input"]["calls_per_step"] == 2 * (3 + 4)
    parameters = run_json("plan", *arguments[1:])["parameters"]["total"]
    assert parts["collectives"]["bytes_per_step"] >= 2 * 4 * parameters, "gradients are reduced, parameters gathered"


def test_one_step_is_too_few(start):
    directory, arguments = start()
    out, _ = run(*arguments, "train.stop_after=1", "--profile")
    assert "nothing to show" in out
    assert read(directory)[1] == {}
