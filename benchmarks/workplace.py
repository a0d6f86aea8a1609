"""What all parts share: how long to take, where to put files, and the weights that both servers load."""

from dataclasses import dataclass
from pathlib import Path

from tests.weights import fill_hub_cache

ROOT = Path(__file__).resolve().parent.parent
TINY = "facebook/sam2-hiera-tiny"
DEMO = "sam2-demo"


@dataclass(frozen=True)
class Workplace:
    """A temporary folder with a hub cache of seeded random weights.

    Attributes:
        folder: for logs and configs; removed at the end.
        quick: fewer and shorter measurements, to see that all works; its figures mean little.
        precision: what the service computes with, as its settings have it.
    """

    folder: Path
    quick: bool
    precision: str

    @property
    def hub_cache(self) -> Path:
        """The Hugging Face cache folder that the servers get as HF_HUB_CACHE."""
        return self.folder / "hub"

    def fill(self) -> None:
        """Writes the weights of hiera-tiny: random ones, since no figure here depends on what the model has learnt."""
        fill_hub_cache(self.hub_cache, TINY)
