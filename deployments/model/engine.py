"""SAM 2 on torch without state: images to embeddings, embeddings and prompts to segmentations.

What `SAM2ImagePredictor` computes, but with the image's features as a value that can be cached and sent around rather
than kept on the object. Needs no Ray.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from sam2.utils.transforms import SAM2Transforms

from deployments.errors import Overloaded
from deployments.messages.arrays import FloatArray
from deployments.messages.prompt import Prompt
from deployments.model.devices import check_device, objects_at_once, on_stream, own_stream
from deployments.model.out_of_memory import all_or_error, run_in_halves
from deployments.model.prompt_batches import PromptedObject, decodable_together, prompted_objects

DecodedPrompt: TypeAlias = tuple[FloatArray, FloatArray]
"""Low-resolution logits and IoU predictions of a prompt's objects."""


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """What the image encoder makes of one image.

    Attributes:
        image_embed: `1×C×h×w` in the engine's precision, the coarsest feature map as `SAM2Base.forward_image` gives it
            (for SAM 2, C = 256, h = w = 64), without the no-memory vector that image mode adds.
        high_res_feats: finer feature maps for the mask decoder, finest first, each `1×C'×h'×w'`.
        image_size: height and width of the original image in pixels.
    """

    image_embed: torch.Tensor
    high_res_feats: tuple[torch.Tensor, ...]
    image_size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """The device memory that it holds."""
        return sum(tensor.nbytes for tensor in (self.image_embed, *self.high_res_feats))


class Engine:
    """A SAM2Base model and the steps from pixels to low-resolution masks.

    One thread may call `embed` while another calls `decode`: they share weights, which nobody writes, and on a GPU each
    has a stream of its own, in which it also waits for its results.

    Args:
        model: float32, and from now on the engine's own.
        device: what to run on.
        precision: of the image encoder's weights and of embeddings. Prompts are decoded in float32, which costs little.
        compile_batch_sizes: if any, the image encoder is compiled for batches of these sizes.
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
        # The same for every image, so it is taken out of the encoder's run, where it would cost 88 MB an image.
        self._position_encoding = model.image_encoder.neck.position_encoding
        model.image_encoder.neck.position_encoding = torch.nn.Identity()
        if precision != torch.float32:
            _set_encoder_precision(model, precision)
        self._model = model.to(device).eval()
        # Image mode's stand-in for a memory of earlier frames, which a video has.
        self._no_memory = model.no_mem_embed.reshape(1, -1, 1, 1) if model.directly_add_no_mem_embed else None
        self._transforms = SAM2Transforms(resolution=model.image_size, mask_threshold=0.0)
        self._batch_sizes = tuple(sorted(compile_batch_sizes))
        self._encode = (
            torch.compile(self._image_features, fullgraph=True, dynamic=False)
            if compile_batch_sizes
            else self._image_features
        )
        self._embed_stream, self._decode_stream = own_stream(device), own_stream(device)

    def warm_up(self) -> None:
        """Runs every batch size and a prompt once, so that no request pays for compiling or for what starts lazily.

        Raises:
            Overloaded: the device's memory is too small for a single image.
        """
        image = np.zeros((64, 64, 3), np.uint8)
        for size in self._batch_sizes or (1,):
            embedding = self.embed([image] * size)[0]
        self.decode([(embedding, Prompt(point_coords=[[32, 32]], point_labels=[1]))])

    @torch.inference_mode()
    def position_encoding(self, embedding: ImageEmbedding) -> torch.Tensor:
        """The position encoding of an embedding's `image_embed`, `1×C×h×w` float32, as memory attention takes it."""
        encoding: torch.Tensor = self._position_encoding(embedding.image_embed)
        return encoding.float()

    def check_device(self) -> None:
        """Makes sure that the device still works; see `devices.check_device`."""
        check_device(self.device)

    # ---- images

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding]:
        """`embed_each`, for who wants all or nothing.

        Raises:
            Overloaded: a single image does not fit into the device's memory.
        """
        return all_or_error(self.embed_each(images))

    @torch.inference_mode()
    def embed_each(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding | Overloaded]:
        """Runs the image encoder over a batch: in one run, if it fits into memory.

        Args:
            images: `H×W×3` uint8 RGB images, each of its own size.

        Returns:
            For each its embedding, or the error if it does not fit into the device's memory even alone.
        """
        largest = self._batch_sizes[-1] if self._batch_sizes else max(1, len(images))
        with on_stream(self._embed_stream):
            return [
                embedding
                for start in range(0, len(images), largest)
                for embedding in run_in_halves(self._embed_batch, images[start : start + largest], self.device, "image")
            ]

    def _embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding]:
        """One run of the image encoder."""
        *high_res_feats, image_embed = self._encode(self._batch(images).to(self.precision))
        return [
            ImageEmbedding(
                image_embed=self._one_of(image_embed, index),
                high_res_feats=tuple(self._one_of(feat, index) for feat in high_res_feats),
                image_size=(image.shape[0], image.shape[1]),
            )
            for index, image in enumerate(images)
        ]

    def _batch(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """`B×3×S×S` float32 inputs of the model; B is the next size that is compiled for, the surplus is zeros."""
        count = next((size for size in self._batch_sizes if size >= len(images)), len(images))
        side = self._model.image_size
        batch = torch.zeros((count, 3, side, side), device=self.device)
        for index, image in enumerate(images):
            # ToTensor without its copies. The strided tensor resizes to the same bits as a contiguous one.
            pixels = self._upload(image).permute(2, 0, 1).float().div_(255)
            batch[index] = self._transforms.transforms(pixels)
        return batch

    def _upload(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """`H×W×3` uint8 on the device."""
        if self.device.type != "cuda":
            # Arrays out of Ray's object store are read-only, which torch's tensors are not.
            return torch.from_numpy(np.require(image, requirements=["C", "W"]))
        # The copy out of pinned memory runs while the next image is prepared; torch keeps the memory until it is done.
        pinned = torch.empty(image.shape, dtype=torch.uint8, pin_memory=True)
        pinned.numpy()[...] = image
        return pinned.to(self.device, non_blocking=True)

    def _image_features(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps `B×C×h×w` as `SAM2Base.forward_image` gives them, finest first."""
        feats: list[torch.Tensor] = self._model.forward_image(batch)["backbone_fpn"][-self._model.num_feature_levels :]
        return feats

    def _one_of(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        # A copy: a slice would keep the whole batch in memory for as long as one of its images is remembered.
        return batch[index : index + 1].to(self.precision, copy=True)

    # ---- prompts

    def decode(self, items: Sequence[tuple[ImageEmbedding, Prompt]]) -> list[DecodedPrompt]:
        """`decode_each`, for who wants all or nothing.

        Raises:
            Overloaded: a single object does not fit into the device's memory.
        """
        return all_or_error(self.decode_each(items))

    @torch.inference_mode()
    def decode_each(self, items: Sequence[tuple[ImageEmbedding, Prompt]]) -> list[DecodedPrompt | Overloaded]:
        """Runs prompt encoder and mask decoder for all objects of many prompts, those that are alike together.

        Returns:
            For each item `B×C×256×256` float32 logits, not clamped, and `B×C` float32 IoU predictions, in the
            decoder's order; or the error if one of its objects does not fit into the device's memory even alone.
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
        """Decodes points that are an object each, and leaves the results on the device.

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
        """What is done with such results on the device, one after the other, is done inside this."""
        return on_stream(self._decode_stream)

    def _objects(self, items: Sequence[tuple[ImageEmbedding, Prompt]]) -> Iterator[PromptedObject]:
        for index, (embedding, prompt) in enumerate(items):
            yield from prompted_objects(index, prompt, embedding.image_size, self._model.image_size)

    def _decode_objects(
        self, embeddings: Sequence[ImageEmbedding], objects: Sequence[PromptedObject]
    ) -> list[tuple[FloatArray, FloatArray]]:
        """One run: `C×256×256` logits and `C` IoU predictions of each object. Objects name their embedding by index."""
        low_res_logits, iou_predictions = self._run_decoder(embeddings, objects)
        return list(zip(low_res_logits.cpu().numpy(), iou_predictions.cpu().numpy(), strict=True))

    def _run_decoder(
        self, embeddings: Sequence[ImageEmbedding], objects: Sequence[PromptedObject]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sparse, dense = self._prompt_embeddings(objects)
        images = [embeddings[one.item] for one in objects]
        one_image = all(image is images[0] for image in images)
        # The decoder repeats a single image's features by itself, and the finer ones without copying them.
        images = images[:1] if one_image else images
        levels = [image.high_res_feats for image in images]
        image_embed = _joined([image.image_embed for image in images])
        low_res_logits, iou_predictions, _, _ = self._model.sam_mask_decoder(
            image_embeddings=image_embed if self._no_memory is None else image_embed + self._no_memory,
            image_pe=self._model.sam_prompt_encoder.get_dense_pe(),
            # Without points and masks there is a single, empty prompt, which stands for all objects.
            sparse_prompt_embeddings=sparse.expand(len(objects), -1, -1),
            dense_prompt_embeddings=dense.expand(len(objects), -1, -1, -1),
            multimask_output=objects[0].multimask_output,
            repeat_image=one_image,
            high_res_features=[_joined(level) for level in zip(*levels, strict=True)],
        )
        return low_res_logits, iou_predictions

    def _prompt_embeddings(self, objects: Sequence[PromptedObject]) -> tuple[torch.Tensor, torch.Tensor]:
        """`B×N×C` embeddings of points and boxes, and `B×C×h×w` of masks, of objects of the same kind."""
        coords = self._stacked([one.coords for one in objects if one.coords is not None])
        labels = self._stacked([one.labels for one in objects if one.labels is not None])
        sparse, dense = self._model.sam_prompt_encoder(
            points=None if coords is None else (coords, labels),
            boxes=None,
            masks=self._stacked([one.mask for one in objects if one.mask is not None]),
        )
        return sparse, dense

    def _stacked(self, arrays: Sequence[FloatArray] | Sequence[NDArray[np.int32]]) -> torch.Tensor | None:
        return torch.from_numpy(np.stack(arrays)).to(self.device) if arrays else None


def _stacked_or_error(objects: Sequence[DecodedPrompt | Overloaded]) -> DecodedPrompt | Overloaded:
    """The objects of one prompt as one answer, or the first error among them."""
    try:
        logits, scores = zip(*all_or_error(objects), strict=True)
    except Overloaded as error:
        return error
    return np.stack(logits), np.stack(scores)


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensors as one float32 batch; a single one is not copied unless it must be cast."""
    return (tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))).float()


def _set_encoder_precision(model: SAM2Base, precision: torch.dtype) -> None:
    """Casts all that runs in `forward_image`; what decodes prompts stays as it is."""
    model.image_encoder.to(precision)
    if model.use_high_res_features_in_sam:
        # They stand in the mask decoder, but only forward_image applies them: to the neck's finest levels, which are
        # float32 where its top-down path, which interpolates in float32, reaches them.
        for conv in (model.sam_mask_decoder.conv_s0, model.sam_mask_decoder.conv_s1):
            conv.to(precision).register_forward_pre_hook(lambda _, inputs: tuple(x.to(precision) for x in inputs))
