"""Builds a SAM2Base from a model id: one of the eight on Hugging Face, your own checkpoint, or the bundled model."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2
import torch
import yaml
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base
from tqdm import tqdm

from deployments.errors import ModelLoadError
from deployments.settings import BUNDLED_MODEL_ID, ModelSettings

ReportProgress = Callable[[str, int, int], None]
"""Called with the current step, the bytes done and the total bytes (0 and 0 where nothing is downloaded)."""

HUB_PROBE_TIMEOUT_S = 8.0
"""A hub that does not tell a file's size within this time counts as unreachable."""

DEMO = Path(__file__).parent / "demo"

# sam2's build_sam2 adds these to every configuration, so `SAM2ImagePredictor.from_pretrained` computes with them.
POSTPROCESSING = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}

# The errors that torch and safetensors raise on a file that is damaged, truncated, or not a checkpoint at all.
UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    OSError,
)


def load_model(settings: ModelSettings, report: ReportProgress) -> SAM2Base:
    """Returns the model with its weights, float32, on the CPU, in evaluation mode.

    Args:
        settings: of the model.
        report: called as loading progresses.

    Raises:
        ModelLoadError: the hub cannot be reached, a file is missing, or the weights do not fit the configuration.
    """
    config, checkpoint = locate(settings, report)
    report(f"loading {checkpoint.name}", 0, 0)
    model = _build(settings.model_id, config)
    _load_weights(settings.model_id, model, checkpoint)
    return model.eval()


def prefetch(model_id: str, report: ReportProgress) -> Path:
    """Downloads a model's checkpoint into the hub cache, for use without a network, and returns its file.

    Raises:
        ModelLoadError: the id is not one of the hub's, or the hub cannot be reached.
    """
    if model_id not in HF_MODEL_ID_TO_FILENAMES:
        raise ModelLoadError(f"{model_id}: is not on the hub; known are {', '.join(HF_MODEL_ID_TO_FILENAMES)}")
    return _download(model_id, HF_MODEL_ID_TO_FILENAMES[model_id][1], report)


def locate(settings: ModelSettings, report: ReportProgress) -> tuple[Path, Path]:
    """Returns the files of configuration and weights; downloads the weights if necessary.

    Raises:
        ModelLoadError: the hub cannot be reached, or a file is missing.
    """
    if settings.checkpoint is not None and settings.config is not None:
        return _config_file(settings.model_id, settings.config), _existing(settings.model_id, settings.checkpoint)
    if settings.model_id == BUNDLED_MODEL_ID:
        return DEMO / "sam2_demo.yaml", _existing(settings.model_id, DEMO / "sam2_demo.safetensors")
    return _config_file(settings.model_id, HF_MODEL_ID_TO_FILENAMES[settings.model_id][0]), prefetch(
        settings.model_id, report
    )


def _existing(model_id: str, path: Path) -> Path:
    if not path.is_file():
        raise ModelLoadError(f"{model_id}: no such file: {path}")
    return path


def _config_file(model_id: str, name: str) -> Path:
    """Returns a SAM 2 yaml: a file of the user's own, or one inside the sam2 package."""
    if Path(name).is_file():
        return Path(name)
    packaged = Path(str(files("sam2").joinpath(name)))
    if packaged.is_file() and packaged.suffix == ".yaml":
        return packaged
    raise ModelLoadError(f"{model_id}: {name} is neither a file nor a configuration of the sam2 package")


def _download(model_id: str, filename: str, report: ReportProgress) -> Path:
    cached = try_to_load_from_cache(model_id, filename)
    if isinstance(cached, str):
        return Path(cached)
    report(f"asking the hub for {filename}", 0, 0)
    try:
        # This first request skips the client library's retries, so that an unreachable hub is noticed within seconds.
        url = hf_hub_url(model_id, filename)
        size = _within(HUB_PROBE_TIMEOUT_S, lambda: get_hf_file_metadata(url, timeout=HUB_PROBE_TIMEOUT_S).size or 0)
        progress = _progress_class(f"downloading {filename}", size, report)
        return Path(hf_hub_download(model_id, filename, tqdm_class=progress))
    except OfflineModeIsEnabled as error:
        raise ModelLoadError(f"{model_id}: {filename} is not in the hub cache, and HF_HUB_OFFLINE is set") from error
    # hf_xet raises RuntimeError for an interrupted transfer.
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        HFValidationError,
        httpx2.HTTPError,
        OSError,
        RuntimeError,
    ) as error:
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelLoadError(f"{model_id}: cannot download {filename} from the hub: {cause}") from error


def _within(seconds: float, call: Callable[[], int]) -> int:
    """Returns the result of a call; raises TimeoutError after `seconds` in total, over all addresses that it tries."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="hub-probe")
    try:
        return executor.submit(call).result(timeout=seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") from error
    finally:
        executor.shutdown(wait=False)


def _progress_class(what: str, total: int, report: ReportProgress) -> type[Any]:
    """Returns a progress bar class for hf_hub_download that draws nothing and calls `report` instead."""

    class Progress(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self._done = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self._done += int(n or 0)
            report(what, self._done, total)
            return None

    return Progress


def _build(model_id: str, config: Path) -> SAM2Base:
    """Returns a SAM2Base with untrained weights, as sam2's build_sam2 builds it from the same file."""
    try:
        tree = OmegaConf.load(config)
        if not isinstance(tree, DictConfig):
            raise ModelLoadError(f"{model_id}: {config.name} is not a SAM 2 configuration: it is a list")
        OmegaConf.update(tree, "model.sam_mask_decoder_extra_args", POSTPROCESSING, merge=True, force_add=True)
        OmegaConf.resolve(tree)
        model = instantiate(tree.model, _recursive_=True)
    except (OmegaConfBaseException, InstantiationException, yaml.YAMLError, ValueError, OSError) as error:
        raise ModelLoadError(f"{model_id}: {config.name} is not a SAM 2 configuration: {error}") from error
    if not isinstance(model, SAM2Base):
        raise ModelLoadError(f"{model_id}: {config.name} describes {type(model).__name__}, not a SAM2Base")
    # The engine computes what these two do, not what another class would.
    decoder = model.sam_mask_decoder
    if type(decoder) is not MaskDecoder or type(decoder.transformer) is not TwoWayTransformer:
        raise ModelLoadError(f"{model_id}: {config.name} has a mask decoder of its own, {type(decoder).__name__}")
    return model


def _load_weights(model_id: str, model: SAM2Base, checkpoint: Path) -> None:
    state = _read_state_dict(model_id, checkpoint)
    try:
        model.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        cause = " ".join(str(error).split())[:400]
        raise ModelLoadError(f"{model_id}: {checkpoint.name} does not fit the configuration: {cause}") from error


def _read_state_dict(model_id: str, checkpoint: Path) -> dict[str, torch.Tensor]:
    try:
        if checkpoint.suffix == ".safetensors":
            saved = {"model": load_file(checkpoint)}
        else:
            saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelLoadError(f"{model_id}: {checkpoint.name} cannot be read as a checkpoint: {cause}") from error
    state = saved.get("model") if isinstance(saved, dict) else None
    if not isinstance(state, dict):
        raise ModelLoadError(f"{model_id}: {checkpoint.name} holds no `model` state dict")
    return state
