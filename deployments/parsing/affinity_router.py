"""The consistent-hash router, mended for several calls of one request: the same image, the same replica."""

from ray.serve._private.common import RequestMetadata
from ray.serve._private.request_router.common import PendingRequest
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter


class AffinityRouter(ConsistentHashRouter):
    """Ray's ConsistentHashRouter, which sends equal session ids to the same replica, without its mix-up of calls.

    It finds the call that a replica was chosen for by an id that all calls made inside one request inherit. Of several
    concurrent ones, some would so get another's replica, and the last would hang. Every call has metadata of its own.
    """

    def _get_pending_request_matching_internal_request_id(
        self, request_metadata: RequestMetadata | None = None
    ) -> PendingRequest | None:
        return next(
            (
                pending
                for pending in self._pending_requests_to_fulfill
                if pending.metadata is request_metadata and not pending.future.done()
            ),
            None,
        )
