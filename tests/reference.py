"""The network of docs/step.md once more, in PyTorch and float64: what the fixtures in tests/fixtures/ are computed with.

Written from the formulas alone and as plainly as they allow: whole rows, dense masks, autograd. It shares nothing with the C code,
so that an error would have to be made twice, in two ways, to go unseen. A config is a dict with the keys of configs/models/, params
a dict of float64 tensors by their Hugging Face names.

B rows  T positions  C d_model  F d_ffn  V vocabulary  H query heads  K key/value heads  D head size
"""

import torch


def tensor_shapes(config):
    """{name: shape} of the network's tensors. A layer that skips attention has neither its norm nor its projections."""
    c = config
    C, F, D, V = c["d_model"], c["d_ffn"], c["head_dim"], c["vocab_size"]
    Q, KV = c["n_heads"] * D, c["n_kv_heads"] * D
    shapes = {"model.embed_tokens.weight": (V, C)}
    for i, kind in enumerate(c["attention"]):
        layer = f"model.layers.{i}."
        if kind != "s":
            shapes[layer + "input_layernorm.weight"] = (C,)
            shapes[layer + "self_attn.q_proj.weight"] = (Q, C)
            shapes[layer + "self_attn.k_proj.weight"] = (KV, C)
            shapes[layer + "self_attn.v_proj.weight"] = (KV, C)
            shapes[layer + "self_attn.o_proj.weight"] = (C, Q)
            if c["qk_norm"] == "rms":
                shapes[layer + "self_attn.q_norm.weight"] = (D,)
                shapes[layer + "self_attn.k_norm.weight"] = (D,)
        shapes[layer + "post_attention_layernorm.weight"] = (C,)
        shapes[layer + "mlp.gate_proj.weight"] = (F, C)
        shapes[layer + "mlp.up_proj.weight"] = (F, C)
        shapes[layer + "mlp.down_proj.weight"] = (C, F)
    shapes["model.norm.weight"] = (C,)
    if not c["tie_embeddings"]:
        shapes["lm_head.weight"] = (V, C)
    return shapes


def normalized(x, eps):
    """x / sqrt(mean(x^2) + eps) over the last axis [Zhang & Sennrich 2019, eq. 4, before its gain]."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def rotated(u, pos, theta, pairs):
    """Rotary embedding [Su et al. 2021]: pair p of the head is a complex number, turned by the angle pos * theta^(-2p/D).

    u: (B,T,heads,D); pos: (B,T). A pair is (2p, 2p+1) when interleaved, (p, p + D/2) when half."""
    D = u.shape[-1]
    frequency = theta ** (-2.0 * torch.arange(D // 2, dtype=torch.float64) / D)
    angle = pos.double()[:, :, None, None] * frequency
    turn = torch.polar(torch.ones_like(angle), angle)
    if pairs == "interleaved":
        z = torch.complex(u[..., 0::2], u[..., 1::2]) * turn
        return torch.stack((z.real, z.imag), -1).flatten(-2)
    z = torch.complex(u[..., : D // 2], u[..., D // 2 :]) * turn
    return torch.cat((z.real, z.imag), -1)


def visible(doc, window):
    """(B,T,T): does query i see key j? Not what comes later, not another document, not beyond a window of `window` keys (0: any)."""
    T = doc.shape[1]
    back = torch.arange(T)[:, None] - torch.arange(T)[None, :]
    mask = (back >= 0) & (doc[:, :, None] == doc[:, None, :])
    return mask & (back < window) if window else mask


def attention(config, params, layer, x, doc, pos):
    """o_proj(softmax(q k^T / sqrt(D), masked) v) of the normed stream x (B,T,C)."""
    c = config
    B, T, _ = x.shape
    H, K, D, eps = c["n_heads"], c["n_kv_heads"], c["head_dim"], c["norm_eps"]
    weight = lambda name: params[f"model.layers.{layer}.self_attn.{name}.weight"]
    q = (x @ weight("q_proj").T).view(B, T, H, D)
    k = (x @ weight("k_proj").T).view(B, T, K, D)
    v = (x @ weight("v_proj").T).view(B, T, K, D)
    if c["qk_norm"] == "rms":
        q, k = normalized(q, eps) * weight("q_norm"), normalized(k, eps) * weight("k_norm")
    q, k = (rotated(u, pos, c["rope_theta"], c["rope"]) for u in (q, k))
    if c["qk_norm"] == "l2":
        q, k = normalized(q, eps), normalized(k, eps)
    mask = visible(doc, c["window"] if c["attention"][layer] == "w" else 0)
    heads = []
    for h in range(H):
        of = h // (H // K)
        s = q[:, :, h] @ k[:, :, of].transpose(1, 2) / D**0.5
        heads.append(torch.softmax(s.masked_fill(~mask, float("-inf")), -1) @ v[:, :, of])
    return torch.cat(heads, -1) @ weight("o_proj").T


def ffn(params, layer, x):
    """down(silu(gate(x)) * up(x)) [Shazeer 2020]"""
    weight = lambda name: params[f"model.layers.{layer}.mlp.{name}.weight"]
    gate = x @ weight("gate_proj").T
    return (gate * torch.sigmoid(gate) * (x @ weight("up_proj").T)) @ weight("down_proj").T


def logits(config, params, tokens, doc, pos):
    """(B,T,V)"""
    eps = config["norm_eps"]
    h = params["model.embed_tokens.weight"][tokens]
    for i, kind in enumerate(config["attention"]):
        layer = f"model.layers.{i}."
        if kind != "s":
            x = normalized(h, eps) * params[layer + "input_layernorm.weight"]
            h = h + attention(config, params, i, x, doc, pos)
        x = normalized(h, eps) * params[layer + "post_attention_layernorm.weight"]
        h = h + ffn(params, i, x)
    head = params["model.embed_tokens.weight" if config["tie_embeddings"] else "lm_head.weight"]
    return (normalized(h, eps) * params["model.norm.weight"]) @ head.T


def losses(config, params, tokens, targets, doc, pos):
    """(B,T) cross-entropies and (B,T) squares of the log of the partition function; both 0 where the target is negative."""
    z = logits(config, params, tokens, doc, pos)
    lse = torch.logsumexp(z, -1)
    valid = targets >= 0
    chosen = torch.gather(z, -1, targets.clamp(min=0)[:, :, None])[:, :, 0]
    zero = torch.zeros_like(lse)
    return torch.where(valid, lse - chosen, zero), torch.where(valid, lse.pow(2), zero)
