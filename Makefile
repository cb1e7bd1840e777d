# Everything a clone is for. Each target sets up what it needs: a compiler, libclang, and RocksDB compiled
# once per machine (three to six minutes) into ${XDG_CACHE_HOME:-~/.cache}/blockraft. There is one profile, release.

SHELL := /bin/bash
CARGO := scripts/cargo.sh
TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARY := $(TARGET)/release/blockraft
DEMO_ARGS ?=
BENCH_ARGS ?=
FAILOVER_TIMES ?= 20
CLIENTS_ARGS ?=
IDLE_MINUTES ?= 10

.DEFAULT_GOAL := help
.PHONY: help build demo test try check bench failover lint docs contract boards dashboards-live page-test fence-test compose-test alert-matrix alert-pages pictures rocksdb feed-runs feed-load faults browser-feed observe-cost catch-up torture changes snapshots-bench runbooks-test clients clients-quick proxies idle

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the binary, in $(TARGET)/release
	@scripts/build.sh "$(BINARY)"

demo: build ## three nodes on this machine, with a block producer; Ctrl-C ends it
	@echo "blockraft: the binary is $(BINARY)"
	@exec "$(BINARY)" dev $(DEMO_ARGS)

test: ## all tests
	$(CARGO) test --release --locked --workspace

# A test on real nodes by its file, else a unit test. Built apart from the others, piece by piece: slower at first, soon
# after a change.
TRY := $(if $(findstring ::tests,$(T)),--lib,$(if $(wildcard tests/it/$(firstword $(subst ::, ,$(T))).rs),--test it,--lib))
try: ## the tests with T=… in their names, some 15 s after a file was changed; the first time two to four minutes
	@CARGO_INCREMENTAL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=256 $(CARGO) test --release --locked $(TRY) -- $(T)

check: lint docs contract clients-quick test ## everything CI runs: format, lints, documentation, contract, tests, five clients

lint: ## format and lints; writes nothing
	cargo fmt --all -- --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings

docs: ## the documentation, without a warning
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --no-deps --document-private-items

contract: ## alert rules, boards, systemd unit, compose file
	scripts/contract.sh

boards: ## write Grafana's boards anew, from dashboards/generate.py
	python3 dashboards/generate.py

dashboards-live: build ## every query of the boards on a real Prometheus (Debian's) over a live cluster; names panels without data
	@BLOCKRAFT_BIN="$(BINARY)" scripts/dashboards_live.py

page-test: build ## the status page in headless Chromium (apt: chromium chromium-driver)
	@BLOCKRAFT_BIN="$(BINARY)" scripts/page_test.py

fence-test: build ## the README's fence loops against a live cluster, over a change of leader
	@BLOCKRAFT_BIN="$(BINARY)" scripts/fence_test.py

clients: build ## the pinned clients people have against a cluster; writes api/clients.md; chromium, firefox-esr, Python packages
	@BLOCKRAFT_BIN="$(BINARY)" python3 -B scripts/clients/run.py $(CLIENTS_ARGS)

clients-quick: build ## five of them, as CI runs them; what cannot be had is named and left out
	@$(CARGO) build -q --release --locked --example clients
	@if command -v python3 >/dev/null; then \
	  BLOCKRAFT_BIN="$(BINARY)" python3 -B scripts/clients/run.py --quick --rust "$(TARGET)/release/examples/clients"; \
	else echo "clients: all left out: there is no python3"; fi

proxies: build ## Debian's nginx and HAProxy before a node; writes docs/proxies.md
	@BLOCKRAFT_BIN="$(BINARY)" python3 -B scripts/proxies.py

idle: build ## ten minutes of nothing beside etcd: CPU, memory, disk, writes, lines; IDLE_MINUTES=2
	@BLOCKRAFT_BIN="$(BINARY)" python3 -B scripts/idle.py $(IDLE_MINUTES)

pictures: build ## docs/images anew, of a real run; wants tmux, chromium, chromium-driver, pngquant
	@BLOCKRAFT_BIN="$(BINARY)" scripts/pictures.py

compose-test: build ## the compose file with both Composes, one node killed and back; root, a Docker engine, debootstrap; no registry
	@BLOCKRAFT_BIN="$(BINARY)" scripts/compose_test.py

runbooks-test: build ## every command of the runbooks on a live cluster
	@BLOCKRAFT_BIN="$(BINARY)" scripts/runbooks_test.py

alert-matrix: build ## every alert against real faults on real nodes, and an hour of normal life; writes dashboards/alert-matrix.md; root, some 20 minutes
	@BLOCKRAFT_BIN="$(BINARY)" scripts/alert_matrix.py

alert-pages: build ## critical faults on real nodes, a Prometheus started cold, a real Alertmanager: who is paged, and how soon; writes dashboards/alert-pages.md; root, some 7 minutes
	@BLOCKRAFT_BIN="$(BINARY)" scripts/pages.py

bench: build ## load on a cluster of its own, figures at the end; BENCH_ARGS="…" is passed on
	@scripts/bench.sh "$(BINARY)" $(BENCH_ARGS)

failover: build ## how long a chain stands still when its leader stops, or is killed; FAILOVER_TIMES=50
	@"$(BINARY)" bench --nodes 3 --failover $(FAILOVER_TIMES) --signal term
	@"$(BINARY)" bench --nodes 3 --failover $(FAILOVER_TIMES) --signal kill

snapshots-bench: build ## what snapshots cost, how short they keep the log, how fast a node starts; BENCH_ARGS="--quick" only tries it, "--only start" one part
	@scripts/snapshots_bench.py "$(BINARY)" $(BENCH_ARGS)

catch-up: ## a follower away for 50 000 blocks, and one 10 000 behind at 5 000 blocks/s; AWAY=n BEHIND=n RATE=n
	BLOCKRAFT_AWAY=$(or $(AWAY),50000) BLOCKRAFT_BEHIND=$(or $(BEHIND),10000) BLOCKRAFT_RATE=$(or $(RATE),5000) \
	$(CARGO) test --release --locked --test it -- --nocapture --test-threads 1 \
	install::a_follower_far_behind snapshots::a_follower_that_was_away

torture: ## kill -9 at 200 random moments of building, sending, receiving and installing snapshots, and at 300 of flushes; TORTURE=n KILLS=n
	BLOCKRAFT_TORTURE=$(or $(TORTURE),200) BLOCKRAFT_KILLS=$(or $(KILLS),300) \
	$(CARGO) test --release --locked --test it -- --test-threads 1 snapshots::kills_during kills::

changes: ## a thousand changes of leader, a hundred callers that leave each membership method; CHANGES=n LEAVERS=n
	BLOCKRAFT_CHANGES=$(or $(CHANGES),1000) BLOCKRAFT_LEAVERS=$(or $(LEAVERS),100) \
	$(CARGO) test --release --locked --test it many:: -- --test-threads 1

feed-runs: ## a hundred subscriptions from the first block while blocks arrive, on a hundred clusters
	FEED_RUNS=$${FEED_RUNS:-100} $(CARGO) test --release --locked --test it a_start_from_the_first_block

feed-load: ## the feed under 1000 blocks a second with and without readers that stand still; figures at the end
	FEED_LOAD_ROUNDS=$${FEED_LOAD_ROUNDS:-3} FEED_LOAD_SECONDS=$${FEED_LOAD_SECONDS:-20} \
	FEED_LOAD_RATE=$${FEED_LOAD_RATE:-1000} FEED_LOAD_BYTES=$${FEED_LOAD_BYTES:-1024} \
	$(CARGO) test --release --locked --test it readers_that_stand_still -- --nocapture

faults: ## what each fault costs, partitions to hung disks, as a table; half an hour; FAULTS_ONLY="part of a name" for some
	FAULTS_ROUNDS=$${FAULTS_ROUNDS:-3} FAULTS_SECONDS=$${FAULTS_SECONDS:-5} FAULTS_STALL_SECONDS=$${FAULTS_STALL_SECONDS:-5} \
	FAULTS_STOP_MAX=$${FAULTS_STOP_MAX:-30} \
	$(CARGO) test --release --locked --test it fault_table:: -- --nocapture --test-threads=1

browser-feed: ## a real browser's EventSource over ten reconnects; needs chromium
	@command -v chromium >/dev/null || { echo "blockraft: this needs chromium: apt-get install chromium"; exit 1; }
	$(CARGO) test --release --locked --test it browser:: -- --nocapture

observe-cost: ## throughput and p99 with everything watched and with nothing, taking turns; figures at the end
	OBSERVE_COST_ROUNDS=$${OBSERVE_COST_ROUNDS:-5} OBSERVE_COST_SECONDS=$${OBSERVE_COST_SECONDS:-8} \
	$(CARGO) test --release --locked --test it observe_cost:: -- --nocapture

rocksdb: ## RocksDB alone, for a cargo of your own: ROCKSDB_STATIC=1 ROCKSDB_LIB_DIR=$$(make -s rocksdb)
	@scripts/rocksdb.sh
