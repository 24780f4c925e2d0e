"""Runs the tutorial's Flask server, which loads the neural network again for every request.

python -m benchmarks.baselines.tutorial
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request

from model_store import manifest, versions
from model_store.mxnet.architectures import build
from model_store.mxnet.runtime import load_mxnet
from model_store.training.cifar10 import CLASSES, MEAN, STD

mx = load_mxnet(threads=1)
MODEL = "cifar_resnet20_v1"
PARAMS = versions.folder(manifest.STORE, MODEL, versions.latest(manifest.STORE, MODEL))

transforms = mx.gluon.data.vision.transforms
transform = transforms.Compose(
    [
        transforms.Resize(32),
        transforms.CenterCrop(32),
        transforms.ToTensor(),
        transforms.Normalize(list(MEAN), list(STD)),
    ]
)
app = Flask(__name__)


def network() -> Any:
    """Builds the network and loads its weights."""
    net = build(MODEL, len(CLASSES))
    net.load_parameters(str(PARAMS / "net.params"))
    return net


@app.route("/predict", methods=["POST"])
def predict() -> str:
    """Classifies an image."""
    image = transform(mx.image.imdecode(request.files["img"].read()))
    row = mx.nd.softmax(network()(image.expand_dims(axis=0)))[0]
    best = int(row.argmax(axis=0).asscalar())
    return (
        f"The input picture is classified as [{CLASSES[best]}], "
        f"with probability {row[best].asscalar():.3f}."
    )


if __name__ == "__main__":
    # The server handles one request at a time, because MXNet must be called on one thread.
    app.run(port=int(os.environ["PORT"]), threaded=False)
