"""The budgets of DESIGN.md, section 6, and of the serving path: the one place that holds their figures."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Budget:
    """What a measurement must reach.

    Attributes:
        part: the part of the benchmark that measures it.
        what: what is measured.
        limit: the figure, in `unit`.
        sense: whether the measurement must be at most or at least that.
        unit: `×`, `MB`, `ms`, `%`, or nothing for a plain number.
    """

    part: str
    what: str
    limit: float
    sense: Literal["at most", "at least"]
    unit: str = ""

    def met_by(self, measured: float) -> bool:
        """Whether a measurement keeps it."""
        return measured <= self.limit if self.sense == "at most" else measured >= self.limit

    def __str__(self) -> str:
        sign, gap = ("≤" if self.sense == "at most" else "≥"), "" if self.unit == "×" else " "
        return f"{sign} {self.limit:g}{gap}{self.unit}".rstrip()


def figure(value: float, unit: str) -> str:
    """A number as the tables show it."""
    match unit:
        case "×":
            return f"{value:.1f}×"
        case "MB" | "ms":
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
        case "%":
            return f"{value:.0f} %" if value in (0, 100) else f"{value:.1f} %"
        case _:
            return f"{value:.4g}" + (f" {unit}" if unit else "")


MEMORY_MB = 256.0

BUDGETS = {
    "parity float32": Budget(
        "parity", "float32: max abs difference of logits from SAM2ImagePredictor", 1e-3, "at most"
    ),
    "parity bfloat16": Budget("parity", "bfloat16: mean IoU with SAM2ImagePredictor", 0.99, "at least"),
    "new image": Budget("scenarios", "throughput ÷ naive: 1080p, new image, default JSON", 5, "at least", "×"),
    "same image": Budget(
        "scenarios", "throughput ÷ naive: 1080p, same image, new prompt, default JSON", 15, "at least", "×"
    ),
    "same image small": Budget(
        "scenarios", "throughput ÷ naive: 1080p, same image by image_id, new prompt, RLE", 40, "at least", "×"
    ),
    "same image small, stretch": Budget("scenarios", "the same, stretch goal", 80, "at least", "×"),
    "encoder cpu": Budget("encoder", "CPU: image encoder ÷ its bfloat16 matmul floor", 2.5, "at most", "×"),
    "encoder gpu": Budget("encoder", "GPU: hiera-large encoder, of the bfloat16 matmul rate", 40, "at least", "%"),
    "overhead": Budget("overhead", "what Ray and HTTP add to a warm RLE prompt, median", 15, "at most", "ms"),
    "first click": Budget(
        "page", "the page: first click on an image to mask on the screen, median", 150, "at most", "ms"
    ),
    "objects": Budget("objects", "a request with 100 boxes ÷ one with one box, new image, RLE", 10, "at most", "×"),
    "everything": Budget(
        "everything", "everything over HTTP: times as fast as SAM2AutomaticMaskGenerator", 1, "at least", "×"
    ),
    "click": Budget("everything", "a click's latency while everything is segmented ÷ idle", 3, "at most", "×"),
    "single flight": Budget("affinity", "encoder runs for ten concurrent requests for one new image", 1, "at most"),
    "memory": Budget(
        "memory",
        "12 megapixels, default JSON, a client that reads: above idle and the image",
        MEMORY_MB,
        "at most",
        "MB",
    ),
    "slow readers": Budget(
        "memory",
        "50 clients that do not read: above idle and the answer budget",
        MEMORY_MB,
        "at most",
        "MB",
    ),
    "replica killed": Budget("faults", "replica killed under load: failed requests", 0, "at most"),
    "rolling update": Budget("faults", "rolling update under load: failed requests", 0, "at most"),
    "scaling": Budget("scaling", "throughput at 8 replicas ÷ 8 × that of one, waiting engine", 0.9, "at least"),
    "affinity": Budget("affinity", "cache hits of follow-up prompts, 4 replicas", 95, "at least", "%"),
    "affinity after": Budget("affinity", "the same, after a fifth replica has come", 95, "at least", "%"),
    # A fifth is expected to move; of 60 images that is 12, with a standard deviation of 3.
    "moved": Budget("affinity", "images that move when a fifth replica comes", 35, "at most", "%"),
}
