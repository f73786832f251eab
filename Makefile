# From a fresh clone to a live dashboard: `make run`. Everything it needs goes into .venv.
.DEFAULT_GOAL := help
SHELL := /bin/sh
.PHONY: help run stop status lab offline take-home test test-packages dist test-privileged test-room examples containers walk night book soak bench lint lines lock

# The first supported Python on this machine; choose another with `make run PYTHON=...`.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo "$$python" && break; done)
BIN := $(CURDIR)/.venv/bin
# uv, in the locked version: the only package that pip installs.
UV := $(shell sed -n 's/^uv==\([^ ]*\).*/uv==\1/p' requirements.txt)

# Debian packages for the container tests. Recommended packages are not installed, so all are listed.
CONTAINER_PACKAGES := podman buildah runc mmdebstrap netavark aardvark-dns iptables catatonit docker-registry \
	curl iproute2 openssh-client openssh-server openssl
# Debian packages for the tests of server/room; its setup.sh installs those that a room needs.
ROOM_PACKAGES := at chromium cron curl iproute2 nftables nginx openssh-client openssh-server openssl procps quota

build-wheels = for package in packages/*/; do $(BIN)/uv build --quiet --out-dir $(1) "$$package" && rm -f $(1)/*.tar.gz $(1)/.gitignore || exit 1; done

export MLFLOW_DISABLE_TELEMETRY := true
export PATH := $(BIN):$(PATH)
# Without bytecode files, each of the many programs started here would compile all its imports again.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo "make run     start the servers, run the pipeline, put a model into production, show the dashboard"
	@echo "make stop    stop all servers"
	@echo "make status  show the servers and the model in production"
	@echo "make lab     start the workshop: JupyterLab at its start page, with the servers' pages inside"
	@echo "make offline FOLDER=...   save the packages and this repository for a machine without a network"
	@echo "make take-home TO=../plants NAME=plants   copy the pipeline of chapter 4 into your own repository; KERAS=1 includes its neural network"
	@echo "make take-home FROM=examples/any_table TO=../churn NAME=churn CSV=customers.csv ID=customer TARGET=churned   copy the small pipeline for your table; also POSITIVE=, GROUP="
	@echo "make test    run the tests; does not touch running servers"
	@echo "make test-packages   test the packages; RESOLUTION=lowest-direct installs the oldest dependencies that they allow"
	@echo "make dist PACKAGE=... ADDRESS=https://...   build a package's wheel and source distribution for publishing"
	@echo "make test-privileged   run the tests that need root, mounts and network namespaces; fails if one of these is missing"
	@echo "make test-room   as root on Debian: test server/room on a separate machine; five people log in, others attack; installs at, cron, nftables, nginx, openssh-server and quota and does not remove them"
	@echo "make examples   test the examples and server/team; installs their requirements"
	@echo "make containers   as root on Debian: test server/team in containers, examples/digits_search on a simulated EC2, and the image of examples/cifar10; installs podman"
	@echo "make walk    run the tests, run every command and cell of the chapters, open the pages in a browser, and kill servers"
	@echo "make night   run CI's nightly tests: new environments, other clones, databases and problems"
	@echo "make book    build the pages and the executed notebooks as a site in docs/site"
	@echo "make soak    run the long tests (gigabytes of data, many repetitions), then all others in random order"
	@echo "make bench   run the benchmarks (half an hour) and write benchmarks/README.md"
	@echo "make lint    check the format, the style and the spelling, and that no notebook has outputs and no file a private key"
	@echo "make lines   count the lines of source and tests and the words of pages in each folder"
	@echo "make lock    compile requirements.txt from pyproject.toml"

run: .venv/installed
	@$(BIN)/workshop up --repro

stop:
	@if [ -x $(BIN)/workshop ]; then $(BIN)/workshop down; else echo "nothing is installed in this clone, so no server is running"; fi

status: .venv/installed
	@$(BIN)/workshop status

lab: .venv/installed
	@exec $(BIN)/workshop lab

# pip skips packages already in the folder, so an interrupted call continues.
offline: .venv/installed
	@$(if $(FOLDER),,echo "Choose a folder to save to: make offline FOLDER=/media/stick/workshop" >&2; exit 1)
	@mkdir -p "$(FOLDER)/wheels" && grep -v '^-e' requirements.txt >"$(FOLDER)/packages.txt"
	@$(BIN)/python -m pip download --quiet --no-deps --requirement "$(FOLDER)/packages.txt" --dest "$(FOLDER)/wheels"
	@git bundle create --quiet "$(FOLDER)/workshop.bundle" HEAD $$(git branch --show-current)
	@echo "On the other machine: git clone '$(FOLDER)/workshop.bundle' workshop; cd workshop; make run OFFLINE='$(FOLDER)'"

# Removes Keras from a copy: notebook, module, tests, stage, parameters, extra and pins.
leave-keras-out = rm train_keras.ipynb forecast/learn/network.py && find tests -name test_network.py -delete && \
	perl -0pi -e 's/^  train_keras:\n.*?\n\n//ms' dvc.yaml && perl -0pi -e 's/^train_keras:\n(  .*\n)+//m' params.yaml && \
	perl -0pi -e 's/^keras = \[.*?^\]\n//ms' pyproject.toml && perl -0pi -e 's/^\# keras\n.*//ms' requirements.txt && \
	perl -ni -e 'print unless /train_keras\.ipynb/' split.ipynb

# The changes to a copy of chapter 4: without its pages and results, with general names.
from-4_pipeline = rm -rf README.md exercises.ipynb dvc.lock results/metrics.json dashboard/screenshot.png && \
	grep -rlIZw germany . | xargs -0 perl -pi -e 's/\bgermany\b(?!-)/observations/g' && $(if $(KERAS),,$(leave-keras-out) &&) \
	{ sed -n 's/^TITLE, REGION = "\(.*\)", "\(.*\)".*/\# \1 in \2/p' forecast/problem.py && \
	printf '\n%s\n' '[Take it home](take_it_home.md) says how to run this pipeline, and what to change.'; } >README.md
# To a copy of a small pipeline: without what only this repository has.
from-example = rm -rf .dvc dvc.lock results/metrics.json tests/template && perl -0pi -e 's/\n\#\# In this repository\n.*//s' README.md && \
	perl -pi -e 's{^\.\./\.\./packages/}{}; s/^\#.*\n//; print "--find-links wheels\n" if $$. == 1' requirements.txt
# With CSV: params.yaml gets the file and its columns, quoted, and a rule to begin with.
given = FILE $(foreach name,ID TARGET GROUP POSITIVE,$(if $(filter command,$(origin $(name))),$(name)))
own-table = cp "$$csv" own && export FILE="own/$$(basename "$$csv")" && perl -pi -e \
	'BEGIN { open $$csv, "<", $$ENV{FILE}; ($$head, $$row) = <$$csv>; %given = map { $$_ => $$ENV{$$_} =~ s/(["\\])/\\$$1/gr } qw($(given)) } \
	s{^  (\w+): \K\S+}{exists $$given{uc $$1} ? qq("$$given{uc $$1}") : $$&}e; \
	$$decimal = $$row =~ /\d,\d/ ? "," : "."; \
	s/^  read_csv: \K\S+/{sep: ";", decimal: "$$decimal"}/ if ($$head =~ tr/;//) > ($$head =~ tr/,//)' params.yaml && perl -0pi -e \
	's/^score: \K\w+/skill/m; s/^beta: \K\d+/1/m; s/^  rules:\n\K.*/$(first-rule)/ms' params.yaml
first-rule = \ \ \ \ skill: {min: 0.05, name: skill above predicting the same for every row, next_step: look for better columns or more rows}\n

# A pipeline as a separate repository: chapter 4's or, with FROM=examples/NAME, a small one.
take-home: FROM = 4_pipeline
take-home: OLD = $(if $(filter 4_pipeline,$(FROM)),forecast,$(basename $(notdir $(wildcard $(FROM)/*.py))))
take-home: NAME = $(OLD)
take-home: .venv/installed
	@test -n "$(TO)" || { echo "Choose a folder to create: make take-home TO=../plants NAME=plants" >&2; exit 1; }
	@test ! -e "$(TO)" || { echo "Not copied: $(TO) already exists" >&2; echo "  next: choose another folder, or remove this one" >&2; exit 1; }
	@test -n "$(OLD)" && test -e "$(FROM)/dvc.yaml" || { echo "Not copied: $(FROM) is not a pipeline that can be copied" >&2; \
		echo "  next: choose 4_pipeline or examples/any_table" >&2; exit 1; }
	@test -z "$(CSV)" || { test -f "$(CSV)" && test -n "$(ID)" && test -n "$(TARGET)" && test "$(FROM)" != 4_pipeline; } || \
		{ echo "Not copied: CSV=$(CSV) needs an existing file, its columns ID= and TARGET=, and FROM=examples/any_table" >&2; exit 1; }
	@$(BIN)/python -c 'import importlib.util as u, keyword, sys; n, old = sys.argv[1:]; sys.exit(not n.isidentifier() or keyword.iskeyword(n) \
		or (n != old and (n in ("tests", "own") or u.find_spec(n) is not None)))' "$(NAME)" "$(OLD)" || \
		{ echo "Not copied: $(NAME) is not a valid package name, or already exists" >&2; echo "  next: choose another name, such as NAME=plants" >&2; exit 1; }
	@csv="$$(cd "$$(dirname "$(CSV)")" && pwd)/$$(basename "$(CSV)")" && mkdir -p "$(TO)" && git archive HEAD:$(FROM) | tar -x -C "$(TO)" && cd "$(TO)" && \
		$(if $(filter 4_pipeline,$(FROM)),$(from-4_pipeline),$(from-example)) && \
		{ [ "$(NAME)" = "$(OLD)" ] || { for each in $(OLD) $(OLD).py; do [ ! -e $$each ] || mv $$each "$$(echo $$each | sed 's/^$(OLD)/$(NAME)/')"; done && \
		grep -rlZw $(OLD) . | xargs -0 perl -pi -e 's/\b$(OLD)\b/$(NAME)/g'; }; } $(if $(CSV),&& $(own-table))
	@wheels="$$(cd "$(TO)" && pwd)/wheels" && $(call build-wheels,"$$wheels")
	@cd "$(TO)" && git init --quiet --initial-branch main && $(BIN)/dvc init --quiet && $(BIN)/dvc config core.analytics false && \
		$(if $(CSV),$(BIN)/dvc add --quiet "own/$$(basename "$(CSV)")" &&) git add --all
	@echo "$(TO) is a new repository; its $(if $(filter 4_pipeline,$(FROM)),take_it_home.md,README.md) says what to change. Next:"
	@$(BIN)/python -c 'import shlex, sys; print("  cd", shlex.quote(sys.argv[1]))' "$(TO)"
	@# git needs an identity to commit; without a commit, the first model in production would have none.
	@cd "$(TO)" && git commit --quiet --message "Take the pipeline home" 2>/dev/null || echo '  git commit --message "Take the pipeline home"'
	@echo "  python3 -m venv .venv && . .venv/bin/activate && pip install uv && uv pip install -r requirements.txt"
	@echo "  dvc repro"
	@$(if $(filter 4_pipeline,$(FROM)),echo "  python -m dashboard",:)

test: .venv/tests
	@$(BIN)/python -m pytest --numprocesses=4

# RESOLUTION=lowest-direct or highest: in new environments of PYTHON, with the oldest or newest allowed versions.
test-packages: .venv/tests
	@status=0; for package in packages/*/; do (cd "$$package" && python=$(BIN)/python && $(if $(RESOLUTION), \
		environment=$$(mktemp -d) && trap 'rm -rf "$$environment"' EXIT && python=$$environment/bin/python && \
		$(BIN)/uv venv --quiet --clear --python "$(PYTHON)" "$$environment" && \
		$(BIN)/uv pip install --quiet --python $$python --resolution $(RESOLUTION) --requirement pyproject.toml --all-extras \
			--editable . --group test $(if $(filter lowest%,$(RESOLUTION)),--group oldest) &&) \
		$$python -m pytest $(if $(filter lowest%,$(RESOLUTION)),-W default)) || status=1; done; exit $$status

# ADDRESS: the repository that the package is released from.
dist: .venv/installed
	@cd "packages/$(PACKAGE)" && rm -rf dist && copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && \
		cp -rL LICENSE README.md pyproject.toml src "$$copy" && \
		printf '\n[project.urls]\nRepository = "%s"\nIssues = "%s/issues"\n' "$(ADDRESS)" "$(ADDRESS)" >>"$$copy/pyproject.toml" && \
		$(BIN)/uv build --quiet --out-dir dist "$$copy" && $(BIN)/uv tool run --quiet twine==6.2.0 check --strict dist/*

examples: .venv/examples
	@$(MAKE) --no-print-directory --jobs 2 --output-sync --keep-going $(addprefix tests-of/,$(wildcard examples/*/) server/team/)

tests-of/%:
	@cd "$*" && $(BIN)/python -m pytest

# LIMIT: seconds per test; one builds the team's containers and runs a pipeline in them.
containers: LIMIT ?= 10800
containers: .venv/examples
	@[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "Not started: this needs root on Debian" >&2; exit 1; }
	@dpkg --status $(CONTAINER_PACKAGES) >/dev/null 2>&1 || { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $(CONTAINER_PACKAGES); }
	@status=0; for folder in server/team/ $(addprefix examples/,digits_search/ posts_over_ssh/ cifar10/); do (cd "$$folder" && \
		WORKSHOP_REQUIRE_ALL=1 WORKSHOP_REQUIRE_PRIVILEGED=1 $(BIN)/python -m pytest -m soak --timeout=$(LIMIT)) || status=1; done; exit $$status

test-privileged: .venv/examples
	@status=0; for folder in . packages/*/ examples/digits_search/ examples/posts_over_ssh/; do (cd "$$folder" && \
		WORKSHOP_REQUIRE_PRIVILEGED=1 $(BIN)/python -m pytest -m "privileged and not soak and not night") || status=1; done; exit $$status

test-room: .venv/tests
	@[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "Not started: this needs root on Debian" >&2; exit 1; }
	@dpkg --status $(ROOM_PACKAGES) >/dev/null 2>&1 || { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $(ROOM_PACKAGES); }
	@cd server/room && $(BIN)/python -m pytest

walk: .venv/tests
	@$(BIN)/python -m pytest -m "not soak and not night"

night: .venv/examples
	@status=0; for folder in . examples/cifar10/ server/team/; do (cd "$$folder" && $(BIN)/python -m pytest -m "night and not soak") || status=1; done; exit $$status

# Built from the latest commit in a new clone with its own servers. Chapter 4's notebooks are those its pipeline executed.
book: .venv/book
	@site=$(CURDIR)/docs/site && work=$$(mktemp -d) && export WORKSHOP_ROOT="$$work" PYTHONPATH="$$work" PLOTLY_RENDERER=notebook_connected && cd "$$work" && \
		trap 'cd "$$work" && workshop down >/dev/null; rm -rf "$$work"' EXIT && trap 'exit 130' INT TERM && \
		git clone --quiet $(CURDIR) . && workshop up --repro && eval "$$(workshop config --export)" && \
		sed -n 's/^ *- file: \([123]_.*\)/\1.ipynb/p' docs/_toc.yml | grep -v 'README\|exercises' | xargs -I {} -t \
			jupyter execute --inplace {} && \
		cp 4_pipeline/executed/*.ipynb 4_pipeline && \
		sphinx-build --fail-on-warning --keep-going --quiet -c docs -d doctrees . book/site && \
		rm -rf "$$site" && cp -r book/site "$$site" && echo "The book: $$site/index.html"

# `-p randomly --randomly-seed=N` repeats an order.
soak: .venv/tests .venv/book
	@status=0; for folder in . packages/*/; do for words in "-m soak" "-p randomly"; do \
		(cd "$$folder" && $(BIN)/python -m pytest $$words) || status=1; done; done; exit $$status

bench: .venv/installed
	@$(BIN)/python -m benchmarks.run

lint: .venv/tests
	@$(BIN)/pre-commit run --all-files

lines:
	@printf '%-28s %7s %7s %7s\n' folder source tests words
	@{ git ls-files '*.py' '*.sh' | xargs wc -l; git ls-files '*.md' | xargs wc -w; } | awk '$$2 != "total" { \
		split($$2, part, "/"); folder = $$2 !~ /\// ? "." : part[1] ~ /^(packages|server|examples)$$/ ? part[1] "/" part[2] : part[1]; \
		column = $$2 ~ /\.md$$/ ? 3 : $$2 ~ /tests\// ? 2 : 1; names[folder]; names["~ all"]; sum[folder, column] += $$1; sum["~ all", column] += $$1 } \
		END { for (name in names) printf "%-28s %7d %7d %7d\n", name, sum[name, 1], sum[name, 2], sum[name, 3] }' | LC_ALL=C sort

lock: .venv/installed
	@echo '-e .' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --annotation-style line \
		--custom-compile-command "make lock" - --output-file requirements.txt
	@for folder in server/team server/room examples/cifar10 examples/any_table docs tests; do grep -v '^-e' requirements.txt | $(BIN)/uv pip compile --quiet \
		--universal --python-version 3.11 --no-annotate --custom-compile-command "make lock" --constraint - \
		--group "$${folder#*/}" --output-file "$$folder/requirements.txt" || exit 1; done
	@perl -pi -e 's{^-e packages/}{../../packages/}' examples/any_table/requirements.txt
	@# As installed by a copy of the pipeline: the four packages are wheels beside it, since no index has them yet.
	@wheels=$$(mktemp -d) && trap 'rm -rf "$$wheels"' EXIT && $(call build-wheels,"$$wheels") && \
		grep -v '^-e' requirements.txt >"$$wheels/pins" && printf '# the parts are the extras of pyproject.toml; how to compile it again: take_it_home.md\n--find-links wheels\n' >"$$wheels/requirements.txt" && extras= && \
		for part in run look test keras; do [ $$part = run ] || extras="$$extras --extra $$part"; \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --constraint "$$wheels/pins" \
		--find-links "$$wheels" $$extras 4_pipeline/pyproject.toml >"$$wheels/part" || exit 1; \
		{ echo "# $$part"; grep -vxFf "$$wheels/requirements.txt" "$$wheels/part"; } >"$$wheels/new"; \
		cat "$$wheels/new" >>"$$wheels/requirements.txt"; done && cp "$$wheels/requirements.txt" 4_pipeline

# uv creates world-writable locks in the temporary folder, so use the environment's folder instead.
.venv/installed .venv/tests .venv/examples: export TMPDIR = $(CURDIR)/.venv

.venv/tests: .venv/installed tests/requirements.txt
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --requirement tests/requirements.txt
	@touch $@

# The hub, its proxy, and what JupyterLab needs for a hub. All modules are compiled, since attendees cannot write there.
.venv/room: .venv/installed server/room/requirements.txt
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --requirement requirements.txt --requirement server/room/requirements.txt
	@$(BIN)/npm install --silent --global --prefix .venv configurable-http-proxy@5.3.0
	@# The environment of chapter 3's projects: this run creates it, then fails for lack of data.
	@cd 3_projects && MLFLOW_ENV_ROOT=$(CURDIR)/.venv/mlflow MLFLOW_TRACKING_URI=sqlite:///$(CURDIR)/.venv/mlflow.db \
		$(BIN)/mlflow run lr -P data=none >../.venv/mlflow.log 2>&1; ls ../.venv/mlflow/*/bin/python >/dev/null
	@# Chapter 2's data, as 'make run' writes it in a clone.
	@$(BIN)/python -m forecast csv 2_tracking/germany.csv
	@# Not by uv, which compiles only new packages. Errors are ignored: some templates are not valid Python.
	@$(BIN)/python -m compileall -qq --workers 0 .venv/lib .venv/mlflow packages; touch $@

.venv/book: .venv/installed docs/requirements.txt
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --requirement requirements.txt --requirement docs/requirements.txt
	@touch $@

# The file is written last, so an interrupted installation starts again.
# OFFLINE names a folder from `make offline`; later installations (chapter 3) use it, too.
.venv/installed: INDEX = $(if $(OFFLINE),--no-index --find-links "$(OFFLINE)/wheels")
.venv/installed: INSTALL_UV = install --quiet --disable-pip-version-check $(INDEX) $(UV)
# A symbolic link is a room's shared environment (server/room), which is installed elsewhere.
.venv/installed: $(shell [ -L .venv ] || echo requirements.txt pyproject.toml $(wildcard 4_pipeline/pyproject.toml packages/*/pyproject.toml))
	@command -v "$(or $(PYTHON),python3)" >/dev/null || { echo "Not ready: $(or $(PYTHON),python3) is not installed" >&2; \
		echo "  next: install Python 3.11, 3.12 or 3.13" >&2; exit 1; }
	@"$(or $(PYTHON),python3)" workshop/teaching/prerequisites.py
	@echo "Installing into .venv (only once; this takes a minute or two)" >&2
	@# Use this Python's own pip if it is new enough: installing another one takes twice as long as uv. The path is saved
	@# first, because the new environment is first on PATH.
	@python=$$(command -v "$(PYTHON)") && \
		if "$$python" -c 'import pip; raise SystemExit(int(pip.__version__.partition(".")[0]) < 23)' 2>/dev/null; \
		then "$$python" -m venv --without-pip .venv && "$$python" -m pip --python .venv $(INSTALL_UV); \
		else "$$python" -m venv .venv && .venv/bin/python -m pip $(INSTALL_UV); fi
	@echo "  uv is installed; installing the pinned packages" >&2
	@# An older lock installed TensorFlow under its other name; two packages with the same files would break each other.
	@[ "$$(uname -sm)" != "Linux x86_64" ] || VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip uninstall --quiet tensorflow
	@# Less than half of the modules are ever imported, so compile on import; at once if the shell forbids bytecode.
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet $(INDEX) --no-deps \
		$(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode) -r requirements.txt
	@$(if $(OFFLINE),echo "WORKSHOP_OFFLINE=$$(cd "$(OFFLINE)" && pwd)" >> .env)
	@touch $@

.venv/examples: .venv/tests
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --requirement requirements.txt \
		--requirement server/team/requirements.txt --requirement examples/cifar10/requirements.txt --editable '.[examples]'
	@touch $@
