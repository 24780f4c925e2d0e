# The commands of the project. `make` lists them, and CONTRIBUTING.md says when to use each.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-print-directory

# PYTHON=... names the Python that creates an environment. Default: the first suitable Python of this list.
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3

# EXTRA names the backend: cpu or gpu (MXNet), onnx, openvino or onnx-gpu (ONNX Runtime). Default: the
# backend that .venv already contains, or else cpu where MXNet runs and onnx elsewhere.
MXNET_RUNS = import sys, sysconfig; sys.exit( \
	sysconfig.get_platform() != "linux-x86_64" or not (3, 11) <= sys.version_info < (3, 13))
ONNX_RUNS = import sys; sys.exit(sys.version_info < (3, 11))
BACKENDS := cpu gpu onnx openvino onnx-gpu
FITTING := $(or $(notdir $(firstword $(wildcard .venv/cpu .venv/onnx))),$(shell \
	for python in $(or $(PYTHON),$(PYTHONS)); do \
		"$$python" -c '$(MXNET_RUNS)' 2>/dev/null && echo cpu && exit; \
	done; echo onnx))
EXTRA ?= $(FITTING)

# The default backend is in .venv, each of the others in an environment of its own, because mxnet and
# mxnet-cu112 install the same files, and so do onnxruntime and onnxruntime-gpu.
VENV := .venv$(if $(filter-out $(FITTING),$(EXTRA)),-$(EXTRA))
RUN := $(VENV)/bin/python
# Installs exactly the packages of a lock file, checks their hashes, and runs no code of them.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-input \
	--require-hashes --no-deps --only-binary :all: -r
INSTALL := $(RUN) $(PIP_INSTALL)
# HOST and PORT set SHOAL_HOST and SHOAL_PORT. Other SHOAL_* variables are used as they are.
ADDRESS := $(if $(HOST),SHOAL_HOST=$(HOST)) $(if $(PORT),SHOAL_PORT=$(PORT))

ifneq ($(filter cpu gpu,$(EXTRA)),)
BACKEND := MXNet
RUNS = $(MXNET_RUNS)
NEEDED := Python 3.11 or 3.12 on Linux and x86-64, which MXNet needs. EXTRA=onnx runs on others
else ifneq ($(filter $(BACKENDS),$(EXTRA)),)
BACKEND := ONNX Runtime
RUNS = $(ONNX_RUNS)
NEEDED := Python 3.11 or later
else
$(error EXTRA must be one of $(BACKENDS), not '$(EXTRA)')
endif

.PHONY: help serve test check check-lowest format train load-test simulate lock proto clean

help: ## list all commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
	@echo
	@echo "make serve PORT=9000 SHOAL_LOG_LEVEL=debug   serve with settings: docs/configuration.md"
	@echo "make serve EXTRA=gpu                         serve with MXNet on an NVIDIA GPU (the first start downloads 3 GB)"
	@echo "make serve EXTRA=onnx                        serve with ONNX Runtime; openvino: faster in int8;"
	@echo "                                             onnx-gpu: on an NVIDIA GPU (the first start downloads 1.5 GB)"

serve: $(VENV)/$(EXTRA) ## install missing packages, and serve on http://127.0.0.1:8000
	@$(ADDRESS) exec $(RUN) -m service

test: $(VENV)/dev ## run all tests except test-faults; ARGS="-k decode -x" for pytest
	$(RUN) -m pytest -m "not faults" $(ARGS)

check: $(VENV)/dev ## check format, lint and types, and run the fast tests; use before every commit
	$(RUN) -m ruff format --check --quiet
	$(RUN) -m ruff check --quiet
	$(RUN) -m mypy
	$(RUN) -m pytest -q -m "not slow"

check-lowest: $(VENV)/lowest/installed ## run the fast tests with the lowest allowed versions
	$(VENV)/lowest/bin/python -m pytest -q -W default -m "not slow and not faults" $(ARGS) # old libraries warn

format: $(VENV)/dev ## format the code and apply fixes of the linter
	$(RUN) -m ruff check --quiet --fix-only
	$(RUN) -m ruff format --quiet

train: $(VENV)/train ## train a network on CIFAR-10: make train DATA=FOLDER
	@$(if $(DATA),,echo "make train needs DATA=FOLDER: the folder with CIFAR-10's binary version" >&2; exit 2)
	@exec $(RUN) -m model_store train --data $(DATA) $(ARGS)

load-test: $(VENV)/train ## measure a running server: make load-test ARGS="--rate 200"
	@exec $(RUN) -m benchmarks.load_test $(ARGS)

simulate: $(VENV)/train ## compare batching policies in virtual time
	$(RUN) -m benchmarks.simulate $(ARGS)

lock: $(VENV)/uv ## update the lock files in requirements/
	@mkdir -p requirements
	$(LOCK) --all-extras --no-emit-package numpy -o $(VENV)/all.lock
	for extra in $(BACKENDS) export train dev; do \
		case $$extra in export | train | dev) more="--no-emit-package numpy" ;; \
			*) more="--extra grpc --extra otel" ;; esac; \
		$(LOCK) --extra $$extra $$more --constraint $(VENV)/all.lock \
			-o requirements/$$extra.lock || exit; \
	done
	$(LOCK) --resolution lowest-direct $(LOWEST:%=--extra %) -o requirements/lowest.lock
	for tool in $(TOOLS); do \
		case $$tool in kserve) more=--no-deps ;; *) more= ;; esac; \
		$(COMPILE) requirements/tools/$$tool.in $$more -o requirements/tools/$$tool.lock || exit; \
	done

proto: | $(VENV)/protoc ## compile service/grpc/open_inference.proto after a change
	$(VENV)/protoc/bin/python -m grpc_tools.protoc -I service/grpc \
		--descriptor_set_out=service/grpc/open_inference.binpb open_inference.proto

clean: ## remove environments, caches and other generated files
	rm -rf .venv $(BACKENDS:%=.venv-%) .bench .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Environments. Each contains a marker file for every installed lock file. -------------------

$(VENV)/$(EXTRA): requirements/$(EXTRA).lock
	@$(FIND_PYTHON); \
	echo "$$("$$python" --version) on $$(uname -sm): installing $(BACKEND) from $< into $(VENV)"; \
	"$$python" -m venv --clear $(VENV)
	@$(INSTALL) $<
	@touch $@

$(VENV)/%: requirements/%.lock $(VENV)/$(EXTRA)
	@echo "Installing $< into $(VENV)"
	@$(INSTALL) $<
	@touch $@

$(VENV)/dev: $(VENV)/train # some tests train a network
ifeq ($(BACKEND),MXNet)
$(VENV)/dev: $(VENV)/export # and some compare MXNet with ONNX Runtime
endif

# The dependencies in pyproject.toml, each in its lowest allowed version. Not all of those have wheels
# for Python 3.13 and later.
LOWEST := cpu grpc otel export train dev

$(VENV)/lowest/installed: requirements/lowest.lock | $(VENV)/$(EXTRA)
	@echo "Installing $< into $(@D)"
	@$(RUN) -m venv --clear $(@D)
	@$(@D)/bin/python $(PIP_INSTALL) $<
	@touch $@

define FIND_PYTHON
for python in $(or $(PYTHON),$(PYTHONS)); do \
	"$$python" -c '$(RUNS)' 2>/dev/null && break; \
	python=; \
done; \
if [ -z "$$python" ]; then \
	echo "$(if $(PYTHON),$(PYTHON) is not,None of $(PYTHONS) is) $(NEEDED)." \
		"Install one, or name it with PYTHON=/path/to/python3" >&2; \
	exit 1; \
fi; \
if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	echo "$$python cannot create virtual environments." \
		"Install its venv module (on Debian and Ubuntu: apt-get install python3-venv)" >&2; \
	exit 1; \
fi
endef

# Tools, each in its own environment. requirements/tools/*.in list their versions. KServe is installed
# without its dependencies, because only the definitions of its resources are used.
TOOLS := uv protoc cyclonedx manifests kserve policies

$(VENV)/uv $(VENV)/protoc $(VENV)/cyclonedx: $(VENV)/%: requirements/tools/%.lock | $(VENV)/$(EXTRA)
	@$(RUN) -m venv --clear $@
	@$@/bin/python $(PIP_INSTALL) $<
	@touch $@

# --- Software bill of materials: docs/dependencies.md. ------------------------------------------

.PHONY: sbom

sbom: $(VENV)/cyclonedx ## write a CycloneDX file for each lock file to build/
	@mkdir -p build
	@for extra in $(BACKENDS) train dev; do \
		$</bin/python -W ignore -m cyclonedx_py requirements requirements/$$extra.lock \
			--pyproject pyproject.toml --short-PURLs --output-reproducible --index-url $(PYPI) \
			--output-file build/shoal-$(VERSION)-$$extra.cdx.json || exit; \
	done
	@ls build/shoal-$(VERSION)-*.cdx.json

# Package index in the files, even if this machine uses a mirror.
PYPI := https://pypi.org/simple

# The constraint gives a package the same version in all lock files, so that they can be combined.
COMPILE = $(VENV)/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --custom-compile-command "make lock"
LOCK = $(COMPILE) pyproject.toml

# --- Faults and attacks: docs/reliability.md. ---------------------------------------------------

.PHONY: test-faults chaos soak fuzz attacks cost-search crowding everything

test-faults: $(VENV)/dev ## run the tests with faults and hostile clients; takes some minutes
	$(RUN) -m pytest tests/faults $(ARGS)

chaos: $(VENV)/dev ## run load, faults and kill -9 at the same time; ARGS="--minutes 30"
	@exec $(RUN) -m tests.faults.chaos $(ARGS)

soak: $(VENV)/dev ## look for leaks under constant load; ARGS="--minutes 60"
	@exec $(RUN) -m tests.faults.soak $(ARGS)

CORPUS ?= $(HOME)/.cache/shoal-fuzz

fuzz: $(VENV)/dev ## fuzz decoders, forms, .params and .onnx files, and frames; ARGS="--seconds 60"
	@exec $(RUN) -m tests.faults.fuzz --corpus $(CORPUS) $(ARGS)

attacks: $(VENV)/dev ## run each attack and measure its cost; ARGS="--only GIF --json FILE"
	@exec $(RUN) -m tests.faults.attacks $(ARGS)

cost-search: $(VENV)/dev ## search for the inputs that cost the server most; ARGS="--minutes 60"
	@exec $(RUN) -m tests.faults.cost_search $(ARGS)

crowding: $(VENV)/dev ## measure an honest client during an attack of ten clients; ARGS="--rounds 5"
	@exec $(RUN) -m tests.faults.crowding $(ARGS)

everything: $(VENV)/dev ## run all attacks and honest clients at the same time; ARGS="--minutes 10"
	@exec $(RUN) -m tests.faults.everything $(ARGS)

# --- Benchmarks. Each competitor has its own environment below .bench/. -------------------------

.PHONY: bench bench-rivals bench-lock budget bench-engine side-by-side

BASELINES := flask
RIVALS := mosec litserve bentoml
OTHERS := $(BASELINES:%=baselines/%) $(RIVALS:%=rivals/%)

bench: $(VENV)/train $(BASELINES:%=.bench/%/installed) ## compare Shoal with Flask, FastAPI and the installed competitors
	$(RUN) -m benchmarks.compare $(ARGS)

bench-rivals: $(RIVALS:%=.bench/%/installed) ## install Mosec, LitServe and BentoML for `make bench`

budget: $(VENV)/train ## measure the CPU time of each stage of a request
	$(RUN) -m benchmarks.budget $(ARGS)

side-by-side: $(VENV)/train ## measure Mosec, Shoal and a minimal server alternately
	$(RUN) -m benchmarks.side_by_side $(ARGS)

bench-engine: $(VENV)/train ## measure concurrent batches, threads and batch sizes on this CPU
	$(RUN) -m benchmarks.engine $(ARGS)

.bench/flask/installed: benchmarks/baselines/flask.lock
.bench/%/installed: benchmarks/rivals/%.lock
	$(INSTALL_OTHER)
.bench/flask/installed:
	$(INSTALL_OTHER)

define INSTALL_OTHER
@$(FIND_PYTHON); \
echo "$$("$$python" --version): installing $< into $(@D)"; \
"$$python" -m venv --clear $(@D)
@$(@D)/bin/python $(PIP_INSTALL) $<
@touch $@
endef

bench-lock: $(VENV)/uv ## lock the benchmark competitors' dependencies
	for other in $(OTHERS); do \
		$(VENV)/uv/bin/uv pip compile benchmarks/$$other.in --quiet --upgrade --universal \
			--python-version 3.11 --generate-hashes --custom-compile-command "make bench-lock" \
			-o benchmarks/$$other.lock || exit; \
	done

# --- Images and manifests: docs/deployment.md. ------------------------------------------------------

.PHONY: pin-base image check-image manifests rehearse

TARGET ?= cpu
IMAGE ?= shoal
DOCKER ?= docker
VERSION := $(shell sed -n '/^version = /{s/[^"]*"\(.*\)"/\1/p;q}' pyproject.toml)

BASE := docker.io/library/python:3.11-slim-bookworm

pin-base: ## pin the Dockerfile's base image to its current digest
	@digest=$$($(DOCKER) buildx imagetools inspect --format '{{.Manifest.Digest}}' $(BASE)) \
		&& sed -i "s|^ARG BASE=.*|ARG BASE=$(BASE)@$$digest|" Dockerfile \
		&& grep '^ARG BASE=' Dockerfile

image: ## build the image shoal:VERSION-cpu; TARGET=gpu, IMAGE=registry/team/shoal
	$(DOCKER) build --target $(TARGET) --tag $(IMAGE):$(VERSION)-$(TARGET) \
		--label org.opencontainers.image.revision=$$(git rev-parse HEAD) $(ARGS) .

check-image: ## run the image as in a cluster, and stop it under load
	python3 k8s/check_image.py $(IMAGE):$(VERSION)-$(TARGET) --docker $(DOCKER) $(ARGS)

manifests: $(VENV)/dev ## render, validate and lint k8s/ and the Dockerfile
	PYTHON=$(RUN) k8s/check $(ARGS)

rehearse: $(VENV)/dev ## run a rolling update under load behind nginx
	$(RUN) k8s/rehearse.py $(ARGS)

.PHONY: check-gpu

# PYTHON names the Python that installs the wheels. Without WHEELS, the environment of EXTRA is used.
check-gpu: $(if $(WHEELS),,$(VENV)/$(EXTRA)) ## check ONNX Runtime on this GPU, without a package index; WHEELS=FOLDER
	@exec $(or $(PYTHON),$(RUN)) benchmarks/check_gpu.py $(if $(WHEELS),--wheels $(WHEELS)) $(ARGS)
