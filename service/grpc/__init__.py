"""Serves the Open Inference Protocol v2 over gRPC: `inference.GRPCInferenceService`.

Clients connect to the `listener`, and a `relay` for each connection passes their frames on to
gRPC's `server`. The server calls the `methods` through the `interceptor`. `translation` converts
messages to and from the types of `service.v2`, which REST uses as well.

The package needs the extra `grpc`. Only `service.app` imports it, if SHOAL_GRPC_PORT is set.
"""
