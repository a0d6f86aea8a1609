"""Tells whether sending an answer waits for the client to read it."""

import ray
from ray.serve._private.constants import RAY_SERVE_ENABLE_DIRECT_INGRESS, RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD


def is_flow_controlled() -> bool:
    """Returns whether this replica's answers wait for clients to read them.

    They do if clients reach the replica's own HTTP server (direct ingress, behind HAProxy) and that server shares the
    replica's event loop. Otherwise Serve buffers everything that is sent, however slowly the client reads.
    """
    return RAY_SERVE_ENABLE_DIRECT_INGRESS and not RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD


def is_request_flow_controlled() -> bool:
    """Returns whether this response is flow-controlled.

    The response to a request that came through Serve's own proxy is not flow-controlled. HAProxy falls back to that
    proxy while a changed application is being built, and on nodes without a parser. Such a request is a call from
    another Ray actor, not from the HTTP server that runs inside this one.
    """
    if not is_flow_controlled():
        return False
    # The HTTP server runs in the task that started the replica; actors' calls run as `ReplicaActor.handle_request…`.
    return ".handle_request" not in (ray.get_runtime_context().get_task_function_name() or "")
