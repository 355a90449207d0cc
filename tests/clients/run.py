"""Runs the client suites: prepares each, runs it within a wall-clock limit, counts its lines and prints a table.

A suite passes when it ends with exit code 0, prints `done: N checks` and as many `ok` lines. One that hangs, dies half way
or checks nothing has failed.
"""
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'lib'))
import cluster  # noqa: E402
import installs  # noqa: E402


class Missing(Exception):
    """What a suite needs is not on this machine, and it can be done without."""


def librdkafka():
    return [installs.python('confluent-kafka==2.16.1'), HERE / 'librdkafka.py']


def storage():
    return [installs.python('confluent-kafka==2.16.1'), HERE / 'storage.py']


def java():
    jars, classes = installs.kafka_class_path(), installs.CACHE / 'java-classes'
    classes.mkdir(parents=True, exist_ok=True)
    subprocess.run(['javac', '-d', classes, '-cp', jars, HERE / 'java/ClientSuite.java'], check=True)
    return ['java', '-Xmx1g', '-XX:TieredStopAtLevel=1', '-Dlog4j2.level=OFF', '-cp', f'{classes}:{jars}', 'ClientSuite']


def tools():
    return ['env', f'KAFKA_CLASS_PATH={installs.kafka_class_path()}', sys.executable, HERE / 'tools.py']


def next_groups():
    installs.kafka_class_path()
    return [installs.python('confluent-kafka==2.16.1'), HERE / 'next_groups.py']


def chains():
    return [installs.python('confluent-kafka==2.16.1'), HERE / 'chains.py']


def zones():
    python = installs.python('confluent-kafka==2.16.1')
    return ['env', f'KAFKA_CLASS_PATH={installs.kafka_class_path()}', python, HERE / 'zones.py']


def kcat():
    installs.debian('kcat', 'kcat')
    return [sys.executable, HERE / 'kcat.py']


def kafka_python():
    return [installs.python('kafka-python==3.0.12', 'python-snappy', 'lz4', 'zstandard'), HERE / 'kafka_python_suite.py']


def aiokafka():
    return [installs.python('aiokafka==0.14.0', 'cramjam'), HERE / 'aiokafka_suite.py']


def franz_go():
    binary = installs.CACHE / 'franz-go'
    installs.CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run(['go', 'build', '-o', binary, '.'], cwd=HERE / 'go', check=True)
    return [binary]


def differential():
    return [sys.executable, HERE.parent / 'differential/suite.py']


def kafkajs():
    if not shutil.which('node') or not shutil.which('npm'):
        raise Missing('node and npm are not installed')
    home = installs.CACHE / 'kafkajs-2.2.4'
    if not (home / 'node_modules/kafkajs').exists():
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run(['npm', 'install', '--silent', '--no-audit', '--no-fund', '--prefix', home, 'kafkajs@2.2.4'], check=True)
    return ['env', f'NODE_PATH={home}/node_modules', 'node', '--no-deprecation', HERE / 'node/suite.cjs']


def hostile():
    return [sys.executable, HERE / 'hostile.py']


# Name, preparation, seconds that the suite may take once it is prepared. Hostile last: it must not disturb what follows.
SUITES = [('librdkafka', librdkafka, 240), ('storage', storage, 300), ('java', java, 240), ('tools', tools, 200),
          ('kcat', kcat, 90), ('kafka-python', kafka_python, 120),
          ('aiokafka', aiokafka, 120), ('franz-go', franz_go, 120), ('kafkajs', kafkajs, 150), ('next-groups', next_groups, 300),
          ('chains', chains, 200),
          ('zones', zones, 200), ('differential', differential, 60), ('hostile', hostile, 120)]


def run(name, prepare, limit, environment):
    """Runs one suite and returns (passed, failed, seconds, note)."""
    try:
        command = [str(part) for part in prepare()]
    except Missing as e:
        print(f'== {name} IS SKIPPED: {e}', flush=True)
        return 0, 0, 0.0, f'SKIPPED: {e}'
    except (subprocess.CalledProcessError, OSError, SystemExit) as e:
        return 0, 1, 0.0, f'not prepared: {e}'
    print(f'== {name}', flush=True)
    log, begun, lines, note = installs.CACHE / f'{name}.log', time.monotonic(), [], ''
    with open(log, 'w') as errors:
        # A session of its own, so that what the suite started ends with it.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
                                   stdin=subprocess.DEVNULL, start_new_session=True)
        timer = threading.Timer(limit, _kill_group, [process])
        timer.start()
        for line in process.stdout:
            print('  ' + line.rstrip()[:600], flush=True)
            lines.append(line)
        code = process.wait()
        timed_out = time.monotonic() - begun >= limit
        timer.cancel()
        _kill_group(process)
    passed = sum(line.startswith('ok ') for line in lines)
    failed = sum(line.startswith('FAIL ') for line in lines)
    if timed_out:
        note = f'not done within {limit} s'
    elif not any(line.startswith(f'done: {passed + failed} checks') for line in lines):
        note = f'ended early with {code}'
    elif not passed + failed:
        note = 'it checked nothing'
    elif code and not failed:
        note = f'exit code {code}'
    if note or failed:
        print(_tail(log), flush=True)
    return passed, failed + bool(note), time.monotonic() - begun, note


def _kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(log, lines=40):
    return '\n'.join('  | ' + x[:300] for x in log.read_text(errors='replace').splitlines()[-lines:])


def main(wanted):
    unknown = set(wanted) - {name for name, _, _ in SUITES}
    if unknown:
        sys.exit(f'no such suite: {", ".join(sorted(unknown))} (there are: {", ".join(n for n, _, _ in SUITES)})')
    installs.CACHE.mkdir(parents=True, exist_ok=True)
    rows, broken = [], ''
    try:
        with contextlib.ExitStack() as stack:
            environment, local = dict(os.environ), None
            if not os.environ.get('BOOTSTRAP'):
                local = stack.enter_context(cluster.OttlaLocal(log=installs.CACHE / 'ottla-local.log'))
                environment['BOOTSTRAP'] = local.bootstrap
                environment['BROKER_PIDS'] = ' '.join(map(str, local.broker_pids()))
            for name, prepare, limit in SUITES:
                if name in wanted or not wanted:
                    rows.append((name, *run(name, prepare, limit, environment)))
                    if local:
                        local.check_alive()
    except (RuntimeError, TimeoutError) as e:
        broken = str(e)
    print(f'\n{"suite":<14}{"passed":>8}{"failed":>8}{"seconds":>9}')
    for name, passed, failed, seconds, note in rows:
        print(f'{name:<14}{passed:>8}{failed:>8}{seconds:>9.1f}  {note}')
    if broken:
        print(f'the cluster: {broken}')
        local_log = installs.CACHE / 'ottla-local.log'
        print(_tail(local_log) if local_log.exists() else '')
    passed, failed = (sum(row[i] for row in rows) for i in (1, 2))
    print(f'\n{passed} passed, {failed + bool(broken)} failed')
    sys.exit(1 if failed or broken or not passed else 0)


if __name__ == '__main__':
    main(sys.argv[1:])
