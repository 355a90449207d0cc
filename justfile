# Every recipe is one plain command that also runs without just.

# A three-node cluster on this machine
local *ARGS:
    cargo run --release -- local {{ARGS}}

# What Ottla is for, in one command
demo:
    cargo run --release -- demo

# Unit and integration tests
test:
    cargo test --workspace

# Exactly what CI runs
verify:
    bash .ci/run

# Real clients against a fresh cluster (minutes)
clients *SUITES:
    tests/clients/run.sh {{SUITES}}

# Brokers killed, paused and restarted under load (minutes)
faults *SCENARIOS:
    tests/faults/run.sh {{SCENARIOS}}

# Faults of every kind in rounds, on networks or with --disks, for --minutes; goes on where it ended (root)
chaos *ARGS:
    tests/chaos/run.sh {{ARGS}}

# A chain of transactions through three topics, a million records, brokers and applications killed; goes on where it ended
exactly-once *ARGS:
    python3 tests/chaos/exactly_once.py {{ARGS}}

# MirrorMaker 2 both ways, Connect and Streams exactly once while they and the brokers are killed (minutes; big downloads)
ecosystem:
    python3 tests/ecosystem/mirror.py
    python3 tests/ecosystem/connect.py
    python3 tests/ecosystem/streams.py

# The power of all nodes cut under load, again and again (root, loop devices, FUSE; eight seconds a cut)
powercut *ARGS:
    tests/powercut/run.sh {{ARGS}}

# Two hours of mixed load with a kill every minute: nothing lost, nothing grows
soak *ARGS:
    python3 tests/soak/soak.py {{ARGS}}

# From the start to serving, after a kill and after a stop, with logs of 2 and 20 GB
restart *ARGS:
    python3 benches/restart.py {{ARGS}}

# What sync before ack costs through a node: one partition, a thousand at once, beside a bare fdatasync
syncs *ARGS:
    python3 benches/syncs.py {{ARGS}}

# What appends, cold reads and syncs cost the storage, beside the same bytes written and read without it: gigabytes, directory
appends *ARGS:
    cargo run --release -p storage --example appends -- {{ARGS}}

# What serving a log costs that is in no tail cache, from the page cache or the disk, beside bare sendfile
cold *ARGS:
    python3 benches/cold.py {{ARGS}}

# How long a partition stands still when its leader is killed, paused or cut off (root, minutes)
failover *ARGS:
    python3 benches/failover.py {{ARGS}}

# Whether a broker that gets too little of the processors is taken for dead: half an hour of full load, or --minutes
starved *ARGS:
    python3 benches/starved.py {{ARGS}}

# What idle partitions cost one node, and what its start takes with them (minutes)
idle *ARGS:
    python3 benches/idle.py {{ARGS}}

# Each safety rule switched off is noticed by a test: by the cores' own, and by each of all their tests (minutes)
mutations *RULES:
    cargo test -p replication --features mutations
    cargo test -p coordinator --features mutations
    python3 tests/mutations/run.py {{RULES}}

# The models of the cores beyond what the tests explore: each to its end or for half an hour, then a minute of random walks in
# each (gigabytes of memory; goes on where it was interrupted); `mutations` switches rules off (half an hour)
models *ARGS:
    tests/models/run.sh {{ARGS}}

# Whole clusters in one thread with faults, one seed after the other: `just sim 1000`, `just sim 1000 --twice` (the same way twice?)
sim SEEDS="100" *ARGS:
    python3 tests/sim/run.py {{SEEDS}} {{ARGS}}

# Which safety rules the simulation notices when they are switched off; goes on where it was interrupted (hours for all)
sim-mutations *RULES:
    python3 tests/sim/mutations.py {{RULES}}

# Hostile bytes: requests responses (the codec), recovery indexes epochs producers batches (the storage), two minutes a target (needs cargo-fuzz)
fuzz TARGET="requests" SECONDS="120":
    cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run {{TARGET}} -- -max_total_time={{SECONDS}} -malloc_limit_mb=160 -rss_limit_mb=2048

# The same for an hour each
fuzz-hours HOURS="1":
    for target in requests responses recovery indexes epochs producers batches; do just fuzz $target $(( {{HOURS}} * 3600 )) || exit 1; done

# Ottla and Apache Kafka side by side (an hour)
compare *ARGS:
    python3 benches/compare/compare.py {{ARGS}}

# The same sequences of requests against Ottla and Apache Kafka, every answer compared; goes on where it was interrupted (minutes)
differential SEEDS="25" *ARGS:
    python3 tests/differential/differential.py --seeds {{SEEDS}} --results docs/results/differential.md {{ARGS}}

# How fast thousands of partitions are led again after a kill (minutes)
partitions *ARGS:
    python3 benches/partitions/failover.py {{ARGS}}

# A thousand replicas move off a node under load, throttled (minutes, 15 GB of disk)
reassign *ARGS:
    python3 benches/reassign.py {{ARGS}}

# What a hundred thousand idempotent producers cost one node (a minute)
producers *ARGS:
    python3 benches/producers.py {{ARGS}}

# Groups of 500 members, 10,000 groups, offset commits, transactions: Ottla and Apache Kafka (minutes)
groups *ARGS:
    python3 benches/groups.py {{ARGS}}

# How long a group coordinator takes to load a million offset commits (a minute)
load *ARGS:
    python3 benches/load.py {{ARGS}}

# How fast and in how much memory a log is compacted: gigabytes, million keys, codec
compaction *ARGS:
    cargo run --release -p storage --example compaction -- {{ARGS}}

# What ships
dist:
    cargo build --profile dist
