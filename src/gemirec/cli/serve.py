"""The verb that serves a trained model over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gemirec.cli.options import ConfigFile, Json, Set


def serve(
    artifact: Annotated[
        Path, typer.Argument(help="Trained model (OUT/artifact of gemirec train), or a folder of releases.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; one that others reach needs keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    split: Annotated[
        Path | None, typer.Option(metavar="ARTIFACT", help="Second trained model, variant B, for a share of the users.")
    ] = None,
    share: Annotated[float, typer.Option(help="With --split: share of the users who get the second model.")] = 0.5,
    salt: Annotated[
        str, typer.Option(help="With --split: name of the experiment; another one deals the users anew.")
    ] = "gemirec",
    compare: Annotated[
        Path | None,
        typer.Option(metavar="ARTIFACT", help="Second trained model, to be looked at beside the first on the page."),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Index of ARTIFACT's items (gemirec index); without it all are searched."),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="GEMIREC_REDIS_URL", help="Where interest caches of releases in Redis are."),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="SQLite file of the events; default events.sqlite beside ARTIFACT."),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file of API keys; without it the variable GEMIREC_API_KEYS, if set."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM file of the certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM file of its private key.")] = None,
    config: ConfigFile = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Serve a trained model over HTTP until it is told to stop (SIGTERM, Ctrl+C).

    POST /recommend, /recommend:batch, /interests, /explain, /similar, /events, /reload; GET /healthz, /readyz,
    /metrics, /openapi.json (which describes them all, with examples). At / a page shows any user's interests in a
    browser. Without API keys only this machine can ask.
    Limits are set with --set (max_batch, max_queue, deadline_ms, max_body, ...). Needs the extra serve.

        gemirec serve run/artifact

        gemirec serve run/artifact --index run/index

        gemirec serve releases                                  # artifact, index and cache of interests together

        gemirec serve run/artifact --compare other/artifact     # both beside each other on the page

        gemirec serve run/artifact --host 0.0.0.0 --keys keys.yaml --tls-cert cert.pem --tls-key key.pem

        gemirec serve run/artifact --split other/artifact --share 0.1 --salt spring     # see gemirec ab-report

        gemirec serve run/artifact --port 0 --events events.sqlite --set deadline_ms=200 --set max_queue=64
    """
    from gemirec.config import from_dict
    from gemirec.experiments.summaries import layered
    from gemirec.serving.config import ServeConfig, ServePlan
    from gemirec.serving.run import serve as serve_it
    from gemirec.serving.split import Split

    limits = from_dict(ServeConfig, layered(config, overrides), where="the server's configuration")
    second = None if split is None else Split(artifact=split, share=share, salt=salt)
    plan = ServePlan(
        artifact=artifact,
        index=index,
        redis_url=redis_url,
        split=second,
        compare=compare,
        events=events,
        keys=keys,
        host=host,
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )

    def say(facts: dict[str, object]) -> None:
        line = f"{facts['version']} at {facts['url']}, described at {facts['url']}/openapi.json\n{facts['access']}"
        print(json.dumps(facts) if as_json else line, flush=True)

    serve_it(plan, limits, say=say)
