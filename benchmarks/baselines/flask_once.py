"""Runs the tutorial's Flask server with a change: each worker loads the network only once.

gunicorn benchmarks.baselines.flask_once:app
"""

from __future__ import annotations

import functools
from typing import Any

from flask import Flask, request

from benchmarks.baselines.network import Network, decode

app = Flask(__name__)
# The network is loaded at the first request, because MXNet must be loaded and called on one thread.
network = functools.cache(Network)


@app.route("/predict", methods=["POST"])
def predict() -> dict[str, Any]:
    """Classifies an image."""
    return network().classify([decode(request.files["img"].read())])[0]
