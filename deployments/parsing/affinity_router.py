"""Ray's consistent-hash router with a fix for several calls of one request: sends an image to the same replica."""

from ray.serve._private.common import RequestMetadata
from ray.serve._private.request_router.common import PendingRequest
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter


class AffinityRouter(ConsistentHashRouter):
    """Ray's ConsistentHashRouter, which sends equal session ids to the same replica, without its mix-up of calls.

    Ray's router chooses a replica for a call and then looks the call up by its request's internal id, which all calls
    made inside one request share. Of several concurrent calls some would get another call's replica, and the last
    would hang. This router compares the metadata objects instead, of which every call has its own.
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
