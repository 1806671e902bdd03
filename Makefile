.PHONY: demo test lint deny quick quick-units quick-contract bench check image setup soak

# Most tests wait for processes and clocks: six at a time keep two cores busy. Those under load take turns.
export RUST_TEST_THREADS ?= 6

demo: ## one process, nothing to set up
	cargo run --release -- demo

test: ## everything that CI runs
	# Downloads, and two compilers with parts that keep one core busy.
	$(MAKE) --jobs 3 --output-sync=target setup lint deny
	tests/without_emulator.sh
	tests/searched.sh cargo test --all-features -- --show-output

lint: ## the form of the code
	cargo fmt --check
	cargo clippy --all-targets --all-features -- -D warnings

deny: ## licences, sources and known defects of the dependencies
	tests/deny.sh

# Simulations, two hundred thousand calls through one ledger, and five kills under load: half a minute and more, each.
SLOW = --skip many_sidecars --skip what_the_provider_bills --skip killed_under_load

quick: ## while you work: a minute on two cores after a build, and nothing to install
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo test --no-run --lib --test layering --test contract --test emulator
	$(MAKE) --jobs 2 --output-sync=target quick-units quick-contract

# The unit tests compute, and the others mostly wait: beside each other, both are done sooner.
quick-units:
	cargo test --lib --test layering --test emulator -- $(SLOW) --test-threads 2

quick-contract:
	cargo test --test contract -- $(SLOW) --test-threads 24

bench: ## signing, permits, a fleet's, the spool, the meter
	cargo bench

soak: ## outages, stalls, overflow and fleets in real time, and ten thousand crashes: about two hours
	cargo test --release --test soak -- --nocapture --test-threads 1
	TOLLGATE_SEEDS=416 cargo test --release --lib many_sidecars
	TOLLGATE_CRASHES=10000 cargo test --release --test load crash -- --nocapture

image: ## packs the image without a daemon, and runs it; as root, with buildah and runc
	cargo build --release --no-default-features
	deploy/image/pack.sh target/tollgate.oci.tar
	deploy/image/try.sh target/tollgate.oci.tar

check: lint ## what to run before a commit
	tests/without_emulator.sh
	tests/searched.sh cargo test --all-features -- --show-output

setup: ## installs what the tests need on a bare Debian machine
	tests/setup.sh
