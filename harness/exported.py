"""What a running service exports for Prometheus."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

Labels = dict[str, str]


@dataclass(frozen=True)
class Exported:
    """One scrape: samples by their full name, such as `ray_sam2_requests_total`."""

    samples: dict[str, list[tuple[Labels, float]]]

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        found = self.samples.get(name, [])
        return sum(value for has, value in found if labels.items() <= has.items())

    def labels(self, name: str) -> set[str]:
        """The names of a metric's labels."""
        return {label for has, _ in self.samples.get(name, []) for label in has}


def scrape(url: str) -> Exported:
    """What is exported now."""
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for name, labels, value in _samples(httpx.get(url, timeout=10).text):
        samples.setdefault(name, []).append((labels, value))
    return Exported(samples)


def _samples(text: str) -> Iterator[tuple[str, Labels, float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def scrape_until(url: str, condition: Callable[[Exported], bool], timeout_s: float = 30) -> Exported:
    """Scrapes until what has happened is exported, which replicas do from time to time."""
    deadline = time.monotonic() + timeout_s
    while not condition(exported := scrape(url)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return exported
