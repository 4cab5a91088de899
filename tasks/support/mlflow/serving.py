"""MLflow's scoring server for a registered model, less one fault of it."""

from __future__ import annotations

import mlflow
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from mlflow.pyfunc import scoring_server

from tasks.support.mlflow.runs import mlflow_client, tracking_uri


def make_app(uri: str) -> FastAPI:
    """The application of `mlflow models serve`: /invocations, /ping, /health and /version.

    There, JSON that is nested too deeply for Python's parser is a 500, as if the server were at
    fault (MLflow 3.17: RecursionError in `mlflow.pyfunc.scoring_server`); here a 400.

    Args:
        uri: of a model in MLflow, such as models:/dynammo-skin@champion.

    Raises:
        TrackingError: see `tasks.support.mlflow.runs.mlflow_client`; there is no such model.
    """
    with mlflow_client():
        mlflow.set_tracking_uri(tracking_uri())
        model = scoring_server.load_model_with_mlflow_config(uri)  # type: ignore[no-untyped-call]
    app: FastAPI = scoring_server.init(model)

    @app.exception_handler(RecursionError)
    async def refuse(request: Request, error: RecursionError) -> JSONResponse:
        message = "the JSON is nested too deeply"
        return JSONResponse({"error_code": "BAD_REQUEST", "message": message}, status_code=400)

    return app


def run(app: FastAPI, host: str, port: int) -> None:
    """Answer requests at http://host:port until a signal comes."""
    uvicorn.run(app, host=host, port=port, log_level="warning")
