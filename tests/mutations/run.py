"""Switches off each rule that the cores ask for by name (model::Rule), one at a time, runs their tests, and prints which of
them notices. A rule that no test notices is a finding: the run fails.

    run.py [RULE...]        all rules without an argument
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# The walks find what they find within this many seconds of looking, or not at all.
LIMIT = 300


# Held by the coordinators' own tests, which switch them off themselves.
COORDINATORS = {44, 45, 46, 48, 49, 51, 52, 53, 54}


def rules():
    text = (REPOSITORY / 'crates/model/src/rules.rs').read_text()
    table = text[text.index('rules! {'):]
    names = re.findall(r'^    (R(\d+)\w+),$', table[:table.index('}')], re.M)
    return [name for name, number in names if int(number) not in COORDINATORS]


def binaries():
    """The test programs of the cores, built with rules that can be switched off: {name: path}"""
    build = subprocess.run(
        ['cargo', 'test', '--no-run', '--message-format=json', '-p', 'metadata', '-p', 'replication', '-p', 'controller',
         '--features', 'replication/mutations'], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    found = {}
    for line in build.stdout.splitlines():
        message = json.loads(line)
        if message.get('executable') and message['profile']['test']:
            found[f"{message['package_id'].split('/')[-1].split('#')[0]} {message['target']['name']}"] = message['executable']
    return found


def asks(crate, rule):
    """Whether a crate asks for a rule: the tests of one that does not can say nothing of it."""
    sources = (REPOSITORY / 'crates' / crate / 'src').rglob('*.rs')
    return any(re.search(rf'hold[s]?\(Rule::{rule}\)', source.read_text()) for source in sources)


def failed(binary, rule):
    """The tests that fail with a rule switched off; a walk that hangs without it has noticed, too."""
    # What a walk finds without a rule is no case to keep.
    environment = {**os.environ, 'OTTLA_SWITCHED_OFF': rule, 'RUST_BACKTRACE': '0',
                   'PROPTEST_DISABLE_FAILURE_PERSISTENCE': '1'}
    # The tests that switch rules off themselves say nothing of this one.
    command = [binary, '--skip', 'mutations::', '--skip', 'would']
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return ['(no end)']
    names = re.findall(r'^test (\S+) \.\.\. FAILED$', done.stdout, re.M)
    return names or ([] if done.returncode == 0 else ['(crash)'])


def main(wanted):
    known = rules()
    unknown = set(wanted) - set(known)
    if unknown:
        sys.exit(f'no such rule: {", ".join(sorted(unknown))}')
    programs = binaries()
    print(f'{len(known)} rules; tests in: {", ".join(sorted(programs))}', flush=True)
    for program, binary in programs.items():
        broken = failed(binary, '')
        if broken:
            sys.exit(f'{program} fails with all rules in force: {broken}')
    survivors, began = [], time.monotonic()
    print(f'{"rule":<32}{"caught by":>10}  first')
    for rule in wanted or known:
        asked = [binary for program, binary in programs.items() if asks(program.split()[0], rule)]
        caught = [name for binary in asked for name in failed(binary, rule)]
        walks = [name for name in caught if 'committed_records_survive' in name or 'whatever_happens' in name]
        first = (walks or caught or ['SURVIVES'])[0].split('::')[-1]
        print(f'{rule:<32}{len(caught):>10}  {first}', flush=True)
        if not caught:
            survivors.append(rule)
    count = len(wanted or known)
    print(f'\n{count - len(survivors)} of {count} caught in {time.monotonic() - began:.0f} s')
    if survivors:
        sys.exit(f'not noticed by any test: {", ".join(survivors)}')


if __name__ == '__main__':
    main(sys.argv[1:])
