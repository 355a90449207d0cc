#!/usr/bin/env python3
"""Which safety rules the simulation notices when they are switched off: seed after seed until one fails, for so long at most.

  mutations.py [RULE ...] [--seconds-each S] [--seconds S] [--first SEED]

Without rules all of them are asked for that have no row in docs/results/sim-mutations.md yet: so it goes on where it was
interrupted. A seed that fails with all rules in place, too, does not count.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs/results/sim-mutations.md"
PROGRAM = ROOT / "target/sim/with-mutations"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rules", nargs="*")
    parser.add_argument("--seconds-each", type=int, default=120, help="for how long a rule is tried")
    parser.add_argument("--seconds", type=int, default=20, help="for how long a run has faults, in its own time")
    parser.add_argument("--patience", type=int, default=300, help="seconds after which a run is taken for endless")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--debug", action="store_true", help="not optimised, as `cargo test` builds it")
    parser.add_argument("--built", action="store_true", help="the program is there")
    return parser.parse_args()


def build(args):
    command = ["cargo", "build", "--quiet", "-p", "sim", "--features", "mutations"]
    subprocess.run(command + ([] if args.debug else ["--release"]), cwd=ROOT, check=True)
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "target" / ("debug" if args.debug else "release") / "sim", PROGRAM)


def all_rules():
    text = (ROOT / "crates/model/src/rules.rs").read_text()
    listed = re.search(r"^rules! \{(.*?)^\}", text, re.S | re.M)
    return re.findall(r"^\s+(R\w+),$", listed.group(1), re.M)


def run(seed, args, rule=None):
    """What a run says against it; nothing where it holds."""
    command = [PROGRAM, "run", str(seed), "--seconds", str(args.seconds), *(["--without", rule] if rule else [])]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=args.patience)
    except subprocess.TimeoutExpired:
        return "it goes round without coming to an end"
    if ended.returncode == 0:
        return None
    said = [line.strip() for line in ended.stdout.splitlines()[1:] if line.startswith("  ")]
    panic = re.search(r"panicked at (\S+?):\d+:\d+:\n(.*)", ended.stderr)
    if panic:
        return f"panic in {panic[1]}: {panic[2]}"
    return said[0] if said else f"it ended with {ended.returncode}"


def notice(rule, args):
    """How many seeds it took, the seed and what it said; nothing for the last two where none noticed."""
    end = time.monotonic() + args.seconds_each
    seed = args.first
    while time.monotonic() < end:
        said = run(seed, args, rule)
        if said and run(seed, args) is None:
            return seed - args.first + 1, seed, said
        seed += 1
    return seed - args.first, None, None


def main():
    args = arguments()
    if not args.built:
        build(args)
    asked = set(re.findall(r"^\| (R\w+) \|", RESULTS.read_text(), re.M))
    for rule in args.rules or [rule for rule in all_rules() if rule not in asked]:
        count, seed, said = notice(rule, args)
        words = said.replace("|", "/")[:160] if said else "**not noticed**"
        row = f"| {rule} | {count} | {seed if said else ''} | {words} |"
        print(row, flush=True)
        with RESULTS.open("a") as results:
            results.write(row + "\n")


if __name__ == "__main__":
    main()
