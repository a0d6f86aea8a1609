"""SAM 2's mask decoder as `SAM2Base.sam_mask_decoder` computes it, with less arithmetic and fewer passes over memory.

Nearly all of it is attention between an object's few tokens and the image's 4,096 places. sam2 projects every place,
four times a layer. Here the tokens are multiplied by the projections' weights instead: with queries `q = Qt` and keys
`k = Kx`, the logits `q·k` are `(KᵀQt)·x`; and a weighted sum of projected values is the projection of the weighted sum.
For a token and each of eight heads that is a vector of the image's width, so 8 tokens take half of the arithmetic.

A place is a row of `C` numbers throughout. So a transposed convolution, whose windows do not overlap, is a product of
matrices for each row of its window, and what follows reads and writes memory in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base

WORTH_FOLDING = 1.5
"""Up to how many tokens, as a multiple of a head's width, folding is faster than projecting every place."""


class Features(NamedTuple):
    """What an object is decoded on.

    Attributes:
        image_embed: `1×C×h×w`, the coarsest features, of the image or with an object's memory mixed in. Objects with
            the same tensor share what does not depend on the prompt.
        high_res_feats: `1×C'×4h×4w` and `1×C"×2h×2w`, or none at all, as the model has them.

    All may be of any floating dtype. They are read fastest in `torch.channels_last`.
    """

    image_embed: torch.Tensor
    high_res_feats: tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class DecodedObjects:
    """What the decoder gives for `B` objects, all float32.

    Attributes:
        logits: `B×M×4h×4w`, with M = 3 or 1 masks.
        scores: `B×M`, the predicted IoUs.
        tokens: `B×M'×C`, the tokens that a video's object pointers are made of; M' is M or 1.
        presence: `B×1`, the logit of the object being there; 10 from a model that does not predict it.
    """

    logits: torch.Tensor
    scores: torch.Tensor
    tokens: torch.Tensor
    presence: torch.Tensor


class _Places(NamedTuple):
    """The image side of some objects, `P×N×C` float32: the places' features, and the same plus where they are."""

    features: torch.Tensor
    located: torch.Tensor


class FoldedMaskDecoder:
    """A model's mask decoder.

    Args:
        model: in evaluation mode and on its device; what decodes prompts is float32. Its weights must not change.
    """

    def __init__(self, model: SAM2Base) -> None:
        self._decoder = decoder = model.sam_mask_decoder
        encoder = model.sam_prompt_encoder
        self._grid: tuple[int, int] = encoder.image_embedding_size
        with torch.inference_mode():
            self._position = _as_rows(encoder.get_dense_pe()).contiguous()
            self._no_mask = encoder.no_mask_embed.weight.detach()
            first, _, _, second, _ = decoder.output_upscaling
            self._first, self._second = _Window.of(first), _Window.of(second)
            own_tokens = [decoder.iou_token.weight, decoder.mask_tokens.weight]
            if decoder.pred_obj_scores:
                own_tokens.insert(0, decoder.obj_score_token.weight)
            self._own_tokens = torch.cat(own_tokens)[None]
            heads = [mlp.layers for mlp in decoder.output_hypernetworks_mlps]
            self._hypernetworks = [
                (torch.stack([one.weight.t() for one in layers]), torch.stack([one.bias[None] for one in layers]))
                for layers in zip(*heads, strict=True)
            ]
        attention = decoder.transformer.final_attn_token_to_image
        self._most_tokens = WORTH_FOLDING * attention.internal_dim / attention.num_heads
        # On a CPU an object at a time, whose features its caches nearly hold; on a GPU all of them.
        self._at_once = 1 if self._position.device.type == "cpu" else None

    def decode(
        self,
        objects: Sequence[Features],
        sparse: torch.Tensor,
        dense: torch.Tensor | None,
        multimask_output: bool,
        offset: torch.Tensor | None = None,
    ) -> DecodedObjects:
        """Decodes objects with prompts of one kind.

        Args:
            objects: `B`, at least one.
            sparse: `B×T×C` float32, the embeddings of points and boxes; see sam2's `PromptEncoder`.
            dense: `B×C×h×w` float32, the embeddings of masks, or None.
            multimask_output: True for three masks, False for one.
            offset: `C`, added to every place of every image.
        """
        decoder = self._decoder
        prompts = torch.cat([self._own_tokens.expand(len(objects), -1, -1), sparse], 1)
        at_once = self._at_once or len(objects)
        rows = [slice(start, start + at_once) for start in range(0, len(objects), at_once)]
        places = self._places(objects, rows, dense, offset)
        if prompts.shape[1] <= self._most_tokens:
            tokens, images = self._transform(prompts, rows, places)
        else:
            tokens, images = self._transform_plainly(prompts, rows, places)
        first = int(decoder.pred_obj_scores)
        scores = decoder.iou_prediction_head(tokens[:, first])
        mask_tokens = tokens[:, first + 1 : first + 1 + decoder.num_mask_tokens]
        presence = decoder.pred_obj_score_head(tokens[:, 0]) if first else scores.new_full((len(objects), 1), 10.0)

        wanted = slice(1, None) if multimask_output else slice(0, 1)
        weights = self._mask_weights(mask_tokens)
        if multimask_output or not decoder.dynamic_multimask_via_stability:
            logits = self._masks(objects, rows, images, weights[:, wanted])
            scores = scores[:, wanted]
        else:
            logits, scores = self._stable_masks(objects, rows, images, weights, scores)
        for_pointers = wanted if decoder.use_multimask_token_for_obj_ptr else slice(0, 1)
        return DecodedObjects(logits, scores, mask_tokens[:, for_pointers], presence)

    # ---- tokens and places attend to each other

    def _places(
        self,
        objects: Sequence[Features],
        rows: Sequence[slice],
        dense: torch.Tensor | None,
        offset: torch.Tensor | None,
    ) -> list[_Places]:
        """Returns the places of each part; parts of one image share them, unless each object has a mask of its own."""
        shared: dict[tuple[int, ...], _Places] = {}
        found = []
        for part in rows:
            images = [one.image_embed for one in objects[part]]
            key = tuple(map(id, images))
            if dense is not None or key not in shared:
                added = self._no_mask if dense is None else _as_rows(dense[part])
                features = _as_rows(_joined(images)) + (added if offset is None else added + offset)
                features = features.contiguous()
                shared[key] = _Places(features, features + self._position)
            found.append(shared[key])
        return found

    def _transform(
        self, prompts: torch.Tensor, rows: Sequence[slice], places: Sequence[_Places]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Computes what sam2's `TwoWayTransformer` computes: tokens, `B×T×C`, and each part's places, `P×N×C`."""
        transformer = self._decoder.transformer
        layers = transformer.layers
        tokens = _attend_to_themselves(layers[0], prompts, prompts)
        to_image = layers[0].cross_attn_token_to_image
        queries = _folded_queries(to_image, tokens + prompts)
        mixed = torch.cat([_attended(queries[part], one) for part, one in zip(rows, places, strict=True)])
        for number, layer in enumerate(layers):
            tokens = layer.norm2(tokens + _projected(to_image, mixed))
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            folded = _folded_keys(layer.cross_attn_image_to_token, tokens + prompts, tokens)
            if number + 1 < len(layers):
                tokens = _attend_to_themselves(layers[number + 1], tokens, prompts)
                to_image = layers[number + 1].cross_attn_token_to_image
            else:
                to_image = transformer.final_attn_token_to_image
            # The next attention's queries depend on no place, so its work follows while a part's places are at hand.
            queries = _folded_queries(to_image, tokens + prompts)
            # Objects of one image share the first layer's places; later ones are each object's own.
            places = [
                self._updated(layer, one, *(each[part] for each in folded), in_place=number > 0)  # type: ignore[misc, arg-type]
                for part, one in zip(rows, places, strict=True)
            ]
            mixed = torch.cat([_attended(queries[part], one) for part, one in zip(rows, places, strict=True)])
        return transformer.norm_final_attn(tokens + _projected(to_image, mixed)), [one.features for one in places]

    def _updated(
        self,
        layer: Any,
        places: _Places,
        keys: torch.Tensor,
        bias: torch.Tensor,
        values: torch.Tensor,
        in_place: bool,
    ) -> _Places:
        """Lets places attend to tokens; see `_folded_keys`. In place it overwrites `places.features`."""
        features, located = places
        count = len(keys)
        logits = torch.baddbmm(bias, keys, located.expand(count, -1, -1).transpose(1, 2))
        # The weights of a head's tokens lie as far apart as its tokens, so that softmax runs along memory.
        heads = layer.cross_attn_image_to_token.num_heads
        weights = logits.unflatten(1, (-1, heads)).softmax(1).flatten(1, 2)  # type: ignore[no-untyped-call]
        add = features.baddbmm_ if in_place else features.expand(count, -1, -1).baddbmm
        mixed = add(weights.transpose(1, 2), values)
        features = layer.norm4(mixed)
        return _Places(features, torch.add(features, self._position, out=mixed))

    def _transform_plainly(
        self, prompts: torch.Tensor, rows: Sequence[slice], places: Sequence[_Places]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs sam2's own transformer: with many tokens, projecting every place is less work."""
        height, width = self._grid
        found = []
        for part, one in zip(rows, places, strict=True):
            of_part = prompts[part]
            image = one.features.transpose(1, 2).unflatten(2, (height, width)).expand(len(of_part), -1, -1, -1)  # type: ignore[no-untyped-call]
            position = self._position.transpose(1, 2).unflatten(2, (height, width))  # type: ignore[no-untyped-call]
            found.append(self._decoder.transformer(image, position, of_part))
        tokens, images = zip(*found, strict=True)
        return torch.cat(tokens), list(images)

    # ---- masks

    def _mask_weights(self, mask_tokens: torch.Tensor) -> torch.Tensor:
        """Returns the weights of each mask, `B×4×C'`: what all hypernetworks give, as products of stacked matrices."""
        *hidden, last = self._hypernetworks
        values = mask_tokens.transpose(0, 1)
        for weight, bias in hidden:
            values = torch.baddbmm(bias, values, weight).relu_()
        return torch.baddbmm(last[1], values, last[0]).transpose(0, 1)

    def _stable_masks(
        self,
        objects: Sequence[Features],
        rows: Sequence[slice],
        images: Sequence[torch.Tensor],
        weights: torch.Tensor,
        scores: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns each object's single mask, or the best of the three where that one is not stable.

        As sam2's `_dynamic_multimask_via_stability`, but only two of the four masks are computed.
        """
        decoder = self._decoder
        every = torch.arange(len(objects), device=scores.device)
        best = scores[:, 1:].argmax(1) + 1
        pairs = self._masks(objects, rows, images, torch.stack([weights[:, 0], weights[every, best]], 1))
        single, other = pairs.split(1, 1)  # type: ignore[no-untyped-call]
        stable = decoder._get_stability_scores(single) >= decoder.dynamic_multimask_stability_thresh
        logits = torch.where(stable[..., None, None], single, other)
        return logits, torch.where(stable, scores[:, :1], scores[every, best][:, None])

    def _masks(
        self,
        objects: Sequence[Features],
        rows: Sequence[slice],
        images: Sequence[torch.Tensor],
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Upscales places to pixels and weights their features: `B×M×4h×4w` for weights `B×M×C'`.

        Of a place's 4×4 pixels, those of one row are computed at a time. So no more than a quarter of the features
        is held, which would be 8.4 MB an object, twice.
        """
        height, width = self._grid
        masks = weights.new_empty((len(objects), weights.shape[1], height, 2, 2, 4 * width))
        _, norm, first_activation, _, second_activation = self._decoder.output_upscaling
        for part, places in zip(rows, images, strict=True):
            fine, coarse = _high_res(objects[part], height)
            for upper in range(2):
                features = _upscaled(places, self._first, upper, None if coarse is None else coarse[:, :, upper])
                features = F.layer_norm(features, features.shape[-1:], norm.weight, norm.bias, norm.eps)
                features = first_activation(features)
                for lower in range(2):
                    residual = None if fine is None else fine[:, :, 2 * upper + lower]
                    pixels = second_activation(_upscaled(features, self._second, lower, residual))
                    found = torch.bmm(weights[part], pixels.transpose(1, 2))
                    masks[part, :, :, upper, lower] = found.unflatten(2, (height, -1))  # type: ignore[no-untyped-call]
        return masks.flatten(2, 4)


class _Window(NamedTuple):
    """A transposed convolution of 2×2 with stride 2: two `C×2C'` matrices, one a row of its window, and `C'` biases."""

    weights: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, layer: Any) -> "_Window":
        return cls(layer.weight.permute(2, 0, 3, 1).flatten(2).contiguous(), layer.bias.detach())


def _upscaled(features: torch.Tensor, window: _Window, row: int, residual: torch.Tensor | None) -> torch.Tensor:
    """Returns one row of each 2×2 window: `P×2n×C'` for `P×n×C` features, in the order of the image.

    Args:
        features: of places or pixels.
        window: the weights.
        row: 0 or 1.
        residual: `P×…×C'` or `1×…×C'` of any dtype, added; None for none.
    """
    count, places, _ = features.shape
    start = window.bias.expand(1, 2 * places, -1) if residual is None else residual + window.bias
    # The product is added to it in place, which saves a pass.
    start = start.reshape(len(start), places, -1).expand(count, -1, -1).reshape(count * places, -1)
    if residual is None:
        start = start.clone()
    return start.addmm_(features.flatten(0, 1), window.weights[row]).view(count, 2 * places, -1)


def _high_res(objects: Sequence[Features], height: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns finer features as rows: `P×h×4×4w×C'` and `P×h×2×2w×C"`, or P = 1; None where the model has none."""
    levels = [_joined(level).permute(0, 2, 3, 1).unflatten(1, (height, -1)) for level in _levels(objects)]  # type: ignore[no-untyped-call]
    return (levels[0], levels[1]) if levels else (None, None)


def _levels(objects: Sequence[Features]) -> list[tuple[torch.Tensor, ...]]:
    return list(zip(*(one.high_res_feats for one in objects), strict=True))


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Joins tensors to a batch; one tensor, or always the same, is not copied."""
    return tensors[0] if all(one is tensors[0] for one in tensors) else torch.cat(list(tensors))


def _as_rows(features: torch.Tensor) -> torch.Tensor:
    """`B×C×h×w` as `B×(h·w)×C`."""
    return features.flatten(2).transpose(1, 2)


def _attend_to_themselves(layer: Any, tokens: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Computes the first step of sam2's `TwoWayAttentionBlock`."""
    if layer.skip_first_layer_pe:
        attended = layer.self_attn(tokens, tokens, tokens)
    else:
        query = tokens + prompts
        attended = tokens + layer.self_attn(query, query, tokens)
    normed: torch.Tensor = layer.norm1(attended)
    return normed


def _by_head(projection: Any, attention: Any) -> torch.Tensor:
    """Returns a projection's weights by heads, `H×d×C`."""
    weights: torch.Tensor = projection.weight.unflatten(0, (attention.num_heads, -1))
    return weights


def _heads(values: torch.Tensor, attention: Any) -> torch.Tensor:
    """`B×T×(H·d)` as `B×H×T×d`."""
    return values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # type: ignore[no-any-return, no-untyped-call]


def _folded_queries(attention: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Returns for each head and token a vector whose product with a place is their logit, `B×(H·T)×C`.

    The keys' bias is left out: it adds the same to all logits of a token, which softmax takes away.
    """
    queries = _heads(attention.q_proj(tokens), attention)
    return (queries @ _by_head(attention.k_proj, attention) * queries.shape[-1] ** -0.5).flatten(1, 2)  # type: ignore[no-any-return]


def _attended(queries: torch.Tensor, places: _Places) -> torch.Tensor:
    """Returns for each head and token the weighted sum of places, `P×(H·T)×C`."""
    count = len(queries)
    logits = queries @ places.located.transpose(1, 2)
    return torch.bmm(logits.softmax(-1), places.features.expand(count, -1, -1))


def _projected(attention: Any, mixed: torch.Tensor) -> torch.Tensor:
    """Projects what `_attended` returns: the attention's result, `B×T×C`. A token's weights add up to 1."""
    values = mixed.unflatten(1, (attention.num_heads, -1)) @ _by_head(attention.v_proj, attention).transpose(1, 2)  # type: ignore[no-untyped-call]
    projected: torch.Tensor = attention.out_proj(values.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return projected


def _folded_keys(
    attention: Any, tokens: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns what lets places attend to tokens, tokens first, then heads.

    Returns:
        `B×(T·H)×C` to be multiplied with a place, `B×(T·H)×1` to be added, which gives the logits; and `B×(T·H)×C`,
        whose sum by their weights is the attention's result.
    """
    keys, values = _heads(attention.k_proj(tokens), attention), _heads(attention.v_proj(values), attention)
    scaled = keys * keys.shape[-1] ** -0.5
    bias = attention.q_proj.bias.unflatten(0, (attention.num_heads, -1, 1))
    outward = attention.out_proj.weight.t().unflatten(0, (attention.num_heads, -1))
    # The weights of each head add up to 1.
    results = values @ outward + attention.out_proj.bias / attention.num_heads
    folded = scaled @ _by_head(attention.q_proj, attention), scaled @ bias, results
    first, second, third = (each.transpose(1, 2).flatten(1, 2) for each in folded)
    return first, second, third
