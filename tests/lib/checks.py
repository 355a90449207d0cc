"""How a client suite says what it checked.

A suite registers functions whose doc string is the sentence that they check. Each prints `ok …` or `FAIL …`, one line, and
the suite ends with `done: N checks`, by which the runner tells a suite that finished from one that died half way. The
Java and Go suites print the same lines.
"""
import contextlib
import faulthandler
import os
import sys
import time
import traceback

import wire


# A check that hangs ends its suite after this many seconds, with the stack of every thread on standard error.
CHECK_LIMIT = 120


class Suite:
    def __init__(self, name):
        self.name, self.checks = name, []

    def check(self, function):
        self.checks.append(function)
        return function

    def main(self, close=lambda: None):
        """Runs every check whose sentence or function name contains one of the arguments (all, without any), then `close`."""
        wanted, failed, ran = sys.argv[1:], 0, 0
        for function in self.checks:
            sentence = (function.__doc__ or function.__name__).strip()
            if wanted and not any(w in sentence or w in function.__name__ for w in wanted):
                continue
            ran += 1
            begun = time.monotonic()
            faulthandler.dump_traceback_later(CHECK_LIMIT, exit=True)
            try:
                function()
                print(f'ok {sentence} ({time.monotonic() - begun:.1f} s)', flush=True)
            except BaseException as e:
                failed += 1
                reason = (str(e).strip() or repr(e)).splitlines()[0][:400]
                print(f'FAIL {sentence}: {type(e).__name__}: {reason}', flush=True)
                traceback.print_exc(file=sys.stderr)
                if isinstance(e, KeyboardInterrupt):
                    break
            finally:
                faulthandler.cancel_dump_traceback_later()
        print(f'done: {ran} checks', flush=True)
        sys.stdout.flush()
        close()
        # Clients hold native threads that can outlive a failed check; the verdict is printed, so nothing may hang here.
        os._exit(1 if failed or not ran else 0)


def bootstrap():
    value = os.environ.get('BOOTSTRAP')
    if not value:
        sys.exit('BOOTSTRAP is not set: start the suite by tests/clients/run.sh')
    return value


def addresses():
    """BOOTSTRAP as a list of (host, port)."""
    pairs = (item.rsplit(':', 1) for item in bootstrap().split(','))
    return [(host, int(port)) for host, port in pairs]


def eventually(condition, what, timeout=30.0, pause=0.05):
    """Polls `condition` until it returns something true, and returns that; exceptions count as 'not yet'."""
    deadline, last = time.monotonic() + timeout, None
    while True:
        try:
            value = condition()
            if value:
                return value
            last = value
        except Exception as e:  # the reason is told when the deadline passes
            last = e
        if time.monotonic() > deadline:
            raise TimeoutError(f'{what}: not within {timeout:.0f} s (last: {last!r})')
        time.sleep(pause)


def wait_topic(name, partitions):
    """Every broker knows every partition of the topic with a leader: metadata reaches brokers one after another."""
    def known(address):
        error, parts = wire.metadata(address, [name], timeout=5)[2][name]
        return not error and len(parts) == partitions and all(p[0] == 0 and p[1] >= 0 for p in parts.values())

    eventually(lambda: all(known(a) for a in addresses()), f'every broker to know {name}')


@contextlib.contextmanager
def raises(kind, test=lambda e: True, what='an error'):
    """Expects an exception of `kind` for which `test` holds."""
    try:
        yield
    except kind as e:
        if not test(e):
            raise AssertionError(f'expected {what}, got {e!r}') from e
        return
    raise AssertionError(f'expected {what}, nothing was raised')


def equal(got, want, what=''):
    if got != want:
        raise AssertionError(f'{what}: got {got!r:.300}, want {want!r:.300}')
