# `make test` runs every test, `make ci` what a change must pass.

.PHONY: test test-rust test-c test-python test-same lint docs ci

test: test-rust test-c test-python test-same

# Release mode: the tests run whole models.
test-rust:
	cargo test --release --locked --workspace --exclude diffusion-py
	# The tests above have the feature `hub`; this is what a build without it says.
	cargo test --release --locked -p diffusion-core --lib weights::hub

test-c:
	diffusion-c/test.sh

test-python:
	diffusion-py/test.sh

# After test-python, whose virtual environment it uses.
test-same: test-python
	tests/same_picture.sh

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

ci: lint docs test
