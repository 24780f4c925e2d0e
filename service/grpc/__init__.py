"""Serves the Open Inference Protocol v2 over gRPC: `inference.GRPCInferenceService`.

Clients connect to the `listener`. For each connection, a `relay` passes the client's frames on to
gRPC's `server`. The server calls the `methods` through the `interceptor`. `translation` converts
messages to and from the types of `service.v2`, which REST uses as well.

This package needs the optional dependencies `shoal[grpc]`. Only `service.app` imports the package,
and only if SHOAL_GRPC_PORT is set.
"""
