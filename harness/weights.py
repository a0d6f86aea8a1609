"""Seeded random weights in the places where the service's real loading code looks for them."""

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES
from sam2.modeling.sam2_base import SAM2Base

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sam2_package() -> Path:
    """The folder of the sam2 package, which holds its configurations."""
    import sam2

    return Path(next(iter(sam2.__path__)))


def random_model(config: Path, seed: int = 0) -> SAM2Base:
    """A model with seeded random weights, without sam2's postprocessing overrides (they have no weights)."""
    torch.manual_seed(seed)
    model: SAM2Base = instantiate(OmegaConf.load(config).model, _recursive_=True)
    return model


def save_checkpoint(model: SAM2Base, path: Path) -> Path:
    """Writes a checkpoint as Meta's are: `{"model": state_dict}`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict()}, path)
    return path


def fill_hub_cache(cache: Path, model_id: str, seed: int = 0) -> Path:
    """Puts random weights for a hub id into a Hugging Face cache folder; returns the checkpoint's file."""
    config, filename = HF_MODEL_ID_TO_FILENAMES[model_id]
    repo = cache / f"models--{model_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return save_checkpoint(random_model(sam2_package() / config, seed), repo / "snapshots" / COMMIT / filename)
