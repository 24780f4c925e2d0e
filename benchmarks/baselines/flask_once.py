"""The tutorial's Flask server, but with the network loaded only once in each gunicorn worker.

gunicorn benchmarks.baselines.flask_once:app
"""

from __future__ import annotations

import functools
from typing import Any

from flask import Flask, request

from benchmarks.baselines.network import Network, decode

app = Flask(__name__)
# Loaded on the first request: MXNet must be loaded and called on the same thread.
network = functools.cache(Network)


@app.route("/predict", methods=["POST"])
def predict() -> dict[str, Any]:
    """Classifies an image."""
    return network().classify([decode(request.files["img"].read())])[0]
