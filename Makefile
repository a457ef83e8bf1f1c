# Thin names for the commands that the README gives.
.PHONY: build test lint deny ci run up down images

build: ## The release binaries.
	cargo build --release --locked

test: ## Every test, against real servers.
	cargo test --workspace --locked

lint: ## Formatting and clippy, as .ci/run has them.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

deny: ## Who may depend on what, and licences; needs cargo-deny.
	cargo deny check bans licenses sources

ci: ## Everything that a change must pass.
	.ci/run

run: ## The whole pipeline on this machine, without Docker.
	cargo run --release -p slipstream up

up: ## The whole pipeline in Docker.
	docker compose up -d --build --wait

down: ## Ends it; the data stays in its volumes.
	docker compose --profile simulator down

images: ## All images, the operator's command with them.
	docker compose --profile tools build
