"""bf16 on processors for which oneDNN has no products in it: the C tests that compare with double precision and with PyTorch, kept
from AVX-512, and a run. Elsewhere these tests run with what the processor has."""

import os
import subprocess

import pytest

from conftest import BUILD, ROOT, losses, run

WITHOUT = {"DNNL_MAX_CPU_ISA": "AVX2"}


@pytest.mark.parametrize("name", ["test_backend", "test_gemm", "test_attention", "test_model"])
def test_products_are_made_in_f32(name):
    done = subprocess.run([BUILD / "tests" / name], cwd=ROOT, env={**os.environ, **WITHOUT}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0, done.stdout


def test_a_run_says_how_it_computes_and_has_the_same_losses(start):
    """As elsewhere, to what bf16 rounds: oneDNN's own products add in another order."""
    directory, arguments = start("without", dtype="bf16")
    banner, _ = run(*arguments, env=WITHOUT)
    assert "bf16 by way of f32" in banner
    there, plain = start("with", dtype="bf16")
    run(*plain)
    got, expected = losses(directory), losses(there)
    assert got.keys() == expected.keys() and len(got) == 20
    assert max(abs(got[step] - expected[step]) for step in expected) < 2e-3
