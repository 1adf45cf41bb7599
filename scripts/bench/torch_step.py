#!/usr/bin/env python3
"""Training steps of a network of configs/models/ in PyTorch: what scripts/bench/train.py measures the program against.

    torch_step.py CONFIG --rows B --seq-len T --dtype f32|bf16 [--cast|--autocast] [--compile]

The same network, batch and optimizer as the program's, the way a PyTorch user who wants speed writes them: q, k, v and gate, up
as one product each, scaled_dot_product_attention (causal, or the window's band as a mask, over blocks where rows are long:
flex_attention has no backward on CPUs), the loss over all logits at once, clip_grad_norm_, fused AdamW. Its bits are not compared
(tests/reference.py is for that), but its first loss is printed: log(V), as random weights have it.

bf16, --cast:     parameters and activations bf16, fp32 master weights and optimizer state, as the program does. PyTorch's
                  gradients of bf16 parameters are bf16, and are widened for the optimizer.
bf16, --autocast: parameters fp32, products bf16: what torch.autocast makes of it.

Prints one JSON object: tokens_per_s of the best step after the first two (which compile and allocate), peak resident bytes, loss,
and, measured after that, gemm_gflops: the faster of the products gate|up and logits alone, as the program measures its own.
"""

import argparse
import json
import math
import resource
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


def read_config(path):
    """The flat `key: value` files of configs/models/ need no YAML library."""
    lines = (line.split("#")[0] for line in Path(path).read_text().splitlines())
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    values = {key.strip(): value.strip() for key, value in pairs}
    number = lambda key: int(values[key])
    return argparse.Namespace(V=number("vocab_size"), L=number("n_layers"), C=number("d_model"), F=number("d_ffn"),
                              H=number("n_heads"), K=number("n_kv_heads"), D=number("head_dim"), window=number("window"),
                              attention=values["attention"], qk_norm=values["qk_norm"], rope=values["rope"],
                              theta=float(values["rope_theta"]), eps=float(values["norm_eps"]),
                              tied=values["tie_embeddings"] == "true")


class Norm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c.C))
        self.eps = c.eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, c, kind):
        super().__init__()
        self.c, self.kind = c, kind
        self.norm = Norm(c)
        self.qkv = nn.Linear(c.C, (c.H + 2 * c.K) * c.D, bias=False)
        self.o = nn.Linear(c.H * c.D, c.C, bias=False)

    def forward(self, x, turn):
        c = self.c
        B, T, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(B, T, c.H + 2 * c.K, c.D)
        qk, v = qkv[:, :, : c.H + c.K], qkv[:, :, c.H + c.K :].transpose(1, 2)
        qk = F.rms_norm(rotate(qk, turn), (c.D,), eps=c.eps).transpose(1, 2)
        return self.o(turn.attend(self.kind, qk[:, : c.H], qk[:, c.H :], v).transpose(1, 2).reshape(B, T, c.H * c.D))


class FFN(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = Norm(c)
        self.gate_up = nn.Linear(c.C, 2 * c.F, bias=False)
        self.down = nn.Linear(c.F, c.C, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(self.norm(x)).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Positions:
    """What depends on positions alone: the rotary table and the two kinds of attention."""

    def __init__(self, c, T):
        angle = torch.outer(torch.arange(T, dtype=torch.float64), c.theta ** (-2.0 * torch.arange(c.D // 2) / c.D))
        self.cos, self.sin = (f(angle).float()[None, :, None, :] for f in (torch.cos, torch.sin))
        # Windows of W keys in blocks of W queries, each of which sees its own block and the one before; short rows in one block.
        self.blocks = T // c.window if T > 2 * c.window and T % c.window == 0 else 1
        length = T // self.blocks
        queries, keys = torch.arange(length)[:, None], torch.arange(0 if self.blocks == 1 else -length, length)[None, :]
        band = (queries >= keys) & (queries - keys < c.window)
        self.band = band.repeat(self.blocks, 1, 1, 1)
        if self.blocks > 1:
            self.band[0, :, :, :length] = False  # nothing comes before the first block

    def attend(self, kind, q, k, v):
        if kind == "f":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        if self.blocks == 1:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.band, enable_gqa=True)
        B, _, T, _ = q.shape
        length = T // self.blocks
        in_blocks = lambda u: u.unflatten(2, (self.blocks, length)).permute(0, 2, 1, 3, 4).flatten(0, 1)
        two_blocks = lambda u: torch.cat((in_blocks(F.pad(u, (0, 0, length, 0))[:, :, :T]), in_blocks(u)), 2)
        band = self.band.repeat(B, 1, 1, 1)
        o = F.scaled_dot_product_attention(in_blocks(q), two_blocks(k), two_blocks(v), attn_mask=band, enable_gqa=True)
        return o.unflatten(0, (B, self.blocks)).permute(0, 2, 1, 3, 4).flatten(2, 3)


def rotate(u, turn):
    """Interleaved pairs, in fp32 as everybody does."""
    even, odd = u.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * turn.cos - odd * turn.sin, even * turn.sin + odd * turn.cos), -1).flatten(-2).to(u.dtype)


class Network(nn.Module):
    def __init__(self, c, positions):
        super().__init__()
        self.positions = positions
        self.embedding = nn.Embedding(c.V, c.C)
        self.attentions = nn.ModuleList(nn.Identity() if kind == "s" else Attention(c, kind) for kind in c.attention)
        self.ffns = nn.ModuleList(FFN(c) for _ in c.attention)
        self.norm = Norm(c)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = math.sqrt(2 * c.L) if name.endswith(("o.weight", "down.weight")) else 1
                nn.init.normal_(p, std=0.02 / scale)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for attention, ffn in zip(self.attentions, self.ffns):
            if isinstance(attention, Attention):
                x = x + attention(x, self.positions)
            x = x + ffn(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Optimizer:
    """AdamW, decay on matrices only. masters: fp32 weights beside parameters of another dtype."""

    def __init__(self, network, masters):
        self.params = list(network.parameters())
        self.masters = [nn.Parameter(p.detach().float()) for p in self.params] if masters else self.params
        matrices = [p for p in self.masters if p.dim() == 2]
        vectors = [p for p in self.masters if p.dim() != 2]
        self.adamw = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                       lr=1e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def step(self):
        if self.masters is not self.params:
            for master, p in zip(self.masters, self.params):
                master.grad = p.grad.float()
                p.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0, foreach=True)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        if self.masters is not self.params:
            with torch.no_grad():
                torch._foreach_copy_(self.params, self.masters)


def measure(c, options):
    torch.manual_seed(1)
    dtype = torch.bfloat16 if options.dtype == "bf16" and not options.autocast else torch.float32
    network = Network(c, Positions(c, options.seq_len)).to(dtype)
    optimizer = Optimizer(network, masters=dtype != torch.float32)
    loss_of = torch.compile(network) if options.compile else network
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=options.autocast)
    seconds, first_loss = [], None
    for _ in range(2 + options.steps):
        rows = torch.randint(0, c.V, (options.rows, options.seq_len + 1))
        start = time.perf_counter()
        with autocast:
            loss = loss_of(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        first_loss = loss.item() if first_loss is None else first_loss
        seconds.append(time.perf_counter() - start)
    return {"tokens_per_s": options.rows * options.seq_len / min(seconds[2:]), "step_s": [round(s, 4) for s in seconds],
            "loss": first_loss, "parameters": sum(p.numel() for p in network.parameters())}


def gemm_gflops(c, options):
    """The best of a fifth of a second of x w^T, for the two widest matrices; of the logits a chunk that the program would take."""
    dtype, best = getattr(torch, {"f32": "float32", "bf16": "bfloat16"}[options.dtype]), 0
    for outputs in (2 * c.F, c.V):
        rows = min(options.rows * options.seq_len, 2**26 // outputs)
        x, w = torch.randn(rows, c.C).to(dtype), torch.randn(outputs, c.C).to(dtype)
        start = time.perf_counter()
        while (began := time.perf_counter()) < start + 0.2:
            F.linear(x, w)
            best = max(best, 2e-9 * rows * c.C * outputs / (time.perf_counter() - began))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--cast", action="store_true", help="bf16 parameters, fp32 masters (the default in bf16)")
    half.add_argument("--autocast", action="store_true", help="fp32 parameters, bf16 products")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=4, help="measured steps; the best counts")
    options = parser.parse_args()
    c = read_config(options.config)
    if c.qk_norm != "l2" or c.rope != "interleaved" or not c.tied:
        sys.exit("torch_step: only l2 QK-norm, interleaved RoPE and tied embeddings, as the bench models have")
    result = measure(c, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    way = [f"--{name}" for name in ("cast", "autocast", "compile") if getattr(options, name)]
    result["gemm_gflops"] = gemm_gflops(c, options)
    print(json.dumps({**result, "peak_bytes": peak, "threads": torch.get_num_threads(), "torch": torch.__version__, "way": way}))


if __name__ == "__main__":
    main()
