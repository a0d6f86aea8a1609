"""How the words of replicas and of Serve join into one state. (Here, since the module imports Ray.)"""

from types import SimpleNamespace

import pytest

from deployments.model_status import ModelStatus
from deployments.parsing.model_states import joined_status

FAILED, READY = ModelStatus("m", "failed", "no such file"), ModelStatus("m", "ready")
ONE, NONE = {"RUNNING": 1}, {"RUNNING": 0}


@pytest.mark.parametrize(
    ("reported", "serve_says", "replicas", "state", "detail"),
    [
        (READY, "HEALTHY", ONE, "ready", ""),
        (None, "HEALTHY", NONE, "asleep", ""),
        (READY, "HEALTHY", NONE, "asleep", ""),
        (None, "UPDATING", {"STARTING": 1}, "loading", "starting a replica"),
        (FAILED, "HEALTHY", ONE, "failed", "no such file"),
        (FAILED, "DEPLOY_FAILED", NONE, "failed", "no such file"),
        (FAILED, "UNHEALTHY", NONE, "failed", "no such file"),
        (None, "DEPLOY_FAILED", NONE, "failed", "Serve's words"),
        # A replica died and is replaced: that is no failure of the model.
        (None, "UNHEALTHY", NONE, "loading", "Serve's words"),
        (READY, "UNHEALTHY", ONE, "ready", ""),
    ],
)
def test_a_model_is_in_one_state(
    reported: ModelStatus | None, serve_says: str, replicas: dict[str, int], state: str, detail: str
) -> None:
    deployment = SimpleNamespace(status=serve_says, replica_states=replicas, message="Serve's words")
    status = joined_status("m", reported, deployment)
    assert (status.model_id, status.state, status.detail) == ("m", state, detail)


def test_a_deployment_that_serve_does_not_know_yet_is_loading() -> None:
    assert joined_status("m", None, None).state == "loading"
    assert joined_status("m", READY, None) == READY
