"""The Open Inference Protocol v2 over gRPC: `inference.GRPCInferenceService`, beside HTTP.

A request goes the same way as over REST: `open_inference`, `tensors` and `outputs` know nothing of
what carries it. What is gRPC's own is here: `messages` and their `outline`, their `translation`,
the `methods`, what surrounds each `call`, and the `server`. Wants the extra `grpc`; nothing else
imports this package but `app`, where the settings ask for it.
"""
