"""The models a second time, as the paper describes them: the baseline of the tests and of the benchmark.

It shares no code with the package and reads weights by the names of published checkpoints. Nothing is cached, fused or
left out: attention weights are materialised, and every video runs the whole text encoder, over the full context length,
for every class. It is a fair baseline: batched, and without work that the published code does not do.

Letters of shapes: B videos, T frames, P patches per frame, N = 1 + P tokens per frame (the class token first), S seeds
per frame, K context tokens, D width, A heads of h channels, C classes, L text length, M prompt vectors, E joint width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class ReferenceClip:
    """The models of the framework as plain functions of published weights.

    Args:
        weights: tensors by published names (`image_encoder...`, `text_encoder...`), without `module.`.
        token_embedding: (vocabulary, D).
        attention: extra keys of the tokens of a frame, besides its own: "frame_wise" (none), "context_tokens",
            "cross_frame", "window" or "joint".
        contextual_blocks: blocks, from 0, with extra keys; None for all possible.
        makes_context: whether blocks make context tokens.
        window: frames before and after whose patches are extra keys of "window".
        num_context_tokens, seed_ratio, merge_rate: sizes of the context (K, S / P, pairs merged in a round).
        seed_selection, summarisation: keys of `SELECT` and `SUMMARISE`.
        activation: "quick_gelu" or "gelu".
        prompt_layers: text blocks, from 1, with a prompt layer before them; empty for none.
        detach_context: whether no gradient flows from the prompts to the vision encoder.
        head_width: channels of a head (h).
    """

    weights: Mapping[str, Tensor]
    token_embedding: Tensor
    attention: str = "context_tokens"
    contextual_blocks: Sequence[int] | None = None
    makes_context: bool = True
    window: int = 1
    num_context_tokens: int = 96
    seed_ratio: float = 0.3
    merge_rate: int = 100
    seed_selection: str = "class_attention"
    summarisation: str = "merge"
    activation: str = "quick_gelu"
    prompt_layers: Sequence[int] = (12,)
    detach_context: bool = True
    head_width: int = 64

    def logits(self, video: Tensor, tokens: Tensor) -> Tensor:
        """Score videos (B, T, 3, H, W) against prompts (C, L): (B, C)."""
        class_tokens, contexts = self.encode_video(video)
        video_features = class_tokens.mean(dim=1)
        video_features = video_features / video_features.norm(dim=-1, keepdim=True)  # (B, E)
        text_features = torch.stack([self._encode_texts(tokens, [c[b] for c in contexts]) for b in range(len(video))])
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)  # (B, C, E)
        return self.weights["logit_scale"].exp() * torch.einsum("be,bce->bc", video_features, text_features)

    # Vision encoder (paper, section 3.2)

    def encode_video(self, video: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return projected class tokens (B, T, E) and each block's projected context tokens (B, K, E)."""
        w = self.weights
        B, T = video.shape[:2]
        kernel = w["image_encoder.conv1.weight"]
        x = F.conv2d(video.flatten(0, 1), kernel, stride=kernel.shape[-1])
        x = x.flatten(2).transpose(1, 2).unflatten(0, (B, T))  # (B, T, P, D)
        class_token = w["image_encoder.class_embedding"].expand(B, T, 1, -1)
        x = torch.cat((class_token, x), dim=2) + w["image_encoder.positional_embedding"]  # (B, T, N, D)
        vectors = w.get("image_encoder.prompt_vectors")
        if vectors is not None:
            x = torch.cat((x, vectors[0].expand(B, T, -1, -1)), dim=2)
        x = self._layer_norm(x, "image_encoder.ln_pre")
        context = None
        contexts = []
        for i in range(_count_blocks(w, "image_encoder.transformer.")):
            if vectors is not None and 1 <= i < len(vectors):
                x = torch.cat((x[:, :, : -vectors.shape[1]], vectors[i].expand(B, T, -1, -1)), dim=2)
            is_contextual = self.contextual_blocks is None or i in self.contextual_blocks
            kind = self.attention if is_contextual else "frame_wise"
            x, context = self._vision_block(x, context, kind, f"image_encoder.transformer.resblocks.{i}.")
            if context is not None:
                contexts.append(self._project(context))
        return self._project(x[:, :, 0]), contexts

    def _project(self, x: Tensor) -> Tensor:
        return self._layer_norm(x, "image_encoder.ln_post") @ self.weights["image_encoder.proj"]

    def _vision_block(self, x: Tensor, context: Tensor | None, kind: str, prefix: str) -> tuple[Tensor, Tensor | None]:
        """Run a block on frames (B, T, N, D) and the context tokens (B, K, D) of the block before."""
        T, N = x.shape[1:3]
        normed = self._layer_norm(x, prefix + "ln_1")
        if kind in ("cross_frame", "window", "joint"):
            of_frames = [self._attend(normed[:, t : t + 1], self._others(normed, t, kind), prefix) for t in range(T)]
            attended, class_attention = (torch.cat(parts, dim=1) for parts in zip(*of_frames, strict=True))
        else:
            extra = None
            if kind == "context_tokens" and context is not None:
                extra = self._layer_norm(context, prefix + "ln_1").unsqueeze(1)  # (B, 1, K, D): of all frames
            attended, class_attention = self._attend(normed, extra, prefix)
        before, x = x, x + attended
        if not self.makes_context:
            return self._feed_forward(x, prefix), None
        seeds = SELECT[self.seed_selection](class_attention, before[:, :, 1:], int((N - 1) * self.seed_ratio))
        context = x[:, :, 1:].gather(2, seeds.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])).flatten(1, 2)
        if context.shape[1] > self.num_context_tokens:
            context = SUMMARISE[self.summarisation](context, self.num_context_tokens, self.merge_rate)  # (B, K, D)
        tokens = self._feed_forward(torch.cat((x.flatten(1, 2), context), dim=1), prefix)
        return tokens[:, : T * N].reshape(x.shape), tokens[:, T * N :]

    def _others(self, x: Tensor, t: int, kind: str) -> Tensor | None:
        """Return the tokens (B, 1, F, D) of other frames of (B, T, N, D) that frame `t` attends to, or None."""
        tokens = {"cross_frame": slice(0, 1), "window": slice(1, None), "joint": slice(None)}[kind]
        reach = self.window if kind == "window" else x.shape[1]
        frames = [s for s in range(x.shape[1]) if s != t and abs(s - t) <= reach]
        return torch.cat([x[:, s, tokens] for s in frames], dim=1).unsqueeze(1) if frames else None

    def _attend(self, own: Tensor, extra: Tensor | None, prefix: str) -> tuple[Tensor, Tensor]:
        """Attend from frames (B, T, N, D) to their own tokens and to extra tokens (B, T or 1, F, D).

        Returns the update of the frames, and the class tokens' weights of the frames' tokens 1.. (B, T, N - 1).
        """
        T, N = own.shape[1:3]
        q, k, v = (self._heads(own, part, prefix + "attn.") for part in "qkv")  # (B, T, A, N, h)
        bias = None
        if extra is not None:
            # What all frames share is projected once per video.
            extra_k, extra_v = (self._heads(extra, part, prefix + "attn.").expand(-1, T, -1, -1, -1) for part in "kv")
            k, v = torch.cat((k, extra_k), dim=3), torch.cat((v, extra_v), dim=3)  # (B, T, A, N + F, h)
            bias = self.weights.get(prefix + "attn.local_global_bias_table")  # (A, 1, 2): for own and for extra keys
        logits = q @ k.mT * self.head_width**-0.5  # (B, T, A, N, N + F)
        if bias is not None:
            own_bias, extra_bias = bias[..., :1].expand(-1, -1, N), bias[..., 1:].expand(-1, -1, k.shape[3] - N)
            logits = logits + torch.cat((own_bias, extra_bias), dim=2)
        weights = logits.softmax(dim=-1)
        attended = self._linear((weights @ v).transpose(2, 3).flatten(3), prefix + "attn.out_proj")
        return attended, weights[..., 0, 1:N].mean(dim=2)

    # Text encoder and prompts (paper, section 3.3)

    def _encode_texts(self, tokens: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """Encode prompts (C, L) for one video with its context tokens of each block, (K, E): (C, E)."""
        w = self.weights
        x = self.token_embedding[tokens]  # (C, L, D)
        vectors = None
        if "prompt_learner.ctx" in w:  # (M, D), or with vectors for several blocks (depth, M, D)
            M, D = w["prompt_learner.ctx"].shape[-2:]
            vectors = w["prompt_learner.ctx"].reshape(-1, M, D)
            x = _replace_prompts(x, vectors[0].expand(len(x), -1, -1))
        x = x + w["text_encoder.positional_embedding"][: x.shape[1]]
        depth = _count_blocks(w, "text_encoder.transformer.")
        for i in range(depth):
            if vectors is not None and 1 <= i < len(vectors):
                x = _replace_prompts(x, vectors[i].expand(len(x), -1, -1))
            if i + 1 in self.prompt_layers:
                layer = f"text_encoder.prompt_generation_layer.{list(self.prompt_layers).index(i + 1)}."
                context = contexts[max(1, round((i + 1) * len(contexts) / depth)) - 1]
                x = _replace_prompts(x, self._prompt_layer(x[:, 1 : 1 + M], context, layer))
            x = self._text_block(x, f"text_encoder.transformer.resblocks.{i}.")
        x = x[torch.arange(len(x)), tokens.argmax(dim=-1)]  # the end tokens: (C, D)
        return self._layer_norm(x, "text_encoder.ln_final") @ w["text_encoder.text_projection"]

    def _text_block(self, x: Tensor, prefix: str) -> Tensor:
        normed = self._layer_norm(x, prefix + "ln_1")
        q, k, v = (self._heads(normed, part, prefix + "attn.") for part in "qkv")  # (C, A, L, h)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        logits = (q @ k.mT * self.head_width**-0.5).masked_fill(later, -torch.inf)
        attended = (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return self._feed_forward(x + self._linear(attended, prefix + "attn.out_proj"), prefix)

    def _prompt_layer(self, z: Tensor, context: Tensor, prefix: str) -> Tensor:
        """Update the prompts (C, M, D) of one video with its context tokens (K, E)."""
        if self.detach_context:
            context = context.detach()
        context = self._layer_norm(context, prefix + "ln_1_kv").expand(len(z), -1, -1)  # (C, K, E)
        q = self._heads(self._layer_norm(z, prefix + "ln_1"), "q", prefix + "attn.")  # (C, A, M, h)
        k, v = (self._heads(context, part, prefix + "attn.") for part in "kv")  # (C, A, K, h)
        weights = (q @ k.mT * self.head_width**-0.5).softmax(dim=-1)
        attended = (weights @ v).transpose(1, 2).flatten(2)
        return self._feed_forward(z + self._linear(attended, prefix + "attn.out_proj"), prefix)

    # Layers

    def _heads(self, x: Tensor, part: str, prefix: str) -> Tensor:
        """Project tokens (..., n, D) to queries "q", keys "k" or values "v": (..., A, n, h)."""
        w = self.weights
        if prefix + "q_proj.weight" in w:
            x = self._linear(x, f"{prefix}{part}_proj")
        else:
            number = "qkv".index(part)
            x = F.linear(x, w[prefix + "in_proj_weight"].chunk(3)[number], w[prefix + "in_proj_bias"].chunk(3)[number])
        return x.unflatten(-1, (-1, self.head_width)).transpose(-3, -2)

    def _feed_forward(self, x: Tensor, prefix: str) -> Tensor:
        y = self._linear(self._layer_norm(x, prefix + "ln_2"), prefix + "mlp.c_fc")
        y = y * torch.sigmoid(1.702 * y) if self.activation == "quick_gelu" else F.gelu(y)
        return x + self._linear(y, prefix + "mlp.c_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return F.layer_norm(x, weight.shape, weight, bias)


def _count_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.split(".")[3]) for name in weights if name.startswith(prefix))


def _replace_prompts(x: Tensor, prompts: Tensor) -> Tensor:
    """Put prompts (C, M, D) at the positions 1..M of texts (C, L, D)."""
    return torch.cat((x[:, :1], prompts, x[:, 1 + prompts.shape[1] :]), dim=1)


# Context tokens (paper, section 3.2): merging by bipartite matching (ToMe, Bolya et al. 2023)


def merge(x: Tensor, num_kept: int, merge_rate: int) -> Tensor:
    """Merge tokens (B, n, D) by rounds of bipartite matching until `num_kept` are left: (B, num_kept, D)."""
    size = torch.ones_like(x[..., :1])
    for _ in range(int((x.shape[1] - num_kept) / merge_rate)):
        x, size = _merge_round(x, size, min(merge_rate, x.shape[1] // 2))
    while x.shape[1] > num_kept:
        x, size = _merge_round(x, size, min(x.shape[1] - num_kept, x.shape[1] // 2))
    return x


def _merge_round(x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Merge the `r` even tokens that are most similar to an odd one into that one, by the size-weighted mean."""
    D = x.shape[-1]
    with torch.no_grad():
        unit = x / x.norm(dim=-1, keepdim=True)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].mT).max(dim=-1)
        order = best.argsort(dim=-1, descending=True)
        merged, stay = order[:, :r, None], order[:, r:, None]
        target = partner.unsqueeze(-1).gather(1, merged)
    weighted = x * size
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    odd = odd.scatter_add(1, target.expand(-1, -1, D), even.gather(1, merged.expand(-1, -1, D)))
    odd_size = size[:, 1::2].scatter_add(1, target, size[:, ::2].gather(1, merged))
    new_size = torch.cat((size[:, ::2].gather(1, stay), odd_size), dim=1)
    return torch.cat((even.gather(1, stay.expand(-1, -1, D)), odd), dim=1) / new_size, new_size


# The ablations' other choices of seeds and summaries, as in evaluation: random choices come from a generator with a
# fixed seed, and are the same in every video.


def _drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _evenly(count: int, length: int) -> list[int]:
    """The middles of `count` equal stretches of `length` positions."""
    return [int((i + 0.5) * length / count) for i in range(count)]


def _highest(score: Tensor, count: int) -> Tensor:
    return score.argsort(dim=-1, descending=True)[..., :count]


# (class attention (B, T, P), patches (B, T, P, D), number of seeds) -> (B, T, S)
SELECT: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "class_attention": lambda attention, patches, count: _highest(attention, count),
    "random": lambda attention, patches, count: _highest(_drawn(*attention.shape[1:]).expand(attention.shape), count),
    "all": lambda attention, patches, count: torch.arange(attention.shape[-1]).expand(attention.shape),
    "top_norm": lambda attention, patches, count: _highest((patches**2).sum(dim=-1), count),
    "uniform_grid": lambda attention, patches, count: torch.tensor(_evenly(count, attention.shape[-1])).expand(
        *attention.shape[:2], -1
    ),
}


def _kmeans(tokens: Tensor, num_kept: int) -> Tensor:
    starts = [tokens[i] for i in _evenly(num_kept, len(tokens))]
    centres = [start.detach() for start in starts]
    for _ in range(10):
        groups = _nearest(tokens, centres)
        centres = [torch.stack(g).mean(dim=0).detach() if g else c for g, c in zip(groups, centres, strict=True)]
    groups = _nearest(tokens, centres)
    return torch.stack([torch.stack(g).mean(dim=0) if g else s for g, s in zip(groups, starts, strict=True)])


def _nearest(tokens: Tensor, centres: list[Tensor]) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = [[] for _ in centres]
    for token in tokens:
        distances = [(token - centre).norm().item() for centre in centres]
        groups[distances.index(min(distances))].append(token)
    return groups


def _dpc_knn(tokens: Tensor, num_kept: int) -> Tensor:
    points, n = tokens.detach(), len(tokens)
    distance = [[(a - b).norm().item() / points.shape[1] ** 0.5 for b in points] for a in points]
    nearest = [sorted(row)[1:6] for row in distance]
    density = [-sum(d * d for d in row) / len(row) for row in nearest]
    score = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        score.append(torch.tensor(density[i]).exp().item() * (min(denser) if denser else max(distance[i])))
    peaks = sorted(sorted(range(n), key=lambda i: -score[i])[:num_kept])
    groups: list[list[Tensor]] = [[] for _ in peaks]
    for i in range(n):
        to_peaks = [distance[i][peak] for peak in peaks]
        groups[peaks.index(i) if i in peaks else to_peaks.index(min(to_peaks))].append(tokens[i])
    return torch.stack([torch.stack(group).mean(dim=0) for group in groups])


def _average(tokens: Tensor, num_kept: int) -> Tensor:
    groups: list[list[Tensor]] = [[] for _ in range(num_kept)]
    for i, token in enumerate(tokens):
        groups[int(i * num_kept / len(tokens))].append(token)
    return torch.stack([torch.stack(group).mean(dim=0) for group in groups])


def _sample(tokens: Tensor, num_kept: int) -> Tensor:
    return tokens[_highest(_drawn(len(tokens)), num_kept).sort().values]


def _of_each(summarise: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int, int], Tensor]:
    return lambda x, num_kept, merge_rate: torch.stack([summarise(tokens, num_kept) for tokens in x])


# (seeds (B, n, D), number of context tokens, merge rate) -> (B, K, D)
SUMMARISE: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "merge": merge,
    "kmeans": _of_each(_kmeans),
    "dpc_knn": _of_each(_dpc_knn),
    "random": _of_each(_sample),
    "average": _of_each(_average),
    "none": lambda x, num_kept, merge_rate: x,
}
