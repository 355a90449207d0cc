"""What was compared and what differed, for people: on the terminal, and as a table in docs/results."""
import collections
import json

from expected import EXPECTED


def tell(found, verbose):
    """Prints the differences that are not expected, the expected ones by reason, and what was expected and did not occur."""
    places = {}
    for each in found:
        for text, index, step in each['new']:
            places.setdefault(text, []).append((f'{each["kind"]} {each["seed"]} step {index}', step))
    for text, where in sorted(places.items(), key=lambda item: -len(item[1])):
        print(f'{len(where):>5} x {text}   [{where[0][0]}]')
        if verbose:
            print('        ' + json.dumps({k: v for k, v in where[0][1].items() if k != 'api'}, ensure_ascii=False)[:600])
    kinds, reasons = by_kind(found), by_reason(found)
    for kind, (sequences, requests, left) in kinds.items():
        print(f'{kind}: {sequences} sequences, {requests} requests, {left} steps left out behind a difference')
    for reason in unseen(kinds, reasons):
        print(f'expected, and did not occur: {reason}')
    print(f'{sum(reasons.values())} expected differences for {len(reasons)} reasons, {len(places)} others')


def write(path, found, commit):
    """The table: what was compared at this commit, and every difference that is left, with its reason."""
    kinds, reasons = by_kind(found), by_reason(found)
    new = collections.Counter(text for each in found for text, _, _ in each['new'])
    lines = [
        '# Ottla and Apache Kafka, answer by answer', '',
        f'`just differential`: Ottla of commit {commit}, against Apache Kafka 4.3.1. A sequence is compared up to the step where one',
        'cluster did what the other refused, or never came to; the steps behind it are left out. What each kind plays stands in',
        '`tests/differential/kinds`, the differences that are expected in `tests/differential/expected.py`.', '',
        '| kind | sequences | requests compared | steps left out |', '|---|---|---|---|'
    ]
    lines += [f'| {kind} | {sequences} | {requests} | {left} |' for kind, (sequences, requests, left) in kinds.items()]
    lines += ['', '| difference that is left, and why | times |', '|---|---|']
    lines += [f'| {reason} | {count} |' for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
    lines += [f'| **not explained**: {text} | {count} |' for text, count in new.items()]
    path.write_text('\n'.join(lines) + '\n')


def by_kind(found):
    """{kind: (sequences, requests, steps left out)}"""
    out = {}
    for each in found:
        sequences, requests, left = out.get(each['kind'], (0, 0, 0))
        out[each['kind']] = (sequences + 1, requests + each['requests'], left + each['left'])
    return out


def by_reason(found):
    out = collections.Counter()
    for each in found:
        out.update(each['expected'])
    return out


def unseen(kinds, reasons):
    """Reasons of kinds that were run, none of whose entries occurred."""
    return sorted({entry.reason for entry in EXPECTED if set(entry.kinds.split()) & set(kinds)} - set(reasons))
