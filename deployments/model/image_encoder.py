"""HieraEncoder: the image encoder as `SAM2Base.forward_image` computes it, with less arithmetic and fewer copies."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import Hiera, MultiScaleBlock
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.sam2_base import SAM2Base
from torch import nn

ROWS = 0
"""The order of tokens in which an image is one window: row after row."""

PIECE_NUMBERS = 3 * 2**19
"""The widest activations of a piece, per thread: 6 MB in float32. Smaller pieces were no faster on two cores."""


def is_hiera(model: SAM2Base) -> bool:
    """Returns whether HieraEncoder can take the place of a model's `forward_image`: all of Meta's models are such."""
    encoder = model.image_encoder
    if type(encoder) is not ImageEncoder or type(encoder.trunk) is not Hiera or type(encoder.neck) is not FpnNeck:
        return False
    projections = [level.conv for level in encoder.neck.convs]
    if model.use_high_res_features_in_sam:
        projections += [model.sam_mask_decoder.conv_s0, model.sam_mask_decoder.conv_s1]
    blocks = encoder.trunk.blocks
    return (
        encoder.trunk.return_interm_layers
        and encoder.neck.fuse_type == "sum"
        and all(conv.kernel_size == (1, 1) and conv.bias is not None for conv in projections)
        and all(type(block.mlp.act) is nn.GELU and block.mlp.act.approximate == "none" for block in blocks)
        # Tokens are pooled within windows, over whose edges no pool reaches.
        and all(block.q_stride in {None, (2, 2)} for block in blocks)
        and all(block.window_size and block.window_size % 2 == 0 for block in blocks if block.q_stride)
        and model.image_size % (4 * 2 ** len(encoder.trunk.q_pool_blocks)) == 0
    )


def fuses(device: torch.device, precision: torch.dtype) -> bool:
    """Returns whether oneDNN computes linear layers together with what follows them, here and in this precision."""
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and (precision == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


class HieraEncoder(nn.Module):
    """A model's image encoder, without what `SAM2Base.forward_image` computes over and over, or only moves about.

    - The position embedding is the same for every image, so it is interpolated once.
    - Tokens stay in the order of windows from block to block, and are put into another order only where the window's
      size changes; global attention takes them in any order.
    - The neck's convolution and the mask decoder's, both 1×1, become one where nothing else needs what is between.
    - On processors, oneDNN computes linear layers together with the GELU or the sum that follows, and whatever does not
      look at the whole image is done in pieces that stay in the caches.

    Args:
        model: a model that `is_hiera`, in evaluation mode and float32. Its weights are shared, not copied.
        fused: use oneDNN's fused linear layers; see `fuses`. False leaves fusing to a compiler.
    """

    _positions: torch.Tensor

    def __init__(self, model: SAM2Base, fused: bool) -> None:
        super().__init__()
        trunk = model.image_encoder.trunk
        self._patches = trunk.patch_embed.proj
        side = model.image_size // self._patches.stride[0]
        order = _order_for(trunk.blocks[0], side, ROWS)
        # Tokens a side, and their order, before each block and after it.
        self._before: list[tuple[int, int]] = []
        self._after: list[tuple[int, int]] = []
        self._blocks = nn.ModuleList()
        self._stage_ends = tuple(trunk.stage_ends)
        self.register_buffer("_positions", _in_order(trunk._get_pos_embed((side, side)).detach(), ROWS, order, side))
        for block in trunk.blocks:
            order = _order_for(block, side, order)
            self._before.append((side, order))
            self._blocks.append(_Block(block, side, order, fused))
            if block.q_stride:
                side, order = side // 2, order // 2
            self._after.append((side, order))
        self._levels = _levels(model)
        kept = len(self._levels) - model.image_encoder.scalp
        self._outputs = range(kept)[-model.num_feature_levels :]

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Returns feature maps as `forward_image` does, `B×C×h×w`, finest first.

        Args:
            pixels: `B×3×S×S`, normalised, in the precision of the weights.
        """
        order = ROWS
        tokens = self._patches(pixels).permute(0, 2, 3, 1)
        ends = []
        for index, block in enumerate(self._blocks):
            side, wanted = self._before[index]
            tokens = _in_order(tokens, order, wanted, side)
            if index == 0:
                tokens = (tokens.reshape(-1, *self._positions.shape) + self._positions).flatten(0, 1)
            tokens = block(tokens)
            side, order = self._after[index]
            if index in self._stage_ends:
                ends.append((tokens, side, order))
        maps: list[torch.Tensor] = []
        coarser: torch.Tensor | None = None
        for index, level in enumerate(reversed(self._levels)):
            found, coarser = level(*ends[-1 - index], coarser)
            maps.append(found)
        return [maps[-1 - index] for index in self._outputs]


class _Block(nn.Module):
    """A block of the trunk on tokens in the order that suits it: `N×h×w×C`, N windows or, in rows, N images."""

    def __init__(self, block: MultiScaleBlock, side: int, order: int, fused: bool) -> None:
        super().__init__()
        self._norm1, self._norm2 = block.norm1, block.norm2
        self._widen = block.proj if block.dim != block.dim_out else None
        self._qkv, self._proj, self._heads = block.attn.qkv, block.attn.proj, block.attn.num_heads
        self._hidden, self._out = block.mlp.layers
        self._pools = bool(block.q_stride)
        self._window = block.window_size
        self._side = side
        self._pad = -side % self._window if self._window else 0
        # Windows of one image that attend to each other: all where attention is global.
        self._together = (side // order) ** 2 if not self._window and order else 1
        self._fused = fused
        hidden = self._hidden.out_features
        # Of the layers that see the tokens before they are pooled, and of those that see them after.
        self._width = max(self._qkv.out_features, hidden // 4 if self._pools else hidden)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if not self._fused:
            return self._mix_channels(self._mix_tokens(tokens))
        if self._pad or not self._window:
            mixed = self._mix_tokens(tokens)
            found = _in_pieces(self._mix_channels, mixed.flatten(0, 2), self._hidden.out_features)
            return found.reshape(mixed.shape)
        return _in_pieces(lambda piece: self._mix_channels(self._mix_tokens(piece)), tokens, self._width)

    def _mix_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self._norm1(tokens)
        if self._widen is not None:
            tokens = self._linear(self._widen, normed)
            tokens = _pooled(tokens) if self._pools else tokens
        attended = self._attend_padded(normed) if self._pad else self._attend(normed)
        return self._linear(self._proj, attended, tokens)

    def _mix_channels(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self._linear(self._hidden, self._norm2(tokens), gelu=True)
        return self._linear(self._out, hidden, tokens)

    def _attend(self, tokens: torch.Tensor) -> torch.Tensor:
        qkv = self._linear(self._qkv, tokens).reshape(*tokens.shape[:3], 3, self._heads, -1)
        query, key, value = qkv.unbind(-3)
        query = _pooled(query) if self._pools else query
        shape, windows = query.shape[:3], len(tokens) // self._together
        query, key, value = (part.reshape(windows, -1, *part.shape[3:]).transpose(1, 2) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).reshape(*shape, -1)

    def _attend_padded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attends within windows that do not fill the image, so that it is padded with zeros."""
        padded = F.pad(tokens, (0, 0, 0, self._pad, 0, self._pad))
        side, window = self._side + self._pad, self._window
        attended = self._attend(_in_order(padded, ROWS, window, side))
        if self._pools:
            side, window = side // 2, window // 2
        kept = self._side // 2 if self._pools else self._side
        return _in_order(attended, window, ROWS, side)[:, :kept, :kept].contiguous()

    def _linear(
        self, layer: nn.Linear, tokens: torch.Tensor, plus: torch.Tensor | None = None, gelu: bool = False
    ) -> torch.Tensor:
        """Applies a linear layer, then GELU or a sum."""
        if not self._fused:
            alone: torch.Tensor = layer(tokens)
            return F.gelu(alone) if gelu else alone if plus is None else plus + alone
        # torch's own linear layer copies the bias first, and reads and writes all once more for what follows.
        one = torch.ops.mkldnn._linear_pointwise
        found: torch.Tensor = (
            one(tokens, layer.weight, layer.bias, "gelu" if gelu else "none", [], "none")
            if plus is None
            else one.binary(tokens, plus, layer.weight, layer.bias, "add")
        )
        return found


class _Level(nn.Module):
    """A level of the neck, and the mask decoder's projection of it.

    Args:
        conv: weight `C'×C` and bias `C'` of what is applied to the trunk's tokens.
        mode: how the coarser level's map is brought to this size before it is added; None adds none.
        bring: weight `C'×C''` that is applied to the coarser map, if any.
        then: weight and bias of the mask decoder's projection, where the map before it is needed too.
    """

    _weight: torch.Tensor
    _bias: torch.Tensor
    _bring: torch.Tensor | None
    _then_weight: torch.Tensor | None
    _then_bias: torch.Tensor | None

    def __init__(
        self,
        conv: tuple[torch.Tensor, torch.Tensor],
        mode: str | None,
        bring: torch.Tensor | None = None,
        then: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("_weight", conv[0])
        self.register_buffer("_bias", conv[1])
        self.register_buffer("_bring", bring)
        self.register_buffer("_then_weight", then[0] if then else None)
        self.register_buffer("_then_bias", then[1] if then else None)
        self._mode = mode

    def forward(
        self, tokens: torch.Tensor, side: int, order: int, coarser: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the level's map as the mask decoder takes it, and the one that the next finer level adds."""
        batch = len(tokens) // ((side // order) ** 2 if order else 1)
        # A product from the left leaves the map as `B×C'×…`, so that nothing is transposed afterwards.
        found = torch.matmul(self._weight, tokens.reshape(batch, side * side, -1).transpose(1, 2))
        found = _map_in_rows(found + self._bias[:, None], side, order)
        if self._mode is not None and coarser is not None:
            if self._bring is not None:
                coarser = _on_channels(self._bring, coarser)
            # In float32, as in `FpnNeck`; the mode `nearest` takes no `align_corners`.
            found = found + F.interpolate(
                coarser.float(),
                scale_factor=2.0,
                mode=self._mode,
                align_corners=None if self._mode == "nearest" else False,
            )
        if self._then_weight is None or self._then_bias is None:
            return found, found
        return _on_channels(self._then_weight, found) + self._then_bias[:, None, None], found


def _on_channels(weight: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Applies a 1×1 convolution's weight, `C'×C`, to a map, `B×C×h×w`."""
    batch, _, height, width = found.shape
    return torch.matmul(weight, found.to(weight.dtype).flatten(2)).reshape(batch, -1, height, width)


def _levels(model: SAM2Base) -> nn.ModuleList:
    """Builds the neck's levels, finest first."""
    neck = model.image_encoder.neck
    then: list[nn.Conv2d | None] = [None] * len(neck.convs)
    if model.use_high_res_features_in_sam:
        then[:2] = model.sam_mask_decoder.conv_s0, model.sam_mask_decoder.conv_s1
    levels = nn.ModuleList()
    for index, (level, after) in enumerate(zip(reversed(neck.convs), then, strict=True)):
        mode = neck.fpn_interp_model if index in neck.fpn_top_down_levels else None
        weight, bias = _matrix(level.conv)
        if after is None:
            levels.append(_Level((weight, bias), mode))
        elif index - 1 in neck.fpn_top_down_levels:
            levels.append(_Level((weight, bias), mode, then=_matrix(after)))
        else:
            # Nothing needs the map in between, and interpolating commutes with a projection of channels.
            outer, outer_bias = _matrix(after)
            bring = outer if mode is not None else None
            levels.append(_Level((outer @ weight, outer @ bias + outer_bias), mode, bring))
    return levels


def _matrix(conv: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weight of a 1×1 convolution as `C'×C`, and its bias."""
    assert conv.bias is not None
    return conv.weight.detach().flatten(1), conv.bias.detach()


def _in_pieces(layers: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor, width: int) -> torch.Tensor:
    """Applies layers to tokens, `N×…×C`, a few of N at a time.

    Args:
        layers: what takes each of N by itself.
        tokens: windows, or single tokens.
        width: the most numbers that the layers make of one token.
    """
    count = max(1, PIECE_NUMBERS * torch.get_num_threads() // (width * tokens[0, ..., 0].numel()))
    if count >= len(tokens):
        return layers(tokens)
    first = layers(tokens[:count])
    found = first.new_empty(len(tokens), *first.shape[1:])
    found[:count] = first
    for start in range(count, len(tokens), count):
        found[start : start + count] = layers(tokens[start : start + count])
    return found


def _order_for(block: MultiScaleBlock, side: int, order: int) -> int:
    """Returns the order in which a block takes its tokens: ROWS, or the side of windows that follow each other."""
    if block.window_size:
        return int(block.window_size) if side % block.window_size == 0 else ROWS
    return order


def _in_order(tokens: torch.Tensor, order: int, wanted: int, side: int) -> torch.Tensor:
    """Puts tokens, `N×h×w×C`, from one order into another."""
    if order == wanted:
        return tokens
    channels = tokens.shape[-1]
    if order != ROWS:
        grid = side // order
        tokens = tokens.reshape(-1, grid, grid, order, order, channels).transpose(2, 3)
        tokens = tokens.reshape(-1, side, side, channels)
    if wanted == ROWS:
        return tokens
    grid = side // wanted
    windows = tokens.reshape(-1, grid, wanted, grid, wanted, channels).transpose(2, 3)
    return windows.reshape(-1, wanted, wanted, channels)


def _map_in_rows(columns: torch.Tensor, side: int, order: int) -> torch.Tensor:
    """Makes a map, `B×C×side×side`, of columns in some order, `B×C×side²`."""
    if order != ROWS:
        grid = side // order
        columns = columns.reshape(*columns.shape[:2], grid, grid, order, order).transpose(3, 4)
    return columns.reshape(*columns.shape[:2], side, side)


def _pooled(tokens: torch.Tensor) -> torch.Tensor:
    """Takes the largest of every 2×2 tokens of `N×h×w×…`; max_pool2d would first copy them into one piece."""
    upper = torch.maximum(tokens[:, ::2, ::2], tokens[:, ::2, 1::2])
    lower = torch.maximum(tokens[:, 1::2, ::2], tokens[:, 1::2, 1::2])
    return torch.maximum(upper, lower)
