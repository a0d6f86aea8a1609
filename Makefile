# make serve | test | test-tools | test-training | browser | test-cluster | soak | check | audit | fix | bench | clean.
# Needs Python 3.11+ and git; everything else is installed into .venv.

SHELL := /bin/bash
PYTHON ?= python3
UV_VERSION := 0.13.9
UV := $(shell command -v uv 2>/dev/null || echo .tools/uv/bin/uv)
BIN := .venv/bin

# A bare `uv run` would make Ray copy the project into an environment of its own for each worker.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0

# Known vulnerabilities that cannot be mended, by their ids; say beside each why, and why it does no harm here.
AUDIT_IGNORED :=

.PHONY: serve test test-tools test-training browser test-cluster soak check audit fix bench clean

serve: .venv/ready
	@exec $(BIN)/python -m deployments $(if $(CONFIG),--config "$(CONFIG)") $(if $(PORT),--port "$(PORT)")

# Unit tests in two processes, a file at a time; then those of the service, of which there is one. PYTEST_ARGS goes to
# both; it is no fault if one of them has no such test (exit code 5). Files of tests in PYTEST_ARGS are run by themselves.
test: .venv/ready-test
ifneq ($(filter tests/%,$(PYTEST_ARGS)),)
	$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	@status=5; \
	for tests in "tests/unit --numprocesses 2 --dist loadfile" tests/integration; do \
		echo "$(BIN)/python -m pytest $$tests" $(PYTEST_ARGS); \
		$(BIN)/python -m pytest $$tests $(PYTEST_ARGS); found=$$?; \
		case $$found in \
			0) [ $$status != 5 ] || status=0 ;; \
			1) status=1 ;; \
			5) ;; \
			*) exit $$found ;; \
		esac; \
	done; exit $$status
endif

# Files for annotation tools, read by the tools' own code: in an environment of its own, since they want other versions.
test-tools: .venv/ready-test .tools/readers/ready
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
		$(BIN)/python -m tests.tools.write_files "$$folder" && \
		.tools/readers/bin/python tests/tools/read_back.py "$$folder"

# Of what made the bundled model; apart, since nothing of it is served.
test-training: .venv/ready-test
	$(BIN)/python -m pytest training/tests $(PYTEST_ARGS)

# What the tests of the click page drive; where it is missing, they are skipped.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
		SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq --no-install-recommends chromium chromium-driver; }

# Ten minutes of load with a fault every 20 seconds.
soak: .venv/ready-test
	$(BIN)/python -m tests.cluster.soak

# Clusters of several nodes on this machine: faults, overload, autoscaling. Apart, since each takes minutes.
test-cluster: .venv/ready-test
	$(BIN)/python -m pytest tests/cluster $(PYTEST_ARGS)

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory audit

# Known vulnerabilities of the pinned versions. pip-audit prints nothing but its error where it cannot reach the service
# that knows them: then this only warns, so that everything else can be checked.
audit: .venv/ready-dev
	@found=$$(timeout 180 $(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --desc off \
		--progress-spinner off --timeout 10 $(addprefix --ignore-vuln ,$(AUDIT_IGNORED))); status=$$?; \
	if [ $$status != 0 ] && [ -z "$$found" ]; then echo "warning: NOT AUDITED, see above" >&2; exit 0; fi; \
	[ -z "$$found" ] || echo "$$found"; exit $$status

fix: .venv/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready-test
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- installation

.tools/uv/bin/uv:
	$(PYTHON) -m venv .tools/uv
	.tools/uv/bin/pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"

$(BIN)/python: | $(filter .tools/%,$(UV))
	$(UV) venv --quiet --allow-existing --python "$(PYTHON)" .venv

.venv/ready: EXTRA := [formats,openvino]
.venv/ready-test: EXTRA := [test]
.venv/ready-dev: EXTRA := [dev]
.venv/ready .venv/ready-test .venv/ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into .venv (some GB with torch; a minute or so)"
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".$(EXTRA)"
	@touch $@

.tools/readers/ready: tests/tools/requirements.txt | $(BIN)/python
	$(UV) venv --quiet --allow-existing --python "$(PYTHON)" .tools/readers
	$(UV) pip install --quiet --python .tools/readers/bin/python --no-deps --requirement tests/tools/requirements.txt
	@touch $@
