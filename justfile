# What contributors and CI run. `just --list` shows the recipes.

# Everything CI runs, in its order.
default: ci

# Format all sources.
fmt:
    cargo fmt --all

# Lint everything; a warning is an error.
clippy:
    cargo clippy --release --workspace --all-targets --all-features -- -D warnings

# All tests, in the one profile that is fast enough for model code.
test:
    cargo test --release --workspace

# What a pull request has to pass.
ci:
    .ci/run

# Strategies side by side on a paced rig; figures go to docs/performance.md.
bench prompts *args:
    cargo run --release -- bench --prompts {{prompts}} --max-tokens 64 --pace target=20,qualifier=7,draft=2 {{args}}

# Step time of the engine by row count, on a target deepened beyond the caches.
bench-engine out="target/deep" *args:
    cargo run --release -- models deepen --layers 64 --out {{out}}
    cargo run --release --features candle -- bench-engine --stock --model {{out}} --rows 1,2,4,8,16,32 {{args}}

# The CUDA kernels compiled to PTX (needs `pip install nvidia-cuda-nvrtc==13.0.88`, no toolkit).
ptx:
    python3 engine/src/cuda/ptx/regenerate.py

# The CUDA kernels checked and timed on the first GPU; figures go to docs/gpu.md.
device *args:
    tests/device/run.sh {{args}}

# Checks of deploy/, of what can be installed here.
deploy:
    tests/deploy/run.sh prepare
    cargo build --release -p offshoot
    tests/deploy/run.sh check

# Workers by EndpointSlices, which the default leaves out, against a fake API server.
endpointslice:
    cargo test --release -p offshoot-coordinator --features endpointslice

# Fires every alert by the fault that it is for; figures go to docs/deploy.md. Needs Prometheus and PyYAML.
alerts prometheus="prometheus":
    cargo build --release -p offshoot
    python3 tests/deploy/alerts.py target/release/offshoot {{prometheus}}

# The examples of docs/clients.md, of what can be installed here.
clients:
    tests/clients/run.sh prepare
    cargo build --release -p offshoot
    tests/clients/run.sh check

# Models that people really run: token ids, tokens that differ under any strategy, load time and memory; figures go to docs/models.md.
real *args:
    python3 tests/real/fetch.py
    cargo build --release --workspace --bins
    cargo test --release --workspace --test real -- --nocapture
    python3 tests/real/memory.py target/release/offshoot
    python3 tests/real/strategies.py target/release/offshoot {{args}}

# What users notice of lost processes and disturbed links; figures go to docs/faults.md.
faults *args:
    cargo build --release --workspace
    target/release/faults --repetitions 20 {{args}}

# An hour of mixed traffic under random faults; figures go to docs/faults.md.
soak *args:
    cargo build --release --workspace
    target/release/soak {{args}}

# Search for inputs that break a target: wire, request, relay or worker.
fuzz target minutes="60":
    tests/fuzz/run {{target}} {{minutes}}

# Licences, advisories, bans and sources of dependencies (needs cargo-deny).
deny:
    cargo deny check

# The pure crates where there is no clock, thread or socket (needs `rustup target add wasm32-unknown-unknown`).
wasm:
    cargo build --release --target wasm32-unknown-unknown -p offshoot-decode -p offshoot-speculation -p offshoot-control -p offshoot-simulation

# A million schedules of the simulated cluster; a failure prints its seed.
simulate schedules="1000000" threads="2":
    cargo run --release -p offshoot-sim --bin simulate -- --schedules {{schedules}} --threads {{threads}}

# Plants known bugs into a copy of the sources, and shows how soon the simulation finds each.
plants *names:
    tests/sim/plants.sh {{names}}
