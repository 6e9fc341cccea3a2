"""MLflow: a run of wherry as a run there, with a nested run for each target."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wherry.hookspecs import hookimpl
from wherry.trackers import Tracked, Tracker


class MlflowParameters(BaseModel):
    """What stands below ``track: {mlflow: ...}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str | None = Field(
        default=None, description="of the server; unless said: MLFLOW_TRACKING_URI"
    )
    experiment: str = Field(
        default="wherry", min_length=1, description="the experiment; made where there is none"
    )
    files: bool = Field(default=True, description="upload report.json and report.html")
    artifacts: bool = Field(default=False, description="upload the targets' artifacts, too")

    @field_validator("uri")
    @classmethod
    def _no_secrets(cls, uri: str | None) -> str | None:
        if uri is not None and "@" in uri.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "has a name or password in it, and manifests are kept: give them in "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return uri


@hookimpl
def wherry_trackers() -> Iterable[Tracker]:
    """The tracker ``mlflow``."""
    yield Tracker("mlflow", "an MLflow tracking server", MlflowParameters, _log)


def _log(parameters: Any, tracked: Tracked) -> str:
    from wherry_mlflow.log import log

    return log(parameters, tracked)
