"""Sequences while they are made up: each step is performed against the cluster that is the measure, and written down."""
import json

import schema


class Script:
    """Performs and records steps. `rng` is the only source of choice, so that a seed names a sequence."""

    def __init__(self, target, rng):
        self.target, self.rng, self.steps = target, rng, []

    def step(self, step):
        step = json.loads(json.dumps(step))
        answer = self.target.perform(step)
        if 'patience' in step and 'never' in answer:
            # What the measure does not come to, though it was given time, is no measure.
            raise RuntimeError(f'{step}: {answer}')
        self.steps.append({'step': step, 'answer': answer})
        return answer

    def settle(self, topics):
        self.step({'settle': topics})

    def node(self, do, node):
        """Kills, stops or starts a node."""
        self.step({'node': node, 'do': do})

    def call(self, api, body, version=None, to='node:1', **more):
        """One request in a version that can say it (a random one, unless told), and its normalised answer.

        Fields of `body` that the version does not have are left out. `more`: `on`, `bind`, `mode`, `until`, `patience`, `note`."""
        message = schema.messages()[f'{api} request']
        if version is None:
            low, high = schema.versions()[api]
            version = self.rng.choice([v for v in range(low, high + 1) if says(message, v, body)])
        return self.step({'api': api, 'version': version, 'to': to, 'body': pruned(message.fields, version, body), **more})

    def receive(self, api, version, to, on, **more):
        return self.step({'api': api, 'version': version, 'to': to, 'on': on, 'mode': 'receive', **more})

    def some(self, choices):
        """One of several, each with its weight."""
        return self.rng.choices([c for c, _ in choices], [w for _, w in choices])[0]


def says(message, version, body):
    """Whether a version can carry the body (a null where it must not be one): whatever is not known yet is a stand-in."""
    try:
        message.encode(version, stand_in(message.fields, pruned(message.fields, version, body)))
        return True
    except ValueError:
        return False


def pruned(fields, version, body):
    """The part of a body that a version has fields for."""
    out = {}
    for field in fields:
        if field.name in body and schema.within(version, field.versions):
            value = body[field.name]
            if field.fields and isinstance(value, list):
                value = [pruned(field.fields, version, item) for item in value]
            elif field.fields and value is not None:
                value = pruned(field.fields, version, value)
            out[field.name] = value
    return out


def stand_in(fields, body):
    """A body whose references and bytes are replaced by defaults."""
    out = {}
    for field in fields:
        value = body.get(field.name, field.default)
        if field.fields and isinstance(value, list):
            value = [stand_in(field.fields, item) for item in value]
        elif isinstance(value, dict):
            value = stand_in(field.fields, value) if field.fields else field.default if '$' in value or 'epoch' in value else b''
        elif field.array and value:
            value = [
                item if not isinstance(item, dict) else b'' if 'hex' in item else '0' * 32 if field.type == 'uuid' else 0
                for item in value
            ]
        out[field.name] = value
    return out
