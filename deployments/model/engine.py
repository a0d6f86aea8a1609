"""Engine: SAM 2 on torch, without state. Turns images into embeddings, and embeddings and prompts into logits.

It computes the same as `SAM2ImagePredictor`, but returns an image's features as a value that can be cached and passed
around, and does not keep them on the object. It needs no Ray.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base

from deployments.errors import Overloaded
from deployments.messages.arrays import FloatArray
from deployments.messages.prompt import Prompt
from deployments.model.devices import check_device, objects_at_once, on_stream, own_stream
from deployments.model.image_encoder import HieraEncoder, fuses, is_hiera
from deployments.model.mask_decoder import Features, FoldedMaskDecoder
from deployments.model.out_of_memory import all_or_error, run_in_halves
from deployments.model.prompt_batches import PromptedObject, decodable_together, prompted_objects

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's red, green and blue, 0 to 1, as in `sam2.utils.transforms.SAM2Transforms`."""

DecodedPrompt: TypeAlias = tuple[FloatArray, FloatArray]
"""The low-resolution logits and the IoU predictions of a prompt's objects: `B×C×256×256` and `B×C`, float32."""

Encode: TypeAlias = Callable[[torch.Tensor], list[torch.Tensor]]
"""An image encoder: pixels to feature maps."""


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """The image encoder's output for one image.

    Attributes:
        image_embed: `1×C×h×w` in the engine's precision, the coarsest feature map of `SAM2Base.forward_image` (for SAM
            2, C = 256, h = w = 64), without the no-memory vector that image mode adds.
        high_res_feats: finer feature maps for the mask decoder, finest first, each `1×C'×h'×w'`.
        image_size: height and width of the original image in pixels.

    Tensors are in `torch.channels_last`, in which the mask decoder reads them.
    """

    image_embed: torch.Tensor
    high_res_feats: tuple[torch.Tensor, ...]
    image_size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """The bytes of device memory that the embedding holds."""
        return sum(tensor.nbytes for tensor in (self.image_embed, *self.high_res_feats))


class Engine:
    """A SAM2Base model and the steps from pixels to low-resolution masks.

    One thread may call `embed` while another calls `decode`: the two share only weights, which are never written, and
    on a GPU each has a stream of its own, and waits only for results on that stream.

    Args:
        model: a model in float32. The engine changes it, so the caller must not use it any more.
        device: the device to run on.
        precision: dtype of the image encoder's weights and of embeddings. Prompts are decoded in float32, which costs
            little.
        compile_batch_sizes: the batch sizes that the image encoder is compiled for; without any, it is not compiled.
    """

    def __init__(
        self,
        model: SAM2Base,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        compile_batch_sizes: Sequence[int] = (),
    ) -> None:
        self.device = device
        self.precision = precision
        self.objects_at_once = objects_at_once(device)
        # Built first: it computes what it keeps from float32 weights, which it then shares.
        encoder = HieraEncoder(model, not compile_batch_sizes and fuses(device, precision)) if is_hiera(model) else None
        # The position encoding is the same for every image. Inside the encoder's run it would cost 88 MB an image.
        self._position_encoding = model.image_encoder.neck.position_encoding
        model.image_encoder.neck.position_encoding = torch.nn.Identity()
        if precision != torch.float32:
            _set_encoder_precision(model, precision)
        self._model = model.to(device).eval()
        self.decoder = FoldedMaskDecoder(self._model)
        # Image mode adds this vector; video mode attends to the memory of earlier frames instead.
        self._no_memory = model.no_mem_embed.flatten() if model.directly_add_no_mem_embed else None
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
        self._batch_sizes = tuple(sorted(compile_batch_sizes))
        self._encode: Encode = self._image_features if encoder is None else encoder.to(device, precision).eval()
        self.encoder_backend = "torch"
        if compile_batch_sizes:
            self._encode = torch.compile(self._encode, fullgraph=True, dynamic=False)
        self._embed_stream, self._decode_stream = own_stream(device), own_stream(device)

    def warm_up(self) -> None:
        """Runs every batch size and a prompt once, so that no request waits for compilation or lazy initialisation.

        Raises:
            Overloaded: the device's memory is too small for a single image.
        """
        image = np.zeros((64, 64, 3), np.uint8)
        for size in self._batch_sizes or (1,):
            embedding = self.embed([image] * size)[0]
        self.decode([(embedding, Prompt(point_coords=[[32, 32]], point_labels=[1]))])

    @property
    def model(self) -> SAM2Base:
        """The model, for the tracker: whatever it runs but the image encoder is in float32."""
        return self._model

    @torch.inference_mode()
    def position_encoding(self, embedding: ImageEmbedding) -> torch.Tensor:
        """Returns the position encoding of an `image_embed`, `1×C×h×w` float32, for memory attention."""
        encoding: torch.Tensor = self._position_encoding(embedding.image_embed)
        return encoding.float()

    def check_device(self) -> None:
        """Checks that the device still works; see `devices.check_device`."""
        check_device(self.device)

    # ---- images

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding]:
        """Runs `embed_each`, but raises if any image fails.

        Raises:
            Overloaded: a single image does not fit into the device's memory.
        """
        return all_or_error(self.embed_each(images))

    @torch.inference_mode()
    def embed_each(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding | Overloaded]:
        """Runs the image encoder over a batch, in a single run if its size and the memory allow.

        Args:
            images: `H×W×3` uint8 RGB images, each of its own size.

        Returns:
            For each image its embedding, or the error if the image does not fit into the device's memory even alone.
        """
        largest = self._batch_sizes[-1] if self._batch_sizes else max(1, len(images))
        with on_stream(self._embed_stream):
            return [
                embedding
                for start in range(0, len(images), largest)
                for embedding in run_in_halves(self._embed_batch, images[start : start + largest], self.device, "image")
            ]

    def use_encoder(self, encode: Encode, backend: str) -> None:
        """Replaces what computes feature maps; a run under way ends with the one that it began with.

        Args:
            encode: makes `B×3×S×S` pixels, in the engine's precision, feature maps `B×C×h×w`, finest first.
            backend: its name, for those who ask.
        """
        self._encode, self.encoder_backend = encode, backend
        # Those that torch compiled for.
        self._batch_sizes = ()

    @property
    def encode(self) -> Encode:
        """What computes feature maps now."""
        return self._encode

    def feature_maps(self, images: Sequence[NDArray[np.uint8]], encode: Encode | None = None) -> list[torch.Tensor]:
        """Runs the image encoder once, or another in its place; returns feature maps `B×C×h×w`, finest first."""
        return (encode or self._encode)(self._batch(images).to(self.precision))

    def _embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding]:
        *high_res_feats, image_embed = self.feature_maps(images)
        return [
            ImageEmbedding(
                image_embed=self._one_of(image_embed, index),
                high_res_feats=tuple(self._one_of(feat, index) for feat in high_res_feats),
                image_size=(image.shape[0], image.shape[1]),
            )
            for index, image in enumerate(images)
        ]

    def _batch(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """Returns the model's input, `B×3×S×S` float32; B is the next compiled size, and surplus images are zeros.

        Computes the same bits as `SAM2Transforms`. That class needs torchvision, whose import takes longer than torch's
        and would double the time that a replica needs to start.
        """
        count = next((size for size in self._batch_sizes if size >= len(images)), len(images))
        side = self._model.image_size
        batch = torch.zeros((count, 3, side, side), device=self.device)
        for index, image in enumerate(images):
            # A strided tensor is resized to the same bits as a contiguous tensor.
            pixels = self._upload(image).permute(2, 0, 1).float().div_(255)
            resized = F.interpolate(pixels[None], (side, side), mode="bilinear", align_corners=False, antialias=True)
            batch[index] = (resized[0] - self._mean) / self._std
        return batch

    def _upload(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """Copies an image to the device, `H×W×3` uint8."""
        if self.device.type != "cuda":
            # An array in Ray's object store is read-only, so it is copied: torch's tensors are writable.
            return torch.from_numpy(np.require(image, requirements=["C", "W"]))
        # The copy from pinned memory runs while the next image is prepared; torch keeps that memory until it is done.
        pinned = torch.empty(image.shape, dtype=torch.uint8, pin_memory=True)
        pinned.numpy()[...] = image
        return pinned.to(self.device, non_blocking=True)

    def _image_features(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Runs `SAM2Base.forward_image`, for models that HieraEncoder does not know; the same maps, finest first."""
        feats: list[torch.Tensor] = self._model.forward_image(batch)["backbone_fpn"][-self._model.num_feature_levels :]
        return feats

    def _one_of(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        # A copy: a slice would keep the whole batch in memory for as long as one of its images is remembered.
        return batch[index : index + 1].to(self.precision, copy=True, memory_format=torch.channels_last)

    # ---- prompts

    def decode(self, items: Sequence[tuple[ImageEmbedding, Prompt]]) -> list[DecodedPrompt]:
        """Runs `decode_each`, but raises if any prompt fails.

        Raises:
            Overloaded: a single object does not fit into the device's memory.
        """
        return all_or_error(self.decode_each(items))

    @torch.inference_mode()
    def decode_each(self, items: Sequence[tuple[ImageEmbedding, Prompt]]) -> list[DecodedPrompt | Overloaded]:
        """Runs prompt encoder and mask decoder for all objects of many prompts; objects of the same kind run together.

        Returns:
            For each item `B×C×256×256` float32 logits, not clamped, and `B×C` float32 IoU predictions, in the
            decoder's order; or the error if one of the item's objects does not fit into the device's memory even alone.
        """
        embeddings = [embedding for embedding, _ in items]
        answers: list[list[DecodedPrompt | Overloaded]] = [[] for _ in items]
        with on_stream(self._decode_stream):
            for together in decodable_together(self._objects(items), self.objects_at_once):
                run = partial(self._decode_objects, embeddings)
                decoded = run_in_halves(run, together, self.device, "object")
                for one, answer in zip(together, decoded, strict=True):
                    answers[one.item].append(answer)
        return [_stacked_or_error(objects) for objects in answers]

    @torch.inference_mode()
    def decode_points(self, embedding: ImageEmbedding, points: FloatArray) -> tuple[torch.Tensor, torch.Tensor]:
        """Decodes points, each as an object of its own, and leaves the results on the device.

        Args:
            embedding: the image.
            points: `N×2`, XY in pixels of the image.

        Returns:
            `N×3×256×256` float32 logits, not clamped, and `N×3` float32 IoU predictions, in the decoder's order.

        Raises:
            Overloaded: a single object does not fit into the device's memory.
        """
        objects = list(self._objects([(embedding, Prompt(points[:, None], np.ones((len(points), 1))))]))

        def run(together: Sequence[PromptedObject]) -> list[tuple[torch.Tensor, torch.Tensor]]:
            return list(zip(*self._run_decoder([embedding], together), strict=True))

        with self.decoding():
            logits, scores = zip(*all_or_error(run_in_halves(run, objects, self.device, "object")), strict=True)
            return torch.stack(logits), torch.stack(scores)

    def decoding(self) -> AbstractContextManager[None]:
        """Returns a context for work on the results of `decode_points`: the device does it after the decoder's work."""
        return on_stream(self._decode_stream)

    def _objects(self, items: Sequence[tuple[ImageEmbedding, Prompt]]) -> Iterator[PromptedObject]:
        for index, (embedding, prompt) in enumerate(items):
            yield from prompted_objects(index, prompt, embedding.image_size, self._model.image_size)

    def _decode_objects(
        self, embeddings: Sequence[ImageEmbedding], objects: Sequence[PromptedObject]
    ) -> list[tuple[FloatArray, FloatArray]]:
        """Runs the decoder once; returns `C×256×256` logits and `C` IoU predictions of each object.

        An object's `item` is the index of its embedding.
        """
        low_res_logits, iou_predictions = self._run_decoder(embeddings, objects)
        return list(zip(low_res_logits.cpu().numpy(), iou_predictions.cpu().numpy(), strict=True))

    def _run_decoder(
        self, embeddings: Sequence[ImageEmbedding], objects: Sequence[PromptedObject]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sparse, dense = self._prompt_embeddings(objects)
        features = [Features(image.image_embed, image.high_res_feats) for image in embeddings]
        decoded = self.decoder.decode(
            [features[one.item] for one in objects],
            # Without points and masks there is a single, empty prompt embedding, which is expanded to all objects.
            sparse.expand(len(objects), -1, -1),
            dense,
            objects[0].multimask_output,
            self._no_memory,
        )
        return decoded.logits, decoded.scores

    def _prompt_embeddings(self, objects: Sequence[PromptedObject]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeds the prompts of objects of one kind: `B×N×C` for points and boxes, and `B×C×h×w` for masks if any."""
        coords = self._stacked([one.coords for one in objects if one.coords is not None])
        labels = self._stacked([one.labels for one in objects if one.labels is not None])
        masks = self._stacked([one.mask for one in objects if one.mask is not None])
        sparse, dense = self._model.sam_prompt_encoder(
            points=None if coords is None else (coords, labels), boxes=None, masks=masks
        )
        return sparse, None if masks is None else dense

    def _stacked(self, arrays: Sequence[FloatArray] | Sequence[NDArray[np.int32]]) -> torch.Tensor | None:
        return torch.from_numpy(np.stack(arrays)).to(self.device) if arrays else None


def _stacked_or_error(objects: Sequence[DecodedPrompt | Overloaded]) -> DecodedPrompt | Overloaded:
    """Stacks the objects of one prompt into one answer; returns the first error if there is any."""
    try:
        logits, scores = zip(*all_or_error(objects), strict=True)
    except Overloaded as error:
        return error
    return np.stack(logits), np.stack(scores)


def _set_encoder_precision(model: SAM2Base, precision: torch.dtype) -> None:
    """Casts all modules that run in `forward_image`; the modules that decode prompts keep their precision."""
    model.image_encoder.to(precision)
    if model.use_high_res_features_in_sam:
        # These convolutions belong to the mask decoder, but run in forward_image, on the neck's finest levels. Those
        # levels are float32 if the neck's top-down path reaches them, since it interpolates in float32.
        for conv in (model.sam_mask_decoder.conv_s0, model.sam_mask_decoder.conv_s1):
            conv.to(precision).register_forward_pre_hook(lambda _, inputs: tuple(x.to(precision) for x in inputs))
