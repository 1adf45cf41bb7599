"""The names that Nsight Systems shows (docs/step.md): each part of a step, and each op in it, from its first call to its last."""

from collections import Counter

import pytest
from conftest import BUILD
from test_cuda_training import run_cuda

RECORDER = BUILD / "emu" / "lib" / "libnvtx_recorder.so"

pytestmark = pytest.mark.skipif(not RECORDER.exists(), reason=f"{RECORDER} is not there: make emu, with NVTX's headers")

ATTENTION = ["rmsnorm_forward", "linear_forward", "qk_rope_forward", "attention_forward", "linear_forward"]
FFN = ["rmsnorm_forward", "linear_forward", "swiglu_forward", "linear_forward"]
FFN_BACKWARD = ["linear_backward_input", "swiglu_backward", "linear_backward_weight", "rmsnorm_forward", "linear_backward_weight",
                "linear_backward_input", "rmsnorm_backward"]
ATTENTION_BACKWARD = ["linear_backward_weight", "linear_backward_input", "attention_backward", "qk_rope_backward", "rmsnorm_forward",
                      "linear_backward_weight", "linear_backward_input", "rmsnorm_backward"]


class Range:
    def __init__(self, name):
        self.name, self.parts = name, []

    def names(self):
        return [part.name for part in self.parts]

    def find(self, *path):
        found = self
        for name in path:
            [found] = [part for part in found.parts if part.name == name]
        return found


def tree(record):
    """Of a rank's ranges. What begins ends, and nothing else does."""
    stack = [Range("rank")]
    for line in record.read_text().splitlines():
        if line == "<":
            assert len(stack) > 1, "a range ends that has not begun"
            stack.pop()
        else:
            part = Range(line[2:])
            stack[-1].parts.append(part)
            stack.append(part)
    assert [each.name for each in stack] == ["rank"], "ranges have not ended"
    return stack[0]


@pytest.mark.parametrize("profile", [[], ["--profile"]])
def test_the_parts_of_a_run_have_their_names(start, tmp_path, profile):
    """Two ranks, six steps of two micro-batches, two evaluations, one checkpoint; layers f w s f. --profile stands between."""
    _, arguments = start("run", train__tokens=384 * 6, train__eval_every=3, train__eval_tokens=256)
    run_cuda(arguments, *profile, ranks=2, NVTX_INJECTION64_PATH=str(RECORDER.resolve()), NVTX_RECORD=str(tmp_path / "record"))
    ranks = [tree(record) for record in tmp_path.glob("record.*")]
    assert len(ranks) == 2
    for rank in ranks:
        counted = Counter(name.split()[0] for name in rank.names())
        assert {name: counted[name] for name in ("report", "evaluation", "checkpoint")} == {"report": 6, "evaluation": 2, "checkpoint": 1}
        assert [name for name in rank.names() if name.startswith("step")] == [f"step {n}" for n in range(1, 7)]
        for n in range(1, 7):
            assert rank.find(f"step {n}").names() == ["data", "micro-batch 0", "micro-batch 1", "AdamW"]
        assert "fetch" in rank.find("report 4").names()
        assert rank.find("checkpoint").names().count("copy_out") > 4
        optimizer = rank.find("step 2", "AdamW").names()
        assert [name for name in optimizer if name in ("all_sum", "adamw_begin", "post")] == ["all_sum", "adamw_begin", "post"]
        assert {"sum_squares", "adamw", "all_gather"} <= set(optimizer)
        for micro in range(2):
            is_a_micro_batch(rank.find("step 2", f"micro-batch {micro}"), last=micro == 1)


def is_a_micro_batch(micro, last):
    """As docs/step.md has it; the third layer has no attention. In the last one gradients are reduced after each layer."""
    assert [name for name in micro.names() if "sum" not in name] == ["forward", "head", "backward"]
    forward, head, backward = micro.find("forward"), micro.find("head"), micro.find("backward")
    assert [name for name in forward.names() if not name.startswith("copy")] == [
        "embedding_forward", "layer 0", "layer 1", "layer 2", "layer 3", "rmsnorm_forward"]
    assert forward.find("layer 1").names() == ATTENTION + FFN
    assert forward.find("layer 2").names() == FFN
    assert head.names()[:4] == ["linear_forward", "cross_entropy", "linear_backward_weight", "linear_backward_input"]
    assert backward.find("layer 1").names() == FFN_BACKWARD + ATTENTION_BACKWARD
    assert backward.find("layer 2").names() == FFN_BACKWARD
    reduced = [part.name for part in [*head.parts, *backward.parts] if part.name.startswith("reduction")]
    assert reduced == ([*(f"reduction {group}" for group in (5, 0, 4, 3, 2, 1)), "reduction of rows"] if last else [])
    assert backward.names()[-1] == ("reduction of rows" if last else "embedding_backward")
    if last:
        assert "reduce_scatter" in backward.find("reduction 4").names()
        assert {"embedding_backward", "reduce_scatter"} <= set(backward.find("reduction of rows").names())
