"""The network once more, in numpy and double precision, straight from its formulas: an oracle for checkpoints that h5py reads."""

from pathlib import Path

import h5py
import numpy as np


def read_tokens(prefix):
    """All tokens of a Megatron file."""
    head = Path(f"{prefix}.idx").read_bytes()[:34]
    assert head[:9] == b"MMIDIDX\0\0"
    return np.fromfile(f"{prefix}.bin", dtype={8: "<u2", 4: "<i4"}[head[17]]).astype(int)


def parse_model(text):
    """The flat YAML of a model: `key: value` lines."""
    values = dict(line.split(": ", 1) for line in text.strip().splitlines() if not line.startswith("#"))
    return {k: int(v) if v.lstrip("-").isdigit() else v.strip("\"'") for k, v in values.items()}


def norm(x, w=1.0, eps=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w


def rotate(x, theta):
    """Interleaved pairs of x (T, heads, D), position t of pair p turned by t * theta^(-2p/D)."""
    T, _, D = x.shape
    angle = np.arange(T)[:, None, None] * theta ** (-2.0 * np.arange(D // 2) / D)
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
    out[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return out


def attention(x, w, name, c, kind):
    T, H, K, D = len(x), c["n_heads"], c["n_kv_heads"], c["head_dim"]
    heads = [(x @ w[f"{name}.{p}_proj.weight"].T).reshape(T, -1, D) for p in "qkv"]
    q, k = (norm(rotate(h, float(c["rope_theta"]))) for h in heads[:2])
    k, v = (np.repeat(h, H // K, axis=1) for h in (k, heads[2]))
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(D)
    i, j = np.indices((T, T))
    seen = (j <= i) & ((kind == "f") | (i - j < c["window"]))
    p = np.exp(np.where(seen, scores, -np.inf) - scores.max())
    o = np.einsum("hij,jhd->ihd", p / p.sum(-1, keepdims=True), v)
    return o.reshape(T, H * D) @ w[f"{name}.o_proj.weight"].T


def token_losses(tokens, targets, w, c):
    h = w["model.embed_tokens.weight"][tokens]
    for i, kind in enumerate(c["attention"]):
        layer = f"model.layers.{i}"
        if kind != "s":
            h = h + attention(norm(h, w[f"{layer}.input_layernorm.weight"]), w, f"{layer}.self_attn", c, kind)
        n = norm(h, w[f"{layer}.post_attention_layernorm.weight"])
        gate, up = n @ w[f"{layer}.mlp.gate_proj.weight"].T, n @ w[f"{layer}.mlp.up_proj.weight"].T
        h = h + (gate / (1 + np.exp(-gate)) * up) @ w[f"{layer}.mlp.down_proj.weight"].T
    z = norm(h, w["model.norm.weight"]) @ w["model.embed_tokens.weight"].T
    lse = z.max(-1) + np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1))
    return lse - z[np.arange(len(z)), targets]


def mean_loss(checkpoint, prefix, seq_len):
    """Mean loss over a token file in windows that do not overlap, every token but the first predicted once."""
    with h5py.File(checkpoint) as f:
        c = parse_model(f.attrs["model"] if isinstance(f.attrs["model"], str) else f.attrs["model"].decode())
        w = {name: f[f"params/{name}"][()].astype(np.float64) for name in f["params"]}
    assert c["qk_norm"] == "l2" and c["rope"] == "interleaved"
    tokens = read_tokens(prefix)
    total = [token_losses(tokens[i : i + seq_len][: len(tokens) - 1 - i], tokens[i + 1 : i + 1 + seq_len], w, c)
             for i in range(0, len(tokens) - 1, seq_len)]
    return np.concatenate(total).mean()
