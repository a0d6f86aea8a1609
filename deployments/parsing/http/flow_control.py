"""Whether what is sent waits for the client to take it."""

import ray
from ray.serve._private.constants import RAY_SERVE_ENABLE_DIRECT_INGRESS, RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD


def is_flow_controlled() -> bool:
    """Whether what this replica sends waits for the client to take it.

    So it is where clients reach the replica's own HTTP server (direct ingress, behind HAProxy) and that server shares
    its event loop. Elsewhere Serve takes in all that is sent, however slowly the client reads.
    """
    return RAY_SERVE_ENABLE_DIRECT_INGRESS and not RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD


def is_request_flow_controlled() -> bool:
    """Whether it is so for the request at hand.

    HAProxy falls back to Serve's own proxy while a changed application is being built, and where there is no parser:
    then the request is a call of another Ray actor's, and not of the HTTP server that runs inside this one.
    """
    if not is_flow_controlled():
        return False
    # The HTTP server belongs to the task that started the replica; calls are `ReplicaActor.handle_request…`.
    return ".handle_request" not in (ray.get_runtime_context().get_task_function_name() or "")
