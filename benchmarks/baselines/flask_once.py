"""The tutorial's server mended: the network is loaded once, in each of gunicorn's workers.

gunicorn benchmarks.baselines.flask_once:app
"""

from __future__ import annotations

import functools
from typing import Any

from flask import Flask, request

from benchmarks.baselines.network import Network, decode

app = Flask(__name__)
# On the worker's first request, for MXNet is loaded and called on one thread.
network = functools.cache(Network)


@app.route("/predict", methods=["POST"])
def predict() -> dict[str, Any]:
    return network().classify([decode(request.files["img"].read())])[0]
