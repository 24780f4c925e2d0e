# Every command of the project. `make` alone lists them; CONTRIBUTING.md says when to use which.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-print-directory

EXTRA ?= cpu
# PYTHON=... names the one to build .venv with; otherwise it is the first of these that will do.
PYTHONS := python3.11 python3.12 python3

# One environment for each engine: mxnet and mxnet-cu112 are files of the same names.
VENV := $(if $(filter gpu,$(EXTRA)),.venv-gpu,.venv)
RUN := $(VENV)/bin/python
# Just what the lock file says: pinned, hashed, and no code of a package runs while installing.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-input \
	--require-hashes --no-deps --only-binary :all: -r
INSTALL := $(RUN) $(PIP_INSTALL)
# HOST and PORT are short for SHOAL_HOST and SHOAL_PORT; every other SHOAL_* passes through.
ADDRESS := $(if $(HOST),SHOAL_HOST=$(HOST)) $(if $(PORT),SHOAL_PORT=$(PORT))

ifeq ($(filter cpu gpu,$(EXTRA)),)
$(error EXTRA is cpu or gpu, not '$(EXTRA)')
endif

.PHONY: help serve test check format train load-test simulate lock proto clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
	@echo
	@echo "make serve PORT=9000 SHOAL_LOG_LEVEL=debug   settings: see docs/configuration.md, or the environment"
	@echo "make serve EXTRA=gpu                         on an NVIDIA GPU (3 GB to download, once)"

serve: $(VENV)/$(EXTRA) ## set up what is missing, then serve on http://127.0.0.1:8000
	@$(ADDRESS) exec $(RUN) -m service

test: $(VENV)/dev ## run all tests; ARGS="-k decode -x" goes to pytest
	$(RUN) -m pytest -m "not faults" $(ARGS)

check: $(VENV)/dev ## what every commit must pass: format, lint, types, fast tests
	$(RUN) -m ruff format --check --quiet
	$(RUN) -m ruff check --quiet
	$(RUN) -m mypy
	$(RUN) -m pytest -q -m "not slow"

format: $(VENV)/dev ## format the code and mend what the linter can
	$(RUN) -m ruff check --quiet --fix-only
	$(RUN) -m ruff format --quiet

train: $(VENV)/train ## train on CIFAR-10's binary version: make train DATA=folder
	@$(if $(DATA),,echo "make train DATA=FOLDER: the folder of CIFAR-10's binary version" >&2; exit 2)
	@exec $(RUN) -m model_store train --data $(DATA) $(ARGS)

load-test: $(VENV)/train ## measure a running server: make load-test ARGS="--rate 200"
	@exec $(RUN) -m benchmarks.load_test $(ARGS)

simulate: $(VENV)/train ## compare batching policies on virtual time
	$(RUN) -m benchmarks.simulate $(ARGS)

lock: $(VENV)/uv ## resolve pyproject.toml anew into requirements/
	@mkdir -p requirements
	$(LOCK) --all-extras -o $(VENV)/all.lock
	for extra in cpu gpu export train dev; do \
		case $$extra in cpu | gpu) more="--extra grpc --extra otel" ;; *) more= ;; esac; \
		$(LOCK) --extra $$extra $$more --constraint $(VENV)/all.lock \
			-o requirements/$$extra.lock || exit; \
	done
	for tool in $(TOOLS); do \
		case $$tool in kserve) more=--no-deps ;; *) more= ;; esac; \
		$(COMPILE) requirements/tools/$$tool.in $$more -o requirements/tools/$$tool.lock || exit; \
	done

proto: | $(VENV)/protoc ## compile service/grpc/open_inference.proto after a change
	$(VENV)/protoc/bin/python -m grpc_tools.protoc -I service/grpc \
		--descriptor_set_out=service/grpc/open_inference.binpb open_inference.proto

clean: ## remove .venv and what tools leave behind
	rm -rf .venv .venv-gpu .bench .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The environment. A file in it stands for each lock file that was installed there. ---------

$(VENV)/$(EXTRA): requirements/$(EXTRA).lock
	@$(FIND_PYTHON); \
	echo "$$("$$python" --version): installing $< into $(VENV)"; \
	"$$python" -m venv --clear $(VENV)
	@$(INSTALL) $<
	@touch $@

$(VENV)/%: requirements/%.lock $(VENV)/$(EXTRA)
	@echo "Installing $< into $(VENV)"
	@$(INSTALL) $<
	@touch $@

$(VENV)/dev: $(VENV)/train # tests train too

define FIND_PYTHON
if [ "$$(uname -sm)" != "Linux x86_64" ]; then \
	echo "MXNet 1.9.1 and this Makefile are for Linux on x86-64; this is $$(uname -sm)" >&2; \
	exit 1; \
fi; \
for python in $(or $(PYTHON),$(PYTHONS)); do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
		&& break; \
	python=; \
done; \
if [ -z "$$python" ]; then \
	echo "$(if $(PYTHON),$(PYTHON) is not,None of $(PYTHONS) is) a Python 3.11 or 3.12:" \
		"install one, or name it with PYTHON=/path/to/python3" >&2; \
	exit 1; \
fi; \
if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	echo "$$python cannot make virtual environments:" \
		"install its venv module (on Debian and Ubuntu: apt-get install python3-venv)" >&2; \
	exit 1; \
fi
endef

# Tools that are needed now and then, each in an environment of its own. requirements/tools/*.in name
# their versions. KServe is installed without what it depends on: only its classes are read.
TOOLS := uv protoc cyclonedx manifests kserve policies

$(VENV)/uv $(VENV)/protoc $(VENV)/cyclonedx: $(VENV)/%: requirements/tools/%.lock | $(VENV)/$(EXTRA)
	@$(RUN) -m venv --clear $@
	@$@/bin/python $(PIP_INSTALL) $<
	@touch $@

# --- What is in it, for who has to know: docs/dependencies.md. --------------------------------

.PHONY: sbom

sbom: $(VENV)/cyclonedx ## write what the lock files hold into build/, as CycloneDX
	@mkdir -p build
	@for extra in cpu gpu train dev; do \
		$</bin/python -W ignore -m cyclonedx_py requirements requirements/$$extra.lock \
			--pyproject pyproject.toml --short-PURLs --output-reproducible --index-url $(PYPI) \
			--output-file build/shoal-$(VERSION)-$$extra.cdx.json || exit; \
	done
	@ls build/shoal-$(VERSION)-*.cdx.json

# Where the packages of the lock files are looked up by others, whatever mirror this machine has.
PYPI := https://pypi.org/simple

# The constraint gives every lock file the same version of a package, so that they combine.
COMPILE = $(VENV)/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --custom-compile-command "make lock"
LOCK = $(COMPILE) pyproject.toml

# --- Faults, hostile clients and time: docs/reliability.md. -------------------------------------

.PHONY: test-faults chaos soak fuzz attacks cost-search crowding everything

test-faults: $(VENV)/dev ## faults and hostile clients in real processes, some minutes
	$(RUN) -m pytest tests/faults $(ARGS)

chaos: $(VENV)/dev ## all of it at once, every request accounted for; ARGS="--minutes 30"
	@exec $(RUN) -m tests.faults.chaos $(ARGS)

soak: $(VENV)/dev ## does anything grow under lasting load? ARGS="--minutes 60"
	@exec $(RUN) -m tests.faults.soak $(ARGS)

CORPUS ?= $(HOME)/.cache/shoal-fuzz

fuzz: $(VENV)/dev ## fuzz what reads strangers' bytes; ARGS="--seconds 60", CORPUS=folder
	@exec $(RUN) -m tests.faults.fuzz --corpus $(CORPUS) $(ARGS)

attacks: $(VENV)/dev ## each attack in turn, and what it costs; ARGS="--only GIF --json FILE"
	@exec $(RUN) -m tests.faults.attacks $(ARGS)

cost-search: $(VENV)/dev ## search for the costliest inputs; ARGS="--minutes 60"
	@exec $(RUN) -m tests.faults.cost_search $(ARGS)

crowding: $(VENV)/dev ## do ten attackers crowd out an honest client? ARGS="--rounds 5"
	@exec $(RUN) -m tests.faults.crowding $(ARGS)

everything: $(VENV)/dev ## every attack at once beside honest clients; ARGS="--minutes 10"
	@exec $(RUN) -m tests.faults.everything $(ARGS)

# --- Benchmarks. Whom we are compared with has an environment of its own, below .bench/. ---------

.PHONY: bench bench-rivals bench-lock budget bench-engine side-by-side

BASELINES := flask
RIVALS := mosec litserve bentoml
OTHERS := $(BASELINES:%=baselines/%) $(RIVALS:%=rivals/%)

bench: $(VENV)/train $(BASELINES:%=.bench/%/installed) ## compare with baselines, and with rivals once they are set up
	$(RUN) -m benchmarks.compare $(ARGS)

bench-rivals: $(RIVALS:%=.bench/%/installed) ## set up Mosec, LitServe and BentoML for `make bench`

budget: $(VENV)/train ## where a request's CPU time goes, by stage
	$(RUN) -m benchmarks.budget $(ARGS)

side-by-side: $(VENV)/train ## Mosec, Shoal and what FastAPI allows, loaded in turns
	$(RUN) -m benchmarks.side_by_side $(ARGS)

bench-engine: $(VENV)/train ## lanes, threads, batches in flight and batch sizes on this CPU
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

bench-lock: $(VENV)/uv ## resolve what whom we are compared with needs
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

pin-base: ## pin the Dockerfile's base image to the digest that its tag has now
	@digest=$$($(DOCKER) buildx imagetools inspect --format '{{.Manifest.Digest}}' $(BASE)) \
		&& sed -i "s|^ARG BASE=.*|ARG BASE=$(BASE)@$$digest|" Dockerfile \
		&& grep '^ARG BASE=' Dockerfile

image: ## build the image shoal:VERSION-cpu; TARGET=gpu, IMAGE=registry/team/shoal
	$(DOCKER) build --target $(TARGET) --tag $(IMAGE):$(VERSION)-$(TARGET) \
		--label org.opencontainers.image.revision=$$(git rev-parse HEAD) $(ARGS) .

check-image: ## run that image as a cluster would, and stop it under load
	python3 k8s/check_image.py $(IMAGE):$(VERSION)-$(TARGET) --docker $(DOCKER) $(ARGS)

manifests: $(VENV)/dev ## render, validate and lint k8s/ and the Dockerfile
	k8s/check $(ARGS)

rehearse: $(VENV)/dev ## a rolling update under load, behind nginx
	$(RUN) k8s/rehearse.py $(ARGS)
