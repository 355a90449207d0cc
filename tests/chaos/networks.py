"""Nodes in network namespaces of their own, joined by a bridge in one more where the clients run; nftables cuts between them.

Every address is one of these namespaces, which nothing leads out of. A rule stands where packets leave or arrive at a node, so a
cut can be of one direction, and it drops silently, as a dead line does.
"""
import os
import pathlib
import subprocess
import sys

import cluster as clusters

HERE = pathlib.Path(__file__).resolve().parent
HUB, KAFKA, INTERNAL, CONTROLLER, HTTP, SLOW = '10.77.0.254', 9092, 10092, 11092, 12092, 20000
# What a slow line does: like one between distant regions.
DELAY_MS, BYTES_PER_SECOND = 60, 4_000_000


def address(node):
    return f'10.77.0.{node}'


def run(*command, **options):
    return subprocess.run(command, check=True, **options)


class Namespaces:
    """The hub, and one for each node. They go with the `with` block."""

    def __init__(self, nodes):
        self.prefix, self.nodes = f'otc{os.getpid()}', nodes

    def name(self, node=None):
        return f'{self.prefix}-{node or "hub"}'

    def __enter__(self):
        try:
            self.make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def make(self):
        hub = self.name()
        run('ip', 'netns', 'add', hub)
        inside = ('ip', '-n', hub)
        run(*inside, 'link', 'set', 'lo', 'up')
        run(*inside, 'link', 'add', 'bridge', 'type', 'bridge')
        run(*inside, 'addr', 'add', f'{HUB}/24', 'dev', 'bridge')
        run(*inside, 'link', 'set', 'bridge', 'up')
        for node in self.nodes:
            there = self.name(node)
            run('ip', 'netns', 'add', there)
            run('ip', '-n', there, 'link', 'set', 'lo', 'up')
            run(*inside, 'link', 'add', f'to{node}', 'type', 'veth', 'peer', 'name', 'line', 'netns', there)
            run(*inside, 'link', 'set', f'to{node}', 'master', 'bridge', 'up')
            run('ip', '-n', there, 'addr', 'add', f'{address(node)}/24', 'dev', 'line')
            run('ip', '-n', there, 'link', 'set', 'line', 'up')

    def __exit__(self, *_):
        for name in [self.name(node) for node in self.nodes] + [self.name()]:
            subprocess.run(['ip', 'netns', 'del', name], check=False, stderr=subprocess.DEVNULL)


class NetCluster(clusters.ProcessCluster):
    """Three nodes, each in its namespace and its zone. Runs in the hub's."""

    def __init__(self, directory, prefix, overrides=()):
        nodes = [1, 2, 3]
        super().__init__(','.join(f'{address(n)}:{KAFKA}' for n in nodes), nodes, directory)
        self.prefix, self.overrides = prefix, [x for o in overrides for x in ('--override', o)]
        for node in nodes:
            (self.directory / f'node-{node}').mkdir()
            (self.directory / f'node-{node}/server.properties').write_text(self.properties(node))
            self.start(node)
        lines = [f'{HUB}:{SLOW + n}={address(n)}:{INTERNAL}' for n in nodes]
        self.proxy = subprocess.Popen([sys.executable, HERE / 'proxy.py', str(DELAY_MS), str(BYTES_PER_SECOND), *lines],
                                      stdout=subprocess.PIPE, text=True)
        if self.proxy.stdout.readline() != 'ready\n':
            raise RuntimeError('the proxy does not start')
        self.wait_ready()

    def properties(self, node):
        here = address(node)
        given = {
            'node.id': node, 'process.roles': 'broker,controller', 'broker.rack': 'abc'[node - 1],
            'listeners': f'PLAINTEXT://{here}:{KAFKA},INTERNAL://{here}:{INTERNAL},CONTROLLER://{here}:{CONTROLLER}',
            'controller.quorum.voters': ','.join(f'{n}@{address(n)}:{CONTROLLER}' for n in self.nodes),
            'log.dirs': self.directory / f'node-{node}/data', 'ottla.http.listener': f'{here}:{HTTP}', 'ottla.threads': 1,
            'default.replication.factor': 3, 'offsets.topic.replication.factor': 3, 'transaction.state.log.replication.factor': 3,
            'min.insync.replicas': 2, 'transaction.state.log.min.isr': 2,
        }
        return ''.join(f'{name}={value}\n' for name, value in given.items())

    def namespace(self, node):
        return f'{self.prefix}-{node}'

    def command(self, node):
        config = str(self.directory / f'node-{node}/server.properties')
        return ['ip', 'netns', 'exec', self.namespace(node), clusters.ottla_binary(), 'server', '--config', config, *self.overrides]

    def rules(self, node, text):
        """Replaces the rules of a node, all at once."""
        table = f'table inet chaos\ndelete table inet chaos\ntable inet chaos {{\n{text}}}\n'
        run('ip', 'netns', 'exec', self.namespace(node), 'nft', '-f', '-', input=table, text=True)

    def drop(self, node, heard=(), told=()):
        """The node hears nothing from some, and tells nothing to some."""
        chains = ''
        if heard:
            chains += f'chain heard {{ type filter hook input priority 0; ip saddr {{ {", ".join(heard)} }} drop; }}\n'
        if told:
            chains += f'chain told {{ type filter hook output priority 0; ip daddr {{ {", ".join(told)} }} drop; }}\n'
        self.rules(node, chains)

    def slow(self, node):
        """What the node opens to the others' INTERNAL listeners goes through the proxy; what was open is reset."""
        others = [n for n in self.nodes if n != node]
        detours = ' '.join(f'ip daddr {address(n)} tcp dport {INTERNAL} dnat ip to {HUB}:{SLOW + n};' for n in others)
        resets = f'ip daddr {{ {", ".join(address(n) for n in others)} }} tcp dport {INTERNAL} reject with tcp reset;'
        self.rules(node, f'chain detour {{ type nat hook output priority -100; {detours} }}\n'
                         f'chain refuse {{ type filter hook output priority 0; {resets} }}\n')

    def heal(self):
        for node in self.nodes:
            self.rules(node, '')

    def close(self):
        proxy = getattr(self, 'proxy', None)
        if proxy:
            proxy.kill()
            proxy.wait()
        super().close()
