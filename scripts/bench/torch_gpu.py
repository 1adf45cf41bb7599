#!/usr/bin/env python3
"""Training steps in PyTorch on a GPU: what scripts/bench/gpu.py measures the program against.

    torch_gpu.py CONFIG --rows B --seq-len T [--steps N] [--no-compile]

The network and optimizer of torch_step.py, which is its twin for CPUs and tells how they are written: bf16 parameters, fp32
masters, fused AdamW. What differs on a GPU: the network is compiled, full attention is scaled_dot_product_attention (the flash
kernel), windows are flex_attention's. A batch that does not fit is taken in halves, quarters and so on, whose gradients add up, so
that the batch of a step is the same whatever the memory.

Prints one JSON object: tokens_per_s over the measured steps, which come after three; the most bytes allocated and reserved; the
rows that were taken at a time; the first loss, log(V) of random weights."""

import argparse
import functools
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from torch_step import Network, Optimizer, read_config


class Positions:
    """The rotary table and the two kinds of attention, on the device."""

    def __init__(self, c, T, device):
        angle = torch.outer(torch.arange(T, dtype=torch.float64), c.theta ** (-2.0 * torch.arange(c.D // 2) / c.D))
        self.cos, self.sin = (f(angle).float()[None, :, None, :].to(device) for f in (torch.cos, torch.sin))
        self.window = None
        if "w" in c.attention and c.window < T:
            seen = lambda b, h, query, key: (query >= key) & (query - key < c.window)
            self.window = create_block_mask(seen, B=None, H=None, Q_LEN=T, KV_LEN=T, device=device)

    def attend(self, kind, q, k, v):
        if kind == "w" and self.window is not None:
            return flex_attention(q, k, v, block_mask=self.window, enable_gqa=True)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Untied(Network):
    """With a matrix of its own for the logits."""

    def __init__(self, c, positions):
        super().__init__(c, positions)
        self.head = torch.nn.Linear(c.C, c.V, bias=False)
        torch.nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for attention, ffn in zip(self.attentions, self.ffns):
            if not isinstance(attention, torch.nn.Identity):
                x = x + attention(x, self.positions)
            x = x + ffn(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def network(c, T, device):
    with torch.device(device):
        made = (Network if c.tied else Untied)(c, None)
    made.positions = Positions(c, T, device)
    return made.to(torch.bfloat16)


def step(loss_of, optimizer, rows, at_a_time):
    """One step on the rows; its loss, still on the device."""
    total = 0
    for part in rows.split(at_a_time):
        loss = loss_of(part[:, :-1].contiguous(), part[:, 1:].contiguous()) * (len(part) / len(rows))
        loss.backward()
        total = total + loss.detach()
    optimizer.step()
    return total


def measure(c, options, at_a_time):
    torch.manual_seed(1)
    device = options.device
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    made = network(c, options.seq_len, device)
    optimizer = Optimizer(made, masters=True)
    loss_of = made if options.no_compile else torch.compile(made)
    draw = functools.partial(torch.randint, 0, c.V, (options.rows, options.seq_len + 1), device=device)
    first_loss = step(loss_of, optimizer, draw(), at_a_time).item()
    for _ in range(options.warm_up - 1):
        step(loss_of, optimizer, draw(), at_a_time)
    wait()
    start = time.perf_counter()
    for _ in range(options.steps):
        step(loss_of, optimizer, draw(), at_a_time)
    wait()
    seconds = (time.perf_counter() - start) / options.steps
    return {"tokens_per_s": options.rows * options.seq_len / seconds, "step_s": seconds, "loss": first_loss, "micro": at_a_time}


def fitting(c, options):
    """The measurement with as many rows at a time as the memory holds."""
    at_a_time = options.rows
    while True:
        try:
            return measure(c, options, at_a_time)
        except torch.cuda.OutOfMemoryError as full:
            if at_a_time == 1:
                sys.exit(f"torch_gpu: one row does not fit: {full}")
        print(f"torch_gpu: {at_a_time} rows at a time do not fit", file=sys.stderr, flush=True)
        at_a_time //= 2
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device", default="cuda", help="cpu: to try this program itself")
    options = parser.parse_args()
    c = read_config(options.config)
    if c.qk_norm != "l2" or c.rope != "interleaved":
        sys.exit("torch_gpu: only l2 QK-norm and interleaved RoPE, as the bench models have")
    result = fitting(c, options)
    if options.device == "cuda":
        result.update(peak_bytes=torch.cuda.max_memory_allocated(), reserved_bytes=torch.cuda.max_memory_reserved())
    way = "eager" if options.no_compile else "compiled"
    print(json.dumps({**result, "torch": torch.__version__, "way": way}))


if __name__ == "__main__":
    main()
