"""Image classification over HTTP."""
