.PHONY: demo test bench check image setup soak

demo: ## one process, nothing to set up
	cargo run --release -- demo

test: setup ## everything that CI runs
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	tests/deny.sh
	cargo test

bench: ## signing, permits, a fleet's, the spool, the meter
	cargo bench

soak: ## outages, stalls, overflow and fleets in real time, and ten thousand crashes: about two hours
	cargo test --test soak -- --nocapture --test-threads 1
	cargo test --release --test fleet_soak -- --nocapture --test-threads 1
	cargo test --release --test standstill_soak -- --nocapture --test-threads 1
	TOLLGATE_CRASHES=10000 cargo test --release --test crash -- --nocapture

image: ## packs the image without a daemon, and runs it; as root, with buildah and runc
	cargo build --release
	deploy/image/pack.sh target/tollgate.oci.tar
	deploy/image/try.sh target/tollgate.oci.tar

check: ## what to run before a commit
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo test

setup: ## installs what the tests need on a bare Debian machine
	tests/setup.sh
