"""A second implementation of the models, written down as the paper states them: the yardstick of tests and benchmarks.

Plain on purpose: attention is materialised, every video runs the whole text encoder over the full context length for
every class, nothing is shared, cached or left out. It reads weights by the names of published checkpoints and shares
no code with the package. It is honest: batched, no copies or loops that the published way would not have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.plain.plain_context import SELECT, SUMMARISE


@dataclass
class PlainClip:
    """The models of the framework as plain functions of published weights.

    Args:
        weights: tensors by published names (`image_encoder...`, `text_encoder...`), without `module.`.
        token_embedding: (vocabulary, D).
        attention: what a frame's tokens see beyond their frame: "frame_wise" (nothing), "context_tokens",
            "cross_frame", "window" or "joint".
        contextual_blocks: blocks, from 0, that look further; None for all that can.
        makes_context: whether blocks make context tokens.
        window: frames before and after whose patches are seen by "window".
        prompt_layers: text blocks, from 1, with a prompt layer before them; empty for none.
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
        video_features = video_features / video_features.norm(dim=-1, keepdim=True)
        text_features = torch.stack([self._encode_texts(tokens, [c[b] for c in contexts]) for b in range(len(video))])
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        return self.weights["logit_scale"].exp() * torch.einsum("be,bce->bc", video_features, text_features)

    def encode_video(self, video: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return projected class tokens (B, T, E) and each block's projected context tokens (B, K, E)."""
        w = self.weights
        B, T = video.shape[:2]
        kernel = w["image_encoder.conv1.weight"]
        x = torch.nn.functional.conv2d(video.flatten(0, 1), kernel, stride=kernel.shape[-1])
        x = x.flatten(2).transpose(1, 2).unflatten(0, (B, T))  # (B, T, P, D)
        first = w["image_encoder.class_embedding"].expand(B, T, 1, -1)
        x = torch.cat((first, x), dim=2) + w["image_encoder.positional_embedding"]
        vectors = w.get("image_encoder.prompt_vectors")
        if vectors is not None:
            x = torch.cat((x, vectors[0].expand(B, T, -1, -1)), dim=2)
        x = self._layer_norm(x, "image_encoder.ln_pre")
        context = None
        contexts = []
        depth = 1 + max(int(name.split(".")[3]) for name in w if name.startswith("image_encoder.transformer."))
        for i in range(depth):
            if vectors is not None and 1 <= i < len(vectors):
                x = torch.cat((x[:, :, : -vectors.shape[1]], vectors[i].expand(B, T, -1, -1)), dim=2)
            looks = self.attention != "frame_wise" and (self.contextual_blocks is None or i in self.contextual_blocks)
            x, context = self._vision_block(
                x, context if looks else None, looks, f"image_encoder.transformer.resblocks.{i}."
            )
            if context is not None:
                contexts.append(self._project(context))
        return self._project(x[:, :, 0]), contexts

    def _project(self, x: Tensor) -> Tensor:
        return self._layer_norm(x, "image_encoder.ln_post") @ self.weights["image_encoder.proj"]

    def _vision_block(
        self, x: Tensor, context: Tensor | None, looks: bool, prefix: str
    ) -> tuple[Tensor, Tensor | None]:
        T, N = x.shape[1:3]
        own = self._layer_norm(x, prefix + "ln_1")
        if looks and self.attention in ("cross_frame", "window", "joint"):
            found = [self._attend(own[:, t : t + 1], self._others(own, t), prefix) for t in range(T)]
            attended, attention = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        else:
            shared = None
            if context is not None and self.attention == "context_tokens":
                shared = self._layer_norm(context, prefix + "ln_1").unsqueeze(1).expand(-1, T, -1, -1)
            attended, attention = self._attend(own, shared, prefix)
        before, x = x, x + attended
        if not self.makes_context:
            return self._feed_forward(x, prefix), None
        seeds = SELECT[self.seed_selection](attention, before[:, :, 1:], int((N - 1) * self.seed_ratio))
        context = x[:, :, 1:].gather(2, seeds.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])).flatten(1, 2)
        if context.shape[1] > self.num_context_tokens:
            context = SUMMARISE[self.summarisation](context, self.num_context_tokens, self.merge_rate)
        together = self._feed_forward(torch.cat((x.flatten(1, 2), context), dim=1), prefix)
        return together[:, : T * N].reshape(x.shape), together[:, T * N :]

    def _others(self, x: Tensor, t: int) -> Tensor | None:
        """Return what the frame `t` sees of the other frames of (B, T, N, D): (B, 1, F, D), or None for nothing."""
        tokens = {"cross_frame": slice(0, 1), "window": slice(1, None), "joint": slice(None)}[self.attention]
        reach = self.window if self.attention == "window" else x.shape[1]
        frames = [s for s in range(x.shape[1]) if s != t and abs(s - t) <= reach]
        return torch.cat([x[:, s, tokens] for s in frames], dim=1).unsqueeze(1) if frames else None

    def _attend(self, own: Tensor, further: Tensor | None, prefix: str) -> tuple[Tensor, Tensor]:
        """Attend from frames (B, T, N, D) to themselves and to (B, T, F, D).

        Returns what is added to the frames, and the class tokens' weights over the frames' tokens 1.. (B, T, N - 1).
        """
        N = own.shape[2]
        answering = own if further is None else torch.cat((own, further), dim=2)  # (B, T, N + F, D)
        q, k, v = self._project_qkv(own, answering, prefix + "attn.")
        logits = q @ k.transpose(-1, -2) * self.head_width**-0.5  # (B, T, A, N, N + F)
        bias = self.weights.get(prefix + "attn.local_global_bias_table")
        if further is not None and bias is not None:
            # The table's two entries stand for own and for further keys.
            of_key = torch.cat((bias[..., :1].expand(-1, -1, N), bias[..., 1:].expand(-1, -1, k.shape[-2] - N)), -1)
            logits = logits + of_key
        weights = logits.softmax(dim=-1)
        attended = self._linear((weights @ v).transpose(2, 3).flatten(3), prefix + "attn.out_proj")
        return attended, weights[..., 0, 1:N].mean(dim=2)

    def _encode_texts(self, tokens: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """Encode prompts (C, L) for one video with its context tokens a block, each (K, E): (C, E)."""
        w = self.weights
        x = self.token_embedding[tokens]
        deep = None
        if "prompt_learner.ctx" in w:
            vectors = w["prompt_learner.ctx"]  # (M, D), or with vectors for several blocks (depth, M, D)
            M = vectors.shape[-2]
            deep = vectors.reshape(-1, 1, M, vectors.shape[-1])
            x = torch.cat((x[:, :1], deep[0].expand(len(x), -1, -1), x[:, 1 + M :]), dim=1)
        x = x + w["text_encoder.positional_embedding"][: x.shape[1]]
        depth = 1 + max(int(n.split(".")[3]) for n in w if n.startswith("text_encoder.transformer."))
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        for i in range(depth):
            if deep is not None and 1 <= i < len(deep):
                x = torch.cat((x[:, :1], deep[i].expand(len(x), -1, -1), x[:, 1 + M :]), dim=1)
            if i + 1 in self.prompt_layers:
                layer = list(self.prompt_layers).index(i + 1)
                context = contexts[max(1, round((i + 1) * len(contexts) / depth)) - 1]
                prompts = self._prompt_layer(x[:, 1 : 1 + M], context, f"text_encoder.prompt_generation_layer.{layer}.")
                x = torch.cat((x[:, :1], prompts, x[:, 1 + M :]), dim=1)
            x = self._text_block(x, hidden, f"text_encoder.transformer.resblocks.{i}.")
        x = x[torch.arange(len(x)), tokens.argmax(dim=-1)]
        return self._layer_norm(x, "text_encoder.ln_final") @ w["text_encoder.text_projection"]

    def _text_block(self, x: Tensor, hidden: Tensor, prefix: str) -> Tensor:
        normed = self._layer_norm(x, prefix + "ln_1")
        q, k, v = self._project_qkv(normed, normed, prefix + "attn.")
        logits = (q @ k.transpose(-1, -2) * self.head_width**-0.5).masked_fill(hidden, -torch.inf)
        attended = (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return self._feed_forward(x + self._linear(attended, prefix + "attn.out_proj"), prefix)

    def _prompt_layer(self, z: Tensor, context: Tensor, prefix: str) -> Tensor:
        """Update the prompts (C, M, D) of one video with its context tokens (K, E)."""
        if self.detach_context:
            context = context.detach()
        asking = self._layer_norm(z, prefix + "ln_1")
        answering = self._layer_norm(context, prefix + "ln_1_kv").expand(len(z), -1, -1)  # (C, K, E)
        q, k, v = self._project_qkv(asking, answering, prefix + "attn.")
        weights = (q @ k.transpose(-1, -2) * self.head_width**-0.5).softmax(dim=-1)
        attended = (weights @ v).transpose(1, 2).flatten(2)
        return self._feed_forward(z + self._linear(attended, prefix + "attn.out_proj"), prefix)

    def _project_qkv(self, asking: Tensor, answering: Tensor, prefix: str) -> list[Tensor]:
        """Return queries, keys and values, each (..., A, n, h)."""
        w = self.weights
        if prefix + "q_proj.weight" in w:
            matrices = [w[f"{prefix}{part}_proj.weight"] for part in "qkv"]
            offsets = [w[f"{prefix}{part}_proj.bias"] for part in "qkv"]
        else:
            matrices, offsets = w[prefix + "in_proj_weight"].chunk(3), w[prefix + "in_proj_bias"].chunk(3)
        sources = (asking, answering, answering)
        projected = [
            torch.nn.functional.linear(x, matrix, offset)
            for x, matrix, offset in zip(sources, matrices, offsets, strict=True)
        ]
        return [x.unflatten(-1, (-1, self.head_width)).transpose(-3, -2) for x in projected]

    def _feed_forward(self, x: Tensor, prefix: str) -> Tensor:
        y = self._linear(self._layer_norm(x, prefix + "ln_2"), prefix + "mlp.c_fc")
        y = y * torch.sigmoid(1.702 * y) if self.activation == "quick_gelu" else torch.nn.functional.gelu(y)
        return x + self._linear(y, prefix + "mlp.c_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return torch.nn.functional.layer_norm(x, weight.shape, weight, bias)
