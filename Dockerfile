# Shoal in an image: `docker build .` for CPU nodes, `docker build --target gpu .` for NVIDIA GPUs
# of compute capability 5.0 to 8.x (Maxwell to Ada; MXNet has no code for Hopper or later).
#
# What changes rarely comes first: base, system libraries, locked packages, then our own files. A
# change of code builds only the last, small layers. The two last stages hold what runs, and no
# compiler, pip, cache or tests. docs/deployment.md says how to build, run and publish.

# The tag moves with fixes of Python 3.11 and of Debian; the digest behind it (TAG@sha256:...) pins the
# bytes. `make pin-base` writes the current one here, which takes a registry. Images are published
# only with a digest (.github/workflows/publish.yml).
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# --- What every stage stands on. ---------------------------------------------------------------
FROM ${BASE} AS system
# MXNet links to these two, and slim Debian has neither. Their versions are the release's: a pinned
# one is gone from the mirrors with the next fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libquadmath0 \
    && rm -rf /var/lib/apt/lists/*

# --- Locked packages, in an environment that pip fills from outside and is no part of. ---------
FROM system AS install
WORKDIR /build
# Just what a lock file says: pinned, hashed, and no code of a package runs while installing. Who
# needs settings for pip (a proxy, a mirror) gives them as a secret, which stays out of the image:
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
# 45 MB that nothing here imports: tests, C headers, NumPy's Fortran compiler, and all of GluonCV
# but the files of its CIFAR networks, which model_store/architectures.py loads by path.
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

# --- What stands in for NVIDIA's driver on a node that has none. ---------------------------------
FROM system AS no-driver
WORKDIR /build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
# MXNet's GPU build cannot even be imported without a libcuda.so.1 that has these. Each says 100, "no
# device", CUDA's runtime finds nothing to work with, and the service goes on with the CPU.
RUN for name in cuDeviceGet cuDevicePrimaryCtxRetain cuGetErrorString cuGraphKernelNodeGetParams \
        cuGraphNodeGetType cuLaunchKernel cuModuleGetFunction cuModuleLoadData cuModuleLoadDataEx \
        cuModuleUnload; do echo "int $name(void) { return 100; }"; done > libcuda.c \
    && gcc -shared -fPIC -s -Wl,-soname,libcuda.so.1 -o /libcuda.so.1 libcuda.c

# --- Our own files, compiled to bytecode. ------------------------------------------------------
FROM system AS source
WORKDIR /app
COPY LICENSE ./
COPY batching batching/
COPY model_store model_store/
COPY service service/
COPY shoal shoal/
# `unchecked-hash`: the bytecode counts whatever the files' times are after copying.
RUN python -m compileall -q --invalidation-mode unchecked-hash .

# --- What both images are, before anything heavy is copied in. ---------------------------------
FROM system AS runtime
# Before it goes pip imports most of what the service will of Python's library, and so leaves its
# bytecode, which slim images lack: 5 MB, for 0.4 s less at every start.
RUN python -m pip --quiet uninstall --yes --root-user-action ignore pip setuptools wheel
# The root file system may be read-only: nothing is written, also no bytecode. Where clients use a
# host name, SHOAL_ALLOWED_HOSTS lists it; IP addresses and localhost need no setting.
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
# A number, so that Kubernetes can tell that it is not root; it needs no name and no home.
USER 10001:10001
# Exec form: Python is process 1 and gets SIGTERM itself.
ENTRYPOINT ["python", "-m", "service"]
# Kubernetes does not look at it; Docker and Compose do.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", \
    "import os; from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1', int(os.environ.get('SHOAL_PORT', '8000')), timeout=2); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]

FROM runtime AS gpu
# Asks NVIDIA's container toolkit for the devices and for the driver's libraries. Google's clusters
# have no toolkit and put the libraries where only a path finds them.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64
# The folder in which the linker looks last: a driver's own library goes before it.
COPY --from=no-driver /libcuda.so.1 /usr/lib/libcuda.so.1
COPY --from=gpu-packages /opt/shoal /opt/shoal
COPY --from=source /app /app

# Last, and so the default.
FROM runtime AS cpu
COPY --from=cpu-packages /opt/shoal /opt/shoal
COPY --from=source /app /app
