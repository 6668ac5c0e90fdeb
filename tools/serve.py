"""A service for labelling tools (docs/other-tools.md): supports are set, images come, masks or polygons go.

    python -m tools.serve --weights FILE                    # http://127.0.0.1:9090, for programs on this machine
    python -m tools.serve --host 0.0.0.0 --token SECRET     # for others too
    python -m tools.serve --label-studio http://localhost:8080      # as Label Studio's model

All work is done by one thread, one request after the other.
"""

import argparse
import base64
import hmac
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from prediction.choice import find_source, open_predictor
from prediction.service import BusyError, Event, PredictRequest, Service, SupportRequest, as_objects
from util.arguments import Parser, check_port
from util.errors import UserError, run_main
from util.visualize import encode_index

LOCAL = "127.0.0.1", "localhost", "::1"
Model = TypeVar("Model", bound=BaseModel)


def make_app(service: Service, token: str | None = None) -> Any:
    """The FastAPI application; without a token it answers only what was sent to this machine's own name."""
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import JSONResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(title="Few-shot segmentation", openapi_url=None)
    if token is None:  # a web page that a browser shows may have its own name lead here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL))

    @app.exception_handler(UserError)
    async def mistake(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return JSONResponse({"detail": "too many requests wait; try again"}, 503, {"Retry-After": "5"})

    async def body(request: Request) -> bytes:
        """What was sent, if the token is right and it is not too large."""
        kind, _, sent = request.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":  # Label Studio's user and password
            sent = base64.b64decode(sent, validate=False).decode(errors="replace").partition(":")[2]
        if token is not None and not hmac.compare_digest(sent.encode(), token.encode()):
            raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Basic"})
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > service.limit:
                raise HTTPException(413, f"more than {service.limit >> 20} MB")
        return bytes(data)

    add_routes(app, service, body)
    return app


def add_routes(app: Any, service: Service, body: Callable[[Any], Awaitable[bytes]]) -> None:
    """What can be asked of the application; `body` gives what a request sent, if it may ask."""
    from fastapi import HTTPException, Request
    from fastapi.responses import JSONResponse, Response

    async def parsed(kind: type[Model], request: Request) -> Model:
        try:
            return kind.model_validate_json(await body(request))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise HTTPException(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": type(service.predictor.model).__name__}

    @app.post("/support")
    async def support(request: Request) -> dict[str, list[str]]:
        return {"classes": await service.run(service.set_support, await parsed(SupportRequest, request))}

    @app.post("/segment")
    async def segment(request: Request, format: str = "png") -> Response:
        if format not in ("png", "polygons"):
            raise UserError(f"format={format}: should be png or polygons")
        prediction = await service.run(service.segment, await body(request))
        if format == "png":
            return Response(encode_index(prediction.mask), media_type="image/png")
        return JSONResponse(as_objects(prediction))

    @app.post("/setup")
    async def setup(request: Request) -> dict[str, str]:
        await body(request)
        return {"model_version": type(service.predictor.model).__name__}

    @app.post("/webhook")
    async def webhook(request: Request) -> dict[str, str]:
        await service.run(service.learn, await parsed(Event, request))
        return {"status": "ok"}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        return {"results": await service.run(service.label, await parsed(PredictRequest, request))}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="A service for labelling tools.")
    parser.add_argument("--weights", metavar="NAME", help="trained network, as of predict.py")
    parser.add_argument("--arch", metavar="METHOD", help="a training-free method (adapt and hmnet-lite)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="as of predict.py")
    parser.add_argument("--host", default=LOCAL[0], help="address to listen at (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=9090, help="port to listen at (9090)")
    parser.add_argument("--token", help="what others have to send; needed with another --host")
    parser.add_argument("--max-mb", type=int, default=64, metavar="N", help="largest request in MB (64)")
    parser.add_argument("--label-studio", metavar="URL", help="where tasks' images lie; key: LABEL_STUDIO_API_KEY")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_opts("key value ..., instead of the config's")
    arguments = parser.parse_args()
    check_port(arguments.port)
    if arguments.host not in LOCAL and not arguments.token:
        raise UserError(f"--host {arguments.host}: others could use the service; give a --token")
    return arguments


def main() -> None:
    """The entry point."""
    arguments = parse_arguments()
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise UserError("tools.serve: needs FastAPI and uvicorn; install them by pip install 'hmnet[serve]'")
    import uvicorn

    source = find_source(arguments.weights, arguments.arch, arguments.config, arguments.opts)
    service = Service(open_predictor(source, arguments.device), arguments.label_studio, arguments.max_mb << 20)
    uvicorn.run(make_app(service, arguments.token), host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    run_main(main)
