.PHONY: demo test bench check setup

demo: ## one process, nothing to set up
	cargo run --release -- demo

test: setup ## everything that CI runs
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	tests/deny.sh
	cargo test

bench: ## signing and permits
	cargo bench

check: ## what to run before a commit
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo test

setup: ## installs what the tests need on a bare Debian machine
	tests/setup.sh
