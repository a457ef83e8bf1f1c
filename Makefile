# Short names for the commands of the README.
.PHONY: build test test-fast lint deny ci run up down images

build: ## The release binaries.
	cargo build --release --locked

test: ## Every test, against real servers.
	cargo test --workspace --locked

test-fast: ## Tests that need neither Java nor pip: unit, property, mock-cluster and scripted-server tests.
	.ci/test-fast

lint: ## Formatting and clippy, as in .ci/run.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

deny: ## Allowed dependencies and licences; needs cargo-deny.
	cargo deny check bans licenses sources

ci: ## All checks that a change must pass.
	.ci/run

run: ## The whole pipeline on this machine, without Docker.
	cargo run --release -p slipstream up

up: ## The whole pipeline in Docker.
	docker compose up -d --build --wait

down: ## Stops the pipeline; the data stays in its volumes.
	docker compose --profile simulator down

images: ## All images, also that of the operator's command.
	docker compose --profile tools build
