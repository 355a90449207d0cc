#!/usr/bin/env python3
"""Many runs of the simulation, each with its seed in a process of its own; the sums become a row of docs/results/sim.md.

  run.py SEEDS [--from N] [--seconds S] [--twice] [--without RULE] [--only FAULT]

Goes on where it was interrupted (target/sim has what each seed of this commit came to). With --twice every seed is run twice and
has to take the same way. A seed that fails is shown with the command that replays it, and ends the program with 1; so does, in 100
seeds or more, something that never came: a kind of fault, or what faults are there for.
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs/results/sim.md"
FAULTS = ("kill power restart partition one-way isolated-leader slow-link broken-connections io-error disk-full clock-jump "
          "pause all-down one-by-one crash-again wipe zone-power broken-disk").split()
# What faults are there for.
EFFECTS = ("elections elr-elections recoveries truncations shrinks isr-failed snapshots cleanings moves relocations repaired "
           "ended zoned").split()
# In so many seeds all of it comes.
ENOUGH = 100


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int)
    parser.add_argument("--from", dest="first", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--twice", action="store_true")
    parser.add_argument("--without")
    parser.add_argument("--only")
    parser.add_argument("--debug", action="store_true", help="not optimised, as `cargo test` builds it")
    parser.add_argument("--patience", type=int, default=600, help="seconds after which a run is taken for endless")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    return parser.parse_args()


def build(args):
    command = ["cargo", "build", "--quiet", "-p", "sim"]
    command += [] if args.debug else ["--release"]
    command += ["--features", "mutations"] if args.without else []
    subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / "target" / ("debug" if args.debug else "release") / "sim"


def one(program, seed, args):
    command = [program, "run", str(seed), "--seconds", str(args.seconds)]
    for name in ("without", "only"):
        if getattr(args, name):
            command += [f"--{name}", getattr(args, name)]
    said = []
    for _ in range(2 if args.twice else 1):
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=args.patience)
        except subprocess.TimeoutExpired:
            return False, f"seed={seed} goes round without coming to an end\n"
        said.append(ended.stdout)
        if ended.returncode != 0:
            return False, ended.stdout or f"seed={seed} ended with {ended.returncode}\n"
    if args.twice and said[0] != said[1]:
        return False, f"seed={seed} took two ways:\n{said[0]}{said[1]}"
    return True, said[0]


def missing(sums, seeds, args):
    """What never came although there was room for it."""
    if seeds < ENOUGH or args.without:
        return []
    return [name for name in ([args.only] if args.only else FAULTS + EFFECTS) if not sums[name]]


def parse(line):
    return dict(re.findall(r"(\S+?)=(\S+)", line))


def main():
    args = arguments()
    program = build(args)
    commit = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, text=True, capture_output=True, check=True)
    commit = commit.stdout.strip()
    what = "-".join(str(part) for part in (commit, args.seconds, args.without, args.only, args.twice))
    done = ROOT / "target/sim" / f"{what}.log"
    done.parent.mkdir(parents=True, exist_ok=True)
    known = {int(parse(line)["seed"]): line for line in (done.read_text().splitlines() if done.exists() else [])}
    seeds = [seed for seed in range(args.first, args.first + args.seeds) if seed not in known]
    failed = []
    began = time.monotonic()
    with done.open("a") as log, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for held, said in pool.map(lambda seed: one(program, seed, args), seeds):
            if held:
                line = said.splitlines()[0]
                log.write(line + "\n")
                log.flush()
                known[int(parse(line)["seed"])] = line
            else:
                failed.append(said)
                print(said, flush=True)
    lines = [parse(known[seed]) for seed in range(args.first, args.first + args.seeds) if seed in known]
    sums = collections.Counter()
    for line in lines:
        sums.update({name: int(value) for name, value in line.items() if name not in ("seed", "trace")})
    commits = sums["classic"] + sums["consumer"]
    transactions = sum(count for name, count in sums.items() if re.fullmatch(r"x-\d+", name))
    faults = ", ".join(f"{kind} {sums[kind]}" for kind in FAULTS)
    twice = f", {len(lines)} of {len(lines)} the same way twice" if args.twice and not failed else ""
    row = (f"| {commit} | {args.first} to {args.first + args.seeds - 1}{twice} | {sums['ms'] / 3_600_000:.2f} | "
           f"{sums['acknowledged']} | {commits} | {transactions} | {faults} | {sums['elections']} | {sums['elr-elections']} | "
           f"{sums['recoveries']} | {sums['truncations']} | {sums['shrinks']} | {sums['moves']} | {sums['relocations']} | "
           f"{sums['snapshots']} | {sums['zoned']} | {sums['ended']} | {len(failed)} |")
    print(row)
    if seeds:
        print(f"{(time.monotonic() - began) * args.jobs / len(seeds):.1f} s a seed")
    if not (args.without or args.only):
        with RESULTS.open("a") as results:
            results.write(row + "\n")
    never = missing(sums, len(lines), args)
    for name in never:
        print(f"there was no {name} in {len(lines)} seeds")
    sys.exit(bool(failed or never))


if __name__ == "__main__":
    main()
