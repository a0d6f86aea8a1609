"""Asks the Ray cluster to join whether it answers and takes the token that is there: Ray itself tries for 20 s."""

import grpc
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

ANSWER_S = 4.0

WHERE = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"


class ClusterRefusal(Exception):
    """The cluster cannot be joined; the message says why and what to do."""


def check_cluster(address: str) -> None:
    """Turns Ray's token authentication on if there is a token, and tries it.

    Ray does the first by itself only where it starts a cluster; a cluster to join gets the token only with
    RAY_AUTH_MODE=token. A cluster without authentication does not mind a token.

    Args:
        address: `host:port` of the cluster, or `auto` for the one on this machine; others are left to Ray.

    Raises:
        ClusterRefusal: nothing answers there, or it wants another token.
        ValueError: the address is malformed.
    """
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    has_token = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    if "://" in address or (target := canonicalize_bootstrap_address(address)) is None:
        return
    # As Ray's own channels, it takes no proxy that the environment names for other connections.
    channel = init_grpc_channel(target, options=GLOBAL_GRPC_OPTIONS)
    try:
        NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=ANSWER_S, wait_for_ready=True)  # type: ignore[no-untyped-call]
    except grpc.RpcError as error:
        code = error.code()
        if code == grpc.StatusCode.UNAUTHENTICATED:
            fault = f"does not take the token of {WHERE}" if has_token else f"asks for its token; it may be in {WHERE}"
            raise ClusterRefusal(f"the Ray cluster at {address} {fault}") from error
        raise ClusterRefusal(f"no Ray cluster answers at {address}") from error
    finally:
        channel.close()
