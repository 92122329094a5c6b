"""A second implementation of the models, written down as the paper states them: the yardstick of tests and benchmarks.

Plain on purpose: attention is materialised, every video runs the whole text encoder over the full context length for
every class, nothing is shared, cached or left out. It reads weights by the names of published checkpoints and shares
no code with the package. It is honest: batched, no copies or loops that the published way would not have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class PlainClip:
    """The models of the framework as plain functions of published weights.

    Args:
        weights: tensors by published names (`image_encoder...`, `text_encoder...`), without `module.`.
        token_embedding: (vocabulary, D).
        contextual: True for temporal contextualization, False for frame-wise CLIP.
        prompt_layers: text blocks, from 1, with a prompt layer before them; empty for none.
    """

    weights: Mapping[str, Tensor]
    token_embedding: Tensor
    contextual: bool = True
    num_context_tokens: int = 96
    seed_ratio: float = 0.3
    merge_rate: int = 100
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
        x = self._layer_norm(x, "image_encoder.ln_pre")
        context = None
        contexts = []
        depth = 1 + max(int(name.split(".")[3]) for name in w if name.startswith("image_encoder.transformer."))
        for i in range(depth):
            x, context = self._vision_block(x, context, f"image_encoder.transformer.resblocks.{i}.")
            if context is not None:
                contexts.append(self._project(context))
        return self._project(x[:, :, 0]), contexts

    def _project(self, x: Tensor) -> Tensor:
        return self._layer_norm(x, "image_encoder.ln_post") @ self.weights["image_encoder.proj"]

    def _vision_block(self, x: Tensor, context: Tensor | None, prefix: str) -> tuple[Tensor, Tensor | None]:
        B, T, N, D = x.shape
        own = self._layer_norm(x, prefix + "ln_1")
        answering = own
        if context is not None:
            shared = self._layer_norm(context, prefix + "ln_1").unsqueeze(1).expand(B, T, -1, D)
            answering = torch.cat((own, shared), dim=2)  # (B, T, N + K, D)
        q, k, v = self._project_qkv(own, answering, prefix + "attn.")
        logits = q @ k.transpose(-1, -2) * self.head_width**-0.5  # (B, T, A, N, N + K)
        bias = self.weights.get(prefix + "attn.local_global_bias_table")
        if context is not None and bias is not None:
            # The table's two entries stand for own and for context keys.
            of_key = torch.cat((bias[..., :1].expand(-1, -1, N), bias[..., 1:].expand(-1, -1, k.shape[-2] - N)), -1)
            logits = logits + of_key
        weights = logits.softmax(dim=-1)
        x = x + self._linear((weights @ v).transpose(2, 3).flatten(3), prefix + "attn.out_proj")
        if not self.contextual:
            return self._feed_forward(x, prefix), None
        attention = weights[..., 0, 1:N].mean(dim=2)  # (B, T, P)
        S = int((N - 1) * self.seed_ratio)
        seeds = attention.argsort(dim=-1, descending=True)[..., :S] + 1
        context = x.gather(2, seeds.unsqueeze(-1).expand(-1, -1, -1, D)).flatten(1, 2)  # (B, T * S, D)
        context = self._merge(context)
        together = self._feed_forward(torch.cat((x.flatten(1, 2), context), dim=1), prefix)
        return together[:, : T * N].reshape(B, T, N, D), together[:, T * N :]

    def _merge(self, x: Tensor) -> Tensor:
        """Merge tokens (B, n, D) by rounds of bipartite matching until `num_context_tokens` are left."""
        size = torch.ones_like(x[..., :1])
        K, n = self.num_context_tokens, x.shape[1]
        for _ in range(int((n - K) / self.merge_rate) if n > K else 0):
            x, size = self._merge_round(x, size, min(self.merge_rate, x.shape[1] // 2))
        while x.shape[1] > K:
            x, size = self._merge_round(x, size, min(x.shape[1] - K, x.shape[1] // 2))
        return x

    @staticmethod
    def _merge_round(x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
        D = x.shape[-1]
        with torch.no_grad():
            unit = x / x.norm(dim=-1, keepdim=True)
            best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=-1)
            order = best.argsort(dim=-1, descending=True)
            merged, stay = order[:, :r, None], order[:, r:, None]
            target = partner.unsqueeze(-1).gather(1, merged)
        weighted = x * size
        even, odd = weighted[:, ::2], weighted[:, 1::2]
        odd = odd.scatter_add(1, target.expand(-1, -1, D), even.gather(1, merged.expand(-1, -1, D)))
        odd_size = size[:, 1::2].scatter_add(1, target, size[:, ::2].gather(1, merged))
        new_size = torch.cat((size[:, ::2].gather(1, stay), odd_size), dim=1)
        return torch.cat((even.gather(1, stay.expand(-1, -1, D)), odd), dim=1) / new_size, new_size

    def _encode_texts(self, tokens: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """Encode prompts (C, L) for one video with its context tokens a block, each (K, E): (C, E)."""
        w = self.weights
        x = self.token_embedding[tokens]
        if "prompt_learner.ctx" in w:
            vectors = w["prompt_learner.ctx"].expand(len(x), -1, -1)
            M = vectors.shape[1]
            x = torch.cat((x[:, :1], vectors, x[:, 1 + M :]), dim=1)
        x = x + w["text_encoder.positional_embedding"][: x.shape[1]]
        depth = 1 + max(int(n.split(".")[3]) for n in w if n.startswith("text_encoder.transformer."))
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        for i in range(depth):
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
        return x + self._linear(y * torch.sigmoid(1.702 * y), prefix + "mlp.c_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return torch.nn.functional.layer_norm(x, weight.shape, weight, bias)
