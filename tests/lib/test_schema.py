"""Every sample that Kafka's own serialisers wrote is read and written again to the same bytes.

  python3 tests/lib/test_schema.py
"""
import json

import schema
from wire import Reader

SAMPLES = schema.ROOT / 'protocol/tests/vectors/vectors.jsonl'


def check():
    """How many samples there are; an error names the first that differs."""
    checked = 0
    for line in SAMPLES.read_text().splitlines():
        sample = json.loads(line)
        message = schema.messages().get(sample['message'])
        if message is None or not sample['message'].endswith(('request', 'response')):
            continue
        value = message.decode(sample['version'], Reader(bytes.fromhex(sample['hex'])))
        again = message.encode(sample['version'], value).hex()
        if again != sample['hex']:
            raise AssertionError(f'{sample["message"]} v{sample["version"]} ({sample["sample"]}): {sample["hex"]} became {again}')
        checked += 1
    if checked < 1000:
        raise AssertionError(f'only {checked} samples')
    return checked


if __name__ == '__main__':
    print(f'done: {check()} samples')
