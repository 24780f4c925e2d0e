# Shoal in an image. A target for each backend:
#   cpu       MXNet, for x86-64. It is the default.
#   gpu       MXNet, for NVIDIA GPUs of compute capability 5.0 to 8.9 (Maxwell to Ada)
#   onnx      ONNX Runtime, for x86-64 and arm64, 130 MB smaller than cpu
#   onnx-gpu  ONNX Runtime, for NVIDIA GPUs of compute capability 7.5 to 9.0 and 12.0
#
# Layers that change rarely come first: base, system libraries, locked packages, then Shoal's files. A
# change of code rebuilds only the last, small layers. The last four stages are the images. They contain
# no compiler, pip, cache or tests. docs/deployment.md says how to build, run and publish.

# The tag moves with fixes of Python 3.11 and of Debian; the digest behind it (TAG@sha256:...) pins the
# bytes. `make pin-base` reads the current one from the registry and writes it here. Images are published
# only with a digest (.github/workflows/publish.yml).
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# --- Locked packages, in an environment without pip. ---------
FROM ${BASE} AS install
WORKDIR /build
# Installs exactly the lock file: pinned, with hashes, without running code of a package. Pip's settings
# for a proxy or mirror are passed as a secret, which is not stored in the image:
# docker build --secret id=pipconf,src=/etc/pip.conf .
ENV PIP_CONFIG_FILE=/run/secrets/pipconf \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_INPUT=1 \
    PIP_NO_DEPS=1 \
    PIP_ONLY_BINARY=:all: \
    PIP_REQUIRE_HASHES=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/shoal

FROM install AS cpu-packages
COPY requirements/cpu.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pipconf,required=false \
    python -m pip --python /opt/shoal/bin/python install -r cpu.lock
# Removes 45 MB that Shoal does not import: tests, C headers, NumPy's Fortran compiler, and all of GluonCV
# but the files of its CIFAR networks, which model_store/mxnet/architectures.py loads by path.
WORKDIR /opt/shoal/lib/python3.11/site-packages
RUN find . -type d -name tests -prune -exec rm -r {} + \
    && rm -r mxnet/include numpy/core/include numpy/f2py \
    && find gluoncv -mindepth 1 -maxdepth 1 ! -name __init__.py ! -name model_zoo \
        -exec rm -r {} + \
    && find gluoncv/model_zoo -mindepth 1 -maxdepth 1 ! -name 'cifar*' ! -name __pycache__ \
        -exec rm -r {} + \
    && find gluoncv/model_zoo/__pycache__ -type f ! -name 'cifar*' -delete

FROM install AS gpu-packages
COPY requirements/gpu.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pipconf,required=false \
    python -m pip --python /opt/shoal/bin/python install -r gpu.lock

FROM install AS onnx-packages
COPY requirements/onnx.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pipconf,required=false \
    python -m pip --python /opt/shoal/bin/python install -r onnx.lock
# Removes 75 MB that Shoal does not import: tests, C headers, NumPy's Fortran compiler, ONNX's test
# data, and ONNX Runtime as a library for C, which its Python module contains.
WORKDIR /opt/shoal/lib/python3.11/site-packages
RUN find . -type d \( -name tests -o -name include \) -prune -exec rm -r {} + \
    && rm -r numpy/f2py onnx/backend/test onnxruntime/capi/libonnxruntime.so.*

FROM install AS onnx-gpu-packages
COPY requirements/onnx-gpu.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pipconf,required=false \
    python -m pip --python /opt/shoal/bin/python install -r onnx-gpu.lock

# --- A substitute for NVIDIA's driver library on nodes without a driver. ---------------------------------
FROM ${BASE} AS no-driver
WORKDIR /build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
# MXNet's GPU build cannot be imported without a libcuda.so.1 that has these functions. Each returns 100,
# "no device", so CUDA's runtime finds no device and the service uses the CPU.
RUN for name in cuDeviceGet cuDevicePrimaryCtxRetain cuGetErrorString cuGraphKernelNodeGetParams \
        cuGraphNodeGetType cuLaunchKernel cuModuleGetFunction cuModuleLoadData cuModuleLoadDataEx \
        cuModuleUnload; do echo "int $name(void) { return 100; }"; done > libcuda.c \
    && gcc -shared -fPIC -s -Wl,-soname,libcuda.so.1 -o /libcuda.so.1 libcuda.c

# --- Shoal's files, compiled to bytecode. ------------------------------------------------------
FROM ${BASE} AS source
WORKDIR /app
COPY LICENSE ./
COPY batching batching/
COPY model_store model_store/
COPY service service/
COPY shoal shoal/
# `unchecked-hash`: the bytecode is valid whatever times the files have after copying.
RUN python -m compileall -q --invalidation-mode unchecked-hash .

# --- What all images have in common. ----------------------------------
FROM ${BASE} AS runtime
# Uninstalls pip. While it runs, pip imports most of the modules of Python's library that the service
# needs, and so creates their bytecode, which slim images lack: 5 MB, for 0.4 s less at every start.
RUN python -m pip --quiet uninstall --yes --root-user-action ignore pip setuptools wheel
# The root file system may be read-only: nothing is written, not even bytecode. Host names that clients
# use belong in SHOAL_ALLOWED_HOSTS; IP addresses and localhost need no setting.
ENV PATH=/opt/shoal/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SHOAL_HOST=0.0.0.0
WORKDIR /app
LABEL org.opencontainers.image.title="Shoal" \
      org.opencontainers.image.description="Image classification over HTTP with dynamic micro-batching" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0"
EXPOSE 8000
# Exec form: Python is process 1 and receives SIGTERM.
ENTRYPOINT ["python", "-m", "service"]
# For Docker and Compose; Kubernetes ignores it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", \
    "import os; from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1', int(os.environ.get('SHOAL_PORT', '8000')), timeout=2); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]

# --- The images. Each runs as a user that is a number, so that Kubernetes can verify that it is not root.
# The user needs no name and no home.
FROM runtime AS onnx-gpu
# Requests the devices and the driver's libraries from NVIDIA's container toolkit. Google's clusters have
# no toolkit and mount the libraries in this folder.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64
COPY --from=onnx-gpu-packages /opt/shoal /opt/shoal
COPY --from=source /app /app
USER 10001:10001

FROM runtime AS onnx
COPY --from=onnx-packages /opt/shoal /opt/shoal
COPY --from=source /app /app
USER 10001:10001

FROM runtime AS mxnet
# MXNet links to these two libraries, which slim Debian lacks. Their versions are not pinned, because
# mirrors delete a version when the next fix arrives.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libquadmath0 \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001

FROM mxnet AS gpu
# As in onnx-gpu.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64
# The folder that the linker searches last, so that a driver's own library takes precedence.
COPY --from=no-driver /libcuda.so.1 /usr/lib/libcuda.so.1
COPY --from=gpu-packages /opt/shoal /opt/shoal
COPY --from=source /app /app

# The last stage is the default.
FROM mxnet AS cpu
COPY --from=cpu-packages /opt/shoal /opt/shoal
COPY --from=source /app /app
