"""SAM 2 on torch without state: images to embeddings, embeddings and prompts to segmentations.

What `SAM2ImagePredictor` computes, but with the image's features as a value that can be cached and sent around rather
than kept on the object. Needs no Ray.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pynvml
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from sam2.utils.transforms import SAM2Transforms

from deployments.errors import ModelLoadError, Overloaded
from deployments.schema import FloatArray, Prompt

# Labels by which SAM 2's prompt encoder knows the corners of a box.
BOX_CORNER_LABELS = (2, 3)

OBJECTS_AT_ONCE = 32
"""Objects decoded in one run. Each takes about 27 MB of activations; in one run 256 of them would take 7 GB."""


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """What the image encoder makes of one image.

    Attributes:
        image_embed: `1×C×h×w` float32, the coarsest feature map (for SAM 2, C = 256 and h = w = 64).
        high_res_feats: finer feature maps for the mask decoder, finest first, each `1×C'×h'×w'`.
        image_size: height and width of the original image in pixels.
    """

    image_embed: torch.Tensor
    high_res_feats: tuple[torch.Tensor, ...]
    image_size: tuple[int, int]


@contextmanager
def _memory_as_overload() -> Iterator[None]:
    """A GPU whose share is full is overload, which passes; not a bug."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Overloaded(f"the device's memory is full: {str(error).splitlines()[0]}") from error


class Engine:
    """A SAM2Base model and the steps from pixels to low-resolution masks."""

    def __init__(self, model: SAM2Base, device: torch.device) -> None:
        self.device = device
        self._model = model.to(device).eval()
        self._transforms = SAM2Transforms(resolution=model.image_size, mask_threshold=0.0)

    @_memory_as_overload()
    @torch.inference_mode()
    def embed(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding]:
        """Runs the image encoder once over a batch.

        Args:
            images: `H×W×3` uint8 RGB images, each of its own size.

        Raises:
            Overloaded: the device's memory is full.
        """
        # Arrays out of Ray's object store are read-only, which torch's tensors are not.
        pixels = [np.require(image, requirements=["C", "W"]) for image in images]
        batch = self._transforms.forward_batch(pixels).to(self.device)
        backbone_out = self._model.forward_image(batch)
        _, vision_feats, _, feat_sizes = self._model._prepare_backbone_features(backbone_out)
        if self._model.directly_add_no_mem_embed:
            vision_feats[-1] = vision_feats[-1] + self._model.no_mem_embed
        # (h·w)×B×C, as the memory attention wants them, to B×C×h×w, as the mask decoder does.
        feats = [
            feat.permute(1, 2, 0).reshape(len(images), -1, *size)
            for feat, size in zip(vision_feats, feat_sizes, strict=True)
        ]
        return [
            ImageEmbedding(
                # Clones: a slice would keep the whole batch in memory for as long as one of its images is remembered.
                image_embed=feats[-1][index : index + 1].clone(),
                high_res_feats=tuple(feat[index : index + 1].clone() for feat in feats[:-1]),
                image_size=(image.shape[0], image.shape[1]),
            )
            for index, image in enumerate(images)
        ]

    @_memory_as_overload()
    @torch.inference_mode()
    def decode(self, embedding: ImageEmbedding, prompt: Prompt) -> tuple[FloatArray, FloatArray]:
        """Runs prompt encoder and mask decoder for all objects of one prompt, a few at a time.

        Returns:
            `B×C×256×256` float32 logits, not clamped, and `B×C` float32 IoU predictions, in the decoder's order.

        Raises:
            Overloaded: the device's memory is full.
        """
        points = self._point_tokens(prompt, embedding.image_size)
        masks = prompt.batched_masks()
        parts = []
        for start in range(0, prompt.num_objects, OBJECTS_AT_ONCE):
            some = slice(start, start + OBJECTS_AT_ONCE)
            # One mask may serve all objects; it is then broadcast rather than cut.
            some_masks = masks if masks is None or len(masks) < prompt.num_objects else masks[some]
            some_points = None if points is None else (points[0][some], points[1][some])
            parts.append(self._decode_objects(embedding, some_points, some_masks, prompt.multimask_output))
        low_res_logits, iou_predictions = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return low_res_logits.float().cpu().numpy(), iou_predictions.float().cpu().numpy()

    def _decode_objects(
        self,
        embedding: ImageEmbedding,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        masks: FloatArray | None,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One run of prompt encoder and mask decoder: logits and IoU predictions of a few objects."""
        sparse, dense = self._model.sam_prompt_encoder(
            points=points, boxes=None, masks=None if masks is None else torch.tensor(masks, device=self.device)
        )
        low_res_logits, iou_predictions, _, _ = self._model.sam_mask_decoder(
            image_embeddings=embedding.image_embed,
            image_pe=self._model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
            repeat_image=len(sparse) > 1,
            high_res_features=list(embedding.high_res_feats),
        )
        return low_res_logits, iou_predictions

    def _point_tokens(self, prompt: Prompt, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`B×N×2` coordinates in the model's frame and `B×N` labels, a box as two points in front; None without any."""
        coords, labels = [], []
        boxes = prompt.batched_boxes()
        if boxes is not None:
            coords.append(boxes.reshape(-1, 2, 2))
            labels.append(np.tile(np.asarray(BOX_CORNER_LABELS, np.int32), (len(boxes), 1)))
        points = prompt.batched_points()
        if points is not None:
            coords.append(points[0])
            labels.append(points[1])
        if not coords:
            return None
        all_coords = torch.as_tensor(np.concatenate(coords, axis=1), device=self.device)
        all_labels = torch.as_tensor(np.concatenate(labels, axis=1), device=self.device)
        frame = self._transforms.transform_coords(all_coords, normalize=prompt.normalize_coords, orig_hw=image_size)
        return frame, all_labels


def limit_gpu_memory(device: torch.device, fraction: float, context_reserve_bytes: int) -> None:
    """Caps this process at its share of the GPU; torch raises OutOfMemoryError beyond it.

    Ray only counts fractions and enforces none. The CUDA context lies outside torch's allocator, so its size is
    subtracted from the share.

    Args:
        device: the CUDA device.
        fraction: share of the GPU that Ray assigned, in (0, 1].
        context_reserve_bytes: what the CUDA context takes of the share.

    Raises:
        ModelLoadError: the share is smaller than the context.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    share = fraction - context_reserve_bytes / total
    if share <= 0:
        raise ModelLoadError(f"{fraction:g} of a GPU of {total} bytes leaves nothing beside the CUDA context")
    torch.cuda.set_per_process_memory_fraction(share, device)


def cuda_context_bytes(device: torch.device) -> int:
    """Starts CUDA on the device and measures what its context takes, outside torch's allocator.

    NVML may not know this process by its id (inside a container); then 600 MiB are assumed, which covers the
    400–600 MiB of current cards.
    """
    torch.zeros(1, device=device)
    used = _used_by_this_process(str(torch.cuda.get_device_properties(device).uuid))
    return 600 * 2**20 if used is None else max(0, used - torch.cuda.memory_reserved(device))


def _used_by_this_process(gpu_uuid: str) -> int | None:
    """Bytes of the GPU's memory that this process holds; None where NVML cannot tell."""
    try:
        pynvml.nvmlInit()
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{gpu_uuid}"))
    except pynvml.NVMLError:
        return None
    return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)


def start_device(device: str, gpu_fraction: float, torch_threads: int | None) -> torch.device:
    """The device to run on, ready for use; `auto` is the GPU where Ray assigned a share of one.

    Args:
        device: `auto`, `cpu` or `cuda`.
        gpu_fraction: share of the GPU that Ray assigned; this process's memory is capped at it.
        torch_threads: CPU threads; None takes all cores, where Ray would have set one for a fraction of a CPU.

    Raises:
        ModelLoadError: a GPU is asked for and torch finds none.
    """
    torch.set_num_threads(torch_threads or len(os.sched_getaffinity(0)))
    if device == "cpu" or (device == "auto" and gpu_fraction == 0):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelLoadError("a GPU was asked for, but torch finds no CUDA device")
    cuda = torch.device("cuda")
    if 0 < gpu_fraction < 1:
        limit_gpu_memory(cuda, gpu_fraction, cuda_context_bytes(cuda))
    return cuda
