"""Every metric's name, unit and tags. Serve adds application, deployment and replica."""

from ray.serve.metrics import Counter, Gauge

MODEL = ("model_id",)


class CacheMetrics:
    """What happens in the embedding cache of one model replica."""

    def __init__(self, model_id: str) -> None:
        self._hits = Counter(
            "sam2_embedding_cache_hits", "Requests whose image was remembered or already on its way.", MODEL
        )
        self._misses = Counter("sam2_embedding_cache_misses", "Images that the encoder had to run for.", MODEL)
        self._evictions = Counter(
            "sam2_embedding_cache_evictions", "Images that made room for others, or whose time was over.", MODEL
        )
        self._bytes = Gauge("sam2_embedding_cache_bytes", "Memory of the remembered embeddings, in bytes.", MODEL)
        self._entries = Gauge("sam2_embedding_cache_entries", "Remembered images.", MODEL)
        for metric in (self._hits, self._misses, self._evictions, self._bytes, self._entries):
            # A dict each: Serve adds to it.
            metric.set_default_tags({"model_id": model_id})

    def hit(self) -> None:
        """An image was remembered, or on its way."""
        self._hits.inc()

    def miss(self) -> None:
        """The encoder has to run."""
        self._misses.inc()

    def evicted(self) -> None:
        """An image made room for another, or its time was over."""
        self._evictions.inc()

    def holds(self, entries: int, nbytes: int) -> None:
        """So many images, of so many bytes, are remembered now."""
        self._entries.set(entries)
        self._bytes.set(nbytes)
